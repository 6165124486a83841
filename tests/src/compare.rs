//! Compares two directory trees in everything a volume's model covers: names, kinds, modes, owners, times in nanoseconds,
//! extended attributes and access lists, link targets, devices, content, holes at 4 KiB, and which names are one inode.
//!
//! It shares no code with what it judges. Sockets are not part of a volume and are passed over on both sides.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::{SeekFrom, seek};

/// Holes are compared at this granularity.
const BLOCK_BYTES: u64 = 4096;
/// Differences listed; more are only counted.
const LISTED_MAX: usize = 50;

/// What to leave out.
#[derive(Debug, Clone, Default)]
pub struct Leave {
    /// Names directly in the root, such as `lost+found`.
    pub names: Vec<String>,
    /// Where the holes are; their content, zeros, is still compared.
    pub holes: bool,
    /// Modification times.
    pub times: bool,
}

/// All differences as readable lines, `left` being what should be; empty if there is none.
pub fn compare(left: &Path, right: &Path) -> Result<Vec<String>> {
    compare_leaving(&Leave::default(), left, right)
}

/// [`compare`] without some of it.
pub fn compare_leaving(leave: &Leave, left: &Path, right: &Path) -> Result<Vec<String>> {
    let (looks, found) = (walk(leave, left)?, walk(leave, right)?);
    let mut lines = Vec::new();
    for (path, look) in &looks {
        let shown = if path.is_empty() { ".".to_owned() } else { show(path) };
        match found.get(path) {
            None => lines.push(format!("{shown}: missing ({})", look.kind)),
            Some(other) => {
                lines.extend(look.differences(other).into_iter().map(|line| format!("{shown}: {line}")))
            }
        }
        if let Some(other) = found.get(path).filter(|other| look.is_file() && other.is_file()) {
            let line = content(leave, &look.full, &other.full)?;
            lines.extend(line.map(|line| format!("{shown}: {line}")));
        }
    }
    let extra = found.iter().filter(|(path, _)| !looks.contains_key(*path));
    lines.extend(extra.map(|(path, look)| format!("{}: not expected ({})", show(path), look.kind)));
    if lines.len() > LISTED_MAX {
        let rest = lines.len() - LISTED_MAX;
        lines.truncate(LISTED_MAX);
        lines.push(format!("and {rest} more"));
    }
    Ok(lines)
}

/// Fails the test with the list of differences, if there are any.
#[track_caller]
pub fn assert_same(left: &Path, right: &Path) {
    let lines = compare(left, right).expect("both trees can be read");
    assert!(lines.is_empty(), "{} differs from {}:\n{}", right.display(), left.display(), lines.join("\n"));
}

struct Look {
    full: PathBuf,
    kind: String,
    /// What is compared, by what it is called in a difference.
    facts: Vec<(&'static str, String)>,
}

impl Look {
    fn is_file(&self) -> bool {
        self.kind == "file"
    }

    fn differences(&self, other: &Self) -> Vec<String> {
        if self.kind != other.kind {
            return vec![format!("is a {}, not a {}", other.kind, self.kind)];
        }
        let pairs = self.facts.iter().zip(&other.facts);
        pairs
            .filter(|(wanted, found)| wanted != found)
            .map(|((what, wanted), (_, found))| format!("{what} is {found}, not {wanted}"))
            .collect()
    }
}

fn walk(leave: &Leave, root: &Path) -> Result<BTreeMap<Vec<u8>, Look>> {
    let mut looks = BTreeMap::new();
    let mut groups: HashMap<u64, Vec<Vec<u8>>> = HashMap::new();
    let mut next = vec![Vec::new()];
    while let Some(path) = next.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let meta = fs::symlink_metadata(&full).with_context(|| full.display().to_string())?;
        if meta.file_type().is_socket() {
            continue;
        }
        if meta.is_dir() {
            for entry in fs::read_dir(&full).with_context(|| full.display().to_string())? {
                let name = entry?.file_name();
                if !path.is_empty() || !leave.names.iter().any(|left_out| OsStr::new(left_out) == name) {
                    let slash = if path.is_empty() { &b""[..] } else { b"/" };
                    next.push([&path, slash, name.as_bytes()].concat());
                }
            }
        } else {
            groups.entry(meta.ino()).or_default().push(path.clone());
        }
        looks.insert(path, look(leave, full, &meta)?);
    }
    for mut group in groups.into_values() {
        group.sort();
        let one = group.iter().map(|path| show(path)).collect::<Vec<_>>().join(" = ");
        for path in group {
            looks
                .get_mut(&path)
                .expect("every path of a group was looked at")
                .facts
                .push(("inode", one.clone()));
        }
    }
    Ok(looks)
}

