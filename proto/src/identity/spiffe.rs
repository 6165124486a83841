//! The SPIFFE ids Tidelock gives meaning to.
//!
//! ```text
//! spiffe://<domain>/tenant/<tenant>/volume/<volume>   a sidecar of this volume; repeat it for several volumes
//! spiffe://<domain>/tenant/<tenant>/reader/<volume>   a reader of this volume's points; repeat it for several volumes
//! spiffe://<domain>/receiver/<name>                   a receiver
//! spiffe://<domain>/operator                          an operator of every tenant
//! spiffe://<domain>/tenant/<tenant>/operator          an operator of one tenant
//! ```
//! There is no wildcard: a stolen sidecar key reaches the volumes it names and nothing else. Parsing is strict, and one
//! id has exactly one spelling, so that comparing texts and comparing ids agree.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::{
    ids::{VolumeName, check_part},
    limits,
};

const SCHEME: &str = "spiffe://";

/// The domain of a SPIFFE id: `a-z 0-9 - . _`, beginning and ending with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl Default for TrustDomain {
    fn default() -> Self {
        Self("tidelock".to_owned())
    }
}

/// What a SPIFFE id stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The sidecar of a volume.
    Volume(VolumeName),
    /// Who reads the points of a volume.
    Reader(VolumeName),
    /// A receiver, by name.
    Receiver(String),
    /// An operator of one tenant, or of all.
    Operator(Option<String>),
}

/// A SPIFFE id that Tidelock understands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The trust domain.
    pub domain: TrustDomain,
    /// Who in it.
    pub subject: Subject,
}

/// Why a text is not a SPIFFE id of Tidelock.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpiffeIdError {
    /// Longer than [`limits::SPIFFE_ID_MAX_BYTES`].
    #[error("a SPIFFE id of {0} bytes is longer than {max}", max = limits::SPIFFE_ID_MAX_BYTES)]
    TooLong(usize),
    /// The domain breaks the rules.
    #[error("{0:?} is not a trust domain: use a-z 0-9 - . _, beginning and ending with a letter or digit")]
    Domain(String),
    /// The scheme or the path is none of those that mean something.
    #[error(
        "{0:?} is not an identity of Tidelock: use spiffe://DOMAIN/ followed by tenant/TENANT/volume/VOLUME, \
         tenant/TENANT/reader/VOLUME, tenant/TENANT/operator, operator or receiver/NAME"
    )]
    Unknown(String),
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = text.as_bytes();
        let valid = bytes.len() <= limits::TRUST_DOMAIN_MAX_BYTES
            && bytes.iter().all(|byte| edge(byte) || b"-._".contains(byte))
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge);
        if valid { Ok(Self(text.to_owned())) } else { Err(SpiffeIdError::Domain(shorten(text))) }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > limits::SPIFFE_ID_MAX_BYTES {
            return Err(SpiffeIdError::TooLong(text.len()));
        }
        let unknown = || SpiffeIdError::Unknown(shorten(text));
        let (domain, path) =
            text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/')).ok_or_else(unknown)?;
        let part = |part: &str| check_part(part).map(|()| part.to_owned()).map_err(|_| unknown());
        let segments: Vec<&str> = path.split('/').collect();
        let subject = match segments[..] {
            ["tenant", tenant, "volume", volume] => {
                Subject::Volume(VolumeName::new(tenant, volume).map_err(|_| unknown())?)
            }
            ["tenant", tenant, "reader", volume] => {
                Subject::Reader(VolumeName::new(tenant, volume).map_err(|_| unknown())?)
            }
            ["tenant", tenant, "operator"] => Subject::Operator(Some(part(tenant)?)),
            ["operator"] => Subject::Operator(None),
            ["receiver", name] => Subject::Receiver(part(name)?),
            _ => return Err(unknown()),
        };
        Ok(Self { domain: domain.parse()?, subject })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/", self.domain)?;
        match &self.subject {
            Subject::Volume(volume) => write!(f, "tenant/{}/volume/{}", volume.tenant(), volume.name()),
            Subject::Reader(volume) => write!(f, "tenant/{}/reader/{}", volume.tenant(), volume.name()),
            Subject::Receiver(name) => write!(f, "receiver/{name}"),
            Subject::Operator(Some(tenant)) => write!(f, "tenant/{tenant}/operator"),
            Subject::Operator(None) => f.write_str("operator"),
        }
    }
}

