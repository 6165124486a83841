//! `tidelock sidecar`: protects the volumes of one pod.

use std::{net::SocketAddr, path::PathBuf, pin::pin, time::Duration};

use anyhow::Context;
use clap::ValueEnum;
use tidelock_cluster::identity::Wanted;
use tidelock_proto::{
    Epoch,
    limits::{EPOCH_MAX, LEAVE_HOLD},
};
use tidelock_receiver::reconcile::INSTANT;
use tidelock_sidecar::{
    Config, Exclude, Excludes, Outcome, RunError, ScrubConfig, VolumeConfig,
    hooks::{HookConfig, OnHookFailure},
    limits::PACK_THREADS_MAX,
    pack::{LEVEL_DEFAULT, Packer},
    pause::{Escalate, PauseConfig, PauseTarget},
    watch::{NamesChoice, TrackerChoice},
};

use super::{
    exit::{FAILED, FENCED, Failure, SUPERSEDED, USAGE},
    identity_from::{self, IdentityFrom},
    logging::{self, LogArgs},
    nice, patience, signals,
};

/// Protect directories: watch them, cut them, and stream what changed to a receiver.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A directory to protect and its name; may be given several times.
    #[arg(long = "volume", value_name = "TENANT/NAME=DIR", required = true, value_parser = parse_volume)]
    volumes: Vec<VolumeConfig>,
    /// Where to stream to.
    #[arg(long, value_name = "HOST:PORT", env = "TIDELOCK_RECEIVER", value_parser = parse_address)]
    receiver: String,
    /// Directory with tls.crt, tls.key and ca.crt; `tidelock pki issue sidecar` makes one.
    #[arg(long, value_name = "DIR", env = "TIDELOCK_IDENTITY")]
    identity: PathBuf,
    /// Wait for the three files if one is not there yet, instead of ending; /healthz answers meanwhile.
    #[arg(long)]
    wait_for_identity: bool,
    #[command(flatten)]
    identity_from: IdentityFrom,
    /// The writer epoch this sidecar was granted: 1 for a volume that was never promoted, else what `tidelock promote`
    /// printed.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=EPOCH_MAX))]
    epoch: u64,
    /// Let this sidecar raise the receiver's epoch to its own, because the promotion that granted it was at another
    /// receiver, or of another volume of the group. Fences every other writer.
    #[arg(long)]
    raise_epoch: bool,
    /// Which event sources to use.
    #[arg(long, value_enum, default_value_t)]
    tracker: TrackerArg,
    /// Where names come from, and that a file changed.
    #[arg(long, value_enum, default_value_t)]
    names: NamesArg,
    /// TCP address for /healthz, /readyz, /metrics and /status, which are plain HTTP. What `tidelock mark` and `tidelock
    /// checkpoint` ask for is taken from this machine only.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9902")]
    http: SocketAddr,
    /// Write the bound HTTP address here once it listens.
    #[arg(long, value_name = "PATH")]
    port_file: Option<PathBuf>,
    /// Append a line `EPOCH.SEQ CUT_NS ACK_NS` for every acknowledgement, for measuring.
    #[arg(long, value_name = "PATH")]
    trace_acks: Option<PathBuf>,
    /// Append a line `EPOCH.SEQ CUT_NS ROUNDS TOOK_NS PAUSED_NS` for every cut, for measuring.
    #[arg(long, value_name = "PATH")]
    trace_cuts: Option<PathBuf>,
    /// How long a cut is tried before it is escalated.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    cut_deadline: Duration,
    /// What to do about a cut that found no quiet instant within its deadline.
    #[arg(long, value_enum, default_value_t)]
    escalate: EscalateArg,
    /// The longest that a pause may last.
    #[arg(long, value_name = "TIME", default_value = "250ms", value_parser = humantime::parse_duration)]
    pause_limit: Duration,
    /// The application's process, for `--escalate pause` and `--on-fence stop`: it and its descendants instead of all of the
    /// pod; a path is that of a pid file. May be given several times.
    #[arg(long = "pause-process", value_name = "PID|PIDFILE", value_parser = parse_target)]
    pause_targets: Vec<PauseTarget>,
    /// What becomes of the application when this writer is fenced, because the volume was promoted elsewhere.
    #[arg(long, value_enum, default_value_t)]
    on_fence: OnFenceArg,
    /// Shortest time between the beginnings of two cuts.
    #[arg(long, value_name = "TIME", default_value = "2ms", value_parser = humantime::parse_duration)]
    cut_interval: Duration,
    /// The part of one core that replication may take before cuts become rarer under load, down to one in 10 ms.
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    cpu_share: f64,
    /// How far replication stands back where the application needs every processor: 0 not at all, 19 most. With
    /// `--escalate pause` it never does, because then the application would wait for it.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(i32).range(0..=19))]
    nice: i32,
    /// Names that are left out: neither captured nor part of any point. Without a slash: a name, anywhere; with one: a
    /// path from the root. May be given several times. `/lost+found` always is. What a database needs is yours to know.
    #[arg(long = "exclude", value_name = "[TENANT/NAME=]GLOB", value_parser = parse_exclude)]
    excludes: Vec<Exclude>,
    /// Bytes per second that are compared in the background with what was captured, to find changes that the kernel told
    /// nobody of; 0 for none.
    #[arg(long, value_name = "BYTES", default_value = "4M", allow_negative_numbers = true, value_parser = parse_bytes)]
    scrub_rate: u64,
    /// From the beginning of one such round over the volume, and from the start, to the next.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    scrub_every: Duration,
    /// How long the final cut and its acknowledgement may take after SIGTERM.
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = humantime::parse_duration)]
    drain_timeout: Duration,
    /// Threads that hash and compress.
    #[arg(long, value_name = "N", default_value_t = Packer::threads_default() as u64, value_parser = clap::value_parser!(u64).range(1..=PACK_THREADS_MAX as u64))]
    pack_threads: u64,
    /// zstd level. Those below 0 are faster than 1 and compress less; with 1, what is at most 16 KiB long is compressed at -1.
    #[arg(long, value_name = "LEVEL", default_value_t = LEVEL_DEFAULT, allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-50..=19))]
    zstd_level: i32,
    #[command(flatten)]
    hooks: HookArgs,
    #[command(flatten)]
    log: LogArgs,
}

