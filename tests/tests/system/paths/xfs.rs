//! By which events xfs tells of each write path.

use super::{
    LeftOut,
    groups::{
        ALLOCATED, BUFFERED, CUT_SHORT_AND_GROWN, DEDUPLICATED, DIRECT, MAPPED, NAMES, PUNCHED, RESIZED,
        SHARED, ZEROED,
    },
};

const MODIFY: &str = "inotify/modify";
const UNMAPPED: &str = "xfs/xfs_bunmap";
const EDGES: &str = "iomap/iomap_zero_iter";
const SIZE: &str = "xfs/xfs_setattr";
const CUT: &str = "xfs/xfs_itruncate_extents_start";

pub(super) const LEFT_OUT: &[LeftOut] = &[
    (&["xfs/xfs_file_buffered_write", MODIFY], &[BUFFERED]),
    (&["iomap/iomap_dio_complete", MODIFY], &[DIRECT]),
    // The first store through a mapping makes the whole file suspect; without this, later ones are missed.
    (&["writeback/writeback_dirty_folio"], &[MAPPED]),
    (&[MODIFY, SIZE, CUT, UNMAPPED, EDGES, "xfs/xfs_alloc_file_space"], &[RESIZED]),
    (&[CUT, SIZE, UNMAPPED, EDGES, MODIFY], &[CUT_SHORT_AND_GROWN]),
    (&[UNMAPPED, EDGES], &[PUNCHED]),
    (&[UNMAPPED, EDGES, SIZE, "xfs/xfs_zero_file_space", "xfs/xfs_alloc_file_space"], &[ZEROED]),
    (
        &[UNMAPPED, EDGES, SIZE, CUT, "xfs/xfs_collapse_file_space", "xfs/xfs_insert_file_space"],
        &[&["collapse", "insert"]],
    ),
    (&["xfs/xfs_reflink_remap_range", UNMAPPED, EDGES, SIZE, CUT], &[SHARED]),
    // A name that was missed is looked up again when its file is found changed.
    (&["inotify/names", MODIFY, "xfs/xfs_file_buffered_write", SIZE, CUT, UNMAPPED], &[NAMES]),
];

pub(super) const NO_OTHER_BYTES: &[&str] = &[ALLOCATED[0], ALLOCATED[1], DEDUPLICATED];
