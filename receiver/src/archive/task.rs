//! The task that keeps an archive while the receiver runs.
//!
//! It never stands in anybody's way: an object store that is away costs the archive's lag and nothing else, unless acknowledgements were
//! asked to wait for it.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tracing::{debug, error, info, warn};

use super::{
    Ack, Options,
    attach::{Writer, has_log},
    bucket::Bucket,
    error::ArchiveError,
    lease::{self, Beat},
    local::Local,
    manifest::Head,
    mend::mend,
    reach::Reach,
    source::Source,
    state::{Observed, Part, State, Trouble},
    upload::{Progress, Uploader},
};
use crate::{
    limits,
    log::part::Fetch,
    store::{Store, StoreError, StoreOptions},
};

/// An archive whose store is not open yet.
pub(crate) struct Opening {
    options: Options,
    bucket: Bucket,
    writer: Writer,
    /// What the chain says; nothing if the object store was away.
    head: Option<Head>,
}

/// A running archive.
pub(crate) struct Archive {
    handle: Handle,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// How an archive is doing.
#[derive(Clone)]
pub(crate) struct Handle {
    state: Arc<State>,
    ack: Ack,
    bucket: Bucket,
    holder: [u8; 16],
}

impl Opening {
    /// Makes the archive this store's and fetches the log if the store has none. An object store that is away is an error only if the
    /// store needs it, or has never been archived (a mistyped name would go unseen).
    ///
    /// What is fetched from another receiver's archive is tried with these options of the store before it is taken over.
    pub(crate) async fn begin(
        store: &Path,
        options: Options,
        of_store: StoreOptions,
    ) -> Result<Self, ArchiveError> {
        let mut local = match Local::read(store)? {
            Some(local) => local,
            None => {
                // Before anything is written under this name.
                let local = Local::new();
                local.write(store)?;
                local
            }
        };
        let bucket = Bucket::new(options.url.open()?);
        let writer = Writer::new(&local);
        let url = options.url.clone();
        let trial = move |dir: &Path| -> Result<(), StoreError> {
            // Should the runtime be wanting, opening says so of what it cannot read.
            let reach = Reach::open(&url).ok();
            Store::prepare(dir)?.open_with(of_store, reach).map(drop)
        };
        let head = match writer.attach(&bucket, store, options.lease, Box::new(trial)).await {
            Ok(head) => Some(head),
            Err(error) if error.is_transient() && local.attached && has_log(store) => {
                warn!(%error, "archive cannot be reached; the receiver starts without it");
                None
            }
            Err(error) => return Err(error),
        };
        if head.is_some() && !local.attached {
            local.attached = true;
            local.write(store)?;
        }
        Ok(Self { options, bucket, writer, head })
    }

    /// Fetches what is not here of the store's segments when it is read.
    pub(crate) fn reach(&self) -> Result<Arc<dyn Fetch>, ArchiveError> {
        Reach::open(&self.options.url)
    }

    /// Starts to keep it, from the store that is open now.
    pub(crate) async fn start(self, source: Arc<dyn Source>) -> Result<Archive, ArchiveError> {
        let state = Arc::new(State::new());
        let uploader = match self.head {
            Some(head) => {
                let (bucket, writer) = (self.bucket.clone(), self.writer.clone());
                match Uploader::new(bucket, writer, source.clone(), state.clone(), head).await {
                    Ok(uploader) => Some(uploader),
                    Err(error) if error.is_transient() => None,
                    Err(error) => return Err(error),
                }
            }
            None => None,
        };
        if uploader.is_none() {
            state.on_trouble(Part::Upload, Trouble::Unreachable);
            // What the archive has is not known; all of the log is the most that it may lack.
            let log = source.snapshot().map_err(ArchiveError::local("log".as_ref()))?;
            state.on_missing(Instant::now(), log.lens.values().sum());
        }
        let (stop, stopped) = watch::channel(false);
        let (bucket, holder) = (self.bucket.clone(), self.writer.holder);
        let handle = Handle { state: state.clone(), ack: self.options.ack, bucket, holder };
        let keeping = Keeping {
            interval: self.options.interval(),
            lease: self.options.lease,
            bucket: self.bucket,
            writer: self.writer,
            source,
            state,
            stopped,
        };
        Ok(Archive { handle, stop, task: tokio::spawn(keeping.run(uploader)) })
    }
}

impl Archive {
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Resolves when acknowledgements wait for an archive that is not this receiver's any more, or the task has ended by itself.
    pub(crate) async fn ended(&mut self) -> Option<ArchiveError> {
        if (&mut self.task).await.is_err() {
            return None;
        }
        let lost = self.handle.state.lost();
        match self.handle.ack {
            Ack::Archive => lost,
            Ack::Local => std::future::pending().await,
        }
    }

    /// Adds what is missing, if that is quick, and gives the archive up.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        if !self.task.is_finished() && self.task.await.is_err() {
            error!("archive's task panicked");
        }
    }
}

