//! A whole sidecar: one cutter thread for its group of volumes, a session for each, and one local port.

use std::{
    io::Write,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tidelock_proto::{ChunkKey, Epoch, VolumeName, identity::Identity};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinSet,
};

use crate::{
    capture::Volume,
    config::{Config, ConfigError, VolumeConfig},
    cut::{CutError, Cutter, CutterConfig, Departure, Desk, Ended, Engine},
    hooks::Hooks,
    http::{self, Control},
    limits,
    pack::Packer,
    pause::{Escalate, Escalation, Means, Pauser},
    ship::{self, SessionConfig, ShipConfig, outbox},
    status::Status,
    watch::{SourceChoice, WatchError, WatchLimits, Watcher},
};

/// How a sidecar ended, if nothing failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was asked to stop, and everything written before is durable on the receiver.
    Complete,
    /// It was asked to stop, and the time was over first: changes since the last acknowledged point are not on the receiver.
    Incomplete,
    /// A newer epoch exists: this writer must not come back.
    Fenced {
        /// The volume.
        volume: VolumeName,
        /// Its epoch on the receiver.
        epoch: Epoch,
    },
    /// Another sidecar writes the volume now.
    Superseded(VolumeName),
}

/// Why a sidecar failed.
#[derive(Debug, Error)]
pub enum RunError {
    /// It cannot start.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The event sources cannot be opened.
    #[error("cannot watch volume {volume}: {source}")]
    Watch {
        /// The volume.
        volume: VolumeName,
        /// Why.
        source: WatchError,
    },
    /// The system has no room for what a session needs.
    #[error("cannot set up a session: {0}")]
    Session(std::io::Error),
    /// The receiver refuses this sidecar for good, or is not the one that was dialled.
    #[error("volume {volume} cannot be replicated there: {reason}")]
    Denied {
        /// The volume.
        volume: VolumeName,
        /// Why, mostly in the receiver's words.
        reason: String,
    },
    /// Cutting failed.
    #[error("volume {volume}: {source}")]
    Cut {
        /// The volume.
        volume: VolumeName,
        /// Why.
        source: CutError,
    },
    /// A thread or task died.
    #[error("a part of the sidecar died; this is a bug")]
    Died,
}

impl RunError {
    /// Whether it was asked for what cannot be, so that trying again changes nothing.
    pub fn is_usage(&self) -> bool {
        let by_name = |source: &_| {
            matches!(source, WatchError::ExactUnavailable(_) | WatchError::FanotifyUnavailable(_))
        };
        match self {
            Self::Config(_) => true,
            Self::Watch { source, .. } => by_name(source),
            _ => false,
        }
    }
}

/// Runs until `shutdown`, and then until the final cut is durable or the time for it is over; or until there is no sense in
/// going on.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<Outcome, RunError> {
    config.check()?;
    let identity = Identity::load(&config.identity).map_err(ConfigError::from)?;
    for volume in &config.volumes {
        if !identity.peer().may_write(&volume.name) {
            let (volume, identity) = (volume.name.clone(), config.identity.clone());
            return Err(ConfigError::NotCovered { volume, identity }.into());
        }
    }
    let bind = |source| ConfigError::Http { address: config.http, source };
    let listener = TcpListener::bind(config.http).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;

    let (tell_overdue, overdue) = watch::channel(false);
    let means = match &config.escalate {
        Escalate::Optimistic => Means::None,
        Escalate::Pause(pause) => Means::Pause(Pauser::new(pause.clone()).map_err(ConfigError::from)?),
        Escalate::Hooks => Means::Hooks(tell_overdue),
    };
    let stopper = config.on_fence.clone().map(Pauser::new).transpose().map_err(ConfigError::from)?;
    let stop = Arc::new(AtomicBool::new(false));
    let (end_tasks, tasks_end) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let desk = Arc::new(Desk::new().map_err(RunError::Session)?);
    let hooks = Arc::new(Hooks::new(config.hooks.clone()));
    let mut statuses = Vec::new();
    let mut volumes = Vec::new();
    for volume in &config.volumes {
        let status = Arc::new(Status::new(volume.name.clone(), config.epoch));
        let engine =
            protect(&config, volume, &identity, status.clone(), &mut tasks, tasks_end.clone(), false)?;
        statuses.push(status);
        volumes.push((volume.name.clone(), engine));
    }
    let escalation = Escalation::new(config.cut_deadline, means, statuses.clone());
    tasks.spawn({
        let (desk, hooks) = (desk.clone(), hooks.clone());
        async move { hooks.escalate(&desk, overdue).await }
    });
    tasks.spawn({
        let end = until(tasks_end);
        let control = Control::new(desk.clone(), hooks.clone());
        let identity = Some(identity.clone());
        async move {
            if let Err(error) = http::serve(listener, statuses, identity, control, end).await {
                tracing::error!(%error, "the local port failed");
            }
        }
    });
    if let Some(path) = &config.port_file {
        write_whole(path, &format!("{address}\n"))?;
    }
    tracing::info!(%address, receiver = config.receiver, epoch = %config.epoch, "sidecar started");

    let ended = cut(&config, volumes, (escalation, Departure::new(stopper)), desk, stop.clone())?;
    let outcome = supervise(ended, &stop, shutdown).await;
    if matches!(outcome, Ok(Outcome::Fenced { .. } | Outcome::Superseded(_))) {
        // So that whoever watches the status learns why it ends, not only that it did.
        tokio::time::sleep(limits::LAST_WORDS).await;
    }
    // The cutter is gone, so nobody waits for a cut any more; but an application that was quiesced is let go.
    hooks.rest().await;
    let _ = end_tasks.send(true);
    let drain = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), drain).await;
    outcome
}

