//! An identity that an injector gives, by the token of the pod's service account.

use std::{path::PathBuf, pin::pin};

use anyhow::Context;
use tidelock_cluster::identity::{ClientError, Source, Wanted, hold};
use url::Url;

use super::exit::{Failure, USAGE};

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Identity from an injector")]
pub(crate) struct IdentityFrom {
    /// Get the identity from this injector, and renew it before it ends: https://HOST[:PORT]. It is written to --identity,
    /// which should be a volume in memory
    #[arg(long, value_name = "URL", requires = "authority")]
    identity_from: Option<Url>,
    /// The file with the token of the pod's service account, of audience `tidelock`
    #[arg(long, value_name = "FILE", default_value = "/var/run/tidelock/token/token")]
    identity_token: PathBuf,
    /// The authority that the injector's certificate is of: its file, or PEM text
    #[arg(
        id = "authority",
        long = "identity-authority",
        value_name = "FILE|PEM",
        env = "TIDELOCK_IDENTITY_AUTHORITY"
    )]
    authority: Option<String>,
}

impl IdentityFrom {
    /// Whether an injector was named.
    pub(crate) fn is_given(&self) -> bool {
        self.identity_from.is_some()
    }

    /// Where the identity comes from, if that is an injector.
    pub(crate) fn source(self, wanted: Wanted, directory: PathBuf) -> Result<Option<Source>, Failure> {
        let (Some(url), Some(authority)) = (self.identity_from, self.authority) else { return Ok(None) };
        let authorities = match authority.contains("-----BEGIN") {
            true => authority,
            false => std::fs::read_to_string(&authority)
                .with_context(|| format!("--identity-authority {authority}"))
                .map_err(|error| Failure::new(USAGE, error))?,
        };
        Ok(Some(Source { url, authorities, token: self.identity_token, wanted, directory }))
    }
}

/// Does the work while the identity is held.
pub(crate) async fn holding<T>(
    source: Option<Source>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let Some(source) = source else { return work.await };
    let failed = |held: Result<(), ClientError>| match held {
        Err(error) => Failure::new(USAGE, error),
        Ok(()) => Failure::new(USAGE, anyhow::anyhow!("the identity is held no more")),
    };
    // Not in the runtime's own hands: what is done ends with the work.
    let held = pin!(hold(source));
    tokio::select! {
        held = held => Err(failed(held)),
        done = work => done,
    }
}
