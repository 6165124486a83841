//! A directory that nobody works in becomes the newest point of a volume, and that is all.
//!
//! It is a sidecar that is told to stop before it has begun: it agrees on a tree with the receiver, compares, sends what differs, takes
//! its final cut and ends when that is durable. So an import can be interrupted at any moment and run again, and what it makes is
//! a point like any other: its chunks stay, because a point refers to them, whatever is compacted meanwhile. That nobody works there is
//! for the caller to know; should somebody, it is a cut of a volume in use, as correct as those of a sidecar.
//!
//! It shows an operator's certificate. A receiver refuses it while the volume has a writer, and in an epoch that is over.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tidelock_proto::{Epoch, identity::Identity};
use tokio::{sync::watch, task::JoinSet};

use crate::{
    config::{Config, ConfigError, Exclude, VolumeConfig},
    cut::{Departure, Desk},
    hooks::HookConfig,
    limits::IMPORT_WITHIN,
    pack::{LEVEL_DEFAULT, Packer},
    pause::{Escalate, Escalation, Means},
    run::{Outcome, RunError, cut, judge, protect},
    scrub::ScrubConfig,
    status::Status,
    watch::{NamesChoice, TrackerChoice},
};

/// What is imported, and where to.
#[derive(Debug, Clone)]
pub struct ImportConfig {
    /// The directory, and the volume that it becomes the newest point of.
    pub volume: VolumeConfig,
    /// `HOST:PORT` of the receiver.
    pub receiver: String,
    /// Directory with an operator's `tls.crt`, `tls.key`, `ca.crt`.
    pub identity: PathBuf,
    /// The epoch that the directory was written in; a receiver at a higher one refuses it.
    pub epoch: Epoch,
    /// Patterns of names that are left out.
    pub excludes: Vec<String>,
}

/// What an import took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// Bytes read of files.
    pub read_bytes: u64,
    /// Bytes sent to the receiver.
    pub sent_bytes: u64,
}

/// Imports a directory; tells how it ended, and what it took. Waits for a receiver that is away for as long as it takes.
pub async fn import(config: ImportConfig) -> Result<(Outcome, Imported), RunError> {
    let config = as_sidecar(config);
    config.check()?;
    let identity = Identity::load(&config.identity).map_err(ConfigError::from)?;
    let volume = &config.volumes[0];
    if !identity.peer().may_operate(&volume.name) {
        let (volume, identity) = (volume.name.clone(), config.identity.clone());
        return Err(ConfigError::NotOperated { volume, identity }.into());
    }
    let status = Arc::new(Status::new(volume.name.clone(), config.epoch));
    let (end_tasks, tasks_end) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let engine = protect(&config, volume, &identity, status.clone(), &mut tasks, tasks_end, true)?;
    let volumes = vec![(volume.name.clone(), engine)];
    let escalation = Escalation::new(config.cut_deadline, Means::None, vec![status.clone()]);
    let desk = Arc::new(Desk::new().map_err(RunError::Session)?);
    let stop = Arc::new(AtomicBool::new(true));
    let ended = cut(&config, volumes, (escalation, Departure::new(None)), desk, stop)?;
    let outcome = judge(ended.await)?;
    let _ = end_tasks.send(true);
    let drain = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(1), drain).await;
    let (read, sent) = (&status.counters.read_bytes, &status.counters.wire_bytes);
    Ok((outcome, Imported { read_bytes: read.get(), sent_bytes: sent.get() }))
}

fn as_sidecar(config: ImportConfig) -> Config {
    let exclude = |glob| Exclude { volume: None, glob };
    Config {
        volumes: vec![config.volume],
        receiver: config.receiver,
        identity: config.identity,
        epoch: config.epoch,
        raise_epoch: false,
        tracker: TrackerChoice::Auto,
        names: NamesChoice::Auto,
        // Nothing is served.
        http: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        port_file: None,
        trace_acks: None,
        trace_cuts: None,
        cut_deadline: Duration::from_secs(1),
        escalate: Escalate::Optimistic,
        on_fence: None,
        cut_interval: Duration::from_millis(2),
        cpu_share: 1.0,
        scrub: ScrubConfig::OFF,
        excludes: config.excludes.into_iter().map(exclude).collect(),
        drain_timeout: IMPORT_WITHIN,
        pack_threads: Packer::threads_default(),
        zstd_level: LEVEL_DEFAULT,
        hooks: HookConfig::default(),
    }
}
