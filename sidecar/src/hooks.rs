//! The application's own commands around a cut: `app` points.
//!
//! ```text
//! quiesce hook ─ok─▶ ask for a cut ─▶ wait for it ─▶ close the window ─▶ unquiesce hook
//!      │ failed, or took too long         │ took too long    (see cut::desk)   always, once quiesce was started
//!      └──────────────────────────────────┴──▶ no promise of `app`: a crash point, or none
//! ```
//! Hooks run beside the cutter, which goes on replicating whatever they do; the price of that is that the cut has to be found
//! while the application stands still, which is when it is easiest to find. A hook that takes longer than the timeout is
//! killed with everything it started. The unquiesce hook runs after every quiesce hook that was started, also after one that
//! failed or was killed, and also when the sidecar is told to stop meanwhile. What cannot be promised is that it runs after
//! a SIGKILL of the sidecar, so a quiesce hook should hold its lock no longer than some time of its own.
//!
//! The hooks run because somebody wants an `app` point, or, where that was asked for, because cuts are overdue (`--escalate
//! hooks`). In the second case the application is at rest for at most a tenth of the time, less while it is in vain.

use std::{process::Stdio, sync::Arc, time::Duration};

use thiserror::Error;
use tidelock_proto::point::Consistency;
use tokio::{
    process::Command,
    sync::{Mutex, watch},
    time::{Instant, timeout},
};

use crate::{
    cut::{Busy, Desk, Progress, Quiesced},
    limits::{PAUSE_BACKOFF_MAX, PAUSE_REST_FACTOR},
};

/// What becomes of an `app` point whose hook failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnHookFailure {
    /// The point is cut all the same, as `crash`.
    #[default]
    Continue,
    /// There is no point.
    Skip,
}

/// The hooks of one sidecar. Commands are given to `/bin/sh -c`.
#[derive(Debug, Clone)]
pub struct HookConfig {
    /// Brings the application to rest; its success begins the rest.
    pub quiesce: Option<String>,
    /// Ends the rest.
    pub unquiesce: Option<String>,
    /// How long each hook, and the rest between them, may take.
    pub timeout: Duration,
    /// What becomes of the point when a hook or the cut takes too long or fails.
    pub on_failure: OnHookFailure,
}

impl Default for HookConfig {
    fn default() -> Self {
        let timeout = Duration::from_secs(10);
        Self { quiesce: None, unquiesce: None, timeout, on_failure: OnHookFailure::default() }
    }
}

