//! Making the authority, and certificates signed by it.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    path::Path,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};

use super::{CA_CERTIFICATE_FILE, CA_KEY_FILE, PkiError, Validity, write};
use crate::{
    identity::{CA_FILE, CERTIFICATE_FILE, KEY_FILE, SpiffeId, Subject, TrustDomain},
    ids::{VolumeName, check_part},
    limits,
};

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The sidecar of these volumes, at least one, all of one tenant.
    Sidecar {
        /// What it may write.
        volumes: BTreeSet<VolumeName>,
    },
    /// A receiver.
    Receiver {
        /// Its name in its SPIFFE id.
        name: String,
        /// The DNS names and IP addresses it is dialled by, at least one.
        hosts: Vec<String>,
    },
    /// An operator of one tenant, or of all.
    Operator {
        /// The only tenant it may touch.
        tenant: Option<String>,
    },
}

/// Makes an authority in `directory`, which is created if need be. Refuses to overwrite one.
pub fn init(directory: &Path, validity: Validity) -> Result<(), PkiError> {
    let (certificate_path, key_path) = (directory.join(CA_CERTIFICATE_FILE), directory.join(CA_KEY_FILE));
    for path in [&key_path, &certificate_path] {
        if path.symlink_metadata().is_ok() {
            return Err(PkiError::Exists(path.clone()));
        }
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    // Each authority has a name of its own: with equal names, a peer of another authority would look like a forgery.
    params.distinguished_name = common_name(&format!("Tidelock CA {}", hex::encode(&fingerprint(&key)[..6])));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, validity);
    let certificate = params.self_signed(&key)?;
    write::create_directory(directory)?;
    write::create(&key_path, key.serialize_pem().as_bytes(), write::PRIVATE)?;
    write::create(&certificate_path, certificate.pem().as_bytes(), write::PUBLIC)
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
    let authority_pem = read(&certificate_path)?;
    let authority_key = read(&authority.join(CA_KEY_FILE))?;
    let bad = |source| PkiError::BadAuthority { directory: authority.to_owned(), source };
    let authority_key = KeyPair::from_pem(&authority_key).map_err(bad)?;
    let (authority_ends, authority_public) =
        inspect(&authority_pem).ok_or_else(|| bad(rcgen::Error::CouldNotParseCertificate))?;
    if authority_public != authority_key.subject_public_key_info() {
        return Err(PkiError::AuthorityKeyMismatch(authority.join(CA_KEY_FILE)));
    }
    let issuer = Issuer::from_ca_cert_pem(&authority_pem, authority_key).map_err(bad)?;
    if authority_ends <= validity.not_before {
        return Err(PkiError::AuthorityExpired { path: certificate_path, not_after: authority_ends });
    }
    if out.join(CA_KEY_FILE).symlink_metadata().is_ok() {
        return Err(PkiError::IntoAuthority(out.to_owned()));
    }

    let mut params = params(domain, request)?;
    set_validity(&mut params, Validity { not_after: validity.not_after.min(authority_ends), ..validity });
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    write::identity(
        out,
        [
            (CA_FILE, authority_pem.as_bytes(), write::PUBLIC),
            (KEY_FILE, key.serialize_pem().as_bytes(), write::PRIVATE),
            (CERTIFICATE_FILE, certificate.pem().as_bytes(), write::PUBLIC),
        ],
    )
}

fn params(domain: &TrustDomain, request: &Request) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    let subjects = subjects(request)?;
    for subject in subjects {
        let id = SpiffeId { domain: domain.clone(), subject };
        params.subject_alt_names.push(SanType::URI(id.to_string().try_into()?));
    }
    // What a certificate may do is decided by its SPIFFE ids. A receiver may present itself as a client too; it is
    // refused there with a sentence rather than by an alert.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if let Request::Receiver { hosts, .. } = request {
        for host in hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.distinguished_name = common_name(match request {
        Request::Sidecar { .. } => "Tidelock sidecar",
        Request::Receiver { .. } => "Tidelock receiver",
        Request::Operator { .. } => "Tidelock operator",
    });
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn subjects(request: &Request) -> Result<Vec<Subject>, PkiError> {
    let valid = |part: &str| {
        check_part(part)
            .map_err(|_| PkiError::BadRequest("the name is not valid: use 1 to 63 of a-z 0-9 - . _"))
    };
    match request {
        Request::Sidecar { volumes } => {
            let tenants: BTreeSet<&str> = volumes.iter().map(VolumeName::tenant).collect();
            match tenants.len() {
                0 => Err(PkiError::BadRequest("a sidecar's certificate names at least one volume")),
                1 if volumes.len() <= limits::SPIFFE_IDS_MAX => {
                    Ok(volumes.iter().cloned().map(Subject::Volume).collect())
                }
                1 => Err(PkiError::BadRequest("too many volumes for one certificate: issue several")),
                _ => Err(PkiError::BadRequest(
                    "the volumes are of several tenants: issue one certificate for each",
                )),
            }
        }
        Request::Receiver { hosts, .. } if hosts.is_empty() => Err(PkiError::BadRequest(
            "a receiver's certificate names at least one DNS name or IP address it is dialled by",
        )),
        Request::Receiver { name, .. } => valid(name).map(|()| vec![Subject::Receiver(name.clone())]),
        Request::Operator { tenant } => {
            tenant.as_deref().map_or(Ok(()), valid)?;
            Ok(vec![Subject::Operator(tenant.clone())])
        }
    }
}

fn host_name(host: &str) -> Result<SanType, PkiError> {
    let bad = || PkiError::BadHost(host.to_owned());
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    // A wildcard is valid for a certificate and not for a connection.
    ServerName::try_from(host.strip_prefix("*.").unwrap_or(host)).map_err(|_| bad())?;
    Ok(SanType::DnsName(host.try_into().map_err(|_| bad())?))
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

fn fingerprint(key: &KeyPair) -> [u8; 32] {
    *blake3::hash(&key.subject_public_key_info()).as_bytes()
}

/// The end of the authority's validity, and its public key.
fn inspect(pem: &str) -> Option<(SystemTime, Vec<u8>)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let ends = Duration::from_secs(certificate.validity().not_after.timestamp().try_into().ok()?);
    Some((SystemTime::UNIX_EPOCH + ends, certificate.public_key().raw.to_vec()))
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PkiError::NoAuthority(path.to_owned()),
        _ => PkiError::Io { path: path.to_owned(), source },
    })
}
