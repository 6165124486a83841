//! `tidelock probe`: whether injector and receiver do their work, asked from outside.

use std::time::{Duration, Instant};

use anyhow::Context;
use tidelock_cluster::{
    identity::ClientError,
    probe::{self, ProbeError},
};
use url::Url;

use super::{
    exit::{FAILED, Failure, USAGE},
    output,
};

/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Ask an injector and a receiver whether they do their work, without an identity
///
/// The injector has to answer a review with a sidecar. The receiver has to show a certificate of its authority for its name, and then
/// to refuse. `helm test` runs this.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The injector: https://HOST[:PORT]
    #[arg(long, value_name = "URL", requires = "injector_authority", required_unless_present = "receiver")]
    injector: Option<Url>,
    /// The authority that its certificate is of: its file, or PEM text
    #[arg(long, value_name = "FILE|PEM")]
    injector_authority: Option<String>,
    /// The receiver
    #[arg(long, value_name = "HOST:PORT", requires = "receiver_authority")]
    receiver: Option<String>,
    /// The authority that its certificate is of: its file, or PEM text
    #[arg(long, value_name = "FILE|PEM")]
    receiver_authority: Option<String>,
    /// Let the receiver's certificate have other names: sidecars dial it by them, from elsewhere
    #[arg(long, requires = "receiver")]
    receiver_any_name: bool,
    /// How long to try
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let until = Instant::now() + args.wait;
    if let (Some(url), Some(authority)) = (&args.injector, &args.injector_authority) {
        let authority = pem("--injector-authority", authority)?;
        runtime.block_on(patiently(until, || probe::injector(url, &authority)))?;
        output::print(&format!("injector {url}: answers, with a sidecar"));
    }
    if let (Some(address), Some(authority)) = (&args.receiver, &args.receiver_authority) {
        let authority = pem("--receiver-authority", authority)?;
        runtime
            .block_on(patiently(until, || probe::receiver(address, &authority, args.receiver_any_name)))?;
        output::print(&format!("receiver {address}: shows its certificate, and refuses strangers"));
    }
    Ok(())
}

fn pem(option: &str, text: &str) -> Result<String, Failure> {
    if text.contains("-----BEGIN") {
        return Ok(text.to_owned());
    }
    let read = std::fs::read_to_string(text).with_context(|| format!("{option} {text}"));
    read.map_err(|error| Failure::new(USAGE, error))
}

async fn patiently<F: Future<Output = Result<(), ProbeError>>>(
    until: Instant,
    probe: impl Fn() -> F,
) -> Result<(), Failure> {
    loop {
        match probe().await {
            Ok(()) => return Ok(()),
            Err(error @ ProbeError::Injector(ClientError::Url | ClientError::Authorities)) => {
                return Err(Failure::new(USAGE, error));
            }
            Err(error) if Instant::now() + AGAIN >= until => return Err(Failure::new(FAILED, error)),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}