fn look(leave: &Leave, full: PathBuf, meta: &fs::Metadata) -> Result<Look> {
    let file_type = meta.file_type();
    let device = format!("{}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let kind = match () {
        () if file_type.is_dir() => "directory".to_owned(),
        () if file_type.is_file() => "file".to_owned(),
        () if file_type.is_symlink() => {
            format!("link to {}", show(fs::read_link(&full)?.as_os_str().as_bytes()))
        }
        () if file_type.is_fifo() => "pipe".to_owned(),
        () if file_type.is_char_device() => format!("character device {device}"),
        () if file_type.is_block_device() => format!("block device {device}"),
        () => "thing of an unknown kind".to_owned(),
    };
    let mut facts = vec![("owner", format!("{}:{}", meta.uid(), meta.gid()))];
    if !file_type.is_symlink() {
        facts.push(("mode", format!("{:04o}", meta.mode() & 0o7777)));
    }
    if !leave.times {
        facts.push(("modification time", format!("{}.{:09}", meta.mtime(), meta.mtime_nsec())));
    }
    if file_type.is_file() {
        facts.push(("size", meta.len().to_string()));
    }
    facts.push(("attributes", xattrs(&full).with_context(|| full.display().to_string())?));
    Ok(Look { full, kind, facts })
}

fn xattrs(path: &Path) -> Result<String> {
    let mut names = Vec::with_capacity(64 << 10);
    match rustix::fs::llistxattr(path, rustix::buffer::spare_capacity(&mut names)) {
        Ok(_) | Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno.into()),
    }
    // xfs shows root its access lists a second time in a form of its own.
    let own = |name: &&[u8]| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL_");
    let mut names: Vec<&[u8]> = names.split(|byte| *byte == 0).filter(own).collect();
    names.sort_unstable();
    let mut shown = Vec::new();
    for name in names {
        let mut value = Vec::with_capacity(64 << 10);
        rustix::fs::lgetxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
        let digits = hex::encode(&value[..value.len().min(64)]);
        shown.push(format!("{}={digits} ({} bytes, sum {:x})", show(name), value.len(), sum(&value)));
    }
    Ok(format!("[{}]", shown.join(", ")))
}

/// FNV-1a: tells long values apart in a line.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The first difference in content or holes.
fn content(leave: &Leave, left: &Path, right: &Path) -> Result<Option<String>> {
    let (wanted, found) = (File::open(left)?, File::open(right)?);
    let size = wanted.metadata()?.len().min(found.metadata()?.len());
    let (wanted_data, found_data) = (data(&wanted, size)?, data(&found, size)?);
    for range in wanted_data.iter().chain(&found_data) {
        if let Some(at) = first_difference(&wanted, &found, range.start..range.end.min(size))? {
            return Ok(Some(format!("content differs at byte {at} of {size}")));
        }
    }
    let holes = !leave.holes && wanted_data != found_data;
    Ok(holes.then(|| {
        let differing =
            |a: &[Range<u64>], b: &[Range<u64>]| a.iter().find(|range| !b.contains(range)).cloned();
        format!(
            "holes differ: data {:?} was expected, {:?} found",
            differing(&wanted_data, &found_data),
            differing(&found_data, &wanted_data)
        )
    }))
}

