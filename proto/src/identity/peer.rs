//! A peer and its rights, read from a certificate that TLS has already verified.

use std::{collections::BTreeSet, fmt};

use thiserror::Error;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use super::spiffe::{SpiffeId, SpiffeIdError, Subject};
use crate::{ids::VolumeName, limits};

/// What a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The writer of these volumes, which are all of one tenant.
    Sidecar {
        /// Never empty.
        volumes: BTreeSet<VolumeName>,
    },
    /// Who reads the points of these volumes, which are all of one tenant, and changes nothing.
    Reader {
        /// Never empty.
        volumes: BTreeSet<VolumeName>,
    },
    /// A receiver.
    Receiver,
    /// Someone who lists, restores and promotes.
    Operator {
        /// The only tenant it may touch; `None` is every tenant.
        tenant: Option<String>,
    },
}

/// The other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// What it is.
    pub role: Role,
    /// The ids that say so, sorted.
    pub spiffe_ids: Vec<SpiffeId>,
}

/// Why a certificate names no peer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The bytes are not an X.509 certificate.
    #[error("the certificate is not valid X.509")]
    NotX509,
    /// No URI name begins with `spiffe:`.
    #[error(
        "the certificate carries no SPIFFE id: issue one with a URI name such as spiffe://tidelock/operator"
    )]
    NoSpiffeId,
    /// More than [`limits::SPIFFE_IDS_MAX`] ids.
    #[error("the certificate carries more than {max} SPIFFE ids", max = limits::SPIFFE_IDS_MAX)]
    TooManySpiffeIds,
    /// One of the ids means nothing.
    #[error(transparent)]
    SpiffeId(#[from] SpiffeIdError),
    /// The ids do not add up to one role of one tenant.
    #[error("the certificate mixes {first} and {second}: one certificate is one role in one tenant")]
    Mixed {
        /// The role so far.
        first: String,
        /// The id that does not fit.
        second: String,
    },
}

impl Peer {
    /// Reads the peer from a DER certificate. Says nothing about who signed it.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse(der)?;
        let mut ids = BTreeSet::new();
        for uri in uris(&certificate)? {
            if uri.len() >= 7 && uri.as_bytes()[..7].eq_ignore_ascii_case(b"spiffe:") {
                ids.insert(uri.parse::<SpiffeId>()?);
            }
            if ids.len() > limits::SPIFFE_IDS_MAX {
                return Err(IdentityError::TooManySpiffeIds);
            }
        }
        Self::from_ids(ids)
    }

    fn from_ids(ids: BTreeSet<SpiffeId>) -> Result<Self, IdentityError> {
        let first = ids.first().ok_or(IdentityError::NoSpiffeId)?;
        let mut role = role_of(&first.subject);
        for id in ids.iter().skip(1) {
            match (&mut role, &id.subject) {
                (Role::Sidecar { volumes }, Subject::Volume(volume))
                | (Role::Reader { volumes }, Subject::Reader(volume))
                    if volumes.iter().all(|known| known.tenant() == volume.tenant())
                        && id.domain == first.domain =>
                {
                    volumes.insert(volume.clone());
                }
                _ => return Err(IdentityError::Mixed { first: first.to_string(), second: id.to_string() }),
            }
        }
        Ok(Self { role, spiffe_ids: ids.into_iter().collect() })
    }

    /// Whether it may send changes of this volume: only its sidecar may.
    pub fn may_write(&self, volume: &VolumeName) -> bool {
        matches!(&self.role, Role::Sidecar { volumes } if volumes.contains(volume))
    }

    /// Whether it may list, read, hold, restore and promote the points of this volume.
    pub fn may_operate(&self, volume: &VolumeName) -> bool {
        match &self.role {
            Role::Operator { tenant: None } => true,
            Role::Operator { tenant: Some(tenant) } => tenant == volume.tenant(),
            Role::Sidecar { .. } | Role::Reader { .. } | Role::Receiver => false,
        }
    }

    /// Whether it may list and read the points of this volume.
    pub fn may_read(&self, volume: &VolumeName) -> bool {
        match &self.role {
            Role::Reader { volumes } => volumes.contains(volume),
            _ => self.may_operate(volume),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sidecar { volumes } | Self::Reader { volumes } => {
                let what = if matches!(self, Self::Sidecar { .. }) { "sidecar" } else { "reader" };
                write!(f, "{what} of ")?;
                for (index, volume) in volumes.iter().enumerate() {
                    write!(f, "{}{volume}", if index == 0 { "" } else { ", " })?;
                }
                Ok(())
            }
            Self::Receiver => f.write_str("receiver"),
            Self::Operator { tenant: None } => f.write_str("operator of every tenant"),
            Self::Operator { tenant: Some(tenant) } => write!(f, "operator of tenant {tenant}"),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.role.fmt(f)
    }
}

