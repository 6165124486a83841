//! The loop between the session and QUIC.
//!
//! One task: gather frames, write, read, and wait for whichever comes first. Nothing is queued here beyond one write, so
//! a full send window of the transport stops the gathering and leaves everything else in the session's bounded window.

use std::{
    collections::VecDeque,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use prost::Message;
use tidelock_proto::{
    identity::Identity,
    transport::{Connection, FrameError, FrameReader, FrameWriter, TransportError, close, connect},
    wire::messages::ToSidecar,
};
use tracing::{debug, error, info, warn};

use super::{End, Frame, SessionError, ShipEnd, outbox::Shared};
use crate::{
    limits,
    status::{self, Status},
};

/// Where to ship to, and as whom.
#[derive(Debug, Clone)]
pub struct ShipConfig {
    /// `HOST:PORT` of the receiver.
    pub receiver: String,
    /// This sidecar's certificate and the authorities it trusts.
    pub identity: Identity,
}

/// Why a stream ended.
enum Parted {
    Reset(String),
    Lost(String),
    Broken(SessionError),
    /// The session is over for good.
    Ended,
}

/// Ships what the outbox is given until that is over for good, and says why it is; `None` if `shutdown` came first, which
/// closes the connection at once. Reconnects by itself, first at once and then with growing pauses.
///
/// A receiver that refuses this certificate, or is refused, is tried again all the same: certificates are replaced while
/// the sidecar runs. Only a receiver that never was the one dialled, by the names in its certificate, ends it.
pub async fn run(
    config: &ShipConfig,
    end: ShipEnd,
    status: Arc<Status>,
    shutdown: impl Future<Output = ()>,
) -> Option<End> {
    let mut driver = Driver { config, shared: end.shared, status, connection: None, met: false };
    let ended = tokio::select! {
        ended = driver.run() => Some(ended),
        () = shutdown => None,
    };
    if let Some(connection) = driver.connection.take() {
        let code = if ended.is_some() { close::DONE } else { close::SHUTDOWN };
        connection.close(code, "the sidecar is done");
        connection.drained().await;
    }
    ended
}

struct Driver<'a> {
    config: &'a ShipConfig,
    shared: Arc<Shared>,
    status: Arc<Status>,
    connection: Option<Connection>,
    /// There has been a connection: whatever is wrong now was right before, and may be again.
    met: bool,
}

impl Driver<'_> {
    async fn run(&mut self) -> End {
        let mut pauses = pauses();
        let mut last_reason = String::new();
        loop {
            if let Some(end) = self.ended() {
                return end;
            }
            let began = Instant::now();
            let (reason, fruitful) = match self.connect().await {
                Ok((writer, reader)) => {
                    let parted = Stream::new(&self.shared, &self.status, writer, reader).run().await;
                    let lived = began.elapsed() > limits::BACKOFF_MAX;
                    (self.on_parted(parted), lived)
                }
                Err(error) => {
                    if !self.met && matches!(error, TransportError::NameMismatch { .. }) {
                        let advice = "dial a name that it has, or issue the receiver one with this name";
                        self.shared.with(|session| session.handle_hopeless(format!("{error}: {advice}")));
                    }
                    (error.to_string(), false)
                }
            };
            if let Some(end) = self.ended() {
                return end;
            }
            if fruitful || reason != last_reason {
                warn!(receiver = %self.config.receiver, reason, "not connected");
            }
            self.status.on_disconnected(&reason);
            self.shared.with(|session| session.handle_disconnected(reason.clone()));
            last_reason = reason;
            if fruitful {
                pauses = self::pauses();
            } else {
                tokio::time::sleep(pauses.next().unwrap_or(limits::BACKOFF_MAX)).await;
            }
        }
    }

    async fn connect(&mut self) -> Result<(FrameWriter, FrameReader), TransportError> {
        self.connection = None;
        let connection = connect(&self.config.receiver, &self.config.identity).await?;
        let stream = connection.open().await?;
        self.met = true;
        info!(receiver = %self.config.receiver, peer = %connection.peer(), "connected");
        self.connection = Some(connection);
        Ok(stream)
    }

    /// Words for why the stream ended; the connection knows better than the stream.
    fn on_parted(&mut self, parted: Parted) -> String {
        let connection = self.connection.take();
        let closed = connection.as_ref().and_then(Connection::close_reason);
        let (code, reason) = match parted {
            Parted::Ended => {
                self.connection = connection;
                return String::new();
            }
            Parted::Lost(reason) => (close::DONE, closed.map_or(reason, |closed| closed.to_string())),
            Parted::Reset(reason) => (close::DONE, reason),
            Parted::Broken(error) => {
                error!(%error, "the receiver broke the protocol");
                (close::PROTOCOL, error.to_string())
            }
        };
        if let Some(connection) = connection {
            connection.close(code, &reason);
        }
        reason
    }

    fn ended(&self) -> Option<End> {
        let end = self.shared.with(|session| session.poll_end().cloned())?;
        self.status.on_ended(&end);
        Some(end)
    }
}

