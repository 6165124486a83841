//! The calls, each in one place.
//!
//! A program's calls are the methods of a trait, so that what is around them runs in tests without an API, and their only
//! implementation here is over the crate `kube`. Nothing is retried here.

mod apply;
mod check;
mod election;
mod injector;
#[cfg(test)]
pub(crate) mod recorded;
mod recorder;
mod watch;

pub use kube::Client;
use kube::Config;
use thiserror::Error;

pub use apply::{ApplyApi, ApplyCalls, connect_to};
pub use check::{CheckApi, CheckCalls};
pub use election::{ElectionApi, ElectionCalls};
pub use injector::{AuthorityCalls, IdentityCalls, InjectorApi, Place};
pub use recorder::{RecorderApi, RecorderCalls, kinds};
pub use watch::{WatchApi, WatchCalls};

/// Why a call failed.
#[derive(Debug, Error)]
pub enum ApiError {
    /// Somebody else was first: it exists already, or was changed since it was read.
    #[error("somebody else changed it: {0}")]
    Conflict(String),
    /// The API refused, or cannot be reached.
    #[error("{0}")]
    Call(#[from] Box<kube::Error>),
    /// What changes cannot be heard of.
    #[error("{0}")]
    Watch(#[from] Box<kube::runtime::watcher::Error>),
    /// A kind that nobody asks for, or that the cluster does not have.
    #[error("objects of kind {0} are not known")]
    Kind(String),
    /// Nobody says how to reach the API.
    #[error("no way to a Kubernetes API: {0}")]
    NoCluster(String),
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if status.is_conflict() || status.is_already_exists() => {
                Self::Conflict(status.message.clone())
            }
            _ => Self::Call(Box::new(error)),
        }
    }
}

/// A client for the cluster that this program runs in, or that the kubeconfig names.
pub async fn connect() -> Result<Client, ApiError> {
    let config = Config::infer().await.map_err(|error| ApiError::NoCluster(error.to_string()))?;
    Ok(Client::try_from(config)?)
}