fn role_of(subject: &Subject) -> Role {
    match subject {
        Subject::Volume(volume) => Role::Sidecar { volumes: BTreeSet::from([volume.clone()]) },
        Subject::Reader(volume) => Role::Reader { volumes: BTreeSet::from([volume.clone()]) },
        Subject::Receiver(_) => Role::Receiver,
        Subject::Operator(tenant) => Role::Operator { tenant: tenant.clone() },
    }
}

/// Parses a whole DER certificate, with nothing after it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(IdentityError::NotX509),
    }
}

fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Result<Vec<&'a str>, IdentityError> {
    let names = certificate.subject_alternative_name().map_err(|_| IdentityError::NotX509)?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    Ok(names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn peer(uris: &[&str]) -> Result<Peer, IdentityError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names =
            uris.iter().map(|uri| SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        let key = KeyPair::generate().expect("key");
        Peer::from_certificate(params.self_signed(&key).expect("certificate").der())
    }

    fn volume(name: &str) -> VolumeName {
        name.parse().expect("volume name")
    }

    #[test]
    fn a_sidecar_writes_its_own_volumes_and_operates_none() {
        let peer = peer(&["spiffe://x/tenant/a/volume/one", "spiffe://x/tenant/a/volume/two"]).expect("peer");
        assert!(peer.may_write(&volume("a/one")) && peer.may_write(&volume("a/two")));
        assert!(!peer.may_write(&volume("a/three")) && !peer.may_write(&volume("b/one")));
        assert!(!peer.may_operate(&volume("a/one")) && !peer.may_read(&volume("a/one")));
        assert_eq!(peer.to_string(), "sidecar of a/one, a/two");
    }

    #[test]
    fn a_reader_reads_its_own_volumes_and_does_nothing_else() {
        let peer = peer(&["spiffe://x/tenant/a/reader/one", "spiffe://x/tenant/a/reader/two"]).expect("peer");
        assert!(peer.may_read(&volume("a/one")) && peer.may_read(&volume("a/two")));
        assert!(!peer.may_read(&volume("a/three")) && !peer.may_read(&volume("b/one")));
        assert!(!peer.may_operate(&volume("a/one")) && !peer.may_write(&volume("a/one")));
        assert_eq!(peer.to_string(), "reader of a/one, a/two");
    }

    #[test]
    fn an_operator_stays_in_its_tenant_and_never_writes() {
        let one = peer(&["spiffe://x/tenant/a/operator"]).expect("peer");
        assert!(one.may_operate(&volume("a/one")) && !one.may_operate(&volume("b/one")));
        let every = peer(&["spiffe://x/operator"]).expect("peer");
        assert!(every.may_operate(&volume("a/one")) && every.may_operate(&volume("b/one")));
        assert!(!every.may_write(&volume("a/one")));
    }

    #[test]
    fn a_receiver_may_nothing() {
        let peer = peer(&["spiffe://x/receiver/r1"]).expect("peer");
        assert!(!peer.may_write(&volume("a/one")) && !peer.may_operate(&volume("a/one")));
    }

    #[test]
    fn names_that_are_not_spiffe_give_nothing_and_take_nothing() {
        assert_eq!(peer(&["https://example.org/operator"]), Err(IdentityError::NoSpiffeId));
        assert_eq!(peer(&[]), Err(IdentityError::NoSpiffeId));
        let mixed = peer(&["https://example.org/", "spiffe://x/operator"]).expect("peer");
        assert_eq!(mixed.role, Role::Operator { tenant: None });
    }

    #[test]
    fn one_bad_or_foreign_id_spoils_the_certificate() {
        for uris in [
            ["spiffe://x/tenant/a/volume/one", "spiffe://x/tenant/b/volume/one"],
            ["spiffe://x/tenant/a/volume/one", "spiffe://y/tenant/a/volume/two"],
            ["spiffe://x/tenant/a/volume/one", "spiffe://x/operator"],
            ["spiffe://x/tenant/a/volume/one", "spiffe://x/tenant/a/reader/one"],
            ["spiffe://x/tenant/a/reader/one", "spiffe://x/tenant/b/reader/one"],
            ["spiffe://x/tenant/a/operator", "spiffe://x/operator"],
            ["spiffe://x/receiver/r1", "spiffe://x/receiver/r2"],
        ] {
            assert!(matches!(peer(&uris), Err(IdentityError::Mixed { .. })), "{uris:?} was accepted");
        }
        let bad = peer(&["spiffe://x/operator", "SPIFFE://x/tenant/a/volume/one"]);
        assert!(matches!(bad, Err(IdentityError::SpiffeId(_))));
        assert_eq!(Peer::from_certificate(b"\x30\x03abc"), Err(IdentityError::NotX509));
    }

    #[test]
    fn ids_are_counted() {
        let uris: Vec<String> =
            (0..=limits::SPIFFE_IDS_MAX).map(|n| format!("spiffe://x/tenant/a/volume/v{n}")).collect();
        let uris: Vec<&str> = uris.iter().map(String::as_str).collect();
        assert_eq!(peer(&uris), Err(IdentityError::TooManySpiffeIds));
        assert!(peer(&uris[1..]).is_ok());
    }
}