/// Why there is no `app` point.
#[derive(Debug, Error)]
pub(crate) enum HookError {
    #[error("the sidecar has no --quiesce-hook")]
    NoHook,
    #[error("{0}")]
    Failed(#[from] Failure),
    #[error(transparent)]
    Busy(#[from] Busy),
}

/// Why a hook failed.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error("the {0} hook ended with {1}")]
    Status(&'static str, std::process::ExitStatus),
    #[error("the {0} hook took longer than {1:?} and was killed")]
    TooLong(&'static str, Duration),
    #[error("the {0} hook cannot be run: {1}")]
    Start(&'static str, std::io::Error),
}

/// Runs the hooks, one `app` point after the other.
#[derive(Debug)]
pub(crate) struct Hooks {
    config: HookConfig,
    /// Held from before the quiesce hook until after the unquiesce hook.
    one: Arc<Mutex<()>>,
}

impl Hooks {
    pub(crate) fn new(config: HookConfig) -> Self {
        Self { config, one: Arc::default() }
    }

    /// Brings the application to rest and asks for a cut named `tag`. Returns once the cut is placed or the time for it is
    /// over; the application goes on without the caller. To be called in a task of its own, so that it is never dropped
    /// half-way.
    pub(crate) async fn cut(&self, desk: &Desk, tag: String) -> Result<watch::Receiver<Progress>, HookError> {
        let _one = self.one.lock().await;
        self.cut_at_rest(desk, Some(tag), std::future::pending()).await
    }

    /// Brings the application to rest for a cut whenever cuts are `overdue`, until there is nobody left to say so. To be called in a
    /// task of its own.
    pub(crate) async fn escalate(&self, desk: &Desk, mut overdue: watch::Receiver<bool>) {
        let mut failures = 0;
        while overdue.wait_for(|overdue| *overdue).await.is_ok() {
            let one = self.one.lock().await;
            // Nobody cuts any more, and whoever ends the sidecar does not wait for another hook.
            if overdue.has_changed().is_err() {
                return;
            }
            let began = Instant::now();
            let mut told = overdue.clone();
            let in_vain = async move { drop(told.wait_for(|overdue| !overdue).await) };
            let cut =
                self.cut_at_rest(desk, None, in_vain).await.is_ok_and(|answer| match *answer.borrow() {
                    Progress::Cut(placed) | Progress::Durable(placed) => {
                        placed.consistency == Consistency::App
                    }
                    Progress::Waiting | Progress::TooLate => false,
                });
            drop(one);
            failures = if cut { 0 } else { (failures + 1).min(PAUSE_BACKOFF_MAX) };
            let runs = began.elapsed() * PAUSE_REST_FACTOR * 2u32.pow(failures);
            // Ends early with whoever says what is overdue.
            let _ = timeout(runs, overdue.wait_for(|_| false)).await;
        }
    }

    /// Asks for a cut while the application is at rest, until there is one, the time is over, or it is `in_vain`.
    async fn cut_at_rest(
        &self,
        desk: &Desk,
        tag: Option<String>,
        in_vain: impl Future<Output = ()>,
    ) -> Result<watch::Receiver<Progress>, HookError> {
        let Some(quiesce) = &self.config.quiesce else { return Err(HookError::NoHook) };
        let name = tag.clone().unwrap_or_default();
        let or_crash = self.config.on_failure == OnHookFailure::Continue;
        let quiesced = match self.run("quiesce", quiesce, &name).await {
            Ok(()) => Some(Arc::new(Quiesced::new(or_crash))),
            Err(failure) => {
                tracing::warn!(%failure, tag = name, "no app point");
                self.unquiesce(&name).await;
                if !or_crash {
                    return Err(failure.into());
                }
                None
            }
        };
        let Some(quiesced) = quiesced else { return Ok(desk.ask(tag, None)?) };
        let asked = desk.ask(tag, Some(quiesced.clone()));
        if let Ok(answer) = &asked {
            let mut answer = answer.clone();
            let placed = answer.wait_for(|progress| *progress != Progress::Waiting);
            // Too late or gone: the window says what it came to.
            let placed = timeout(self.config.timeout, placed);
            tokio::select! {
                _ = placed => {}
                () = in_vain => {}
            }
        }
        if !quiesced.end() {
            tracing::warn!(tag = name, "no quiet instant while the application was quiesced");
        }
        self.unquiesce(&name).await;
        Ok(asked?)
    }

    /// Waits until no hook runs, at most as long as hooks may take.
    pub(crate) async fn rest(&self) {
        drop(self.one.lock().await);
    }

    async fn unquiesce(&self, tag: &str) {
        let Some(command) = &self.config.unquiesce else { return };
        if let Err(failure) = self.run("unquiesce", command, tag).await {
            tracing::error!(%failure, tag, "the application may still be quiesced");
        }
    }

    async fn run(&self, which: &'static str, command: &str, tag: &str) -> Result<(), Failure> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .env("TIDELOCK_TAG", tag)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure::Start(which, error))?;
        match timeout(self.config.timeout, child.wait()).await {
            Ok(Ok(status)) if status.success() => Ok(()),
            Ok(Ok(status)) => Err(Failure::Status(which, status)),
            Ok(Err(error)) => Err(Failure::Start(which, error)),
            Err(_) => {
                let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
                if let Some(group) = group {
                    // It may have ended meanwhile.
                    let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
                }
                Err(Failure::TooLong(which, self.config.timeout))
            }
        }
    }
}
