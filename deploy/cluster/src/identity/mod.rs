//! How a pod gets a certificate: it makes a key, and asks the injector with the token of its service account.
//!
//! The token is projected for this purpose alone (audience [`AUDIENCE`]), and says which pod it was made for. The injector has the
//! API judge it, looks at that very pod, and signs for what the pod is: a sidecar of the claims it mounts, in its own
//! namespace. What the pod asks for is not looked at, so a stolen token gives what the pod has anyway, for as long as the
//! pod lives.
//!
//! Keys stay in the pod, in a volume in memory, and every renewal has a new one. Certificates live for a day. The price is that
//! pods depend on the injector once in 16 hours; while it is away for longer than 8, replication ends until it is back.

mod client;
mod grant;
pub(crate) mod http;
mod server;

use serde::{Deserialize, Serialize};

pub use client::{ClientError, Source, hold, obtain};
pub use grant::{Denied, Policy, Who, grant, who};
pub use server::{Issuer, routes};

/// The audience of tokens that prove a pod to the injector.
pub const AUDIENCE: &str = "tidelock";
/// The path that identities are asked for at.
pub const PATH: &str = "/identity";
/// The volume that the recorder writes a tenant's objects to. No claim can have this name.
pub const OBJECTS_VOLUME: &str = "kubernetes_objects";

/// What a pod wants to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "role")]
pub enum Wanted {
    /// The sidecar of its own volumes.
    Sidecar,
    /// Who fills its own empty volumes.
    Restore,
    /// A receiver.
    Receiver,
    /// What records a tenant's objects.
    Recorder {
        /// The tenant.
        tenant: String,
    },
}

/// What is sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Ask {
    #[serde(flatten)]
    wanted: Wanted,
    /// A signing request, PEM.
    request: String,
}

/// What comes back.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Given {
    /// PEM.
    certificate: String,
    /// Whom to believe, PEM.
    authorities: String,
    /// Whom of them to believe of the injector's own certificate; only those that were known if it is empty.
    #[serde(default)]
    issuers: String,
}
