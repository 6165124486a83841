//! The frame around every record, and the header before all of them.
//!
//! ```text
//! segment   header │ header again, at 512 │ records from 1024 on │ zeros
//!
//! header    0 "TIDELOG\n" │ 8 version u32 │ 12 segment u32 │ 16 store id, 16 bytes │ 32 first record u64
//!          40 salt u64 │ 48 crc32c of 0..48
//!
//! record    0 salt u64 │ 8 number u64 │ 16 durable u64 │ 24 body length u32 │ 28 kind u8 │ 29 flags u8
//!          30 zero u16 │ 32 crc32c of 0..32 │ 36 crc32c of the body │ 40 body │ zeros to a multiple of 8
//! ```
//! All numbers are little-endian. `number` counts the records of the store without gaps. `durable` is the number of the
//! last record that was known to be on disk when this one was written: it is what tells a torn tail from damage (see
//! [`super::scan`]). The salt is random for every segment and never leaves the receiver: after damage the scan looks for
//! the next record, and a peer that puts the image of a record into a chunk must not have it taken for one. The one flag, 1, says that the
//! body is encrypted with its tenant's key ([`crate::vault`]).
//!
//! Two checksums, because they answer two questions: whether the length can be trusted, so that damage in one body (most
//! bytes are bodies) costs exactly one record; and whether the body is whole. CRC-32C is enough for both: what would be
//! dangerous to mistake is named by BLAKE3 a second time (chunks by their id, commits by the digest of their tree).

use crate::limits;

/// The version of the log's format.
///
/// - 1: the first.
/// - 2: points are dropped, and those that stay merged with them.
/// - 3: segments are retired, and what is needed of them is written again.
/// - 4: records may be encrypted, and points may be held.
/// - 5: volumes may be deleted.
pub const LOG_VERSION: u32 = 5;
/// Length of a record's header, in bytes.
pub const RECORD_HEADER_BYTES: usize = 40;
/// Where the first record of a segment is.
pub const RECORDS_START: u64 = 1024;

const MAGIC: &[u8; 8] = b"TIDELOG\n";
const HEADER_BYTES: usize = 52;
const SECOND_HEADER: usize = 512;
/// The flag of an encrypted body.
const ENCRYPTED: u8 = 1;

/// What a segment says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The format's version.
    pub version: u32,
    /// The segment's number; also in its name.
    pub segment: u32,
    /// The store it belongs to.
    pub store: [u8; 16],
    /// The number of its first record.
    pub first: u64,
    /// What every record in it begins with.
    pub salt: u64,
}

impl SegmentHeader {
    /// The first [`RECORDS_START`] bytes of the segment.
    pub fn encode(&self) -> Vec<u8> {
        let mut one = Vec::with_capacity(HEADER_BYTES);
        one.extend_from_slice(MAGIC);
        one.extend_from_slice(&self.version.to_le_bytes());
        one.extend_from_slice(&self.segment.to_le_bytes());
        one.extend_from_slice(&self.store);
        one.extend_from_slice(&self.first.to_le_bytes());
        one.extend_from_slice(&self.salt.to_le_bytes());
        one.extend_from_slice(&crc32c::crc32c(&one).to_le_bytes());
        let mut page = vec![0; RECORDS_START as usize];
        page[..HEADER_BYTES].copy_from_slice(&one);
        page[SECOND_HEADER..SECOND_HEADER + HEADER_BYTES].copy_from_slice(&one);
        page
    }

    /// Reads either copy; `None` if neither is whole. The version is not judged here.
    pub fn decode(page: &[u8]) -> Option<Self> {
        Self::decode_one(page).or_else(|| Self::decode_one(page.get(SECOND_HEADER..)?))
    }

    fn decode_one(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let whole = &bytes[..8] == MAGIC && crc32c::crc32c(&bytes[..48]) == u32_at(bytes, 48);
        whole.then(|| Self {
            version: u32_at(bytes, 8),
            segment: u32_at(bytes, 12),
            store: bytes[16..32].try_into().expect("sixteen bytes"),
            first: u64_at(bytes, 32),
            salt: u64_at(bytes, 40),
        })
    }
}

/// The header of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// The record's number in the store, from 1.
    pub number: u64,
    /// The last record that was durable when this one was written.
    pub durable: u64,
    /// Length of the body, in bytes.
    pub body_len: u32,
    /// What the body is.
    pub kind: u8,
    /// Whether it is encrypted.
    pub encrypted: bool,
    body_crc: u32,
}

