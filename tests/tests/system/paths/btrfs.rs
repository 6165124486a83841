//! By which events btrfs tells of each write path.

use super::{
    LeftOut,
    groups::{
        ALLOCATED, BUFFERED, CUT_SHORT_AND_GROWN, DEDUPLICATED, DIRECT, MAPPED, NAMES, PUNCHED, RESIZED,
        SHARED, ZEROED,
    },
};

/// It announces every call that changes bytes, except stores and `libaio`.
const MODIFY: &str = "inotify/modify";
/// It announces every folio that such a call, or a store, makes dirty.
const DIRTY: &str = "writeback/writeback_dirty_folio";
const COMPLETE: &str = "iomap/iomap_dio_complete";

pub(super) const LEFT_OUT: &[LeftOut] = &[
    (&[MODIFY, DIRTY, COMPLETE], &[BUFFERED, DIRECT]),
    (&[DIRTY], &[MAPPED, &["libaio, buffered"]]),
    (&[MODIFY, DIRTY], &[RESIZED, CUT_SHORT_AND_GROWN, PUNCHED, ZEROED, SHARED]),
    // A name that was missed is looked up again when its file is found changed.
    (&["inotify/names", MODIFY, DIRTY], &[NAMES]),
];

pub(super) const NO_OTHER_BYTES: &[&str] = &[ALLOCATED[0], ALLOCATED[1], DEDUPLICATED];
