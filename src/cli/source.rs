//! Where an operator's commands look: a running receiver, or the store of one that is gone.

use std::path::{Path, PathBuf};

use tidelock_failover::{Access, Reach};
use tidelock_receiver::archive::ArchiveUrl;

use super::{exit::Failure, keys::KeyArgs};

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Where")]
pub(crate) struct Source {
    /// The receiver to ask
    #[arg(long, env = "TIDELOCK_RECEIVER", value_name = "HOST:PORT")]
    receiver: Option<String>,
    /// Directory with the operator's tls.crt, tls.key and ca.crt
    #[arg(long, env = "TIDELOCK_IDENTITY", value_name = "DIR")]
    identity: Option<PathBuf>,
    /// Open this store directly, instead of asking a receiver; none may be using it
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// With --store: where the receiver has archived it, if that was still fetching it
    #[arg(long, value_name = "URL", requires = "store")]
    archive: Option<ArchiveUrl>,
    #[command(flatten)]
    keys: KeyArgs,
}

impl Source {
    pub(crate) fn open(&self) -> Result<Access, Failure> {
        self.open_with_images(None)
    }

    /// With the hot images of a receiver that is gone.
    pub(crate) fn open_with_images(&self, images: Option<&Path>) -> Result<Access, Failure> {
        let access = match (&self.store, &self.receiver, &self.identity) {
            (Some(store), ..) => Access::direct_with(store, self.keys.load()?, images, self.archive.as_ref()),
            (None, Some(receiver), Some(identity)) => Access::remote(receiver, identity),
            (None, Some(_), None) => {
                return Err(Failure::usage(
                    "--identity DIR is missing: the operator's certificate (or set TIDELOCK_IDENTITY)",
                ));
            }
            (None, None, _) => {
                return Err(Failure::usage(
                    "say where to look: --receiver HOST:PORT and --identity DIR, or --store DIR",
                ));
            }
        };
        access.map_err(Failure::failover)
    }

    /// How to reach the same receiver again; nothing for a store, which does not go away.
    pub(crate) fn reach(&self) -> Option<Reach> {
        let (None, Some(receiver), Some(identity)) = (&self.store, &self.receiver, &self.identity) else {
            return None;
        };
        let (receiver, identity) = (receiver.clone(), identity.clone());
        Some(Box::new(move || Access::remote(&receiver, &identity)))
    }

    /// The receiver that has to run, and the operator's identity.
    pub(crate) fn running(&self) -> Result<(&str, &Path), Failure> {
        match (&self.store, &self.receiver, &self.identity) {
            (None, Some(receiver), Some(identity)) => Ok((receiver, identity)),
            _ => Err(Failure::usage(
                "this needs a running receiver: give --receiver HOST:PORT and --identity DIR",
            )),
        }
    }

    /// What the next command needs to reach the same receiver, as far as it is known.
    pub(crate) fn receiver(&self) -> Option<&str> {
        if self.store.is_none() { self.receiver.as_deref() } else { None }
    }
}
