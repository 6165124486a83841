//! One entry of the chain, as bytes.
//!
//! ```text
//! 0 "TIDEARC\n" │ 8 version u32 │ 12 zero u32 │ 16 BLAKE3 of the body, 32 bytes │ 48 body: an `EntryBody` of protobuf
//! ```
//! Little-endian. The hash is over the body, so an entry that was cut short or altered is never taken for one.

use bytes::Bytes;
use prost::Message;

use super::{
    error::ArchiveError,
    manifest::{Head, Manifest, Outlined, Piece, Tail},
};
use crate::log::Mark;

/// The version of the format.
pub(super) const VERSION: u32 = 1;
/// What an entry begins with.
pub(super) const MAGIC: &[u8; 8] = b"TIDEARC\n";
const BODY_AT: usize = 48;

/// What a receiver adds to the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its place in the chain, from 1.
    pub(super) number: u64,
    /// Which store's directory it was written from: a random name.
    pub(super) holder: [u8; 16],
    /// Host and process, for people.
    pub(super) who: String,
    /// What it says.
    pub(super) what: What,
}

/// See [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    /// All there is.
    Manifest(Manifest),
    /// More bytes of the last segment.
    Tail {
        /// Up to where the log is archived with it.
        mark: Mark,
        /// The bytes.
        tail: Tail,
    },
}

#[derive(Clone, PartialEq, Message)]
struct EntryBody {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "bytes", tag = "2")]
    holder: Bytes,
    #[prost(string, tag = "3")]
    who: String,
    #[prost(message, optional, tag = "4")]
    mark: Option<MarkBody>,
    #[prost(message, optional, tag = "5")]
    manifest: Option<ManifestBody>,
    #[prost(message, optional, tag = "6")]
    tail: Option<TailBody>,
}

