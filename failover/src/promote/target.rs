//! Whether a directory still is what a promotion has left there.
//!
//! Names, kinds, sizes, times and modes are compared, and no content: an application that was started on the copy has changed
//! some of them. Nothing is changed, and links are not followed.

use std::{
    ffi::OsStr,
    fs::{self, FileType, Metadata},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use tidelock_proto::{
    FileId, Tree,
    tree::{Content, Inode},
};
use tidelock_receiver::history::each_name;

/// Whether `directory` looks exactly like the tree. What cannot be looked at does not.
pub(super) fn is_equal(directory: &Path, tree: &Tree) -> bool {
    let mut equal = looks_like(directory, tree, FileId::ROOT, true);
    each_name(tree, FileId::ROOT, b"", &mut |named| {
        let path = directory.join(OsStr::from_bytes(named.path));
        equal = equal && looks_like(&path, tree, named.id, false);
        equal
    });
    equal
}

fn looks_like(path: &Path, tree: &Tree, id: FileId, root: bool) -> bool {
    let (Some(inode), Ok(found)) = (tree.get(id), fs::symlink_metadata(path)) else { return false };
    let time = (inode.meta.mtime.secs, i64::from(inode.meta.mtime.nanos));
    if !is_kind(found.file_type(), inode) || (found.mtime(), found.mtime_nsec()) != time {
        return false;
    }
    match &inode.content {
        Content::File(extents) => found.len() == extents.size() && has_mode(&found, inode),
        Content::Directory(entries) => {
            let listed = fs::read_dir(path).map(|listed| {
                // What a file system puts in its own root.
                let names = listed.flatten().filter(|entry| !root || entry.file_name() != "lost+found");
                names.count()
            });
            let own = entries.keys().filter(|name| !root || name.as_bytes() != b"lost+found").count();
            listed.is_ok_and(|listed| listed == own) && has_mode(&found, inode)
        }
        Content::Symlink(target) => {
            fs::read_link(path).is_ok_and(|found| found.as_os_str().as_bytes() == target)
        }
        _ => true,
    }
}

fn has_mode(found: &Metadata, inode: &Inode) -> bool {
    // Set-id bits are left out where the owner could not be set.
    found.mode() & 0o1777 == inode.meta.mode & 0o1777
}

fn is_kind(found: FileType, inode: &Inode) -> bool {
    match inode.content {
        Content::File(_) => found.is_file(),
        Content::Directory(_) => found.is_dir(),
        Content::Symlink(_) => found.is_symlink(),
        Content::Fifo => found.is_fifo(),
        Content::CharDevice(..) => found.is_char_device(),
        Content::BlockDevice(..) => found.is_block_device(),
    }
}
