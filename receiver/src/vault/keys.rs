//! Keys of tenants: 32 random bytes each, from files or the environment.
//!
//! Files and variables are read once, by whoever starts; nothing here reads them again. A key is never printed.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;
use tidelock_proto::ids::check_part;

/// What names of environment variables with keys begin with.
const ENV_PREFIX: &str = "TIDELOCK_KEY_";

/// The longest file that is read as a key, in bytes.
const FILE_MAX_BYTES: u64 = 4096;

/// The keys of some tenants. Cheap to clone.
#[derive(Clone, Default)]
pub struct TenantKeys(Arc<Inner>);

#[derive(Clone, Default)]
struct Inner {
    tenants: HashMap<String, [u8; 32]>,
    /// By the rest of the variable's name.
    variables: HashMap<String, [u8; 32]>,
}

/// A key that cannot be used.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The file or directory is not readable.
    #[error("key {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else.
    #[error("key {0}: not 32 bytes, raw or as 64 hexadecimal digits; `tidelock store keygen` makes one")]
    Shape(String),
    /// Its tenant's name is none.
    #[error("key {0}: its name is not a tenant's")]
    Name(String),
    /// The same tenant twice.
    #[error("tenant {0} has more than one key")]
    Twice(String),
}

impl TenantKeys {
    /// Adds the key of a tenant from a file.
    pub fn add_file(&mut self, tenant: &str, path: &Path) -> Result<(), KeyFileError> {
        let key = read(path)?;
        check_part(tenant).map_err(|_| KeyFileError::Name(tenant.to_owned()))?;
        let known = Arc::make_mut(&mut self.0).tenants.insert(tenant.to_owned(), key);
        if known.is_some() { Err(KeyFileError::Twice(tenant.to_owned())) } else { Ok(()) }
    }

    /// Adds the keys in a directory: each file `TENANT` or `TENANT.key`. Hidden names are left out, as a mounted secret has some.
    pub fn add_dir(&mut self, dir: &Path) -> Result<(), KeyFileError> {
        let failed = |source| KeyFileError::Io { path: dir.to_owned(), source };
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if !name.starts_with('.') && path.is_file() {
                self.add_file(name.strip_suffix(".key").unwrap_or(&name), &path)?;
            }
        }
        Ok(())
    }

    /// Adds those of some environment variables that are called `TIDELOCK_KEY_TENANT`: the tenant's name in capitals, with `_` for
    /// `-` and `.`; the value has 64 hexadecimal digits.
    pub fn add_variables(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), KeyFileError> {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
            let key = parse(value.as_bytes()).ok_or_else(|| KeyFileError::Shape(name.clone()))?;
            Arc::make_mut(&mut self.0).variables.insert(rest.to_owned(), key);
        }
        Ok(())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.tenants.is_empty() && self.0.variables.is_empty()
    }

    /// The key of a tenant; a file comes before a variable.
    pub(super) fn get(&self, tenant: &str) -> Option<&[u8; 32]> {
        self.0.tenants.get(tenant).or_else(|| self.0.variables.get(&variable(tenant)))
    }
}

impl fmt::Debug for TenantKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tenants: Vec<&String> = self.0.tenants.keys().collect();
        tenants.sort();
        f.debug_tuple("TenantKeys").field(&tenants).finish()
    }
}

/// A new key, as 64 hexadecimal digits.
pub fn generate() -> String {
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).expect("the system has randomness");
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a tenant as the rest of a variable's.
fn variable(tenant: &str) -> String {
    tenant.to_ascii_uppercase().replace(['-', '.'], "_")
}

fn read(path: &Path) -> Result<[u8; 32], KeyFileError> {
    let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_MAX_BYTES).read_to_end(&mut bytes)).map_err(failed)?;
    parse(&bytes).ok_or_else(|| KeyFileError::Shape(path.display().to_string()))
}

fn parse(bytes: &[u8]) -> Option<[u8; 32]> {
    if let Ok(raw) = bytes.try_into() {
        return Some(raw);
    }
    let digits = bytes.trim_ascii();
    if digits.len() != 64 {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.as_chunks::<2>().0) {
        let digit = |at: usize| (pair[at] as char).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_raw_in_digits_and_in_a_variable() {
        let dir = tempfile::tempdir().expect("a directory");
        let (text, path) = (generate(), |name: &str| dir.path().join(name));
        let raw = parse(text.as_bytes()).expect("a key");
        std::fs::write(path("a.key"), format!("{text}\n")).expect("written");
        std::fs::write(path("b-c.d"), raw).expect("written");
        std::fs::write(path(".hidden"), "no key").expect("written");
        let mut keys = TenantKeys::default();
        keys.add_dir(dir.path()).expect("read");
        let variables = [("TIDELOCK_KEY_E_F", text.as_str()), ("HOME", "/"), ("TIDELOCK_KEY_A", &generate())];
        keys.add_variables(variables.map(|(name, value)| (name.to_owned(), value.to_owned()))).expect("read");
        for tenant in ["a", "b-c.d", "e-f", "e.f"] {
            assert_eq!(keys.get(tenant), Some(&raw), "{tenant}");
        }
        assert_eq!(keys.get("g"), None);
        assert!(!format!("{keys:?}").contains(&text[..8]));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut keys = TenantKeys::default();
        for bad in ["", "abc", &generate()[1..], &format!("{}zz", &generate()[2..])] {
            std::fs::write(dir.path().join("t"), bad).expect("written");
            let error = keys.add_file("t", &dir.path().join("t")).expect_err("it is no key");
            assert!(matches!(error, KeyFileError::Shape(_)), "{error}");
        }
        std::fs::write(dir.path().join("t"), generate()).expect("written");
        keys.add_file("t", &dir.path().join("t")).expect("a key");
        assert!(matches!(keys.add_file("t", &dir.path().join("t")), Err(KeyFileError::Twice(_))));
        assert!(matches!(keys.add_file("T/", &dir.path().join("t")), Err(KeyFileError::Name(_))));
        assert!(matches!(keys.add_file("u", &dir.path().join("u")), Err(KeyFileError::Io { .. })));
    }
}
