//! Telling inodes apart over time: inode numbers are used again, so a number alone is no identity.

use std::{
    ffi::{CStr, CString},
    os::fd::{AsRawFd, BorrowedFd},
};

/// An inode number and what tells it from an earlier inode of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    pub(crate) inode: u64,
    pub(crate) generation: u64,
}

const HANDLE_MAX_BYTES: usize = 128;

#[repr(C)]
struct FileHandle {
    header: libc::file_handle,
    bytes: [u8; HANDLE_MAX_BYTES],
}

/// The generation of the inode at `name` in `dir`, or of `dir` itself if there is no name: a hash of the file handle that the
/// kernel would export, which holds the file system's generation number; where there are no handles, the time of
/// birth; where that is unknown too, 0. Never follows a symbolic link.
pub(crate) fn generation(dir: BorrowedFd<'_>, name: Option<&[u8]>, born: Option<(i64, u32)>) -> u64 {
    let name = name.map(CString::new).transpose().ok().flatten();
    if let Some(generation) = handle_hash(dir, name.as_deref()) {
        return generation;
    }
    born.map_or(0, |(secs, nanos)| {
        secs.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(u64::from(nanos)) | 1
    })
}

fn handle_hash(dir: BorrowedFd<'_>, name: Option<&CStr>) -> Option<u64> {
    let mut handle = FileHandle {
        header: libc::file_handle {
            handle_bytes: u32::try_from(HANDLE_MAX_BYTES).expect("a small constant"),
            handle_type: 0,
            f_handle: [],
        },
        bytes: [0; HANDLE_MAX_BYTES],
    };
    let mut mount_id = 0;
    let flags = if name.is_none() { libc::AT_EMPTY_PATH } else { 0 };
    // SAFETY: `handle` is a file_handle followed by as many bytes as its header says; the name is NUL-terminated.
    let done = unsafe {
        libc::name_to_handle_at(
            dir.as_raw_fd(),
            name.unwrap_or(c"").as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount_id,
            flags,
        )
    };
    if done != 0 {
        return None;
    }
    let len = (handle.header.handle_bytes as usize).min(HANDLE_MAX_BYTES);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&handle.header.handle_type.to_le_bytes());
    hasher.update(&handle.bytes[..len]);
    let hash = hasher.finalize();
    let word = hash.as_bytes().first_chunk().expect("a hash is longer than a word");
    // Never 0, which means "unknown".
    Some(u64::from_le_bytes(*word) | 1)
}
