//! The driver of one sidecar's session: a loop around [`Session`] that owns the stream.
//!
//! ```text
//! emit (appends, frames) → wait for one event → handle it → emit …
//! ```
//! A commit goes from the stream to the log and its acknowledgement back to the stream in this one task; between the
//! two there is only the log's own thread. Frames are read on while earlier commits are being made durable.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use tidelock_proto::{
    ChunkId, ChunkKey,
    identity::Peer,
    transport::{FrameError, FrameReader, FrameWriter},
    wire::messages::{Denied, Fenced, Hello, ToReceiver, ToSidecar, ToSidecarKind},
};
use tokio::{
    sync::watch,
    time::{sleep_until, timeout},
};
use tracing::{Instrument, debug, error, info, info_span, warn};

use super::{
    Context,
    begin::{self, Begun, Refusal},
    checks::{Checks, Input},
};
use crate::{
    archive, limits,
    session::{Counts, Decoded, Ending, Frame, Holdings, Now, Session, SessionError, Ticket, decode},
    store::{Lease, Receipt, Store, StoreError},
    volume::{Interruption, Seat, Writer},
};

/// Serves a sidecar's stream from its `Hello` on.
pub(super) async fn serve(
    context: &Context,
    peer: &Peer,
    hello: Hello,
    mut writer: FrameWriter,
    reader: FrameReader,
) {
    let volume = match begin::authorise(&hello, peer) {
        Ok(volume) => volume,
        Err(refusal) => {
            context.metrics.on_refused_stream();
            warn!(%peer, reason = %refusal, "sidecar refused");
            return last_words(&mut writer, refusal.message()).await;
        }
    };
    let span = info_span!("session", %volume, epoch = hello.epoch, instance = format!("{:08x}", hello.instance >> 32));
    async {
        match begin::begin(context, &hello, &volume).await {
            Ok(begun) => Driver::new(context, &volume, begun, writer, reader).run(&hello).await,
            Err(refusal) => {
                match &refusal {
                    Refusal::Fenced { .. } => {
                        context.metrics.on_fenced();
                        warn!(%peer, reason = %refusal, "sidecar refused");
                    }
                    Refusal::Full(_) => info!(reason = %refusal, "session did not begin"),
                    Refusal::Store(failure) => error!(error = %failure, "session cannot begin"),
                    _ => info!(reason = %refusal, "session did not begin"),
                }
                last_words(&mut writer, refusal.message()).await;
            }
        }
    }
    .instrument(span)
    .await;
}

/// Sends the last frame, if the peer still takes it.
async fn last_words(writer: &mut FrameWriter, word: Option<ToSidecarKind>) {
    let send = async {
        if let Some(kind) = word {
            writer.feed(&ToSidecar { kind: Some(kind) }).await?;
        }
        super::finish(writer).await
    };
    // A peer that does not read has ended the session itself.
    if !matches!(timeout(limits::LAST_WORDS_TIMEOUT, send).await, Ok(Ok(()))) {
        debug!("last frames not sent");
    }
}

/// A tenant's chunks in the store.
struct TenantChunks<'a> {
    store: &'a Store,
    tenant: &'a str,
    lease: &'a Lease,
}

impl Holdings for TenantChunks<'_> {
    fn count_on(&self, id: &ChunkId) {
        self.lease.count_on(id);
    }

    fn on_told(&self, id: &ChunkId) {
        self.lease.on_told(id);
    }

    fn chunk_len(&self, id: &ChunkId) -> Result<Option<u32>, StoreError> {
        self.store.chunk_len_or_pending(self.tenant, *id)
    }

    fn content(&self, id: &ChunkId) -> Option<bytes::Bytes> {
        self.store.read_content(self.tenant, *id).ok()
    }
}

/// An append that is on its way to the disk.
struct Flying {
    ticket: Ticket,
    since: Instant,
    receipt: Receipt,
}

