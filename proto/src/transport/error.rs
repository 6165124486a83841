//! Everything that keeps two peers apart, as plain sentences.

use std::{fmt, io};

use quinn::ConnectionError;
use rustls::{AlertDescription, CertificateError};
use thiserror::Error;

use super::close;
use crate::identity::IdentityError;

/// Which of the two certificates a sentence is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This side's: the peer refused it.
    Ours,
    /// The peer's: this side refused it.
    Peers,
}

/// Why there is no connection (any more).
#[derive(Debug, Error)]
pub enum TransportError {
    /// The text is not `HOST:PORT`.
    #[error("{0:?} is not an address: write HOST:PORT")]
    Address(String),
    /// The name could not be resolved.
    #[error("cannot resolve {address}: {source}")]
    Resolve {
        /// As dialled.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The socket could not be made.
    #[error("cannot open UDP {address}: {source}")]
    Bind {
        /// The local address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// This process does not hold the certificate of a receiver.
    #[error(
        "a receiver needs the certificate of a receiver, and this one is of a {0}: issue one with `tidelock pki issue receiver`"
    )]
    NotAReceiver(String),
    /// Nobody answered.
    #[error("no answer from {address}: check that a receiver runs there and that UDP reaches it")]
    Unreachable {
        /// As dialled.
        address: String,
    },
    /// The peer answered and then fell silent.
    #[error("the peer fell silent")]
    TimedOut,
    /// The peer restarted and no longer knows the connection.
    #[error("the peer restarted")]
    Reset,
    /// The server has too many handshakes or connections.
    #[error("the receiver is too busy to accept a connection")]
    Busy,
    /// A certificate whose time is over (or, where only the peer knows, has not come).
    #[error("{} has expired{}", certificate(*.whose), match .whose { Whose::Ours => ", or is not valid yet by the peer's clock", Whose::Peers => "" })]
    CertificateExpired {
        /// Whose it is.
        whose: Whose,
    },
    /// A certificate whose time has not come.
    #[error("{} is not valid yet: check the clocks of both sides", certificate(*.whose))]
    CertificateNotYetValid {
        /// Whose it is.
        whose: Whose,
    },
    /// A certificate of an authority that the other side does not know.
    #[error("{} is signed by an authority that {}", certificate(*.whose), match .whose { Whose::Ours => "the peer does not trust", Whose::Peers => "is not in our ca.crt" })]
    UnknownAuthority {
        /// Whose it is.
        whose: Whose,
    },
    /// The client showed no certificate.
    #[error("{}", match .whose { Whose::Ours => "the receiver wants a certificate and we showed none", Whose::Peers => "the peer showed no certificate" })]
    NoClientCertificate {
        /// Who showed none.
        whose: Whose,
    },
    /// A certificate whose extended key usage does not allow this.
    #[error("{} is not meant for this use: a sidecar or operator needs the key usage client auth, a receiver server auth", certificate(*.whose))]
    WrongUsage {
        /// Whose it is.
        whose: Whose,
    },
    /// The receiver's certificate is for other hosts.
    #[error("the receiver's certificate does not name {host} ({})", named(.names))]
    NameMismatch {
        /// The host that was dialled.
        host: String,
        /// The hosts in the certificate.
        names: Vec<String>,
    },
    /// The client refused our certificate as that of another host, or as malformed.
    #[error("the peer refused our certificate: it does not name the host that was dialled, or is malformed")]
    BadCertificate,
    /// The peer's certificate is in order but names nobody we know.
    #[error("the peer is nobody we know: {0}")]
    Identity(#[from] IdentityError),
    /// The peer is somebody else than this connection needs.
    #[error("the peer is a {found}, and {wanted} was expected here")]
    WrongRole {
        /// What it is.
        found: String,
        /// What it should be.
        wanted: &'static str,
    },
    /// The peer speaks something else.
    #[error("the peer does not speak {}", String::from_utf8_lossy(super::ALPN))]
    Protocol,
    /// The peer refused us.
    #[error("refused by the peer: {reason}")]
    Refused {
        /// In its words.
        reason: String,
    },
    /// The peer closed the connection.
    #[error("closed by the peer: {reason} (code {code})")]
    Closed {
        /// One of [`super::close`].
        code: u64,
        /// In its words.
        reason: String,
    },
    /// This side closed the connection.
    #[error("closed by us")]
    ClosedHere,
    /// Anything else that TLS or QUIC found wrong.
    #[error("the connection failed: {0}")]
    Other(String),
}

impl TransportError {
    /// Reads what QUIC reports; `verdict` is this side's own judgement of the peer's certificate, if it refused.
    pub(super) fn from_quic(error: ConnectionError, verdict: Option<&CertificateError>) -> Self {
        if let Some(verdict) = verdict {
            return Self::from_verdict(verdict);
        }
        match error {
            ConnectionError::TransportError(error) => {
                Self::from_code(error.code.into(), Whose::Peers, &error)
            }
            ConnectionError::ConnectionClosed(close) => {
                Self::from_code(close.error_code.into(), Whose::Ours, &close)
            }
            ConnectionError::ApplicationClosed(closed) => {
                let (code, reason) = (closed.error_code.into_inner(), close::printable(&closed.reason));
                if code == close::REFUSED { Self::Refused { reason } } else { Self::Closed { code, reason } }
            }
            ConnectionError::Reset => Self::Reset,
            ConnectionError::TimedOut => Self::TimedOut,
            ConnectionError::LocallyClosed => Self::ClosedHere,
            ConnectionError::VersionMismatch => Self::Protocol,
            error @ ConnectionError::CidsExhausted => Self::Other(error.to_string()),
        }
    }