impl Frame {
    /// The frame of a body that is given in parts.
    pub fn of(number: u64, durable: u64, kind: u8, body: &[&[u8]]) -> Self {
        let len: usize = body.iter().map(|part| part.len()).sum();
        assert!(len <= limits::RECORD_MAX_BYTES, "a record is split before it reaches its limit");
        let body_crc = body.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        Self { number, durable, body_len: len as u32, kind, encrypted: false, body_crc }
    }

    /// Says that the body is encrypted.
    pub fn encrypted(self) -> Self {
        Self { encrypted: true, ..self }
    }

    /// The header's bytes.
    pub fn encode(&self, salt: u64) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&salt.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.durable.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[28] = self.kind;
        bytes[29] = if self.encrypted { ENCRYPTED } else { 0 };
        let crc = crc32c::crc32c(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` if it is not one of this segment.
    pub fn decode(bytes: &[u8], salt: u64) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES)?;
        let whole = u64_at(bytes, 0) == salt && crc32c::crc32c(&bytes[..32]) == u32_at(bytes, 32);
        let frame = Self {
            number: u64_at(bytes, 8),
            durable: u64_at(bytes, 16),
            body_len: u32_at(bytes, 24),
            kind: bytes[28],
            encrypted: bytes[29] & ENCRYPTED != 0,
            body_crc: u32_at(bytes, 36),
        };
        (whole && frame.body_len as usize <= limits::RECORD_MAX_BYTES).then_some(frame)
    }

    /// Whether the body is the one that was framed.
    pub fn covers(&self, body: &[u8]) -> bool {
        body.len() == self.body_len as usize && crc32c::crc32c(body) == self.body_crc
    }

    /// Bytes the record takes in the segment.
    pub fn stride(&self) -> u64 {
        stride(self.body_len as usize)
    }
}

/// The record that these bytes begin with, if it is as it was written.
pub fn intact_record(bytes: &[u8], salt: u64) -> Option<Frame> {
    let frame = Frame::decode(bytes, salt)?;
    let body = bytes[RECORD_HEADER_BYTES..].get(..frame.body_len as usize)?;
    frame.covers(body).then_some(frame)
}

/// The intact records of a part of a segment, and where in it each begins, whatever is between them. The part begins where a record may.
pub fn intact_records(bytes: &[u8], salt: u64) -> impl Iterator<Item = (usize, Frame)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            let here = at;
            match intact_record(&bytes[here..], salt) {
                Some(frame) => {
                    at += frame.stride() as usize;
                    return Some((here, frame));
                }
                None => at += 8,
            }
        }
        None
    })
}

/// Bytes that a record with a body of this length takes.
pub fn stride(body_len: usize) -> u64 {
    (RECORD_HEADER_BYTES + body_len).next_multiple_of(8) as u64
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: SegmentHeader =
        SegmentHeader { version: LOG_VERSION, segment: 3, store: [7; 16], first: 40, salt: 0x1122 };

    #[test]
    fn either_copy_of_the_header_is_enough() {
        let page = HEADER.encode();
        for at in [0, 20, SECOND_HEADER + 20] {
            let mut bad = page.clone();
            bad[at] ^= 1;
            assert_eq!(SegmentHeader::decode(&bad), Some(HEADER));
            bad[20] ^= 2;
            bad[SECOND_HEADER + 21] ^= 1;
            assert_eq!(SegmentHeader::decode(&bad), None);
        }
    }

    #[test]
    fn intact_records_are_found_between_others() {
        let record = |number, body: &[u8]| {
            let frame = Frame::of(number, 0, 3, &[body]);
            let mut bytes = [&frame.encode(5)[..], body].concat();
            bytes.resize(frame.stride() as usize, 0);
            bytes
        };
        let bytes = [record(1, b"one"), record(2, b"the second"), vec![0; 16], record(3, b"")].concat();
        let found = |bytes: &[u8]| -> Vec<_> {
            intact_records(bytes, 5).map(|(at, frame)| (at, frame.number)).collect()
        };
        assert_eq!(found(&bytes), [(0, 1), (48, 2), (120, 3)]);
        let mut bad = bytes.clone();
        bad[48 + 42] ^= 1;
        assert_eq!(found(&bad), [(0, 1), (120, 3)]);
        assert_eq!(found(&bytes[..150]), [(0, 1), (48, 2)]);
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_seen() {
        let frame = Frame::of(9, 8, 3, &[b"body of ", b"a record"]);
        let body = b"body of a record";
        let bytes = frame.encode(5);
        assert_eq!(Frame::decode(&bytes, 5), Some(frame));
        assert!(frame.covers(body) && Frame::decode(&bytes, 6).is_none());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&bad, 5).is_none_or(|frame| !frame.covers(body)), "bit {bit}");
        }
    }
}
