//! The authority and certificates signed by it, as files.

use std::{fs, io, path::Path};

use super::{
    CA_CERTIFICATE_FILE, CA_KEY_FILE, PkiError, Validity,
    authority::{Authority, AuthorityError, Request},
    write,
};
use crate::identity::TrustDomain;

/// Makes an authority in `directory`, which is created if need be. Refuses to overwrite one.
pub fn init(directory: &Path, validity: Validity) -> Result<(), PkiError> {
    let (certificate_path, key_path) = (directory.join(CA_CERTIFICATE_FILE), directory.join(CA_KEY_FILE));
    for path in [&key_path, &certificate_path] {
        if path.symlink_metadata().is_ok() {
            return Err(PkiError::Exists(path.clone()));
        }
    }
    let made = Authority::generate(validity)?;
    write::create_directory(directory)?;
    write::create(&key_path, made.key_pem().as_bytes(), write::PRIVATE)?;
    write::create(&certificate_path, made.certificate_pem().as_bytes(), write::PUBLIC)
}

/// Signs a certificate with the authority in `authority` and writes an identity directory to `out`.
///
/// A new `out` appears whole or not at all. In an existing one the three files are replaced one by one; a running
/// [`crate::identity::Identity`] takes them only once they fit together. The validity is cut to the authority's.
pub fn issue(
    authority: &Path,
    domain: &TrustDomain,
    request: &Request,
    validity: Validity,
    out: &Path,
) -> Result<(), PkiError> {
    let certificate_path = authority.join(CA_CERTIFICATE_FILE);
    let (certificate, key) = (read(&certificate_path)?, read(&authority.join(CA_KEY_FILE))?);
    let signer = Authority::from_pem(&certificate, &key).map_err(|error| match error {
        AuthorityError::Unreadable(source) => {
            PkiError::BadAuthority { directory: authority.to_owned(), source }
        }
        AuthorityError::KeyMismatch => PkiError::AuthorityKeyMismatch(authority.join(CA_KEY_FILE)),
    })?;
    if signer.not_after() <= validity.not_before {
        return Err(PkiError::AuthorityExpired { path: certificate_path, not_after: signer.not_after() });
    }
    if out.join(CA_KEY_FILE).symlink_metadata().is_ok() {
        return Err(PkiError::IntoAuthority(out.to_owned()));
    }

    let (certificate, key) = signer.issue(domain, request, validity)?;
    write::renew(out, &certificate, &key, signer.certificate_pem())
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PkiError::NoAuthority(path.to_owned()),
        _ => PkiError::Io { path: path.to_owned(), source },
    })
}