struct Driver<'a> {
    context: &'a Context,
    volume: &'a tidelock_proto::VolumeName,
    key: ChunkKey,
    session: Session,
    seat: Seat,
    guard: Writer,
    writer: FrameWriter,
    reader: FrameReader,
    /// The reader has said its last.
    read_out: bool,
    checks: Checks,
    flying: VecDeque<Flying>,
    /// Durable here, and to be acknowledged when the archive has them: the number of a record that is not before them.
    archiving: VecDeque<(Ticket, u64)>,
    /// Up to which record the archive has the log, if acknowledgements wait for that.
    archived: Option<watch::Receiver<u64>>,
    /// The sidecar's answer to a question for damaged chunks, and the append that makes what came durable, once there is one.
    resent: Option<(u32, Option<Ticket>)>,
    /// Of the store, when the session began: what it was told of chunks holds no longer than that.
    generation: u64,
    /// The chunks that the sidecar counts on.
    lease: Lease,
    /// Payload received since the metrics were told, and its content.
    payload_bytes: u64,
    content_bytes: u64,
    /// Of what the reader has taken, what status was told.
    told_bytes: u64,
    reported: Counts,
    closing: tokio::sync::watch::Receiver<bool>,
}

/// What the loop waits for.
enum Event {
    Interrupted,
    Closing,
    Durable(Result<(), StoreError>),
    Archived,
    Sent(Result<(), FrameError>),
    Ready(Input),
    Message(Result<Option<ToReceiver>, FrameError>),
    Timeout,
}

impl<'a> Driver<'a> {
    fn new(
        context: &'a Context,
        volume: &'a tidelock_proto::VolumeName,
        begun: Begun,
        writer: FrameWriter,
        reader: FrameReader,
    ) -> Self {
        Self {
            context,
            volume,
            key: ChunkKey::of_tenant(volume.tenant()),
            session: begun.session,
            seat: begun.seat,
            guard: begun.writer,
            writer,
            reader,
            read_out: false,
            checks: Checks::default(),
            flying: VecDeque::new(),
            archiving: VecDeque::new(),
            resent: None,
            archived: context.archive.as_ref().and_then(archive::Handle::acks),
            generation: begun.generation,
            lease: context.store.lease(volume.tenant()),
            payload_bytes: 0,
            content_bytes: 0,
            told_bytes: 0,
            reported: Counts::default(),
            closing: context.closing.clone(),
        }
    }

    async fn run(mut self, hello: &Hello) {
        let _counted = self.context.metrics.begin_session();
        self.set_connected(true);
        info!(build = hello.build, tracker = hello.tracker, last = ?self.session.durable().point, "session began");
        // What happened while the right to write was waited for.
        self.heed_interruption();
        if *self.closing.borrow() {
            self.session.handle_closing();
        }
        loop {
            self.emit().await;
            if self.session.poll_ending().is_some() {
                break;
            }
            let event = self.wait().await;
            self.handle(event);
            self.report();
            // A peer that never lets the stream run dry does not keep the thread for itself.
            tokio::task::consume_budget().await;
        }
        self.end().await;
    }

    /// Hands out what the session has to say to the log and to the sidecar.
    async fn emit(&mut self) {
        while let Some(mut append) = self.session.poll_append(now()) {
            append.batch.bind(self.generation);
            if let Some((_, ticket @ None)) = &mut self.resent {
                *ticket = Some(append.ticket);
            }
            let since = Instant::now();
            let receipt = self.context.store.append(append.batch).await;
            self.flying.push_back(Flying { ticket: append.ticket, since, receipt });
        }
        while self.writer.waiting_bytes() < limits::OUTGOING_BYTES
            && let Some(frame) = self.session.poll_frame()
        {
            // Far below the size at which feeding would wait for the peer.
            if self.writer.feed(&frame).await.is_err() {
                self.session.handle_lost();
            }
        }
        self.send_manifest().await;
    }

    /// Sends the tree, unless the session is interrupted first.
    async fn send_manifest(&mut self) {
        let Some(manifest) = self.session.poll_manifest() else { return };
        let send = async {
            for part in manifest {
                self.writer.feed(&part).await?;
            }
            self.writer.flush().await
        };
        let sent = tokio::select! {
            sent = send => sent,
            () = self.seat.changed() => Ok(()),
            _ = self.closing.wait_for(|closing| *closing) => Ok(()),
        };
        if sent.is_err() {
            self.session.handle_lost();
        }
        self.heed_interruption();
    }

