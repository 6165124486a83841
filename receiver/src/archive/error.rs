//! Why an archive cannot be used.

use std::{io, path::PathBuf, sync::Arc};

use thiserror::Error;

use crate::{limits, store::StoreError};

/// What is wrong. The messages say what to do where that is known.
#[derive(Debug, Clone, Error)]
pub enum ArchiveError {
    /// The URL names no archive.
    #[error(
        "{url:?} names no archive ({reason}): write s3://BUCKET/PREFIX, gs://…, az://… or file:///DIRECTORY"
    )]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The object store did not do what it was asked: it may do so later.
    #[error("cannot {what} {name:?}: {}{}", brief(source), advice(source))]
    Request {
        /// What was being done.
        what: &'static str,
        /// With which object.
        name: String,
        /// What it said.
        source: Arc<object_store::Error>,
    },
    /// Two writers would overwrite each other there.
    #[error(
        "the object store ignores `If-None-Match`, so two receivers could overwrite each other's archive: use one that \
         honours conditional puts"
    )]
    Unconditional,
    /// An object is not what was written.
    #[error("object {name:?} of the archive {what}")]
    Damaged {
        /// The object.
        name: String,
        /// What was found.
        what: &'static str,
    },
    /// An object that the newest manifest names is not there (any more).
    #[error("object {0:?} of the archive is missing")]
    Missing(String),
    /// Written by a later Tidelock.
    #[error(
        "object {name:?} of the archive has format version {found}; this build reads up to {}",
        super::entry::VERSION
    )]
    Version {
        /// The object.
        name: String,
        /// Its version.
        found: u32,
    },
    /// The directory has a log already.
    #[error("{} has a log already: choose an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// There are pieces and nothing that names them.
    #[error(
        "the archive has {objects} objects and no chain that says what they are; nothing was changed. If its chain/ was removed, bring that back (a bucket may keep \
         versions); if nothing there is needed, use another prefix or remove its data/"
    )]
    NoChain {
        /// How many.
        objects: usize,
    },
    /// There is nothing to read.
    #[error("there is no archive at this prefix")]
    Empty,
    /// Another receiver writes there.
    #[error("the archive is in use by receiver {who}; stop that one, or use another prefix")]
    Held {
        /// Host and process of the other one.
        who: String,
    },
    /// Another receiver has written there since this store did.
    #[error(
        "receiver {who} has taken over the archive, and this store is not the one it goes on with: start with an empty --store to \
         continue from the archive, or use another prefix"
    )]
    TakenOver {
        /// Host and process of the other one.
        who: String,
    },
    /// The archive has what the store has not, or had otherwise.
    #[error(
        "this store is not what its archive says (an older copy of it?): start with an empty --store to continue from the \
         archive, or use another prefix"
    )]
    Diverged,
    /// The local side failed.
    #[error("{}: {source}", path.display())]
    Local {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The directory cannot take a store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArchiveError {
    pub(super) fn request(what: &'static str, name: &str) -> impl Fn(object_store::Error) -> Self {
        move |source| Self::Request { what, name: name.to_owned(), source: Arc::new(source) }
    }

    pub(super) fn local(path: &std::path::Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Local { path: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether it says that a segment was removed while it was read.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Local { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether trying again can help without anybody doing anything here.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Request { .. } | Self::Missing(_) | Self::Local { .. })
    }
}

/// What to do about it, where what the object store says does not tell.
fn advice(error: &object_store::Error) -> &'static str {
    let text = error.to_string();
    // Where credentials are asked for on a machine of a cloud, when the environment has none.
    let asked_machine = ["169.254.169.254", "169.254.170.2", "metadata.google.internal"];
    match error {
        _ if asked_machine.iter().any(|address| text.contains(address)) => {
            "; no credentials were given: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, GOOGLE_SERVICE_ACCOUNT or \
             AZURE_STORAGE_ACCOUNT_KEY for the receiver, or give its machine or pod an identity"
        }
        // An object that is not there is no error.
        object_store::Error::NotFound { .. } => {
            "; is the bucket there? It has to be made before, by its owner"
        }
        object_store::Error::Unauthenticated { .. } | object_store::Error::PermissionDenied { .. } => {
            "; the credentials need to list, read, write and delete objects at the archive's prefix"
        }
        _ => "",
    }
}

/// One line of what an object store says; some answer with pages.
fn brief(error: &object_store::Error) -> String {
    let text = error.to_string();
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(limits::ARCHIVE_REASON_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use object_store::Error;

    use super::*;

    #[test]
    fn what_to_do_is_said_where_the_object_store_does_not_tell() {
        let source = || io::Error::other("PUT http://169.254.169.254/latest/api/token: no route").into();
        for (error, said) in [
            (Error::Generic { store: "S3", source: source() }, "set AWS_ACCESS_KEY_ID"),
            (
                Error::NotFound { path: "chain".to_owned(), source: "NoSuchBucket".into() },
                "is the bucket there?",
            ),
            (Error::PermissionDenied { path: "chain".to_owned(), source: "403".into() }, "need to list"),
        ] {
            let told = ArchiveError::request("list", "chain")(error).to_string();
            assert!(told.starts_with("cannot list \"chain\": ") && told.contains(said), "{told}");
        }
        let away = Error::Generic { store: "S3", source: "connection refused".into() };
        assert_eq!(advice(&away), "");
    }
}
