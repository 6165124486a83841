//! The tracepoints of xfs. What each one means, and when it fires, is in the table of [the module](super).

use super::tracepoint::{Filter, Meaning, Need, Spec};

const fn bytes(event: &'static str, inode: &'static str, offset: &'static str, length: &'static str) -> Spec {
    let meaning = Meaning::Bytes { inode, offset, length };
    Spec { event, meaning, filter: Filter::Device("dev"), need: Need::Required, wakes: false }
}

const fn whole(event: &'static str, inode: &'static str) -> Spec {
    let meaning = Meaning::Whole { inode };
    Spec { event, meaning, filter: Filter::Device("dev"), need: Need::Required, wakes: false }
}

const fn size(event: &'static str, inode: &'static str) -> Spec {
    let meaning = Meaning::Size { inode };
    Spec { event, meaning, filter: Filter::Device("dev"), need: Need::Required, wakes: false }
}

const fn optional(spec: Spec) -> Spec {
    Spec { need: Need::Optional, ..spec }
}

/// Fires for every store through a shared mapping that faults; renamed in Linux 6.13.
const fn write_fault(event: &'static str) -> Spec {
    let meaning = Meaning::Mapping { inode: "ino" };
    Spec { event, meaning, filter: Filter::Device("dev"), need: Need::OneOf, wakes: true }
}

pub(super) const TRACEPOINTS: &[Spec] = &[
    bytes("xfs/xfs_file_buffered_write", "ino", "offset", "count"),
    bytes("xfs/xfs_reflink_remap_range", "dest_ino", "dest_offset", "len"),
    size("xfs/xfs_reflink_remap_range", "dest_ino"),
    // Up to the end of both files the sizes are exchanged, too.
    optional(whole("xfs/xfs_exchrange_mappings", "ip1_ino")),
    optional(whole("xfs/xfs_exchrange_mappings", "ip2_ino")),
    optional(whole("xfs/xfs_swap_extent_before", "ino")),
    // The parts of blocks that a hole, a zeroed range or a new end of file leaves at its edges.
    optional(bytes("iomap/iomap_zero_iter", "ino", "offset", "length")),
    // The blocks that a hole or a zeroed range takes away whole. Remapping is what copy-on-write and reflink do.
    Spec {
        event: "xfs/xfs_bunmap",
        meaning: Meaning::Blocks { inode: "ino", offset: "fileoff", length: "len" },
        filter: Filter::DeviceAndFlags("dev", &[("REMAP", false), ("ATTRFORK", false)]),
        need: Need::Required,
        wakes: false,
    },
    whole("xfs/xfs_collapse_file_space", "ino"),
    whole("xfs/xfs_insert_file_space", "ino"),
    size("xfs/xfs_setattr", "ino"),
    size("xfs/xfs_alloc_file_space", "ino"),
    size("xfs/xfs_zero_file_space", "ino"),
    Spec {
        event: "xfs/xfs_itruncate_extents_start",
        meaning: Meaning::Cut { inode: "ino", size: Some("new_size") },
        filter: Filter::Device("dev"),
        need: Need::Required,
        wakes: false,
    },
    write_fault("xfs/xfs_write_fault"),
    write_fault("xfs/xfs_filemap_fault"),
    Spec {
        event: "xfs/xfs_destroy_inode",
        meaning: Meaning::Evicted { inode: "ino" },
        filter: Filter::Device("dev"),
        need: Need::Required,
        wakes: false,
    },
];

/// In addition, on kernels without `iomap_zero_iter` (before 6.13): the edges of a hole are unknown, so all is.
pub(super) const WITHOUT_ZERO_ITER: &[Spec] =
    &[whole("xfs/xfs_free_file_space", "ino"), whole("xfs/xfs_zero_file_space", "ino")];
