//! A directory with one of everything that a volume can hold. Needs root, for owners, devices and trusted attributes.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, PermissionsExt, chown, lchown, symlink},
        net::UnixListener,
    },
    path::Path,
};

use anyhow::Result;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};

/// Fills `root`, which is created, with every kind of thing; among them one socket, which nobody copies.
pub fn build(root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    files(root)?;
    links(root)?;
    specials(root)?;
    names(root)?;
    attributes(root)?;
    directories(root)?;
    times(root)
}

fn files(root: &Path) -> Result<()> {
    fs::write(root.join("plain"), "plain\n".repeat(1000))?;
    fs::write(root.join("empty"), "")?;
    fs::write(root.join("one-byte"), "x")?;
    let noise: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(root.join("noise"), noise)?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(1 << 30)?;
    for at in [4096, 1 << 20, (1 << 29) + 4096, (1 << 30) - 4096] {
        sparse.write_all_at(&[7; 4096], at)?;
    }
    // Zeros that are written are data, not a hole.
    sparse.write_all_at(&[0; 8192], 2 << 20)?;
    File::create(root.join("all-hole"))?.set_len(123_457)?;
    let tail = File::create(root.join("hole-at-the-end"))?;
    tail.write_all_at(&[1; 100], 0)?;
    tail.set_len(1_000_001)?;
    Ok(())
}

fn links(root: &Path) -> Result<()> {
    fs::create_dir_all(root.join("elsewhere/deep"))?;
    fs::write(root.join("hard-a"), "three names")?;
    fs::hard_link(root.join("hard-a"), root.join("hard-b"))?;
    fs::hard_link(root.join("hard-a"), root.join("elsewhere/deep/hard-c"))?;
    for (name, target) in [("to-file", "plain"), ("to-directory", "elsewhere"), ("dangling", "no/such/thing")]
    {
        symlink(target, root.join(name))?;
    }
    symlink("/etc/passwd", root.join("absolute"))?;
    symlink("../../../../..", root.join("upwards"))?;
    // ext4 takes 4095 bytes, xfs 1024.
    symlink(OsStr::from_bytes(&[b'l'; 1000]), root.join("long"))?;
    symlink(OsStr::from_bytes(b"\xff\xfe"), root.join("bytes"))?;
    let (mode, no_flags) = (Mode::empty(), AtFlags::empty());
    mknodat(CWD, root.join("pipe-a"), FileType::Fifo, mode, 0)?;
    for (kind, name) in [("pipe-a", "pipe-b"), ("dangling", "dangling-b")] {
        rustix::fs::linkat(CWD, root.join(kind), CWD, root.join(name), no_flags)?;
    }
    Ok(lchown(root.join("dangling"), Some(1234), Some(5678))?)
}

fn specials(root: &Path) -> Result<()> {
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    mknodat(CWD, root.join("pipe"), FileType::Fifo, mode, 0)?;
    mknodat(CWD, root.join("null"), FileType::CharacterDevice, mode, makedev(1, 3))?;
    mknodat(CWD, root.join("disk"), FileType::BlockDevice, mode, makedev(259, 70_000))?;
    // Bound by a short name: the path of a socket is at most 107 bytes.
    let short = tempfile::Builder::new().prefix("s").tempdir()?;
    drop(UnixListener::bind(short.path().join("s"))?);
    match fs::rename(short.path().join("s"), root.join("socket")) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            Ok(mknodat(CWD, root.join("socket"), FileType::Socket, mode, 0)?)
        }
        done => Ok(done?),
    }
}

fn names(root: &Path) -> Result<()> {
    let dir = root.join("names");
    fs::create_dir(&dir)?;
    let long = [b'n'; 255];
    let wide = "\u{1F30A}".repeat(63);
    let all: [&[u8]; 14] = [
        b"\xff\xfe\x80",
        b"new\nline",
        b"tab\t",
        b" ",
        b"-rf",
        b"...",
        b"*",
        b"\"quoted\"",
        b"back\\slash",
        b"\x01\x7f",
        "caf\u{e9}".as_bytes(),
        "cafe\u{301}".as_bytes(),
        &long,
        wide.as_bytes(),
    ];
    for name in all {
        fs::write(dir.join(OsStr::from_bytes(name)), name)?;
    }
    Ok(())
}

fn attributes(root: &Path) -> Result<()> {
    let dir = root.join("attributes");
    fs::create_dir(&dir)?;
    for (name, mode) in
        [("suid", 0o4755), ("sgid", 0o2755), ("both", 0o6711), ("none", 0), ("sticky", 0o1666)]
    {
        fs::write(dir.join(name), name)?;
        chown(dir.join(name), Some(1000), Some(2000))?;
        fs::set_permissions(dir.join(name), PermissionsExt::from_mode(mode))?;
    }
    let set = |name: &str, key: &str, value: &[u8]| {
        rustix::fs::lsetxattr(dir.join(name), key, value, XattrFlags::empty())
    };
    fs::write(dir.join("noted"), "")?;
    set("noted", "user.empty", b"")?;
    set("noted", "user.bytes", b"\0\xff\n")?;
    // ext4 has one block for them all, and the name and header count.
    set("noted", "user.large", &[5; 3000])?;
    set("noted", "trusted.note", b"root only")?;
    set("suid", "security.capability", &CAPABILITY)?;
    symlink("noted", dir.join("noted-link"))?;
    set("noted-link", "trusted.note", b"of the link")?;
    fs::write(dir.join("listed"), "")?;
    set(
        "listed",
        "system.posix_acl_access",
        &acl(&[(1, 6, NOBODY), (2, 7, 1000), (4, 4, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY)]),
    )?;
    fs::create_dir(dir.join("inherits"))?;
    set(
        "inherits",
        "system.posix_acl_default",
        &acl(&[(1, 7, NOBODY), (4, 5, NOBODY), (8, 6, 2000), (16, 7, NOBODY), (32, 1, NOBODY)]),
    )?;
    Ok(fs::write(dir.join("inherits/child"), "with a list of its own")?)
}

/// `cap_net_bind_service=ep`, revision 2.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const NOBODY: u32 = u32::MAX;

/// An access list as the kernel keeps it: (tag, permissions, user or group).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let entry = |(tag, permissions, who): &(u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &who.to_le_bytes()].concat()
    };
    [2u32.to_le_bytes().to_vec(), entries.iter().flat_map(entry).collect()].concat()
}

fn directories(root: &Path) -> Result<()> {
    let deep = (0..60).fold(root.join("deep"), |path, level| path.join(format!("level-{level}")));
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("bottom"), "down here")?;
    fs::create_dir(root.join("empty-directory"))?;
    let many = root.join("many");
    fs::create_dir(&many)?;
    for number in 0..500 {
        fs::write(many.join(format!("{number}")), number.to_string())?;
    }
    for (name, mode) in [("read-only", 0o555), ("closed", 0), ("shared", 0o3777)] {
        fs::create_dir(root.join(name))?;
        fs::write(root.join(name).join("inside"), name)?;
        fs::set_permissions(root.join(name), PermissionsExt::from_mode(mode))?;
    }
    Ok(chown(root.join("shared"), Some(1000), Some(1000))?)
}

fn times(root: &Path) -> Result<()> {
    let strange = [
        ("plain", 1, 1),
        ("dangling", 1_000_000_000, 999_999_999),
        ("many", 0, 0),
        ("pipe", -5, 500),
        ("null", 4_000_000_000, 7),
    ];
    for (name, secs, nanos) in strange {
        let time = Timespec { tv_sec: secs, tv_nsec: nanos };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, root.join(name), &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}