    async fn wait(&mut self) -> Event {
        let timer = self.session.poll_timeout();
        let reading = !self.read_out && self.session.wants_input() && self.checks.has_room();
        let handling = !self.checks.is_empty() && self.session.wants_input();
        tokio::select! {
            biased;
            () = self.seat.changed() => Event::Interrupted,
            _ = self.closing.wait_for(|closing| *closing), if !self.session.is_draining() => Event::Closing,
            durable = first_receipt(&mut self.flying), if !self.flying.is_empty() => Event::Durable(durable),
            () = archived(&mut self.archived, &self.archiving), if !self.archiving.is_empty() => Event::Archived,
            sent = self.writer.flush(), if self.writer.waiting_bytes() > 0 => Event::Sent(sent),
            input = self.checks.next(), if handling => Event::Ready(input),
            message = self.reader.next(), if reading => Event::Message(message),
            () = sleep_until(timer.unwrap_or_else(Instant::now).into()), if timer.is_some() => Event::Timeout,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Interrupted => self.heed_interruption(),
            Event::Closing => self.session.handle_closing(),
            Event::Durable(result) => self.on_receipt(result),
            Event::Archived => self.on_archived(),
            Event::Sent(Ok(())) | Event::Timeout => {}
            Event::Sent(Err(_)) => self.session.handle_lost(),
            Event::Ready(input) => self.input(input),
            Event::Message(message) => self.on_messages(message),
        }
    }

    /// Handles a message, and those that have been read with it.
    fn on_messages(&mut self, first: Result<Option<ToReceiver>, FrameError>) {
        let mut next = first;
        for taken in 1.. {
            self.on_message(next);
            // A commit is to be on its way before anything else is looked at.
            let due = self.session.poll_timeout().is_some_and(|at| at <= Instant::now());
            let full = !self.session.wants_input() || !self.checks.has_room();
            if taken == limits::FRAMES_PER_TURN || due || self.read_out || full {
                return;
            }
            // Only now, since what is taken from the reader must be handled.
            next = match self.reader.buffered() {
                Ok(None) => return,
                other => other,
            };
        }
    }

    fn on_message(&mut self, message: Result<Option<ToReceiver>, FrameError>) {
        self.read_out = !matches!(message, Ok(Some(_)));
        let input = match message {
            Ok(Some(message)) => match decode(message) {
                Ok(Decoded::Ready(frame)) => self.checks.push(Input::Frame(frame)),
                Ok(Decoded::Unchecked(chunk)) => {
                    self.payload_bytes += chunk.payload_len() as u64;
                    self.content_bytes += chunk.content_len() as u64;
                    self.checks.push_chunk(&self.context.checks, chunk, &self.key)
                }
                Err(error) => self.checks.push(Input::Error(error.into())),
            },
            Ok(None) => self.checks.push(Input::Finished),
            Err(FrameError::TooLong { len, .. }) => {
                self.checks.push(Input::Error(SessionError::FrameTooLong(len)))
            }
            Err(FrameError::Malformed(_)) => self.checks.push(Input::Error(SessionError::MalformedFrame)),
            Err(FrameError::Truncated | FrameError::Lost(_)) => self.checks.push(Input::Lost),
        };
        if let Some(input) = input {
            self.input(input);
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Frame(frame) => self.frame(frame),
            Input::Error(error) => self.session.handle_error(error),
            Input::Finished => self.session.handle_finished(),
            Input::Lost => self.session.handle_lost(),
        }
    }

    fn frame(&mut self, frame: Frame) {
        if let Frame::Left(answer) = frame {
            return self.seat.volume.answer_leave(answer);
        }
        if let Frame::Resent(found) = frame {
            self.resent = Some((found, None));
        }
        let holdings =
            TenantChunks { store: &self.context.store, tenant: self.volume.tenant(), lease: &self.lease };
        let (session, now) = (&mut self.session, now());
        let before = session.received_point();
        let clean = matches!(&frame, Frame::Heartbeat(heartbeat) if heartbeat.clean_at_ns > 0);
        if frame.reads() || frame.ops_bytes() + session.uncommitted_bytes() > limits::INLINE_OPS_BYTES {
            super::heavy(|| session.handle_frame(now, frame, &holdings));
        } else {
            session.handle_frame(now, frame, &holdings);
        }
        if clean {
            self.lease.on_clean();
        }
        if let Some(point) = session.received_point().filter(|point| Some(*point) != before) {
            self.lease.on_commit(point);
        }
    }

