//! What leaves: messages, and operations that were encoded when they came.

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType},
};
use tidelock_proto::{
    Op,
    wire::{
        messages::{Open, Ops, ToReceiver, ToReceiverKind},
        split_ops,
    },
};

/// One frame to the receiver.
#[derive(Debug, Clone, PartialEq)]
pub enum Frame {
    /// The first.
    Open(Open),
    /// Any later one.
    Message(ToReceiver),
    /// A later one, encoded already: operations are kept in this form, a third of the size of their messages.
    Encoded(Bytes),
}

impl Frame {
    pub(super) fn of(kind: ToReceiverKind) -> Self {
        Self::Message(ToReceiver { kind: Some(kind) })
    }
}

/// The `Ops` frames of operations, encoded.
pub(super) fn encode_ops(ops: Vec<Op>) -> impl Iterator<Item = Bytes> {
    split_ops(ops).map(|ops| {
        let message = ToReceiver { kind: Some(ToReceiverKind::Ops(Ops { ops })) };
        message.encode_to_vec().into()
    })
}

/// Only encoded, never decoded: the receiver reads [`Open`] and [`ToReceiver`].
impl Message for Frame {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        match self {
            Self::Open(open) => open.encode_raw(buf),
            Self::Message(message) => message.encode_raw(buf),
            Self::Encoded(bytes) => buf.put_slice(bytes),
        }
    }

    fn encoded_len(&self) -> usize {
        match self {
            Self::Open(open) => open.encoded_len(),
            Self::Message(message) => message.encoded_len(),
            Self::Encoded(bytes) => bytes.len(),
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        prost::encoding::skip_field(wire_type, tag, buf, ctx)
    }

    fn clear(&mut self) {
        *self = Self::Encoded(Bytes::new());
    }
}
