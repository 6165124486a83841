//! By which events ext4 tells of each write path.

use super::{
    LeftOut,
    groups::{ALLOCATED, BUFFERED, CUT_SHORT_AND_GROWN, DIRECT, MAPPED, NAMES, PUNCHED, RESIZED, ZEROED},
};

/// A folio that becomes dirty without an explanation makes the whole file suspect, so it makes up for other events.
const DIRTY: &str = "writeback/writeback_dirty_folio";
const MODIFY: &str = "inotify/modify";

pub(super) const LEFT_OUT: &[LeftOut] = &[
    (&["ext4/ext4_da_write_end", DIRTY, MODIFY], &[BUFFERED, &["copy_file_range, whole blocks"]]),
    (&["iomap/iomap_dio_complete", MODIFY], &[DIRECT]),
    (&[DIRTY, "filemap/mm_filemap_fault", "filemap/mm_filemap_map_pages"], &[MAPPED]),
    (&[MODIFY, "ext4/ext4_truncate_enter", "ext4/ext4_fallocate_enter", DIRTY], &[RESIZED]),
    (&["ext4/ext4_truncate_enter", DIRTY, MODIFY], &[CUT_SHORT_AND_GROWN]),
    (&["ext4/ext4_punch_hole", DIRTY], &[PUNCHED]),
    (&["ext4/ext4_zero_range", DIRTY], &[ZEROED]),
    (&["ext4/ext4_collapse_range", "ext4/ext4_insert_range", DIRTY], &[&["collapse", "insert"]]),
    // A name that was missed is looked up again when its file is found changed, or cut short because it is gone.
    (&["inotify/names", MODIFY, "ext4/ext4_da_write_end", DIRTY, "ext4/ext4_truncate_enter"], &[NAMES]),
];

pub(super) const NO_OTHER_BYTES: &[&str] = &ALLOCATED;
