//! File systems on which a change need not raise an event here: those that others change, too.
//!
//! The kernel raises inotify's events for the calls of this node's programs, on every file system. What another host writes
//! through NFS, or the server behind FUSE by itself, raises none. Whether anybody else writes cannot be known from here, so
//! there the whole volume is compared again and again ([`Tracker::Poll`](super::Tracker::Poll)): by inode, size and change time, as after a
//! loss. Such a comparison looks at one file after the other, and no drain can tell what changed meanwhile, so its points
//! are `fuzzy`. The operator who knows that nobody else writes says `--tracker inotify`.
//!
//! overlay is not among them: who changes it otherwise than through its mount has no defined result there.
//!
//! A watcher that compares paths with what it remembers of them (the crate notify has one) would do less: it does not know
//! hard links, takes an inode that is replaced under the same name and times for the same, and keeps a second tree beside the
//! one that is compared with here.

use std::os::fd::BorrowedFd;

/// Why events cannot be relied on for what is below `root`; `None` if they can.
pub(super) fn why(root: BorrowedFd<'_>) -> Option<String> {
    let kind = rustix::fs::fstatfs(root).ok()?.f_type;
    let name = name_of(kind as u32)?;
    Some(format!("what others change on {name} raises no events here"))
}

/// The name of a file system type that others may change, by the number that `statfs` has for it.
fn name_of(kind: u32) -> Option<&'static str> {
    Some(match kind {
        0x6969 => "NFS",
        0x6573_5546 => "FUSE",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x0102_1997 => "9p",
        0x00c3_6400 => "CephFS",
        0x5346_414f => "AFS",
        0x0bd0_0bd0 => "Lustre",
        0x0116_1970 => "GFS2",
        0x7461_636f => "OCFS2",
        0x4750_4653 => "GPFS",
        0x786f_4256 => "a VirtualBox share",
        0xbacb_acbc => "a VMware share",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn local_file_systems_raise_events() {
        for (path, kind) in [("/proc", 0x9fa0), ("/var/tmp", 0)] {
            let directory = std::fs::File::open(path).expect("it is everywhere");
            assert_eq!(why(directory.as_fd()), None, "{path}");
            let found = rustix::fs::fstatfs(&directory).expect("it can be asked").f_type as u32;
            assert!(kind == 0 || kind == found);
        }
        assert_eq!(name_of(0x6969), Some("NFS"));
        assert_eq!([0xef53, 0x5846_5342, 0x9123_683e, 0x794c_7630, 0x0102_1994].map(name_of), [None; 5]);
    }
}