    fn on_receipt(&mut self, result: Result<(), StoreError>) {
        let Some(Flying { ticket, since, .. }) = self.flying.pop_front() else { return };
        match result {
            Ok(()) => {
                self.context.metrics.observe_durable(since.elapsed());
                if self.archived.is_some() {
                    self.archiving.push_back((ticket, self.context.store.durable_number()));
                } else {
                    self.on_durable(ticket);
                }
            }
            Err(error) => self.session.handle_refused(error),
        }
    }

    /// Acknowledges what the archive has by now.
    fn on_archived(&mut self) {
        let Some(archived) = self.archived.as_mut().map(|archived| *archived.borrow_and_update()) else {
            return;
        };
        while let Some((ticket, number)) = self.archiving.front().copied()
            && number <= archived
        {
            self.archiving.pop_front();
            self.on_durable(ticket);
        }
    }

    fn on_durable(&mut self, ticket: Ticket) {
        if let Some((found, _)) = self.resent.take_if(|(_, of)| of.is_some_and(|of| of <= ticket)) {
            self.seat.volume.answer_resend(Ok(found));
        }
        let before = self.session.durable().point;
        self.session.handle_durable(ticket);
        if let Some(point) = self.session.durable().point {
            self.lease.on_durable(point);
            if Some(point) != before {
                self.context.on_durable(self.volume);
            }
        }
    }

    fn heed_interruption(&mut self) {
        if self.seat.take_leave() {
            self.session.handle_leave();
        }
        if let Some(damaged) = self.seat.take_resend() {
            self.session.handle_resend(&damaged);
        }
        match self.seat.interruption() {
            None => {}
            Some(Interruption::Fenced(epoch)) => self.session.handle_fenced(epoch),
            Some(Interruption::Superseded { reconnected }) => self.session.handle_superseded(reconnected),
            Some(Interruption::Promoting) => self.session.handle_paused(),
        }
    }

    /// Lets go of the volume as soon as nothing of this session is on its way any more, and only then says goodbye.
    async fn end(mut self) {
        while let Some(flying) = self.flying.front_mut() {
            let result = (&mut flying.receipt).await;
            self.on_receipt(result);
        }
        // What the archive has not is not acknowledged; the writer that comes next is not kept waiting for it here.
        self.on_archived();
        self.report();
        self.log_ending();
        let mut frames: Vec<ToSidecar> = std::iter::from_fn(|| self.session.poll_frame()).collect();
        let paused = matches!(self.session.poll_ending(), Some(Ending::Paused));
        if self.seat.is_newest() {
            self.set_connected(false);
            self.seat.volume.answer_leave(Err("the connection with the sidecar ended".to_owned()));
            self.seat.volume.answer_resend(Err("the connection with the sidecar ended".to_owned()));
        }
        begin::park(&mut self.guard, self.session);
        drop(self.guard);
        if paused {
            let outcome = self.seat.after_promotion().await;
            if let Some(Interruption::Fenced(epoch)) = outcome {
                self.context.metrics.on_fenced();
                warn!(promoted_to = %epoch, "writer fenced");
            }
            frames.extend(word_after_promotion(outcome).map(|kind| ToSidecar { kind: Some(kind) }));
        }
        let feed = async {
            for frame in &frames {
                self.writer.feed(frame).await?;
            }
            Ok::<_, FrameError>(())
        };
        if matches!(timeout(limits::LAST_WORDS_TIMEOUT, feed).await, Ok(Ok(()))) {
            last_words(&mut self.writer, None).await;
        }
    }