/// Starts the thread that cuts all volumes together.
pub(crate) fn cut(
    config: &Config,
    volumes: Vec<(VolumeName, Engine)>,
    pauses: (Escalation, Departure),
    desk: Arc<Desk>,
    stop: Arc<AtomicBool>,
) -> Result<oneshot::Receiver<Ended>, RunError> {
    let cutting = CutterConfig {
        epoch: config.epoch,
        interval: config.cut_interval,
        cpu_share: config.cpu_share,
        final_cut_within: config.drain_timeout,
    };
    let (tell, ended) = oneshot::channel();
    let cutter = Cutter::new(volumes, pauses, cutting, desk, stop);
    let span = tracing::info_span!("cutter", epoch = %config.epoch);
    std::thread::Builder::new()
        .name("cutter".to_owned())
        .spawn(move || span.in_scope(|| tell.send(cutter.run())))
        .map_err(RunError::Session)?;
    Ok(ended)
}

/// Waits for the end. A volume that ends by itself ends all: half a pod is not protected.
async fn supervise(
    mut ended: oneshot::Receiver<Ended>,
    stop: &AtomicBool,
    shutdown: impl Future<Output = ()>,
) -> Result<Outcome, RunError> {
    tokio::select! {
        ended = &mut ended => return judge(ended),
        () = shutdown => {}
    }
    tracing::info!("stopping: taking the final cut");
    stop.store(true, Ordering::Relaxed);
    judge(ended.await)
}

pub(crate) fn judge(ended: Result<Ended, oneshot::error::RecvError>) -> Result<Outcome, RunError> {
    match ended {
        Ok(Ended::Stopped { complete: true }) => Ok(Outcome::Complete),
        Ok(Ended::Stopped { complete: false }) => {
            tracing::warn!("stopped before the final cut was durable");
            Ok(Outcome::Incomplete)
        }
        Ok(Ended::Fenced { volume, epoch }) => Ok(Outcome::Fenced { volume, epoch }),
        Ok(Ended::Superseded(volume)) => Ok(Outcome::Superseded(volume)),
        Ok(Ended::Denied { volume, reason }) => Err(RunError::Denied { volume, reason }),
        Ok(Ended::Failed { volume, source }) => Err(RunError::Cut { volume, source }),
        Err(_) => Err(RunError::Died),
    }
}

/// Opens a volume and its sources, and starts its session.
pub(crate) fn protect(
    config: &Config,
    volume: &VolumeConfig,
    identity: &Identity,
    status: Arc<Status>,
    tasks: &mut JoinSet<()>,
    tasks_end: watch::Receiver<bool>,
    import: bool,
) -> Result<Engine, RunError> {
    let name = volume.name.clone();
    let failed = |source| RunError::Watch { volume: name.clone(), source };
    let directory = Volume::open(&volume.directory).map_err(ConfigError::from)?;
    let sources = SourceChoice { tracker: config.tracker, names: config.names };
    let watcher = Watcher::open(directory.root(), sources, &WatchLimits::default()).map_err(failed)?;
    let tracker = watcher.tracker().as_str();
    tracing::info!(volume = %name, directory = %volume.directory.display(), tracker, reason = watcher.reasons(), "protecting");
    status.set_tracker(tracker, &watcher.reasons());
    if let Some(path) = &config.trace_acks {
        status.trace_acks(append_to(path)?);
    }
    if let Some(path) = &config.trace_cuts {
        status.trace_cuts(append_to(path)?);
    }
    let (outbox, end) = outbox(SessionConfig {
        volume: name.clone(),
        epoch: config.epoch,
        raise_epoch: config.raise_epoch,
        import,
        instance: rand::random(),
        tracker: tracker.to_owned(),
        window_bytes: limits::WINDOW_BYTES,
        commits_max: limits::COMMITS_MAX,
    })
    .map_err(RunError::Session)?;
    let ship = ShipConfig { receiver: config.receiver.clone(), identity: identity.clone() };
    tasks.spawn({
        let status = status.clone();
        async move {
            ship::run(&ship, end, status, until(tasks_end)).await;
        }
    });
    let packer = Packer::new(ChunkKey::of_tenant(name.tenant()), config.pack_threads, config.zstd_level);
    let engine = Engine::new(directory, watcher, packer, outbox, status);
    Ok(engine.set_up(config.scrub, config.excludes_of(&name)?).for_import(import))
}

async fn until(mut end: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is the end, too.
    let _ = end.wait_for(|ended| *ended).await;
}

fn append_to(path: &Path) -> Result<std::fs::File, ConfigError> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.map_err(|source| ConfigError::File { path: path.to_owned(), source })
}

/// Writes a small file so that a reader sees it whole or not at all.
fn write_whole(path: &Path, text: &str) -> Result<(), ConfigError> {
    let failed = |source| ConfigError::File { path: path.to_owned(), source };
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    std::fs::File::create(&name).and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed)?;
    std::fs::rename(&name, path).map_err(failed)
}
