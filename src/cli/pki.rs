//! `tidelock pki`: a small certificate authority, for places without cert-manager.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use clap::Subcommand;
use tidelock_proto::{
    VolumeName,
    identity::TrustDomain,
    pki::{CA_VALIDITY, PkiError, Request, Validity, init, issue},
};

use super::{exit, exit::Failure, output};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Make certificates, where no cert-manager does
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make an authority: a new directory with ca.crt and ca.key
    Init {
        /// The directory
        dir: PathBuf,
    },
    /// Issue a certificate: a directory with tls.crt, tls.key and ca.crt
    #[command(subcommand)]
    Issue(Issue),
}

#[derive(Debug, Subcommand)]
enum Issue {
    /// For the sidecar of these volumes
    Sidecar {
        /// The tenant
        #[arg(long)]
        tenant: String,
        /// A volume it may write; may be given several times
        #[arg(long = "volume", value_name = "NAME", required = true)]
        volumes: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// For whoever reads the points of these volumes, and changes nothing
    Reader {
        /// The tenant
        #[arg(long)]
        tenant: String,
        /// A volume it may read; may be given several times
        #[arg(long = "volume", value_name = "NAME", required = true)]
        volumes: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// For a receiver
    Receiver {
        /// Its name
        #[arg(long, default_value = "receiver")]
        name: String,
        /// A DNS name it is reached by; may be given several times
        #[arg(long)]
        dns: Vec<String>,
        /// An IP address it is reached by; may be given several times
        #[arg(long)]
        ip: Vec<std::net::IpAddr>,
        #[command(flatten)]
        common: Common,
    },
    /// For an operator of one tenant, or of all
    Operator {
        /// The only tenant it may touch
        #[arg(long)]
        tenant: Option<String>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
struct Common {
    /// Directory of the authority, made by `tidelock pki init`
    #[arg(long, value_name = "DIR")]
    ca: PathBuf,
    /// Where the certificate goes
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Days it is valid
    #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// The SPIFFE trust domain
    #[arg(long, default_value = "tidelock", value_name = "NAME")]
    trust_domain: String,
}

pub(crate) fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Init { dir } => {
            init(&dir, Validity::starting(SystemTime::now(), CA_VALIDITY)).map_err(failure)?;
            output::print(&format!("authority made in {}: keep its ca.key secret", dir.display()));
            Ok(())
        }
        Command::Issue(Issue::Sidecar { tenant, volumes, common }) => {
            sign(&common, &Request::Sidecar { volumes: named(&tenant, &volumes)? })
        }
        Command::Issue(Issue::Reader { tenant, volumes, common }) => {
            sign(&common, &Request::Reader { volumes: named(&tenant, &volumes)? })
        }
        Command::Issue(Issue::Receiver { name, dns, ip, common }) => {
            let hosts = dns.into_iter().chain(ip.iter().map(ToString::to_string)).collect();
            sign(&common, &Request::Receiver { name, hosts })
        }
        Command::Issue(Issue::Operator { tenant, common }) => sign(&common, &Request::Operator { tenant }),
    }
}

fn named(tenant: &str, volumes: &[String]) -> Result<BTreeSet<VolumeName>, Failure> {
    let named = volumes.iter().map(|name| VolumeName::new(tenant, name));
    named.collect::<Result<_, _>>().map_err(Failure::usage)
}

fn sign(common: &Common, request: &Request) -> Result<(), Failure> {
    let domain: TrustDomain = common.trust_domain.parse().map_err(Failure::usage)?;
    let validity = Validity::starting(SystemTime::now(), DAY * common.days);
    issue(&common.ca, &domain, request, validity, &common.out).map_err(failure)?;
    output::print(&format!("certificate in {}", common.out.display()));
    Ok(())
}

fn failure(error: PkiError) -> Failure {
    let code = match &error {
        PkiError::Exists(_) | PkiError::IntoAuthority(_) => exit::REFUSED,
        PkiError::NoAuthority(_)
        | PkiError::BadAuthority { .. }
        | PkiError::BadRequest(_)
        | PkiError::BadHost(_) => exit::USAGE,
        _ => exit::FAILED,
    };
    Failure::new(code, error)
}
