//! Frames on a stream.
//!
//! ```text
//! ┌────────────┬──────────────────┐
//! │ u32 LE len │ len bytes, prost │   len ≤ FRAME_MAX_BYTES
//! └────────────┴──────────────────┘
//! ```
//! The length is checked before anything is allocated for it. Reading and flushing may be dropped at any await and
//! called again: what was read or not yet written stays in the reader or writer. `Bytes` fields of a message are slices
//! of the read buffer, not copies; the price is that a kept field keeps its whole buffer, of at least
//! [`limits::READ_BUFFER_BYTES`] for small frames.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::limits;

/// Bytes of the length before each frame.
const PREFIX_BYTES: usize = 4;

/// Why a stream of frames ended badly.
#[derive(Debug, Error)]
pub enum FrameError {
    /// A frame longer than [`limits::FRAME_MAX_BYTES`].
    #[error("a frame of {len} bytes is longer than {max}")]
    TooLong {
        /// Of the frame.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// The frame is not the expected message.
    #[error("malformed frame: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The stream or its connection was lost; [`super::Connection::close_reason`] says why.
    #[error("the stream was lost: {0}")]
    Lost(#[from] io::Error),
}

/// Writes frames, many in one write.
#[derive(Debug)]
pub struct FrameWriter<W = quinn::SendStream> {
    stream: W,
    waiting: BytesMut,
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R = quinn::RecvStream> {
    stream: R,
    buffer: BytesMut,
    taken_bytes: u64,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `stream`, which should be at the beginning of a frame.
    pub fn new(stream: W) -> Self {
        Self { stream, waiting: BytesMut::new() }
    }

    /// Sends one frame, and all that wait before it.
    pub async fn send<M: Message>(&mut self, message: &M) -> Result<(), FrameError> {
        self.feed(message).await?;
        self.flush().await
    }

    /// Adds one frame to those that wait for [`FrameWriter::flush`], which happens by itself when
    /// [`limits::WRITE_COALESCE_MAX_BYTES`] wait. If this is dropped before it is done, the frame was not added.
    pub async fn feed<M: Message>(&mut self, message: &M) -> Result<(), FrameError> {
        let len = message.encoded_len();
        if len > limits::FRAME_MAX_BYTES {
            return Err(FrameError::TooLong { len, max: limits::FRAME_MAX_BYTES });
        }
        if !self.waiting.is_empty()
            && self.waiting.len() + PREFIX_BYTES + len > limits::WRITE_COALESCE_MAX_BYTES
        {
            self.flush().await?;
        }
        self.waiting.reserve(PREFIX_BYTES + len);
        self.waiting.put_u32_le(u32::try_from(len).expect("the limit of a frame is far below 4 GiB"));
        message.encode(&mut self.waiting).expect("room for the frame was reserved");
        Ok(())
    }

    /// Hands all waiting frames to the transport; waits while its send window is full.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        if !self.waiting.is_empty() {
            self.stream.write_all_buf(&mut self.waiting).await?;
            self.stream.flush().await?;
        }
        Ok(())
    }

    /// Bytes that wait for a flush.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    /// Flushes and ends the stream; the peer's reader sees the end after the last frame.
    pub async fn finish(&mut self) -> Result<(), FrameError> {
        self.flush().await?;
        Ok(self.stream.shutdown().await?)
    }

    /// The stream below, for its priority or to abandon it.
    pub fn stream_mut(&mut self) -> &mut W {
        &mut self.stream
    }
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `stream`, which should be at the beginning of a frame.
    pub fn new(stream: R) -> Self {
        Self { stream, buffer: BytesMut::new(), taken_bytes: 0 }
    }

    /// The next frame, or `None` at the end of the stream.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        loop {
            if let Some(message) = self.buffered()? {
                return Ok(Some(message));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
        }
    }

    /// The next frame if it has been read already. `None` is the moment to flush what was gathered.
    pub fn buffered<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        match self.take()? {
            Some(body) => Ok(Some(M::decode(body)?)),
            None => Ok(None),
        }
    }

    /// Bytes of all frames so far, their lengths included.
    pub fn taken_bytes(&self) -> u64 {
        self.taken_bytes
    }

    /// Takes a whole frame from the buffer, or makes room for the rest of it.
    fn take(&mut self) -> Result<Option<Bytes>, FrameError> {
        let Some(prefix) = self.buffer.first_chunk::<PREFIX_BYTES>() else {
            self.make_room(PREFIX_BYTES);
            return Ok(None);
        };
        let len = u32::from_le_bytes(*prefix) as usize;
        if len > limits::FRAME_MAX_BYTES {
            return Err(FrameError::TooLong { len, max: limits::FRAME_MAX_BYTES });
        }
        if self.buffer.len() < PREFIX_BYTES + len {
            self.make_room(PREFIX_BYTES + len);
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        self.taken_bytes += (PREFIX_BYTES + len) as u64;
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// Grows the buffer only when the frame does not fit or hardly any room is left, so that reads stay large.
    fn make_room(&mut self, frame_bytes: usize) {
        const ROOM_MIN_BYTES: usize = 4096;
        let room = self.buffer.capacity() - self.buffer.len();
        if self.buffer.capacity() < frame_bytes || room < ROOM_MIN_BYTES {
            self.buffer.reserve(frame_bytes.max(limits::READ_BUFFER_BYTES) - self.buffer.len());
        }
    }
}
