//! An authority in memory: it signs what its holder decides, and keys only where it was asked to make them.
//!
//! A signing request proves that its sender has the key, and nothing else in it counts: whom the certificate is for is
//! the holder's decision alone.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use thiserror::Error;

use super::{PkiError, Validity};
use crate::{
    identity::{SpiffeId, Subject, TrustDomain},
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
    /// Who reads the points of these volumes, at least one, all of one tenant.
    Reader {
        /// What it may read.
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

/// Why a certificate and a key are no authority.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// One of them cannot be read.
    #[error("not the certificate and key of an authority ({0})")]
    Unreadable(#[from] rcgen::Error),
    /// The key is another certificate's.
    #[error("the key is not that of the certificate")]
    KeyMismatch,
}

/// A certificate that may sign, and its key.
pub struct Authority {
    certificate: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl Authority {
    /// A new one, with a name of its own: with equal names, a peer of another authority would look like a forgery.
    pub fn generate(validity: Validity) -> Result<Self, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name =
            common_name(&format!("Tidelock CA {}", hex::encode(&fingerprint(&key)[..6])));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, validity);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self::from_pem(&certificate, &key.serialize_pem()).expect("what was just made fits together"))
    }

    /// From the certificate and the key, both PEM.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let pair = KeyPair::from_pem(key)?;
        let (not_after, public) = inspect(certificate).ok_or(rcgen::Error::CouldNotParseCertificate)?;
        if public != pair.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, pair)?;
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), issuer, not_after })
    }

    /// The certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// The key, PEM.
    pub fn key_pem(&self) -> &str {
        &self.key
    }

    /// Its last second.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Makes a key and signs a certificate for it: certificate and key, PEM. The validity is cut to the authority's.
    pub fn issue(
        &self,
        domain: &TrustDomain,
        request: &Request,
        validity: Validity,
    ) -> Result<(String, String), PkiError> {
        let mut params = params(domain, request)?;
        set_validity(&mut params, self.within(validity));
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// Signs a certificate for the key of a signing request (PEM); whatever else that asks for is not looked at.
    pub fn sign(
        &self,
        signing_request: &str,
        domain: &TrustDomain,
        request: &Request,
        validity: Validity,
    ) -> Result<String, PkiError> {
        let asked = CertificateSigningRequestParams::from_pem(signing_request)?;
        let mut params = params(domain, request)?;
        set_validity(&mut params, self.within(validity));
        Ok(params.signed_by(&asked.public_key, &self.issuer)?.pem())
    }

    /// Makes a key and a certificate for a web server with these DNS names; both PEM.
    pub fn issue_web(&self, hosts: &[String], validity: Validity) -> Result<(String, String), PkiError> {
        let mut params = CertificateParams::default();
        for host in hosts {
            params.subject_alt_names.push(host_name(host)?);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.distinguished_name = common_name("Tidelock injector");
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, self.within(validity));
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    fn within(&self, validity: Validity) -> Validity {
        Validity { not_after: validity.not_after.min(self.not_after), ..validity }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A new key and a request to have it signed; both PEM.
pub fn signing_request() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("Tidelock");
    Ok((params.serialize_request(&key)?.pem()?, key.serialize_pem()))
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
        Request::Reader { .. } => "Tidelock reader",
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
        Request::Sidecar { volumes } | Request::Reader { volumes } => {
            let subject: fn(VolumeName) -> Subject = match request {
                Request::Sidecar { .. } => Subject::Volume,
                _ => Subject::Reader,
            };
            let tenants: BTreeSet<&str> = volumes.iter().map(VolumeName::tenant).collect();
            match tenants.len() {
                0 => Err(PkiError::BadRequest("a certificate for volumes names at least one")),
                1 if volumes.len() <= limits::SPIFFE_IDS_MAX => {
                    Ok(volumes.iter().cloned().map(subject).collect())
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

/// The end of a certificate's validity, and its public key.
fn inspect(pem: &str) -> Option<(SystemTime, Vec<u8>)> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
    let ends = Duration::from_secs(certificate.validity().not_after.timestamp().try_into().ok()?);
    Some((SystemTime::UNIX_EPOCH + ends, certificate.public_key().raw.to_vec()))
}