impl Handle {
    pub(crate) fn observe(&self) -> Observed {
        self.state.observe(Instant::now())
    }

    /// Gives damaged segments of the store the bytes that the archive has; tells how many were written. What it cannot do is logged.
    pub(crate) async fn mend(&self, store: Store, segments: &BTreeSet<u32>) -> u64 {
        if segments.is_empty() {
            return 0;
        }
        // An archive that was away since the start may be of another history.
        if !self.state.is_agreed() {
            warn!("the archive cannot mend the store: it was not compared with it yet");
            return 0;
        }
        match mend(&self.bucket, self.holder, Arc::new(store), segments).await {
            Ok(written) => written,
            Err(error) => {
                warn!(%error, "the archive cannot mend the store");
                0
            }
        }
    }

    /// The number of the last record that is archived, for whoever has to wait for it.
    pub(crate) fn acks(&self) -> Option<watch::Receiver<u64>> {
        (self.ack == Ack::Archive).then(|| self.state.archived())
    }
}

struct Keeping {
    interval: Duration,
    lease: Duration,
    bucket: Bucket,
    writer: Writer,
    source: Arc<dyn Source>,
    state: Arc<State>,
    stopped: watch::Receiver<bool>,
}

impl Keeping {
    async fn run(self, mut uploader: Option<Uploader>) {
        let mut stopped = self.stopped.clone();
        let beats = self.beats();
        let work = async {
            let mut failures = 0;
            loop {
                let pause = match self.turn(&mut uploader).await {
                    Ok(_) => {
                        failures = 0;
                        self.interval
                    }
                    Err(error) if error.is_gone() => self.interval,
                    Err(error) if error.is_transient() => {
                        failures += 1;
                        self.fail(Part::Upload, &error);
                        (limits::ARCHIVE_RETRY_FIRST * failures).min(limits::ARCHIVE_RETRY_LAST)
                    }
                    Err(error) => return self.lose(error),
                };
                tokio::select! {
                    () = sleep(pause) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => break,
                }
            }
            let last = async {
                while self.turn(&mut uploader).await? == Progress::More {}
                Ok::<_, ArchiveError>(())
            };
            match timeout(limits::ARCHIVE_LAST_WORDS, last).await {
                Ok(Ok(())) => self.beat(u64::MAX, true).await,
                Ok(Err(error)) => warn!(%error, "archive lacks what came last"),
                Err(_) => warn!("archive lacks what came last: no time"),
            }
        };
        tokio::select! {
            () = work => {}
            () = beats => {}
        }
    }

    async fn turn(&self, uploader: &mut Option<Uploader>) -> Result<Progress, ArchiveError> {
        let uploader = match uploader {
            Some(uploader) => uploader,
            None => {
                let head = self.writer.attach_open(&self.bucket).await?;
                let (bucket, writer) = (self.bucket.clone(), self.writer.clone());
                let found =
                    Uploader::new(bucket, writer, self.source.clone(), self.state.clone(), head).await?;
                uploader.insert(found)
            }
        };
        let progress = uploader.step().await?;
        if self.state.on_fine(Part::Upload) {
            info!("archive is written again");
        }
        Ok(progress)
    }

    fn fail(&self, part: Part, error: &ArchiveError) {
        if self.state.on_trouble(part, Trouble::Unreachable) {
            warn!(%error, "archive cannot be written; it catches up later");
        } else {
            debug!(%error, "archive still cannot be written");
        }
    }

    fn lose(&self, error: ArchiveError) {
        error!(%error, "nothing more is archived");
        self.state.on_trouble(Part::Upload, Trouble::Lost(error));
    }

    /// Renews the lease, for as long as it is polled.
    async fn beats(&self) {
        for count in 1.. {
            self.beat(count, false).await;
            sleep(self.lease / 3).await;
        }
    }

    async fn beat(&self, count: u64, released: bool) {
        let ttl_ms = u64::try_from(self.lease.as_millis()).unwrap_or(u64::MAX);
        let beat = Beat { count, ttl_ms, released };
        let renewal = lease::renew(&self.bucket, &self.writer.holder, &beat);
        tokio::pin!(renewal);
        let renewed = match timeout(self.patience(), &mut renewal).await {
            Ok(renewed) => renewed,
            Err(_) => {
                if self.state.on_trouble(Part::Lease, Trouble::Unreachable) {
                    warn!("archive does not answer; it catches up later");
                }
                // Not given up: the one that hangs may hold a thread, and the next would hold another.
                renewal.await
            }
        };
        match renewed {
            Ok(()) => _ = self.state.on_fine(Part::Lease),
            Err(error) => self.fail(Part::Lease, &error),
        }
    }

    /// How long the smallest request may take before the object store counts as away. Uploads are no measure: they take what the line gives.
    fn patience(&self) -> Duration {
        self.lease.clamp(limits::ARCHIVE_CONNECT_TIMEOUT, limits::ARCHIVE_LEASE)
    }
}