/// Keeps a peer's text from filling an error message.
fn shorten(text: &str) -> String {
    const SHOWN: usize = 200;
    text.chars().take(SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_form_is_read_and_written_back() {
        for text in [
            "spiffe://tidelock/tenant/acme/volume/pg-data",
            "spiffe://tidelock/tenant/acme/reader/pg-data",
            "spiffe://prod.example.org/receiver/dr-1",
            "spiffe://tidelock/operator",
            "spiffe://tidelock/tenant/acme/operator",
        ] {
            assert_eq!(text.parse::<SpiffeId>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn anything_but_the_one_spelling_is_refused() {
        for text in [
            "",
            "spiffe://",
            "spiffe://tidelock",
            "spiffe://tidelock/",
            "SPIFFE://tidelock/operator",
            "spiffe:///operator",
            "spiffe://Tidelock/operator",
            "spiffe://tidelock:8443/operator",
            "spiffe://user@tidelock/operator",
            "spiffe://tidelock//operator",
            "spiffe://tidelock/operator/",
            "spiffe://tidelock/operator?x=1",
            "spiffe://tidelock/operator#x",
            "spiffe://tidelock/Operator",
            "spiffe://tidelock/tenant/acme",
            "spiffe://tidelock/tenant//operator",
            "spiffe://tidelock/tenant/../operator",
            "spiffe://tidelock/tenant/a/../b/operator",
            "spiffe://tidelock/tenant/%61cme/operator",
            "spiffe://tidelock/tenant/acme/volume/*",
            "spiffe://tidelock/tenant/acme/reader/*",
            "spiffe://tidelock/tenant/acme/volume/..",
            "spiffe://tidelock/tenant/acme/volume/a\0b",
            "spiffe://tidelock/tenant/ACME/volume/a",
            " spiffe://tidelock/operator",
            "https://tidelock/operator",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?} was accepted");
        }
        let long = format!("spiffe://tidelock/receiver/{}", "a".repeat(limits::SPIFFE_ID_MAX_BYTES));
        assert!(matches!(long.parse::<SpiffeId>(), Err(SpiffeIdError::TooLong(_))));
        let long = format!("spiffe://{}/operator", "a".repeat(limits::TRUST_DOMAIN_MAX_BYTES + 1));
        assert!(matches!(long.parse::<SpiffeId>(), Err(SpiffeIdError::Domain(_))));
    }

    proptest! {
        #[test]
        fn what_is_accepted_has_one_spelling(text in "(spiffe://)?[a-zA-Z./%_-]{0,12}/(tenant|reader|receiver|operator|volume|/|[a-z.%/]{1,4}){0,7}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn every_valid_id_round_trips(domain in "[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?", tenant in "[a-z0-9]{1,63}", volume in "[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?") {
            let text = format!("spiffe://{domain}/tenant/{tenant}/volume/{volume}");
            let id: SpiffeId = text.parse().expect("valid");
            prop_assert_eq!(id.to_string(), text);
        }

        #[test]
        fn one_strange_byte_anywhere_is_refused(at in 0usize..40, strange in "[A-Z%\\\\?#@: \0]") {
            let mut text = "spiffe://tidelock/tenant/acme/volume/pg1".to_owned();
            text.insert_str(at.min(text.len()), &strange);
            prop_assert!(text.parse::<SpiffeId>().is_err());
        }
    }
}
