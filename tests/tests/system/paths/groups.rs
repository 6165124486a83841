//! Write paths that are known by the same events on every file system.

pub(super) const BUFFERED: &[&str] = &[
    "write",
    "pwrite",
    "writev",
    "pwritev2 with RWF_DSYNC",
    "append",
    "write beyond the end",
    "write with O_SYNC",
    "libaio, buffered",
    "io_uring write",
    "io_uring write by a worker",
    "io_uring append",
    "splice from a pipe",
    "sendfile",
    "copy_file_range, ragged",
];

pub(super) const DIRECT: &[&str] = &[
    "O_DIRECT overwrite",
    "O_DIRECT append",
    "O_DIRECT into a hole",
    "O_DIRECT into allocated space",
    "O_DIRECT over cached pages",
    "O_DIRECT over shared extents",
    "libaio, O_DIRECT",
    "libaio, O_DIRECT append",
    "libaio, O_DIRECT, eight at once",
    "io_uring write, O_DIRECT",
    "io_uring write, O_DIRECT append",
];

pub(super) const MAPPED: &[&str] = &[
    "store to a clean page",
    "store, then msync",
    "store, then msync(MS_ASYNC)",
    "store to a page that a write dirtied",
    "store, with writes to the same page",
    "store into a hole",
    "store into allocated space",
    "store to shared extents",
    "store after the descriptor is closed",
    "store to many pages",
    "read into a mapping",
    "O_DIRECT read into a mapping",
];

pub(super) const RESIZED: &[&str] = &["truncate, shrinking", "truncate, growing", "fallocate, extending"];

pub(super) const CUT_SHORT_AND_GROWN: &[&str] = &[
    "truncate, shrinking and growing back",
    "truncate to nothing, then a write",
    "O_TRUNC",
    "io_uring ftruncate",
];

pub(super) const PUNCHED: &[&str] = &[
    "punch, whole blocks",
    "punch, ragged",
    "punch within a block",
    "punch unwritten dirty pages",
    "io_uring fallocate, punching",
];

pub(super) const ZEROED: &[&str] =
    &["zero, whole blocks", "zero, ragged", "zero beyond the end", "zero beyond the end, keeping the size"];

pub(super) const SHARED: &[&str] =
    &["FICLONE", "FICLONE over a longer file", "FICLONERANGE", "copy_file_range, whole blocks"];

pub(super) const NAMES: &[&str] = &[
    "write into a new file",
    "io_uring rename and link",
    "rename over a file",
    "rename over a file that is still written",
    "exchange two names",
    "write through one of two links",
    "write after the opened link is gone",
    "write after the last link is gone",
    "O_TMPFILE, linkat, more writes",
    "rename a directory with a deep tree",
    "exchange two directories",
    "a tree moved in from outside",
    "a tree made at once",
    "a number used again",
];

/// Space given to what is zero anyway.
pub(super) const ALLOCATED: [&str; 2] = ["fallocate, keeping the size", "fallocate in a hole"];
/// It changes no byte, and the write that follows is one to another file.
pub(super) const DEDUPLICATED: &str = "FIDEDUPERANGE, then a write";