/// The ranges that are not holes, widened to whole blocks and joined.
fn data(file: &File, size: u64) -> Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        let (from, to) = (start / BLOCK_BYTES * BLOCK_BYTES, end.next_multiple_of(BLOCK_BYTES));
        match ranges.last_mut() {
            Some(last) if last.end >= from => last.end = to,
            _ => ranges.push(from..to),
        }
        at = end;
    }
    Ok(ranges)
}

fn first_difference(left: &File, right: &File, range: Range<u64>) -> io::Result<Option<u64>> {
    let (mut a, mut b) = (vec![0; 256 << 10], vec![0; 256 << 10]);
    let mut at = range.start;
    while at < range.end {
        let len = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(a.len());
        left.read_exact_at(&mut a[..len], at)?;
        right.read_exact_at(&mut b[..len], at)?;
        if a[..len] != b[..len] {
            let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(0);
            return Ok(Some(at + first as u64));
        }
        at += len as u64;
    }
    Ok(None)
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;
    use crate::menagerie;

    /// Each change alone is found, and nothing is found without one.
    #[test]
    fn every_kind_of_difference_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        menagerie::build(&left).expect("the menagerie can be built");
        let copy = |to: &Path| {
            let mut cp = std::process::Command::new("cp");
            let done = cp.args(["-a", "--sparse=always", "--preserve=all"]).arg(&left).arg(to).status();
            assert!(done.expect("cp runs").success());
        };
        copy(&right);
        let leave = Leave { holes: true, ..Leave::default() };
        assert_eq!(compare_leaving(&leave, &left, &right).expect("readable"), Vec::<String>::new());

        type Change = fn(&Path) -> io::Result<()>;
        let changes: [(&str, Change); 9] = [
            ("mode is", |root| fs::set_permissions(root.join("plain"), PermissionsExt::from_mode(0o640))),
            ("owner is", |root| chown(root.join("one-byte"), Some(7), None)),
            ("modification time", |root| {
                File::options().write(true).open(root.join("empty"))?.set_modified(std::time::UNIX_EPOCH)
            }),
            ("content differs", |root| {
                File::options().write(true).open(root.join("sparse"))?.write_all_at(b"x", 1 << 29)
            }),
            ("size is", |root| File::options().write(true).open(root.join("sparse"))?.set_len(1 << 20)),
            ("missing", |root| fs::remove_file(root.join("pipe"))),
            ("not expected", |root| symlink("x", root.join("extra"))),
            ("is a file, not a link", |root| {
                fs::remove_file(root.join("dangling"))?;
                fs::write(root.join("dangling"), "")
            }),
            ("inode is", |root| {
                let path = root.join("hard-b");
                fs::remove_file(&path)?;
                fs::copy(root.join("hard-a"), &path).map(drop)
            }),
        ];
        for (wanted, change) in changes {
            fs::remove_dir_all(&right).expect("removable");
            copy(&right);
            change(&right).expect("the change can be made");
            let lines = compare_leaving(&leave, &left, &right).expect("readable");
            assert!(lines.iter().any(|line| line.contains(wanted)), "{wanted}: {lines:?}");
        }
        rustix::fs::setxattr(right.join("plain"), "user.new", b"", rustix::fs::XattrFlags::empty())
            .expect("an attribute can be set");
        let lines = compare_leaving(&leave, &left, &right).expect("readable");
        assert!(lines.iter().any(|line| line.contains("attributes is")), "{lines:?}");

        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (path, zeros) in [(&a, false), (&b, true)] {
            fs::create_dir(path).expect("creatable");
            let file = File::create(path.join("f")).expect("creatable");
            file.set_len(65536).expect("resizable");
            if zeros {
                file.write_all_at(&[0; 4096], 8192).expect("writable");
            }
        }
        let leave = Leave { times: true, ..Leave::default() };
        let lines = compare_leaving(&leave, &a, &b).expect("readable");
        assert!(lines.len() == 1 && lines[0].contains("holes differ"), "{lines:?}");
    }
}
