//! Tracepoints of the page cache and of direct I/O, shared by all filesystems.

use super::tracepoint::{Filter, Meaning, Need, Spec};

pub(super) const TRACEPOINTS: &[Spec] = &[
    Spec {
        event: "writeback/writeback_dirty_folio",
        meaning: Meaning::Dirty { inode: "ino", page: "index" },
        filter: Filter::BackingDevice,
        need: Need::Required,
        wakes: true,
    },
    // Completion does not tell reads from writes, but the mapping of the range does.
    Spec {
        event: "iomap/iomap_iter",
        meaning: Meaning::DirectBegin { inode: "ino" },
        filter: Filter::DeviceAndFlags("dev", &[("WRITE", true), ("DIRECT", true)]),
        need: Need::Required,
        wakes: false,
    },
    Spec {
        event: "iomap/iomap_dio_complete",
        meaning: Meaning::DirectEnd { inode: "ino", end: "pos", length: "ret" },
        filter: Filter::Device("dev"),
        need: Need::Required,
        wakes: false,
    },
];
