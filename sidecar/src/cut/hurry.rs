//! Reading and telling chunks apart with every core, for the moments in which the application stands still and leaves them idle.

use std::{os::fd::BorrowedFd, thread};

use rustix::io::Errno;
use tidelock_proto::ChunkId;

use crate::{capture::read_at, limits::PAGE_BYTES, pack::Packer};

/// What is worth a thread, in bytes: starting one takes as long as some 100 KiB.
const WORTH_A_THREAD: usize = 512 * 1024;

/// As [`read_at`], by up to `cores` threads.
pub(super) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8], offset: u64, cores: usize) -> Result<usize, Errno> {
    let share = share_of(buffer.len(), cores).next_multiple_of(PAGE_BYTES as usize);
    if buffer.len() <= share {
        return read_at(fd, buffer, offset);
    }
    thread::scope(|scope| {
        let mut parts = buffer.chunks_mut(share).zip((offset..).step_by(share));
        let own = parts.next();
        let others: Vec<_> =
            parts.map(|(part, at)| (part.len(), scope.spawn(move || read_at(fd, part, at)))).collect();
        let mut filled = own.map_or(Ok(0), |(part, at)| read_at(fd, part, at))?;
        let mut whole = filled == share;
        for (len, other) in others {
            let read = other.join().expect("reading does not panic")?;
            // What comes after a short read is beyond the end.
            if whole {
                filled += read;
                whole = read == len;
            }
        }
        Ok(filled)
    })
}

/// The ids of all these, by up to `cores` threads.
pub(super) fn ids(packer: &Packer, parts: &[&[u8]], cores: usize) -> Vec<ChunkId> {
    let id = |part: &&[u8]| packer.id(part);
    let share = share_of(parts.iter().map(|part| part.len()).sum(), cores);
    let mut shares = Vec::new();
    let mut rest = parts;
    while !rest.is_empty() {
        let sums = rest.iter().scan(0, |sum, part| {
            *sum += part.len();
            Some(*sum)
        });
        let many = sums.take_while(|sum| *sum < share).count() + 1;
        let (one, more) = rest.split_at(many.min(rest.len()));
        shares.push(one);
        rest = more;
    }
    let Some((own, others)) = shares.split_first() else { return Vec::new() };
    thread::scope(|scope| {
        let others: Vec<_> = others
            .iter()
            .map(|share| scope.spawn(move || share.iter().map(id).collect::<Vec<_>>()))
            .collect();
        let mut ids: Vec<ChunkId> = own.iter().map(id).collect();
        ids.extend(others.into_iter().flat_map(|other| other.join().expect("hashing does not panic")));
        ids
    })
}

/// How many bytes each takes on.
fn share_of(bytes: usize, cores: usize) -> usize {
    bytes.div_ceil(cores.max(1)).max(WORTH_A_THREAD)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{io::Write, os::fd::AsFd};

    use tidelock_proto::ChunkKey;

    use super::*;

    #[test]
    fn many_read_and_tell_what_one_does() {
        let content: Vec<u8> = (0..3_000_001u32).flat_map(|n| n.to_le_bytes()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        for (offset, len) in
            [(0, 1 << 20), (4096, 8 << 20), (5, 12 << 20), (11 << 20, 4 << 20), (20 << 20, 4 << 20)]
        {
            let mut buffer = vec![0; len];
            let read = read(file.as_fd(), &mut buffer, offset as u64, 3).unwrap();
            let expected = &content[offset.min(content.len())..(offset + len).min(content.len())];
            assert_eq!(read, expected.len(), "at {offset}");
            assert!(buffer[..read] == *expected, "at {offset}");
        }
        let packer = Packer::new(ChunkKey::of_tenant("t"), 1, 1);
        for size in [4096, 65536, 3 << 20, 64 << 20] {
            let parts: Vec<&[u8]> = content.chunks(size).collect();
            let one: Vec<ChunkId> = parts.iter().map(|part| packer.id(part)).collect();
            assert_eq!(ids(&packer, &parts, 3), one, "in parts of {size}");
        }
        assert!(ids(&packer, &[], 3).is_empty());
    }
}
