//! The pod's side: gets an identity, keeps it fresh, and writes it where the rest of the program finds it.
//!
//! The directory should be a volume in memory. Each renewal has a new key, and a token that is read anew, because the kubelet
//! replaces it. What fails is tried again for ever: an old identity is good until its end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use thiserror::Error;
use tidelock_proto::pki::{PkiError, renew, signing_request};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tracing::{info, warn};
use url::Url;

use super::{Ask, Given, PATH, Wanted, http};
use crate::limits;

/// Whose certificates the injector may show, beside the identity.
const ISSUERS_FILE: &str = "injector.crt";

/// Where an identity comes from, and where it goes.
#[derive(Debug, Clone)]
pub struct Source {
    /// The injector: `https://HOST[:PORT]`.
    pub url: Url,
    /// The authorities that its certificate may be of, PEM.
    pub authorities: String,
    /// The file with the token of the pod's service account.
    pub token: PathBuf,
    /// What to be.
    pub wanted: Wanted,
    /// The identity directory.
    pub directory: PathBuf,
}

/// Why there is no identity yet.
#[derive(Debug, Error)]
pub enum ClientError {
    /// The injector's address makes no sense.
    #[error("write the injector's address as https://HOST[:PORT]")]
    Url,
    /// The authorities are no certificates.
    #[error("the injector's authority is no certificate in PEM form")]
    Authorities,
    /// The token cannot be read.
    #[error("{}: {source}", .path.display())]
    TokenFile {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The token is no token.
    #[error("the token has signs that no token has")]
    Token,
    /// The injector cannot be reached, or broke off.
    #[error("the injector cannot be asked: {0}")]
    Io(#[from] io::Error),
    /// It took too long.
    #[error("the injector did not answer in time")]
    Slow,
    /// It said no.
    #[error("the injector refused ({status}): {why}")]
    Refused {
        /// The status of its answer.
        status: u16,
        /// What it said.
        why: String,
    },
    /// Its answer cannot be read.
    #[error("the injector's answer cannot be read")]
    Answer,
    /// The identity cannot be made or written.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// Gets the identity, and gets it anew before it ends, for ever.
///
/// # Errors
/// Only what no waiting mends: an address or an authority that is none.
pub async fn hold(source: Source) -> Result<(), ClientError> {
    check(&source.url)?;
    let mut pause = limits::RETRY.0;
    loop {
        let got = timeout(limits::ATTEMPT_TIMEOUT, get(&source)).await.unwrap_or(Err(ClientError::Slow));
        match got {
            Ok(renew_in) => {
                pause = limits::RETRY.0;
                info!(directory = %source.directory.display(), renew_in_s = renew_in.as_secs(), "identity obtained");
                sleep(renew_in).await;
            }
            Err(error @ (ClientError::Url | ClientError::Authorities)) => return Err(error),
            Err(error) => {
                warn!(%error, "no identity was obtained");
                // Many pods may wait for one injector.
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = (pause * 2).min(limits::RETRY.1);
            }
        }
    }
}

fn check(url: &Url) -> Result<(), ClientError> {
    let good = url.scheme() == "https" && url.host_str().is_some();
    good.then_some(()).ok_or(ClientError::Url)
}

/// Gets the identity once, for work that ends: tries for a while.
pub async fn obtain(source: &Source) -> Result<(), ClientError> {
    check(&source.url)?;
    let begun = Instant::now();
    loop {
        let got = timeout(limits::ATTEMPT_TIMEOUT, get(source)).await.unwrap_or(Err(ClientError::Slow));
        match got {
            Ok(_) => return Ok(()),
            Err(error @ (ClientError::Url | ClientError::Authorities)) => return Err(error),
            Err(error) if begun.elapsed() >= limits::OBTAIN => return Err(error),
            Err(_) => sleep(limits::RETRY.0).await,
        }
    }
}

/// Gets it once; tells how long it is good before it is to be renewed.
async fn get(source: &Source) -> Result<Duration, ClientError> {
    let at_token = |error| ClientError::TokenFile { path: source.token.clone(), source: error };
    let token = tokio::fs::read_to_string(&source.token).await.map_err(at_token)?;
    let (request, key) = signing_request()?;
    let ask = Ask { wanted: source.wanted.clone(), request };
    let body = serde_json::to_vec(&ask).expect("texts serialise");
    let mut url = source.url.clone();
    url.set_path(PATH);
    let tls = believed(source)?;
    let (status, body) = http::post(&tls, &url, Some(token.trim()), body).await?;
    if !status.is_success() {
        let said: Option<Value> = serde_json::from_slice(&body).ok();
        let why = said.and_then(|said| Some(said["error"].as_str()?.to_owned())).unwrap_or_default();
        return Err(ClientError::Refused { status: status.as_u16(), why });
    }
    let given: Given = serde_json::from_slice(&body).map_err(|_| ClientError::Answer)?;
    let left = left(&given.certificate, SystemTime::now()).ok_or(ClientError::Answer)?;
    let directory = source.directory.clone();
    let written = tokio::task::spawn_blocking(move || {
        renew(&directory, &given.certificate, &key, &given.authorities)?;
        remember(&directory, &given.issuers)?;
        Ok::<_, ClientError>(())
    });
    written.await.map_err(io::Error::other)??;
    Ok(left / 3 * 2)
}

/// Believes the injector whom this program was given with, and whom it named since: its authority may have a successor.
fn believed(source: &Source) -> Result<TlsConnector, ClientError> {
    let known = fs::read_to_string(source.directory.join(ISSUERS_FILE)).unwrap_or_default();
    // What is not readable is as if it were not there.
    http::tls(&format!("{}\n{known}", source.authorities)).or_else(|_| http::tls(&source.authorities))
}

/// Keeps whom the injector names, for this program when it starts again.
fn remember(directory: &Path, issuers: &str) -> io::Result<()> {
    let half = directory.join(format!("{ISSUERS_FILE}.new"));
    fs::write(&half, issuers)?;
    fs::rename(half, directory.join(ISSUERS_FILE))
}

/// How long a certificate is good.
fn left(certificate: &str, now: SystemTime) -> Option<Duration> {
    let der = CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let ends = Duration::from_secs(parsed.validity().not_after.timestamp().try_into().ok()?);
    (SystemTime::UNIX_EPOCH + ends).duration_since(now).ok()
}
