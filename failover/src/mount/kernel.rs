//! The two system calls that put a file system somewhere and take it away.
//!
//! Not fuser's: it cannot tell that somebody else has unmounted already, and then unmounts what is at the place by now.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use rustix::{
    io::Errno,
    process::{getgid, getuid},
};

/// Where the kernel talks to who serves a file system.
pub(super) const DEVICE: &str = "/dev/fuse";
/// What `mount` shows as the type.
const TYPE: &std::ffi::CStr = c"fuse.tidelock";

/// Mounts at `directory` what the holder of the result will serve, for everybody. Set-id bits and devices of a volume mean nothing there.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN.
pub(super) fn mount(directory: &Path, source: &str, writable: bool) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    let (fd, uid, gid) = (device.as_raw_fd(), getuid().as_raw(), getgid().as_raw());
    let data = format!("fd={fd},rootmode=40000,user_id={uid},group_id={gid},default_permissions,allow_other");
    let (path, source, data) = (string(directory.as_os_str().as_bytes())?, string(source)?, string(data)?);
    let flags = libc::MS_NODEV | libc::MS_NOSUID | libc::MS_NOATIME;
    let flags = if writable { flags } else { flags | libc::MS_RDONLY };
    // SAFETY: all are strings that end with a zero and outlive the call.
    match unsafe { libc::mount(source.as_ptr(), path.as_ptr(), TYPE.as_ptr(), flags, data.as_ptr().cast()) } {
        0 => Ok(device.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Unmounts what is mounted at `directory`; `detach` does so though it is in use.
pub(super) fn unmount(directory: &Path, detach: bool) -> io::Result<()> {
    let path = string(directory.as_os_str().as_bytes())?;
    let flags = libc::UMOUNT_NOFOLLOW | if detach { libc::MNT_DETACH } else { 0 };
    // SAFETY: the path is a string that ends with a zero and outlives the call.
    match unsafe { libc::umount2(path.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether this is the reason.
pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn string(bytes: impl Into<Vec<u8>>) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}