    fn from_verdict(verdict: &CertificateError) -> Self {
        let whose = Whose::Peers;
        match verdict {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                Self::CertificateExpired { whose }
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::CertificateNotYetValid { whose }
            }
            CertificateError::UnknownIssuer => Self::UnknownAuthority { whose },
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongUsage { whose }
            }
            CertificateError::NotValidForNameContext { expected, presented } => Self::NameMismatch {
                host: expected.to_str().into_owned(),
                names: presented.iter().filter_map(|name| host_name(name)).collect(),
            },
            other => Self::Other(format!("the peer's certificate is refused: {other}")),
        }
    }

    fn from_code(code: u64, whose: Whose, error: &dyn fmt::Display) -> Self {
        const CONNECTION_REFUSED: u64 = 2;
        const CRYPTO: u64 = 0x100;
        let alert =
            code.checked_sub(CRYPTO).and_then(|alert| u8::try_from(alert).ok()).map(AlertDescription::from);
        match (alert, whose) {
            (None, Whose::Ours) if code == CONNECTION_REFUSED => Self::Busy,
            (Some(AlertDescription::CertificateExpired), _) => Self::CertificateExpired { whose },
            (Some(AlertDescription::UnknownCA), _) => Self::UnknownAuthority { whose },
            (Some(AlertDescription::CertificateRequired), _) => Self::NoClientCertificate { whose },
            (Some(AlertDescription::UnsupportedCertificate), _) => Self::WrongUsage { whose },
            (Some(AlertDescription::BadCertificate), Whose::Ours) => Self::BadCertificate,
            (Some(AlertDescription::NoApplicationProtocol | AlertDescription::ProtocolVersion), _) => {
                Self::Protocol
            }
            _ => Self::Other(close::printable(error.to_string().as_bytes())),
        }
    }

    /// Whether the peer, or we, judged the other and said no: trying again without a change is of no use.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::CertificateExpired { .. }
            | Self::CertificateNotYetValid { .. }
            | Self::UnknownAuthority { .. }
            | Self::NoClientCertificate { .. }
            | Self::WrongUsage { .. }
            | Self::NameMismatch { .. }
            | Self::BadCertificate
            | Self::Identity(_)
            | Self::WrongRole { .. }
            | Self::Protocol
            | Self::Refused { .. }
            | Self::NotAReceiver(_)
            | Self::Address(_) => true,
            Self::Resolve { .. }
            | Self::Bind { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut
            | Self::Reset
            | Self::Busy
            | Self::Closed { .. }
            | Self::ClosedHere
            | Self::Other(_) => false,
        }
    }
}

fn certificate(whose: Whose) -> &'static str {
    match whose {
        Whose::Ours => "the peer refused our certificate: it",
        Whose::Peers => "the peer's certificate",
    }
}

fn named(names: &[String]) -> String {
    if names.is_empty() { "it names no host".to_owned() } else { format!("it names {}", names.join(", ")) }
}

/// The host in `DnsName("a.example")` or `IpAddress(127.0.0.1)`, as the TLS library writes a certificate's names.
fn host_name(presented: &str) -> Option<String> {
    let name = presented.strip_prefix("DnsName(").or_else(|| presented.strip_prefix("IpAddress("))?;
    Some(close::printable(name.trim_end_matches(')').trim_matches('"').as_bytes()))
}