/// The first try after a lost connection is immediate; these are the pauses from then on.
fn pauses() -> impl Iterator<Item = Duration> {
    let growing = ExponentialBuilder::default()
        .with_min_delay(limits::BACKOFF_MIN)
        .with_max_delay(limits::BACKOFF_MAX)
        .without_max_times()
        .with_jitter()
        .build();
    std::iter::once(Duration::ZERO).chain(growing)
}

/// One stream, from `Hello` to its end.
struct Stream<'a> {
    shared: &'a Shared,
    status: &'a Status,
    writer: FrameWriter,
    reader: FrameReader,
    /// Gathered and not yet taken by the writer.
    gathered: VecDeque<Frame>,
}

impl<'a> Stream<'a> {
    fn new(shared: &'a Shared, status: &'a Status, writer: FrameWriter, reader: FrameReader) -> Self {
        Self { shared, status, writer, reader, gathered: VecDeque::new() }
    }

    async fn run(mut self) -> Parted {
        self.shared.with(|session| session.handle_connected(Instant::now()));
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(parted) => {
                    if matches!(parted, Parted::Ended) {
                        self.say_goodbye().await;
                    }
                    return parted;
                }
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Parted> {
        let (timeout, finish) = self.gather()?;
        if finish {
            self.writer.finish().await.map_err(lost)?;
        }
        let unwritten = !self.gathered.is_empty() || self.writer.waiting_bytes() > 0;
        let timeout = timeout.map(tokio::time::Instant::from_std);
        tokio::select! {
            frame = self.reader.next() => self.on_read(frame.map_err(lost)?)?,
            written = write(&mut self.writer, &mut self.gathered), if unwritten => written.map_err(lost)?,
            () = self.shared.wake.notified(), if !unwritten => {}
            () = sleep_until(timeout), if !unwritten => {
                self.shared.with(|session| session.handle_timeout(Instant::now()));
            }
        }
        Ok(())
    }

    /// Takes what is to be sent, once what was taken before is written. Returns when to wake up again, and whether to
    /// finish the stream.
    fn gather(&mut self) -> Result<(Option<Instant>, bool), Parted> {
        let now = Instant::now();
        let idle = self.gathered.is_empty() && self.writer.waiting_bytes() == 0;
        self.shared.with(|session| {
            let mut bytes = 0;
            while idle
                && bytes < limits::FLUSH_BYTES
                && let Some(frame) = session.poll_transmit(now)
            {
                bytes += frame.encoded_len();
                self.gathered.push_back(frame);
            }
            self.status.counters.wire_bytes.add(bytes as u64);
            self.status.set_window_bytes(session.window_bytes() as u64);
            if session.poll_end().is_some() {
                return Err(Parted::Ended);
            }
            match session.poll_reset() {
                Some(reason) => Err(Parted::Reset(reason)),
                None => Ok((session.poll_timeout(), idle && bytes == 0 && session.poll_finish())),
            }
        })
    }

    fn on_read(&mut self, first: Option<ToSidecar>) -> Result<(), Parted> {
        let mut next = Some(first.ok_or_else(|| Parted::Lost("the receiver ended the stream".to_owned()))?);
        while let Some(frame) = next {
            let (handled, durable, open) = self
                .shared
                .with(|session| (session.handle_frame(frame), session.durable(), session.is_open()));
            handled.map_err(Parted::Broken)?;
            self.status.on_session(open, durable, status::now_ns());
            next = self.reader.buffered().map_err(lost)?;
        }
        Ok(())
    }

    /// Finishes the stream and gives the receiver a moment to finish its own.
    async fn say_goodbye(&mut self) {
        debug!("session over");
        let goodbye = async {
            if self.writer.finish().await.is_ok() {
                while let Ok(Some(_)) = self.reader.next::<ToSidecar>().await {}
            }
        };
        // Whoever does not answer has said all there is to say.
        let _ = tokio::time::timeout(limits::GOODBYE_TIMEOUT, goodbye).await;
    }
}

/// May be dropped at any await and called again.
async fn write(writer: &mut FrameWriter, gathered: &mut VecDeque<Frame>) -> Result<(), FrameError> {
    while let Some(frame) = gathered.front() {
        writer.feed(frame).await?;
        gathered.pop_front();
    }
    writer.flush().await
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn lost(error: FrameError) -> Parted {
    Parted::Lost(error.to_string())
}