    fn log_ending(&mut self) {
        let counts = self.session.counts();
        let Counts { chunks, duplicates, commits, .. } = counts;
        match self.session.poll_ending() {
            Some(Ending::Denied(reason)) => {
                if !matches!(reason, SessionError::Digest { .. }) {
                    self.context.metrics.on_broken_stream();
                }
                warn!(%reason, chunks, commits, "session ended: the sidecar has to begin anew");
            }
            Some(Ending::Failed(reason @ StoreError::Full { .. })) => {
                warn!(%reason, chunks, commits, "session ended");
            }
            Some(Ending::Failed(reason)) => {
                error!(error = %reason, chunks, commits, "session ended: the store failed")
            }
            Some(Ending::Fenced(epoch)) => {
                self.context.metrics.on_fenced();
                warn!(promoted_to = %epoch, chunks, commits, "writer fenced");
            }
            Some(Ending::Superseded { reconnected: false }) => {
                warn!(chunks, commits, "session ended: another sidecar took over");
            }
            Some(ending) => info!(?ending, chunks, duplicates, commits, "session ended"),
            None => {}
        }
    }

    /// Tells status and metrics what is new.
    fn report(&mut self) {
        let counts = self.session.counts();
        self.report_rate();
        if counts == self.reported && self.session.covered_ns() == self.seat.volume.live().covered_ns {
            return;
        }
        let metrics = &self.context.metrics;
        if counts.commits != self.reported.commits {
            metrics.add_commits(self.volume, counts.commits - self.reported.commits);
        }
        let (chunks, duplicates) =
            (counts.chunks - self.reported.chunks, counts.duplicates - self.reported.duplicates);
        if chunks > 0 {
            metrics.add_chunks(self.volume, chunks, duplicates, std::mem::take(&mut self.payload_bytes));
        }
        let mut live = self.seat.volume.live();
        live.covered_ns = self.session.covered_ns();
        if counts.heartbeats != self.reported.heartbeats {
            live.heartbeat = self.session.heartbeat().cloned();
            live.heard_ns = now().wall_ns;
        }
        if counts.commits != self.reported.commits
            && let Some(point) = self.session.received_point()
        {
            live.totals = Some((point, self.session.tree().totals()));
        }
        self.reported = counts;
    }

    fn report_rate(&mut self) {
        let wire_bytes = self.reader.taken_bytes() - self.told_bytes;
        if wire_bytes > 0 {
            self.told_bytes += wire_bytes;
            let content_bytes = std::mem::take(&mut self.content_bytes);
            self.seat.volume.live().rate.add(now().instant, content_bytes, wire_bytes);
        }
    }

    fn set_connected(&self, connected: bool) {
        let mut live = self.seat.volume.live();
        live.seen = true;
        live.connected = connected;
        if connected {
            live.covered_ns = self.session.covered_ns();
            // What another sidecar was allowed says nothing of this one.
            if let Some(heartbeat) = &mut live.heartbeat {
                heartbeat.leaves = None;
            }
        }
    }
}

fn word_after_promotion(outcome: Option<Interruption>) -> Option<ToSidecarKind> {
    match outcome {
        Some(Interruption::Fenced(epoch)) => Some(ToSidecarKind::Fenced(Fenced { epoch: epoch.0 })),
        Some(Interruption::Superseded { reconnected: true }) => None,
        _ => {
            let reason = "a promotion was tried and did not happen".to_owned();
            Some(ToSidecarKind::Denied(Denied { reason, retry: true }))
        }
    }
}

/// Waits for the oldest append. Receipts resolve in their order, so the others need not be looked at.
async fn first_receipt(flying: &mut VecDeque<Flying>) -> Result<(), StoreError> {
    poll_fn(|context| match flying.front_mut() {
        Some(flying) => Pin::new(&mut flying.receipt).poll(context),
        None => std::task::Poll::Pending,
    })
    .await
}

/// Waits until the archive has the oldest of what waits for it; for ever if it ends before.
async fn archived(archived: &mut Option<watch::Receiver<u64>>, waiting: &VecDeque<(Ticket, u64)>) {
    if let (Some(archived), Some((_, number))) = (archived, waiting.front())
        && archived.wait_for(|archived| archived >= number).await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Both clocks, read by the drivers alone.
pub(crate) fn now() -> Now {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { instant: Instant::now(), wall_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX) }
}
