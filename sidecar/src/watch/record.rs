//! What the kernel writes into a fanotify queue that reports directories by handle and entries by name.
//!
//! ```text
//! event_len u32 | vers u8 | reserved u8 | metadata_len u16 | mask u64 | fd i32 | pid i32
//! and up to event_len, for each piece of information:
//! info_type u8 | pad u8 | len u16 | fsid [u32; 2] | handle_bytes u32 | handle_type i32 | handle | name | 0 | padding
//! ```

/// One event.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) mask: u64,
    /// Where it happened, if the kernel says so.
    pub(super) place: Option<Place<'a>>,
}

/// A directory, or an entry of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// The directory's handle: length, type, and that many bytes.
    pub(super) directory: &'a [u8],
    /// The entry; `None` for the directory itself.
    pub(super) name: Option<&'a [u8]>,
}

const METADATA_BYTES: usize = 24;
const INFO_HEADER_BYTES: usize = 4;
const FSID_BYTES: usize = 8;
const HANDLE_HEADER_BYTES: usize = 8;

impl<'a> Record<'a> {
    /// The first event of `bytes` and what follows it; `None` if this is no event as it should be.
    pub(super) fn split(bytes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let event_len = u32_at(bytes, 0)? as usize;
        let version = *bytes.get(4)?;
        let metadata_len = usize::from(u16_at(bytes, 6)?);
        let mask = u64::from_ne_bytes(bytes.get(8..16)?.try_into().ok()?);
        if version != libc::FANOTIFY_METADATA_VERSION || metadata_len < METADATA_BYTES {
            return None;
        }
        let mut infos = bytes.get(metadata_len..event_len)?;
        let mut place = None;
        while !infos.is_empty() {
            let len = usize::from(u16_at(infos, 2)?);
            let info = infos.get(..len).filter(|info| info.len() >= INFO_HEADER_BYTES)?;
            if matches!(info[0], libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_DFID) {
                place = Place::of(info);
            }
            infos = &infos[len..];
        }
        Some((Self { mask, place }, &bytes[event_len..]))
    }
}

impl<'a> Place<'a> {
    fn of(info: &'a [u8]) -> Option<Self> {
        let handle = info.get(INFO_HEADER_BYTES + FSID_BYTES..)?;
        let len = u32_at(handle, 0)? as usize;
        let (directory, rest) = handle.split_at_checked(len.checked_add(HANDLE_HEADER_BYTES)?)?;
        if len == 0 {
            return None;
        }
        let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
        let name = Some(&rest[..end]).filter(|name| !name.is_empty() && *name != b".");
        Some(Self { directory, name })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(mask: u64, infos: &[(u8, &[u8], &[u8])]) -> Vec<u8> {
        let mut tail = Vec::new();
        for (kind, handle, name) in infos {
            let mut body = [0u8; FSID_BYTES].to_vec();
            body.extend(u32::try_from(handle.len()).expect("short").to_ne_bytes());
            body.extend(1i32.to_ne_bytes());
            body.extend(*handle);
            body.extend(*name);
            body.push(0);
            body.resize(body.len().next_multiple_of(4), 0);
            tail.extend([*kind, 0]);
            tail.extend(u16::try_from(body.len() + 4).expect("short").to_ne_bytes());
            tail.extend(body);
        }
        let mut bytes = u32::try_from(24 + tail.len()).expect("short").to_ne_bytes().to_vec();
        bytes.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        bytes.extend(24u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend([0xff; 8]);
        bytes.extend(tail);
        bytes
    }

    #[test]
    fn events_follow_each_other() {
        let (named, itself) = (libc::FAN_EVENT_INFO_TYPE_DFID_NAME, libc::FAN_EVENT_INFO_TYPE_DFID);
        let mut bytes = event(1, &[(named, b"handle12", b"name")]);
        bytes.extend(event(2, &[(named, b"handle12", b".")]));
        bytes.extend(event(3, &[(libc::FAN_EVENT_INFO_TYPE_FID, b"child", b""), (itself, b"handle12", b"")]));
        bytes.extend(event(4, &[]));
        bytes.extend(event(5, &[(named, b"", b"name")]));
        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        while let Some((record, tail)) = Record::split(rest) {
            seen.push((record.mask, record.place.map(|place| (place.directory, place.name))));
            rest = tail;
        }
        let directory = [&8u32.to_ne_bytes()[..], &1i32.to_ne_bytes(), b"handle12"].concat();
        let directory = &directory[..];
        assert_eq!(
            seen,
            [
                (1, Some((directory, Some(&b"name"[..])))),
                (2, Some((directory, None))),
                (3, Some((directory, None))),
                (4, None),
                (5, None),
            ]
        );
    }

    #[test]
    fn what_is_cut_short_is_no_event() {
        let bytes = event(1, &[(libc::FAN_EVENT_INFO_TYPE_DFID_NAME, b"handle12", b"name")]);
        for len in 0..bytes.len() {
            assert_eq!(Record::split(&bytes[..len]), None, "{len} bytes");
        }
        let mut other = bytes.clone();
        other[4] += 1;
        assert_eq!(Record::split(&other), None, "another version");
        let mut endless = bytes;
        endless[26..28].copy_from_slice(&0u16.to_ne_bytes());
        assert_eq!(Record::split(&endless), None, "information without a length");
    }
}
