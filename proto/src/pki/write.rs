//! Writing keys and certificates: durable, never half there, private from the first byte.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::PkiError;
use crate::identity::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};

/// Mode of a private key.
pub(super) const PRIVATE: u32 = 0o600;
/// Mode of a certificate.
pub(super) const PUBLIC: u32 = 0o644;

/// Creates a directory and its parents, readable by this user alone, if it is not there.
pub(super) fn create_directory(path: &Path) -> Result<(), PkiError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(at(path))
}

/// Creates a file that was not there.
pub(super) fn create(path: &Path, content: &[u8], mode: u32) -> Result<(), PkiError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        sync_parent(path)
    };
    write().map_err(at(path))
}

/// Writes an identity that was issued elsewhere into a directory, which may be there already: PEM texts of certificate, key
/// and authorities.
pub fn renew(out: &Path, certificate: &str, key: &str, authorities: &str) -> Result<(), PkiError> {
    identity(
        out,
        [
            (CA_FILE, authorities.as_bytes(), PUBLIC),
            (KEY_FILE, key.as_bytes(), PRIVATE),
            (CERTIFICATE_FILE, certificate.as_bytes(), PUBLIC),
        ],
    )
}

/// Writes the files of an identity directory.
///
/// Where `out` is new they are made in a directory beside it, which then takes its name. In an `out` that is there they are
/// made in a directory within it (it may be a mount of its own), and each is renamed over the old one.
pub(super) fn identity(out: &Path, files: [(&str, &[u8], u32); 3]) -> Result<(), PkiError> {
    let staging = staging(out)?;
    let result = fill(&staging, out, files);
    if result.is_err() {
        // Best effort: the error that is reported is the first one.
        let _ = fs::remove_dir_all(&staging);
    }
    result
}

fn fill(staging: &Path, out: &Path, files: [(&str, &[u8], u32); 3]) -> Result<(), PkiError> {
    for (name, content, mode) in files {
        create(&staging.join(name), content, mode)?;
    }
    if out.symlink_metadata().is_err() {
        fs::rename(staging, out).map_err(at(out))?;
        return sync_parent(out).map_err(at(out));
    }
    for (name, ..) in files {
        let path = out.join(name);
        fs::rename(staging.join(name), &path).map_err(at(&path))?;
    }
    File::open(out).and_then(|directory| directory.sync_all()).map_err(at(out))?;
    fs::remove_dir(staging).map_err(at(staging))
}

fn staging(out: &Path) -> Result<PathBuf, PkiError> {
    let name = out.file_name().ok_or(PkiError::BadRequest("the output must be a directory with a name"))?;
    let parent = if out.symlink_metadata().is_ok() { out } else { parent(out) };
    create_directory(parent)?;
    let mut staging_name = std::ffi::OsString::from(".");
    staging_name.push(name);
    staging_name.push(format!(".{}.new", std::process::id()));
    let staging = parent.join(staging_name);
    DirBuilder::new().mode(0o700).create(&staging).map_err(at(&staging))?;
    Ok(staging)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::Io { path, source }
}
