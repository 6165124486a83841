//! `tidelock recorder`: the objects of protected workloads, in the journal beside their data.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, SystemTime},
};

use tidelock_cluster::{
    api::{RecorderApi, connect},
    identity::{OBJECTS_VOLUME, Wanted},
    record::look,
};
use tidelock_manifests::{Rule, Scope};
use tidelock_proto::{Epoch, VolumeName};
use tidelock_sidecar::{
    Config, Outcome, ScrubConfig, VolumeConfig,
    hooks::HookConfig,
    pack::LEVEL_DEFAULT,
    pause::Escalate,
    watch::{NamesChoice, TrackerChoice},
};
use tokio::{sync::watch, task::JoinSet, time::sleep};
use tracing::{error, warn};

use super::{
    exit::{FAILED, Failure, USAGE},
    identity_from::{self, IdentityFrom},
    logging::{self, LogArgs},
    patience, signals,
};

/// How soon a sidecar that ended is started again.
const AGAIN: Duration = Duration::from_secs(5);

/// Record the objects that belong to protected workloads, so that every point of their data has them, too
///
/// Each namespace is a volume, NAMESPACE/kubernetes_objects, with a file for each workload. `tidelock failover` reads them. Needs an
/// API, and an injector that gives identities.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Directory for what is recorded and for identities; best a volume in memory
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Where to stream to
    #[arg(long, value_name = "HOST:PORT", env = "TIDELOCK_RECEIVER")]
    receiver: String,
    #[command(flatten)]
    identity_from: IdentityFrom,
    /// From one look at the objects to the next
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// Leave out Secrets: they have to be where the workload is taken to
    #[arg(long)]
    no_secrets: bool,
    /// A kind of custom resources that is recorded, too, and how its objects belong to a workload; JSON, once for each kind
    #[arg(long, value_name = "RULE")]
    custom_resource: Vec<Rule>,
    #[command(flatten)]
    log: LogArgs,
}

/// Runs until it is told to stop.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    logging::init(&args.log)?;
    if !args.identity_from.is_given() {
        return Err(Failure::usage(
            "--identity-from is missing: each namespace needs an identity of its own",
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut shutdown = pin!(signals::shutdown()?);
        let client = connect().await.map_err(|error| Failure::new(USAGE, error))?;
        let calls = RecorderApi::new(client);
        let (stop, stopping) = watch::channel(false);
        let mut sidecars = JoinSet::new();
        let mut known: BTreeMap<String, PathBuf> = BTreeMap::new();
        let objects = args.to.join("objects");
        let scope = Scope { secrets: !args.no_secrets, rules: args.custom_resource.clone() };
        loop {
            match look(&calls, &objects, &scope, SystemTime::now()).await {
                Ok(found) => {
                    for (namespace, directory) in found {
                        if known.insert(namespace.clone(), directory.clone()).is_none() {
                            let one = One::of(&args, &namespace, directory)?;
                            sidecars.spawn(one.keep(stopping.clone()));
                        }
                    }
                }
                Err(error) => warn!(%error, "objects were not recorded"),
            }
            tokio::select! {
                () = shutdown.as_mut() => break,
                () = sleep(args.every) => {}
            }
        }
        stop.send_replace(true);
        let mut complete = true;
        while let Some(ended) = sidecars.join_next().await {
            complete &= ended.unwrap_or(false);
        }
        let incomplete =
            || Failure::new(FAILED, anyhow::anyhow!("what was recorded last is not on the receiver"));
        complete.then_some(()).ok_or_else(incomplete)
    });
    runtime.shutdown_background();
    ended
}

/// The sidecar of one namespace.
struct One {
    config: Config,
    source: Option<tidelock_cluster::identity::Source>,
}

impl One {
    fn of(args: &Args, namespace: &str, directory: PathBuf) -> Result<Self, Failure> {
        let name = VolumeName::new(namespace, OBJECTS_VOLUME).map_err(Failure::usage)?;
        let identity = args.to.join("identity").join(namespace);
        let wanted = Wanted::Recorder { tenant: namespace.to_owned() };
        let source = args.identity_from.clone().source(wanted, identity.clone())?;
        Ok(Self { config: config(&args.receiver, &identity, VolumeConfig { name, directory }), source })
    }

    /// Runs until it is told to stop, again and again; tells whether everything was durable then.
    async fn keep(self, mut stopping: watch::Receiver<bool>) -> bool {
        let Self { config, source } = self;
        let directory = config.identity.clone();
        let mut stopped = stopping.clone();
        let work = async {
            let stop = async {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            if !patience::identity(&directory, config.http, pin!(stop)).await? {
                return Ok(false);
            }
            loop {
                let mut asked = stopping.clone();
                let stop = async move {
                    let _ = asked.wait_for(|stop| *stop).await;
                };
                let ended = tidelock_sidecar::run(config.clone(), stop).await;
                if *stopping.borrow_and_update() {
                    return Ok(matches!(ended, Ok(Outcome::Complete)));
                }
                warn!(volume = %config.volumes[0].name, ?ended, "a recorder's session ended");
                sleep(AGAIN).await;
            }
        };
        let ended: Result<bool, Failure> = identity_from::holding(source, work).await;
        ended.unwrap_or_else(|failure| {
            error!(identity = %directory.display(), reason = failure.line(), "a recorder has ended");
            false
        })
    }
}

fn config(receiver: &str, identity: &Path, volume: VolumeConfig) -> Config {
    Config {
        volumes: vec![volume],
        receiver: receiver.to_owned(),
        identity: identity.to_owned(),
        epoch: Epoch::FIRST,
        raise_epoch: false,
        tracker: TrackerChoice::Inotify,
        names: NamesChoice::Inotify,
        // A free port on this machine: nobody asks.
        http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        port_file: None,
        trace_acks: None,
        trace_cuts: None,
        cut_deadline: Duration::from_secs(1),
        escalate: Escalate::Optimistic,
        on_fence: None,
        cut_interval: Duration::from_millis(100),
        cpu_share: 0.1,
        scrub: ScrubConfig { rate_bytes: 4 << 20, every: Duration::from_secs(24 * 3600) },
        excludes: Vec::new(),
        drain_timeout: Duration::from_secs(20),
        pack_threads: 1,
        zstd_level: LEVEL_DEFAULT,
        hooks: HookConfig::default(),
    }
}