/// The application's own commands for `tidelock mark --app`.
#[derive(Debug, clap::Args)]
struct HookArgs {
    /// Brings the application to rest for `tidelock mark --app`; run by /bin/sh with TIDELOCK_TAG set.
    #[arg(long, value_name = "CMD", requires = "unquiesce_hook")]
    quiesce_hook: Option<String>,
    /// Ends the rest; run after every quiesce hook that was started, however it ended.
    #[arg(long, value_name = "CMD", requires = "quiesce_hook")]
    unquiesce_hook: Option<String>,
    /// How long each hook, and the rest between them, may take; a hook that takes longer is killed.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    hook_timeout: Duration,
    /// What becomes of the point when a hook fails or the rest is too short: cut it as `crash`, or skip it.
    #[arg(long, value_enum, default_value_t)]
    on_hook_failure: OnHookFailureArg,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum OnHookFailureArg {
    /// A point without the promise of `app`.
    #[default]
    Continue,
    /// No point.
    Skip,
}

impl From<HookArgs> for HookConfig {
    fn from(args: HookArgs) -> Self {
        Self {
            quiesce: args.quiesce_hook,
            unquiesce: args.unquiesce_hook,
            timeout: args.hook_timeout,
            on_failure: match args.on_hook_failure {
                OnHookFailureArg::Continue => OnHookFailure::Continue,
                OnHookFailureArg::Skip => OnHookFailure::Skip,
            },
        }
    }
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum TrackerArg {
    /// The best there is.
    #[default]
    Auto,
    /// Exact byte ranges from tracepoints, or an error.
    Exact,
    /// No ranges: only that a file changed, which needs no privilege. On a network file system it says that nobody else writes there.
    Inotify,
    /// Comparing the whole volume again and again, for file systems that others change, too: points are fuzzy.
    Poll,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum NamesArg {
    /// inotify, one watch for each directory; beyond its limit fanotify, where that is permitted.
    #[default]
    Auto,
    /// inotify alone.
    Inotify,
    /// fanotify, one mark on the whole file system, or an error: needs CAP_SYS_ADMIN.
    Fanotify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum EscalateArg {
    /// Keep trying.
    #[default]
    Optimistic,
    /// Stop the application's processes for the last rounds; a watchdog resumes them whatever happens.
    Pause,
    /// Run the quiesce hook, cut, run the unquiesce hook.
    Hooks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum OnFenceArg {
    /// It goes on writing what nobody replicates.
    #[default]
    Nothing,
    /// Its processes are killed. They are also who stands still for `tidelock move`.
    Stop,
}

fn parse_target(text: &str) -> Result<PauseTarget, String> {
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(PauseTarget::Process(pid)),
        Ok(pid) => Err(format!("{pid} is no process id")),
        Err(_) => Ok(PauseTarget::PidFile(text.into())),
    }
}

fn parse_volume(text: &str) -> Result<VolumeConfig, String> {
    let (name, directory) = text.split_once('=').ok_or("write TENANT/NAME=DIRECTORY")?;
    let name = name.parse().map_err(|error| format!("{error}"))?;
    if directory.is_empty() {
        return Err("the directory is missing: write TENANT/NAME=DIRECTORY".to_owned());
    }
    Ok(VolumeConfig { name, directory: directory.into() })
}

fn parse_exclude(text: &str) -> Result<Exclude, String> {
    let named = text.split_once('=').and_then(|(volume, glob)| Some((volume.parse().ok()?, glob)));
    let (volume, glob) = named.map_or((None, text), |(volume, glob)| (Some(volume), glob));
    Excludes::new([glob]).map_err(|error| error.to_string())?;
    Ok(Exclude { volume, glob: glob.to_owned() })
}

/// A number of bytes, with `K`, `M` or `G` for powers of 1024.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let shift = match text.as_bytes().last() {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        _ => 0,
    };
    let number = text.trim_end_matches(['K', 'M', 'G']);
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "write a number of bytes, such as 512K, 4M or 1G".to_owned())
}

fn parse_address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
            Ok(text.to_owned())
        }
        _ => Err("write HOST:PORT, such as standby.example.org:4433".to_owned()),
    }
}

