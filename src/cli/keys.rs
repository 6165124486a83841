//! Keys of tenants whose data is encrypted in a store: where they come from, and a new one.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context;
use tidelock_receiver::vault::{self, KeyFileError, TenantKeys};

use super::{exit::Failure, output};

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Encryption")]
pub(crate) struct KeyArgs {
    /// The key of a tenant whose data is encrypted in the store; may be given several times. Or set TIDELOCK_KEY_TENANT (in capitals, `_` for `-` and `.`)
    #[arg(long, value_name = "TENANT=FILE", value_parser = tenant_file)]
    tenant_key: Vec<(String, PathBuf)>,
    /// A directory with such keys: files TENANT or TENANT.key
    #[arg(long, value_name = "DIR")]
    tenant_keys: Option<PathBuf>,
}

/// Make a key for a tenant whose data is to be encrypted in the store
///
/// Keep a copy where the store's loss does not reach it: without the key nothing of the tenant can be read.
#[derive(Debug, clap::Args)]
pub(crate) struct KeygenArgs {
    /// Where to write it, for nobody else to read; it must not exist. Standard output if absent
    file: Option<PathBuf>,
}

impl KeyArgs {
    /// Reads them, and those of the environment.
    pub(crate) fn load(&self) -> Result<TenantKeys, Failure> {
        self.read().map_err(Failure::usage)
    }

    fn read(&self) -> Result<TenantKeys, KeyFileError> {
        let mut keys = TenantKeys::default();
        for (tenant, file) in &self.tenant_key {
            keys.add_file(tenant, file)?;
        }
        if let Some(dir) = &self.tenant_keys {
            keys.add_dir(dir)?;
        }
        // What is not text is no key, and the name of no tenant.
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        keys.add_variables(std::env::vars_os().filter_map(text))?;
        Ok(keys)
    }
}

pub(crate) fn keygen(args: &KeygenArgs) -> Result<(), Failure> {
    let key = vault::generate();
    let Some(file) = &args.file else {
        output::print(&key);
        return Ok(());
    };
    write(file, &key).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(())
}

fn write(file: &Path, key: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    writeln!(file, "{key}")?;
    file.sync_all()
}

fn tenant_file(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((tenant, file)) if !file.is_empty() => Ok((tenant.to_owned(), file.into())),
        _ => Err("is not TENANT=FILE".to_owned()),
    }
}
