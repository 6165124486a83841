//! Where an archive is. Credentials and endpoints come from the environment, under the names that each cloud's own tools use
//! (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_NAME`, …), and never from the URL.

use std::{fmt, str::FromStr, sync::Arc};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreScheme, RetryConfig, aws::AmazonS3Builder,
    azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, local::LocalFileSystem, path::Path,
    prefix::PrefixStore,
};
use url::Url;

use super::error::ArchiveError;
use crate::limits;

/// An object store and a prefix in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveUrl(Url);

impl FromStr for ArchiveUrl {
    type Err = ArchiveError;

    fn from_str(text: &str) -> Result<Self, ArchiveError> {
        let wrong = |reason: String| ArchiveError::Url { url: text.to_owned(), reason };
        let url: Url = text.parse().map_err(|error: url::ParseError| wrong(error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(wrong("credentials and options come from the environment".to_owned()));
        }
        match url.scheme() {
            "s3" | "gs" | "az" | "file" => {}
            scheme => return Err(wrong(format!("unknown scheme {scheme}"))),
        }
        let (_, path) = ObjectStoreScheme::parse(&url).map_err(|error| wrong(error.to_string()))?;
        if url.scheme() == "file" && path.as_ref().is_empty() {
            return Err(wrong("a directory is missing".to_owned()));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for ArchiveUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

impl ArchiveUrl {
    /// The object store at the prefix. Nothing is asked of it yet.
    pub(super) fn open(&self) -> Result<Arc<dyn ObjectStore>, ArchiveError> {
        let wrong = |reason: String| ArchiveError::Url { url: self.0.to_string(), reason };
        let failed = |error: object_store::Error| wrong(error.to_string());
        let (_, prefix) = ObjectStoreScheme::parse(&self.0).map_err(|error| wrong(error.to_string()))?;
        // There is one already if somebody else in this process has chosen it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = self.0.as_str();
        Ok(match self.0.scheme() {
            "s3" => {
                let builder = AmazonS3Builder::from_env().with_url(url).with_retry(retry());
                under(builder.with_client_options(client("AWS_ALLOW_HTTP")).build().map_err(failed)?, prefix)
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::from_env().with_url(url).with_retry(retry());
                under(
                    builder.with_client_options(client("GOOGLE_ALLOW_HTTP")).build().map_err(failed)?,
                    prefix,
                )
            }
            "az" => {
                let builder = MicrosoftAzureBuilder::from_env().with_url(url).with_retry(retry());
                under(
                    builder.with_client_options(client("AZURE_ALLOW_HTTP")).build().map_err(failed)?,
                    prefix,
                )
            }
            _ => under(LocalFileSystem::new().with_fsync(true), prefix),
        })
    }
}

fn under(store: impl ObjectStore, prefix: Path) -> Arc<dyn ObjectStore> {
    Arc::new(PrefixStore::new(store, prefix))
}

/// Few and short: whoever asks tries again by itself and says meanwhile how it stands.
fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { max_backoff: limits::ARCHIVE_RETRY_FIRST, ..BackoffConfig::default() },
        max_retries: 2,
        retry_timeout: limits::ARCHIVE_CONNECT_TIMEOUT,
    }
}

fn client(allow_http: &str) -> ClientOptions {
    let plain =
        std::env::var(allow_http).is_ok_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
    ClientOptions::new()
        .with_connect_timeout(limits::ARCHIVE_CONNECT_TIMEOUT)
        .with_timeout(limits::ARCHIVE_REQUEST_TIMEOUT)
        .with_allow_http(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_an_archive_is_one() {
        for url in
            ["s3://bucket/a/prefix", "s3://bucket", "gs://b/p", "az://container/p", "file:///srv/archive"]
        {
            let parsed = url.parse::<ArchiveUrl>();
            assert_eq!(parsed.expect("an archive").to_string(), url);
        }
        for url in [
            "bucket/prefix",
            "http://host/bucket",
            "s3://key:secret@bucket/p",
            "s3://b/p?region=x",
            "file:///",
            "",
        ] {
            assert!(url.parse::<ArchiveUrl>().is_err(), "{url}");
        }
    }
}
