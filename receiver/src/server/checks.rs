//! Proving chunks beside the session, in order.
//!
//! A few threads for the whole receiver decompress and hash; each session keeps its frames in a queue, and takes them
//! out in the order they came. When the threads have enough to do, the session that asks does the work itself, so the
//! queue to the threads is short and a seeding session slows down itself first.

use std::{collections::VecDeque, thread};

use crossbeam_channel::{Sender, TrySendError};
use tidelock_proto::{ChunkKey, chunk::ChunkError};
use tokio::sync::oneshot;

use crate::{
    limits,
    session::{Frame, SessionError, UncheckedChunk},
};

/// The threads.
#[derive(Debug)]
pub(crate) struct CheckPool {
    jobs: Sender<Job>,
}

struct Job {
    chunk: UncheckedChunk,
    key: ChunkKey,
    reply: oneshot::Sender<Result<Frame, ChunkError>>,
}

impl CheckPool {
    /// Starts as many threads as there are cores. They end when the pool is dropped.
    pub(crate) fn start() -> std::io::Result<Self> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let (jobs, queue) = crossbeam_channel::bounded::<Job>(threads);
        for _ in 0..threads {
            let queue = queue.clone();
            thread::Builder::new().name("check".to_owned()).spawn(move || {
                for Job { chunk, key, reply } in queue {
                    // A session that is gone does not want its answer.
                    let _ = reply.send(chunk.check(&key));
                }
            })?;
        }
        Ok(Self { jobs })
    }
}

/// A session's frames that are not handled yet.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    queue: VecDeque<(Item, usize)>,
    bytes: usize,
}

#[derive(Debug)]
enum Item {
    Ready(Input),
    Running(oneshot::Receiver<Result<Frame, ChunkError>>),
}

/// What a session is to handle next.
#[derive(Debug)]
pub(crate) enum Input {
    /// A frame.
    Frame(Frame),
    /// What came is no frame.
    Error(SessionError),
    /// The sidecar finished its side.
    Finished,
    /// The stream is gone.
    Lost,
}

impl Checks {
    /// Takes an input that needs no work. It is given back if nothing is before it.
    pub(crate) fn push(&mut self, input: Input) -> Option<Input> {
        if self.queue.is_empty() {
            return Some(input);
        }
        self.queue.push_back((Item::Ready(input), 0));
        None
    }

    /// Takes a chunk. It is given back, proven, if that was done at once and nothing is before it.
    pub(crate) fn push_chunk(
        &mut self,
        pool: &CheckPool,
        chunk: UncheckedChunk,
        key: &ChunkKey,
    ) -> Option<Input> {
        let len = chunk.content_len();
        if len <= limits::INLINE_CHECK_BYTES {
            return self.push(checked(chunk.check(key)));
        }
        let (reply, answer) = oneshot::channel();
        match pool.jobs.try_send(Job { chunk, key: key.clone(), reply }) {
            Ok(()) => {
                self.bytes += len;
                self.queue.push_back((Item::Running(answer), len));
                None
            }
            Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => {
                self.push(checked(job.chunk.check(&job.key)))
            }
        }
    }

    /// The next input, once it is ready. Must not be called when there is none. May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Input {
        let (item, _) = self.queue.front_mut().expect("there is an input");
        let running = match item {
            Item::Running(answer) => Some(answer.await),
            Item::Ready(_) => None,
        };
        let (item, len) = self.queue.pop_front().expect("it was there a moment ago");
        self.bytes -= len;
        match (item, running) {
            (Item::Ready(input), _) => input,
            (Item::Running(_), Some(Ok(result))) => checked(result),
            // A thread that panicked drops its reply.
            (Item::Running(_), _) => Input::Lost,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether more may be taken in.
    pub(crate) fn has_room(&self) -> bool {
        self.bytes < limits::CHECKING_MAX_BYTES && self.queue.len() < limits::HELD_FRAMES
    }
}

fn checked(result: Result<Frame, ChunkError>) -> Input {
    match result {
        Ok(frame) => Input::Frame(frame),
        Err(error) => Input::Error(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidelock_proto::{
        chunk::Codec,
        wire::{
            chunk_to_wire,
            messages::{ToReceiver, ToReceiverKind},
        },
    };

    use super::*;
    use crate::session::{Decoded, decode};

    fn chunk(key: &ChunkKey, content: &[u8]) -> UncheckedChunk {
        let payload = Bytes::copy_from_slice(content);
        let chunk = chunk_to_wire(key.id(content), Codec::Raw, content.len() as u32, payload);
        match decode(ToReceiver { kind: Some(ToReceiverKind::Chunk(chunk)) }).expect("a chunk") {
            Decoded::Unchecked(chunk) => chunk,
            Decoded::Ready(frame) => panic!("{frame:?}"),
        }
    }

    #[tokio::test]
    async fn frames_come_out_in_their_order_whatever_they_cost() {
        let key = ChunkKey::of_tenant("acme");
        let pool = CheckPool::start().expect("threads");
        let mut checks = Checks::default();
        let lens = [200_000, 10, 150_000, 250_000, 20, 1, 240_000, 30];
        let mut got = Vec::new();
        let mut sent = 0;
        while got.len() < lens.len() {
            while sent < lens.len() && checks.has_room() {
                let content = vec![sent as u8; lens[sent]];
                let input = checks.push_chunk(&pool, chunk(&key, &content), &key);
                sent += 1;
                got.extend(input);
            }
            while !checks.is_empty() {
                got.push(checks.next().await);
            }
        }
        let got: Vec<usize> = got
            .iter()
            .map(|input| match input {
                Input::Frame(Frame::Chunk(chunk)) => chunk.len as usize,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(got, lens);
    }

    #[tokio::test]
    async fn a_lie_is_found_in_its_place() {
        let (key, foreign) = (ChunkKey::of_tenant("acme"), ChunkKey::of_tenant("evil"));
        let pool = CheckPool::start().expect("threads");
        let mut checks = Checks::default();
        let large = vec![1; 200_000];
        let first = checks.push_chunk(&pool, chunk(&foreign, &large), &key);
        assert!(checks.push(Input::Finished).is_none_or(|_| first.is_some()));
        let first = match first {
            Some(first) => first,
            None => checks.next().await,
        };
        assert!(matches!(first, Input::Error(SessionError::Chunk(ChunkError::Id(_)))), "{first:?}");
    }
}