/// Runs until it is told to stop, fenced, or of no use.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    logging::init(&args.log)?;
    if let Some(volume) = args.volumes.iter().find(|volume| volume.directory.join(INSTANT).is_dir()) {
        let directory = volume.directory.display();
        return Err(Failure::usage(format!(
            "{directory} holds an instant promotion that is not mounted: run `tidelock promote --instant` again first"
        )));
    }
    // The very program that runs, also after its file was replaced.
    let watchdog = vec!["/proc/self/exe".into(), super::watchdog::NAME.into()];
    let source = args.identity_from.source(Wanted::Sidecar, args.identity.clone())?;
    let config = Config {
        volumes: args.volumes,
        receiver: args.receiver,
        identity: args.identity,
        epoch: Epoch(args.epoch),
        raise_epoch: args.raise_epoch,
        tracker: match args.tracker {
            TrackerArg::Auto => TrackerChoice::Auto,
            TrackerArg::Exact => TrackerChoice::Exact,
            TrackerArg::Inotify => TrackerChoice::Inotify,
            TrackerArg::Poll => TrackerChoice::Poll,
        },
        names: match args.names {
            NamesArg::Auto => NamesChoice::Auto,
            NamesArg::Inotify => NamesChoice::Inotify,
            NamesArg::Fanotify => NamesChoice::Fanotify,
        },
        http: args.http,
        hooks: args.hooks.into(),
        port_file: args.port_file,
        trace_acks: args.trace_acks,
        trace_cuts: args.trace_cuts,
        cut_deadline: args.cut_deadline,
        escalate: match args.escalate {
            EscalateArg::Optimistic => Escalate::Optimistic,
            EscalateArg::Hooks => Escalate::Hooks,
            EscalateArg::Pause => Escalate::Pause(PauseConfig {
                limit: args.pause_limit,
                targets: args.pause_targets.clone(),
                watchdog: watchdog.clone(),
            }),
        },
        on_fence: (args.on_fence == OnFenceArg::Stop).then_some(PauseConfig {
            limit: LEAVE_HOLD,
            targets: args.pause_targets,
            watchdog,
        }),
        cut_interval: args.cut_interval,
        cpu_share: args.cpu_share,
        excludes: args.excludes,
        scrub: ScrubConfig { rate_bytes: args.scrub_rate, every: args.scrub_every },
        drain_timeout: args.drain_timeout,
        pack_threads: args.pack_threads as usize,
        zstd_level: args.zstd_level,
    };
    if args.escalate != EscalateArg::Pause {
        nice::stand_back(args.nice).context("cannot set --nice")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let outcome = runtime.block_on(async {
        let mut shutdown = pin!(signals::shutdown()?);
        let wait = args.wait_for_identity || source.is_some();
        let work = async {
            if wait && !patience::identity(&config.identity, config.http, shutdown.as_mut()).await? {
                return Ok(Outcome::Complete);
            }
            tidelock_sidecar::run(config, shutdown).await.map_err(failure)
        };
        identity_from::holding(source, work).await
    });
    runtime.shutdown_background();
    match outcome? {
        Outcome::Complete => Ok(()),
        Outcome::Incomplete => Err(Failure::new(
            FAILED,
            anyhow::anyhow!(
                "stopped before the final cut was durable: what changed last is not on the receiver"
            ),
        )),
        Outcome::Fenced { volume, epoch } => Err(Failure::new(
            FENCED,
            anyhow::anyhow!(
                "fenced: volume {volume} was promoted to epoch {epoch}, so this copy is no longer the primary; \
                 stop the application here and fail back from the new primary"
            ),
        )),
        Outcome::Superseded(volume) => Err(Failure::new(
            SUPERSEDED,
            anyhow::anyhow!("superseded: another sidecar replicates volume {volume} now; run only one"),
        )),
    }
}

fn failure(error: RunError) -> Failure {
    if error.is_usage() { Failure::new(USAGE, error) } else { error.into() }
}