#[derive(Clone, PartialEq, Message)]
struct MarkBody {
    #[prost(uint32, tag = "1")]
    segment: u32,
    #[prost(uint32, tag = "2")]
    offset: u32,
    #[prost(uint64, tag = "3")]
    number: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ManifestBody {
    #[prost(bytes = "bytes", tag = "1")]
    store: Bytes,
    #[prost(message, repeated, tag = "2")]
    segments: Vec<SegmentBody>,
}

#[derive(Clone, PartialEq, Message)]
struct SegmentBody {
    #[prost(uint32, tag = "1")]
    number: u32,
    #[prost(message, repeated, tag = "2")]
    pieces: Vec<PieceBody>,
    /// Length and hash of its outline, if there is one.
    #[prost(message, optional, tag = "3")]
    outline: Option<PieceBody>,
}

#[derive(Clone, PartialEq, Message)]
struct PieceBody {
    #[prost(uint64, tag = "1")]
    len: u64,
    #[prost(bytes = "bytes", tag = "2")]
    hash: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct TailBody {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(bytes = "bytes", tag = "2")]
    bytes: Bytes,
}

impl Entry {
    pub(super) fn encode(&self) -> Bytes {
        let mark = self.mark();
        let mut body = EntryBody {
            number: self.number,
            holder: Bytes::copy_from_slice(&self.holder),
            who: self.who.clone(),
            mark: Some(MarkBody { segment: mark.segment, offset: mark.offset, number: mark.number }),
            ..EntryBody::default()
        };
        match &self.what {
            What::Manifest(manifest) => {
                let segment = |(number, pieces): (&u32, &Vec<Piece>)| SegmentBody {
                    number: *number,
                    pieces: pieces.iter().map(piece_body).collect(),
                    outline: manifest.outlines.get(number).map(|outline| PieceBody {
                        len: outline.len,
                        hash: Bytes::copy_from_slice(&outline.hash),
                    }),
                };
                let segments = manifest.segments.iter().map(segment).collect();
                body.manifest =
                    Some(ManifestBody { store: Bytes::copy_from_slice(&manifest.store), segments });
            }
            What::Tail { tail, .. } => {
                body.tail = Some(TailBody { offset: tail.offset, bytes: tail.bytes.clone() });
            }
        }
        let body = body.encode_to_vec();
        let mut bytes = Vec::with_capacity(BODY_AT + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(blake3::hash(&body).as_bytes());
        bytes.extend_from_slice(&body);
        bytes.into()
    }

    /// Reads the object of this name.
    pub(super) fn decode(name: &str, bytes: &Bytes) -> Result<Self, ArchiveError> {
        let damaged = |what| ArchiveError::Damaged { name: name.to_owned(), what };
        let head = bytes.get(..BODY_AT).filter(|head| head[..8] == MAGIC[..]);
        let head = head.ok_or(damaged("is no entry of a chain"))?;
        let version = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
        if version > VERSION {
            return Err(ArchiveError::Version { name: name.to_owned(), found: version });
        }
        let body = bytes.slice(BODY_AT..);
        if blake3::hash(&body).as_bytes()[..] != head[16..BODY_AT] {
            return Err(damaged("does not match its checksum"));
        }
        let body = EntryBody::decode(body).map_err(|_| damaged("does not read as an entry"))?;
        Self::from_body(body).ok_or(damaged("does not make sense"))
    }

    fn from_body(body: EntryBody) -> Option<Self> {
        let mark = body.mark?;
        let mark = Mark { segment: mark.segment, offset: mark.offset, number: mark.number };
        let what = match (body.manifest, body.tail) {
            (Some(manifest), None) => {
                let mut read = Manifest { store: id(&manifest.store)?, mark, ..Manifest::default() };
                for segment in manifest.segments {
                    if let Some(outline) = &segment.outline {
                        let outline = Outlined { len: outline.len, hash: id(&outline.hash)? };
                        read.outlines.insert(segment.number, outline);
                    }
                    read.segments.insert(segment.number, pieces_of(&segment)?);
                }
                What::Manifest(read)
            }
            (None, Some(tail)) => What::Tail { mark, tail: Tail { offset: tail.offset, bytes: tail.bytes } },
            _ => return None,
        };
        Some(Self { number: body.number, holder: id(&body.holder)?, who: body.who, what })
    }

    /// Whether it says all there is.
    pub(super) fn is_manifest(&self) -> bool {
        matches!(self.what, What::Manifest(_))
    }

    fn mark(&self) -> Mark {
        match &self.what {
            What::Manifest(manifest) => manifest.mark,
            What::Tail { mark, .. } => *mark,
        }
    }

    /// What is archived once this entry is: `None` if it does not continue what was.
    pub(super) fn onto(self, before: Option<Head>) -> Option<Head> {
        let Self { number, holder, who, what } = self;
        match (what, before) {
            (What::Manifest(manifest), before) => {
                let follows = before.is_none_or(|before| before.number + 1 == number);
                follows.then_some(Head { number, base: number, holder, who, manifest, tails: Vec::new() })
            }
            (What::Tail { mark, tail }, Some(mut head)) => {
                let at = head.manifest.mark;
                let continues = head.number + 1 == number
                    && mark.segment == at.segment
                    && tail.offset == u64::from(at.offset)
                    && tail.offset + tail.bytes.len() as u64 == u64::from(mark.offset);
                head.manifest.mark = mark;
                head.tails.push(tail);
                continues.then_some(Head { number, holder, who, ..head })
            }
            (What::Tail { .. }, None) => None,
        }
    }
}

/// The pieces of one segment, for whoever fetches parts of it later.
pub(super) fn encode_pieces(segment: u32, pieces: &[Piece]) -> Bytes {
    let pieces = pieces.iter().map(piece_body).collect();
    SegmentBody { number: segment, pieces, outline: None }.encode_to_vec().into()
}

/// Reads them again.
pub(super) fn decode_pieces(bytes: &Bytes) -> Option<Vec<Piece>> {
    pieces_of(&SegmentBody::decode(bytes.clone()).ok()?)
}

fn pieces_of(segment: &SegmentBody) -> Option<Vec<Piece>> {
    let mut at = 0;
    let mut pieces = Vec::with_capacity(segment.pieces.len());
    for piece in &segment.pieces {
        pieces.push(Piece { offset: at, len: piece.len, hash: id(&piece.hash)? });
        at = u64::checked_add(at, piece.len)?;
    }
    Some(pieces)
}

fn piece_body(piece: &Piece) -> PieceBody {
    PieceBody { len: piece.len, hash: Bytes::copy_from_slice(&piece.hash) }
}

fn id(bytes: &[u8]) -> Option<[u8; 16]> {
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Entry {
        let pieces = vec![
            Piece { offset: 0, len: 4096, hash: [1; 16] },
            Piece { offset: 4096, len: 1000, hash: [2; 16] },
        ];
        let mark = Mark { segment: 7, offset: 5096, number: 40 };
        let outlines = [(7, Outlined { len: 77, hash: [4; 16] })].into();
        let manifest = Manifest { store: [9; 16], segments: [(7, pieces)].into(), outlines, mark };
        Entry { number, holder: [3; 16], who: "host/1".to_owned(), what: What::Manifest(manifest) }
    }

    fn tail(number: u64, offset: u64, len: usize) -> Entry {
        let mark = Mark { segment: 7, offset: offset as u32 + len as u32, number: 41 };
        let tail = Tail { offset, bytes: vec![5; len].into() };
        Entry { number, holder: [3; 16], who: String::new(), what: What::Tail { mark, tail } }
    }

    #[test]
    fn an_entry_that_was_cut_or_altered_is_none() {
        let (entry, bytes) = (entry(5), entry(5).encode());
        assert_eq!(Entry::decode("chain/5", &bytes).expect("whole"), entry);
        for at in (0..8).chain([20, 50, bytes.len() - 1]) {
            let mut bad = bytes.to_vec();
            bad[at] ^= 1;
            assert!(Entry::decode("chain/5", &bad.into()).is_err(), "byte {at}");
        }
        for len in [0, 8, 47, 48, bytes.len() - 1] {
            assert!(Entry::decode("chain/5", &bytes.slice(..len)).is_err(), "length {len}");
        }
    }

    #[test]
    fn a_tail_only_follows_what_it_continues() {
        let head = entry(5).onto(None).expect("a manifest begins");
        let after = tail(6, 5096, 10).onto(Some(head.clone())).expect("it continues");
        assert_eq!((after.number, after.base, after.manifest.mark.offset), (6, 5, 5106));
        for wrong in [tail(7, 5096, 10), tail(6, 5097, 10), tail(6, 5000, 10)] {
            assert_eq!(wrong.onto(Some(head.clone())), None);
        }
        assert_eq!(tail(1, 0, 10).onto(None), None);
        assert_eq!(entry(8).onto(Some(head)), None, "an entry between is missing");
    }
}
