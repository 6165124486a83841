//! The tracepoints of ext4. What each one means, and when it fires, is in the table of [the module](super).

use super::tracepoint::{Filter, Meaning, Need, Spec};

const fn bytes(event: &'static str, offset: &'static str, length: &'static str) -> Spec {
    let meaning = Meaning::Bytes { inode: "ino", offset, length };
    Spec { event, meaning, filter: Filter::Device("dev"), need: Need::Required, wakes: false }
}

const fn from(event: &'static str) -> Spec {
    let meaning = Meaning::From { inode: "ino", offset: "offset" };
    Spec { event, meaning, filter: Filter::Device("dev"), need: Need::Required, wakes: false }
}

const fn size(event: &'static str) -> Spec {
    let meaning = Meaning::Size { inode: "ino" };
    Spec { event, meaning, filter: Filter::Device("dev"), need: Need::Required, wakes: false }
}

const fn mapping(event: &'static str) -> Spec {
    let meaning = Meaning::Mapping { inode: "i_ino" };
    // Kernels before 6.12 do not have them; there only a page dirtied outside a known write gives a mapping away.
    Spec { event, meaning, filter: Filter::Device("s_dev"), need: Need::Optional, wakes: true }
}

pub(super) const TRACEPOINTS: &[Spec] = &[
    bytes("ext4/ext4_da_write_end", "pos", "len"),
    bytes("ext4/ext4_write_end", "pos", "len"),
    bytes("ext4/ext4_journalled_write_end", "pos", "len"),
    bytes("ext4/ext4_punch_hole", "offset", "len"),
    bytes("ext4/ext4_zero_range", "offset", "len"),
    from("ext4/ext4_collapse_range"),
    from("ext4/ext4_insert_range"),
    // Says neither the former size nor the new one.
    Spec {
        event: "ext4/ext4_truncate_enter",
        meaning: Meaning::Cut { inode: "ino", size: None },
        filter: Filter::Device("dev"),
        need: Need::Required,
        wakes: false,
    },
    size("ext4/ext4_fallocate_enter"),
    size("ext4/ext4_zero_range"),
    size("ext4/ext4_collapse_range"),
    size("ext4/ext4_insert_range"),
    mapping("filemap/mm_filemap_fault"),
    mapping("filemap/mm_filemap_map_pages"),
    Spec {
        event: "ext4/ext4_evict_inode",
        meaning: Meaning::Evicted { inode: "ino" },
        filter: Filter::Device("dev"),
        need: Need::Required,
        wakes: false,
    },
];
