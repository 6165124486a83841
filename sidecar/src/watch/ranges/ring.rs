//! The ring buffer of one CPU, shared with the kernel.
//!
//! ```text
//! page 0          pages 1 .. 2^n
//! header          records, wrapping around; positions only ever grow and are taken modulo the size
//! data_head  ───▶ written by the kernel: everything before it is complete
//! data_tail  ───▶ written here: everything before it may be overwritten
//! ```
//! The kernel publishes `data_head` after the record (a release), and reads `data_tail` before it writes over anything;
//! so the head is loaded with acquire, and the tail stored with release after the last byte was used.
//!
//! A full ring drops events, and says so only with the next event that fits, if there ever is one. So a ring that was
//! filled beyond half at the moment its tail was moved is [`suspicious`](Consumed::suspicious), and the counters of lost
//! events are asked. Half is far more than the records that can be under way on a CPU at once.

use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use perf_event_open_sys::bindings;

use super::super::Unavailable;
use super::folio::page_bytes;

/// What a record holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    /// The raw data of a tracepoint.
    Sample(&'a [u8]),
    /// The kernel dropped this many events.
    Lost(u64),
    /// The kernel paused an event; some were dropped.
    Throttled,
}

/// How reading a ring ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Consumed {
    /// A record that cannot be; the rest was skipped.
    pub(super) malformed: bool,
    /// Events may have been dropped without a record of it.
    pub(super) suspicious: bool,
}

/// A mapped ring.
pub(super) struct Ring {
    map: MmapRaw,
    page_bytes: usize,
    data_bytes: usize,
    tail: u64,
    scratch: Vec<u8>,
}

impl Ring {
    /// Maps the ring of an event, with `data_bytes` (a power of two of at least a page) for records.
    pub(super) fn map(event: BorrowedFd<'_>, data_bytes: usize) -> Result<Self, Unavailable> {
        let page_bytes = page_bytes();
        let map = MmapOptions::new()
            .len(page_bytes + data_bytes)
            .map_raw(event.as_raw_fd())
            .map_err(Unavailable::io("mapping a ring buffer"))?;
        Ok(Self { map, page_bytes, data_bytes, tail: 0, scratch: Vec::new() })
    }

    /// Whether there is anything to read.
    pub(super) fn is_empty(&self) -> bool {
        self.head() == self.tail
    }

    /// Hands every record that is complete now to `take`, and gives the space back.
    pub(super) fn consume(&mut self, mut take: impl FnMut(Record<'_>)) -> Consumed {
        let head = self.head();
        let mut consumed = Consumed::default();
        if head == self.tail {
            return consumed;
        }
        // SAFETY: the data area lies behind the header page, within the mapping. The kernel does not write between tail
        // and head until the tail is moved, below.
        let data =
            unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.page_bytes), self.data_bytes) };
        let mut position = self.tail;
        while position < head {
            match decode(data, position, head, &mut self.scratch) {
                Some((record, size)) => {
                    if let Some(record) = record {
                        take(record);
                    }
                    position += size;
                }
                None => {
                    consumed.malformed = true;
                    break;
                }
            }
        }
        let begun = std::mem::replace(&mut self.tail, head);
        self.header(std::mem::offset_of!(bindings::perf_event_mmap_page, data_tail))
            .store(head, Ordering::Release);
        fence(Ordering::SeqCst);
        consumed.suspicious = self.head().wrapping_sub(begun) > self.data_bytes as u64 / 2;
        consumed
    }

    fn head(&self) -> u64 {
        self.header(std::mem::offset_of!(bindings::perf_event_mmap_page, data_head)).load(Ordering::Acquire)
    }

    fn header(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both positions are aligned u64 in the header page, which lives as long as the mapping, and are only
        // accessed atomically.
        unsafe { &*self.map.as_ptr().add(offset).cast::<AtomicU64>() }
    }
}

/// Decodes the record at `position`; its size, and what it says if that is of interest. `None` if it cannot be a record.
fn decode<'a>(
    data: &'a [u8],
    position: u64,
    head: u64,
    scratch: &'a mut Vec<u8>,
) -> Option<(Option<Record<'a>>, u64)> {
    // Records are multiples of eight bytes, and so is the ring: a header never wraps.
    let at = (position % data.len() as u64) as usize;
    let header = data.get(at..at + 8)?;
    let kind = u32::from_ne_bytes(header[..4].try_into().ok()?);
    let size = usize::from(u16::from_ne_bytes(header[6..].try_into().ok()?));
    if size < 8 || !size.is_multiple_of(8) || size as u64 > head - position || size > data.len() {
        return None;
    }
    let record = if at + size <= data.len() {
        &data[at..at + size]
    } else {
        scratch.clear();
        scratch.extend_from_slice(&data[at..]);
        scratch.extend_from_slice(&data[..at + size - data.len()]);
        &scratch[..]
    };
    let body = &record[8..];
    let decoded = match kind {
        bindings::PERF_RECORD_SAMPLE => {
            let length = u32::from_ne_bytes(body.get(..4)?.try_into().ok()?) as usize;
            Some(Record::Sample(body.get(4..4usize.checked_add(length)?)?))
        }
        bindings::PERF_RECORD_LOST => {
            Some(Record::Lost(u64::from_ne_bytes(body.get(8..16)?.try_into().ok()?)))
        }
        bindings::PERF_RECORD_THROTTLE => Some(Record::Throttled),
        _ => None,
    };
    Some((decoded, size as u64))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn record(kind: u32, body: &[u8]) -> Vec<u8> {
        let size = (8 + body.len()).next_multiple_of(8);
        let mut record = kind.to_ne_bytes().to_vec();
        record.extend([0, 0]);
        record.extend((size as u16).to_ne_bytes());
        record.extend(body);
        record.resize(size, 0);
        record
    }

    fn sample(raw: &[u8]) -> Vec<u8> {
        let mut body = (raw.len() as u32).to_ne_bytes().to_vec();
        body.extend(raw);
        record(bindings::PERF_RECORD_SAMPLE, &body)
    }

    proptest! {
        #[test]
        fn a_record_is_found_wherever_it_wraps(raw in prop::collection::vec(any::<u8>(), 0..100), slot in 0u64..64) {
            let record = sample(&raw);
            let mut data = vec![0xee; 256];
            let position = 4096 + slot * 8;
            for (i, byte) in record.iter().enumerate() {
                data[(position as usize + i) % 256] = *byte;
            }
            let mut scratch = Vec::new();
            let (decoded, size) = decode(&data, position, position + 256, &mut scratch).unwrap();
            prop_assert_eq!((decoded, size), (Some(Record::Sample(&raw[..])), record.len() as u64));
            let cut_short = decode(&data, position, position + record.len() as u64 - 1, &mut scratch).is_none();
            prop_assert!(cut_short);
        }

        #[test]
        fn garbage_is_malformed_or_skipped(data in prop::collection::vec(any::<u8>(), 64..=64), used in 1u64..=8) {
            let _ = decode(&data, 40, 40 + used * 8, &mut Vec::new());
        }
    }

    #[test]
    fn lost_events_are_counted() {
        let mut body = 77u64.to_ne_bytes().to_vec();
        body.extend(5u64.to_ne_bytes());
        let data = record(bindings::PERF_RECORD_LOST, &body);
        let mut ring = data.clone();
        ring.resize(64, 0);
        let mut scratch = Vec::new();
        assert_eq!(decode(&ring, 0, data.len() as u64, &mut scratch), Some((Some(Record::Lost(5)), 24)));
    }
}
