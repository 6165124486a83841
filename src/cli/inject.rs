//! `tidelock inject`: the injector's decision on files.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::ValueEnum;
use tidelock_injector::{
    Config, IdentityFrom, Resources, annotations, limits,
    offline::{Options, Report, inject},
};

use super::exit::Failure;

/// Add sidecars to manifests, as the injector in a cluster does to pods
///
/// What asks for protection by the label tidelock.dev/inject gets it: pods, and the templates of Deployments, StatefulSets,
/// DaemonSets, ReplicaSets, Jobs and CronJobs. Namespaces in the input lend their labels. Other documents pass unchanged.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A file with YAML or JSON documents; `-` is standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    file: PathBuf,
    /// Say on standard error what was done to each pod, and why not
    #[arg(long)]
    explain: bool,
    /// The namespace of what names none
    #[arg(short = 'n', long, default_value = "default", value_name = "NAME")]
    namespace: String,
    /// A label of namespaces that are not in the input, such as tidelock.dev/inject=true; may be given several times
    #[arg(long = "namespace-label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    injection: Injection,
}

/// What holds for all pods.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Injection")]
pub(crate) struct Injection {
    /// Where to replicate to, unless a pod says otherwise
    #[arg(long, value_name = "HOST:PORT", env = "TIDELOCK_RECEIVER", value_parser = parse_address)]
    receiver: Option<String>,
    /// The sidecar's image
    #[arg(long, value_name = "IMAGE", default_value_t = Config::default().image)]
    image: String,
    /// When a node fetches it
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pull_policy: PullPolicy,
    /// The Secret, in the pod's namespace, with the sidecar's tls.crt, tls.key and ca.crt
    #[arg(long, value_name = "NAME", default_value_t = Config::default().identity_secret)]
    identity_secret: String,
    /// Sidecars get their identity from this injector instead, unless a pod names a Secret: https://HOST[:PORT]
    #[arg(long, value_name = "URL", requires = "identity_authority")]
    identity_from: Option<String>,
    /// The file with the authority that its certificate is of
    #[arg(long, value_name = "FILE", requires = "identity_from")]
    identity_authority: Option<PathBuf>,
    /// The Secret with those of an operator of the tenant, for filling empty volumes
    #[arg(long, value_name = "NAME", default_value_t = Config::default().restore_secret)]
    restore_secret: String,
    /// The sidecar's request for processors
    #[arg(long, value_name = "QUANTITY", default_value_t = or_empty(Config::default().resources.cpu_request))]
    cpu_request: String,
    /// Its limit; none if empty
    #[arg(long, value_name = "QUANTITY", default_value_t = or_empty(Config::default().resources.cpu_limit))]
    cpu_limit: String,
    /// The sidecar's request for memory
    #[arg(long, value_name = "QUANTITY", default_value_t = or_empty(Config::default().resources.memory_request))]
    memory_request: String,
    /// Its limit; none if empty
    #[arg(long, value_name = "QUANTITY", default_value_t = or_empty(Config::default().resources.memory_limit))]
    memory_limit: String,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

impl Injection {
    /// For an injector that runs in `own_namespace`.
    pub(crate) fn config(&self, own_namespace: Option<String>) -> Result<Config, Failure> {
        let resources = Resources {
            cpu_request: quantity("--cpu-request", &self.cpu_request)?,
            cpu_limit: quantity("--cpu-limit", &self.cpu_limit)?,
            memory_request: quantity("--memory-request", &self.memory_request)?,
            memory_limit: quantity("--memory-limit", &self.memory_limit)?,
        };
        let pull_policy = match self.pull_policy {
            PullPolicy::Always => "Always",
            PullPolicy::IfNotPresent => "IfNotPresent",
            PullPolicy::Never => "Never",
        };
        Ok(Config {
            image: self.image.clone(),
            pull_policy: pull_policy.to_owned(),
            receiver: self.receiver.clone(),
            identity_secret: self.identity_secret.clone(),
            identity_from: self.identity_from()?,
            restore_secret: self.restore_secret.clone(),
            own_namespace,
            excluded_namespaces: Vec::new(),
            resources,
        })
    }
}

impl Injection {
    fn identity_from(&self) -> Result<Option<IdentityFrom>, Failure> {
        let (Some(url), Some(file)) = (&self.identity_from, &self.identity_authority) else {
            return Ok(None);
        };
        if !url.starts_with("https://") {
            return Err(Failure::usage(format!("--identity-from {url}: write https://HOST[:PORT]")));
        }
        let authorities = std::fs::read_to_string(file)
            .map_err(|error| Failure::usage(format!("--identity-authority {}: {error}", file.display())))?;
        Ok(Some(IdentityFrom { url: url.clone(), authorities }))
    }
}

fn or_empty(text: Option<String>) -> String {
    text.unwrap_or_default()
}

fn quantity(option: &str, text: &str) -> Result<Option<String>, Failure> {
    if !text.is_empty() && !annotations::is_quantity(text) {
        return Err(Failure::usage(format!("{option} {text}: write a quantity such as 100m, 1 or 256Mi")));
    }
    Ok(Some(text.to_owned()).filter(|text| !text.is_empty()))
}

fn parse_address(text: &str) -> Result<String, String> {
    let address = annotations::is_address(text).then(|| text.to_owned());
    address.ok_or_else(|| "write HOST:PORT, such as standby.example.org:9900".to_owned())
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let config = args.injection.config(None)?;
    let text = read(&args.file)?;
    let labels = args.labels.iter().cloned().collect();
    let options = Options { namespace: args.namespace.clone(), labels };
    let done = inject(&text, &options, &config)
        .map_err(|error| Failure::usage(format!("{}: {error}", args.file.display())))?;
    tell(&done.reports, args.explain);
    let mut out = io::stdout().lock();
    match out.write_all(done.text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let name = file.display();
    let source: Box<dyn Read> = if file == Path::new("-") {
        if io::stdin().is_terminal() {
            eprintln!("tidelock: reading manifests from the terminal; end them with Ctrl-D");
        }
        Box::new(io::stdin())
    } else {
        let opened = File::open(file).map_err(|error| Failure::usage(format!("{name}: {error}")))?;
        Box::new(opened)
    };
    let mut text = String::new();
    let limited = &mut source.take(limits::MANIFESTS_MAX_BYTES + 1);
    limited.read_to_string(&mut text).with_context(|| format!("cannot read {name}"))?;
    if text.len() as u64 > limits::MANIFESTS_MAX_BYTES {
        return Err(Failure::usage(format!("{name}: longer than {} bytes", limits::MANIFESTS_MAX_BYTES)));
    }
    Ok(text)
}

/// Without `--explain` only what somebody should look at: who did not ask hears nothing.
fn tell(reports: &[Report], explain: bool) {
    use tidelock_injector::Reason;
    for report in reports {
        if explain && !report.added.is_empty() {
            eprintln!("{}: injected", report.subject);
            report.added.iter().for_each(|line| eprintln!("  {line}"));
        }
        for note in &report.notes {
            let quiet = matches!(note.reason, Reason::NotAsked | Reason::OptedOut | Reason::AlreadyInjected);
            if explain || !quiet {
                eprintln!("{}: {}", report.subject, note.to_string().trim_start_matches("tidelock: "));
            }
        }
    }
}
