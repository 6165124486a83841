//! Access lists and permission bits tell the same story, and the file system keeps them in step: who sets the one changes the other.
//!
//! The form is the kernel's: a version, then entries of a tag, permissions and an id, little-endian.

/// The access list of an inode among its extended attributes.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";

const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The permission bits after a list was set.
pub(super) fn mode_of(list: &[u8], mode: u32) -> u32 {
    let shifts = shifts(list);
    entries(list).fold(mode, |mode, (tag, permissions)| match shifts(tag) {
        Some(shift) => mode & !(0o7 << shift) | (u32::from(permissions) & 0o7) << shift,
        None => mode,
    })
}

/// The list after permission bits were set.
pub(super) fn with_mode(list: &[u8], mode: u32) -> Vec<u8> {
    let shifts = shifts(list);
    let mut changed = list.to_vec();
    for (at, (tag, _)) in entries(list).enumerate() {
        if let Some(shift) = shifts(tag) {
            changed[HEADER_BYTES + at * ENTRY_BYTES + 2] = (mode >> shift & 0o7) as u8;
        }
    }
    changed
}

/// Whether it says no more than permission bits can.
pub(super) fn is_minimal(list: &[u8]) -> bool {
    entries(list).all(|(tag, _)| matches!(tag, USER_OBJ | GROUP_OBJ | OTHER))
}

/// Which bits an entry is: where there is a mask, it and not the group's own entry.
fn shifts(list: &[u8]) -> impl Fn(u16) -> Option<u32> + use<> {
    let group = if entries(list).any(|(tag, _)| tag == MASK) { MASK } else { GROUP_OBJ };
    move |tag| match tag {
        USER_OBJ => Some(6),
        OTHER => Some(0),
        tag if tag == group => Some(3),
        _ => None,
    }
}

fn entries(list: &[u8]) -> impl Iterator<Item = (u16, u16)> {
    let entries = list.get(HEADER_BYTES..).unwrap_or_default().chunks_exact(ENTRY_BYTES);
    entries.map(|entry| (u16::from_le_bytes([entry[0], entry[1]]), u16::from_le_bytes([entry[2], entry[3]])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `u::rwx,u:1000:rw-,g::r--,m::rw-,o::---`
    const LIST: &[u8] = &[
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255,
        16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];

    #[test]
    fn a_list_and_its_bits_follow_each_other() {
        assert_eq!(mode_of(LIST, 0o4444), 0o4760);
        let changed = with_mode(LIST, 0o4515);
        assert_eq!(mode_of(&changed, 0), 0o515);
        let kept = entries(&changed).filter(|(tag, _)| *tag == 2 || *tag == GROUP_OBJ);
        assert_eq!(kept.collect::<Vec<_>>(), [(2, 6), (GROUP_OBJ, 4)], "the mask is what changes");
        assert!(!is_minimal(LIST) && is_minimal(&LIST[..12]));
        assert_eq!(mode_of(b"\x02", 0o640), 0o640);
    }
}
