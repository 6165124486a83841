//! What must be refused, left alone, or survive: hostile targets, full disks, mounts, users who are not root.

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    process::Command,
};

use super::*;

/// A tree with `d/f` and `g`, both of one page.
fn small(memory: &mut Memory) -> Tree {
    let page = memory.add(vec![7; 4096]);
    let mut builder = Builder::new();
    let dir = builder.add(FileId::ROOT, b"d", Kind::Directory, 0o755);
    for (dir, entry) in [(dir, b"f"), (FileId::ROOT, b"g")] {
        let id = builder.add(dir, entry, Kind::File, 0o4755);
        builder.data(id, 0, page, 0, 4096);
    }
    builder.done()
}

#[test]
fn links_in_the_target_lead_nowhere() {
    let (dir, outside, mut memory) = (TempDir::new().unwrap(), TempDir::new().unwrap(), Memory::default());
    let tree = small(&mut memory);
    let secret = outside.path().join("f");
    std::fs::write(&secret, "untouched").unwrap();
    let before = change_times(outside.path());
    symlink(outside.path(), dir.path().join("d")).unwrap();
    symlink(&secret, dir.path().join("g")).unwrap();
    symlink(outside.path().join("made"), marker_path(dir.path())).unwrap();
    assert!(make(&dir, &tree, &memory, &options()).is_err());
    assert!(matches!(make(&dir, &tree, &memory, &overwrite()), Err(ReconcileError::NotEmpty(_))));
    std::fs::remove_file(marker_path(dir.path())).unwrap();
    make(&dir, &tree, &memory, &overwrite()).unwrap();
    assert_equal(&dir, &tree, &memory);
    assert_eq!(change_times(outside.path()), before);
}

#[test]
fn a_hard_link_to_the_outside_is_replaced_not_written_through() {
    let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
    let target = TempDir::new_in(dir.path()).unwrap();
    let tree = small(&mut memory);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "untouched").unwrap();
    std::fs::hard_link(&secret, target.path().join("g")).unwrap();
    make(&target, &tree, &memory, &overwrite()).unwrap();
    assert_equal(&target, &tree, &memory);
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "untouched");
    assert_eq!(std::fs::metadata(&secret).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn what_is_there_stays_without_leave() {
    let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
    let tree = small(&mut memory);
    std::fs::write(dir.path().join("mine"), "").unwrap();
    let before = change_times(dir.path());
    assert!(matches!(make(&dir, &tree, &memory, &options()), Err(ReconcileError::NotEmpty(_))));
    assert_eq!(change_times(dir.path()), before);
    std::fs::remove_file(dir.path().join("mine")).unwrap();
    std::fs::write(marker_path(dir.path()), "t/other 1.1").unwrap();
    let error = make(&dir, &tree, &memory, &options()).unwrap_err();
    assert!(error.to_string().contains("t/other 1.1"), "{error}");
    let root = reconcile(Path::new("/"), &tree, &memory, &overwrite(), &|_| {});
    assert!(matches!(root, Err(ReconcileError::FileSystemRoot)));
}

/// A tmpfs of this size, mounted for as long as it lives.
struct Mount(TempDir);

impl Mount {
    fn new(options: &str) -> Self {
        let mount = Self(TempDir::new().unwrap());
        mount.run("mount", &["-t", "tmpfs", "-o", options, "tmpfs"]);
        mount
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        assert!(Command::new(program).args(arguments).arg(self.0.path()).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.run("umount", &[]);
    }
}

#[test]
fn a_full_disk_is_named_and_a_second_run_goes_on() {
    let (mount, mut memory) = (Mount::new("size=1m"), Memory::default());
    let mut builder = Builder::new();
    for number in 0..8u8 {
        let chunk = memory.add(vec![number; 262_144]);
        let id = builder.add(FileId::ROOT, &[b'f', number + 1], Kind::File, 0o600);
        builder.data(id, 0, chunk, 0, 262_144);
    }
    let tree = builder.done();
    let ReconcileError::Io { what, path, source } = make(&mount.0, &tree, &memory, &options()).unwrap_err()
    else {
        panic!("another error")
    };
    assert_eq!((what, source.kind()), ("write", std::io::ErrorKind::StorageFull));
    assert!(path.starts_with(mount.0.path()) && path != mount.0.path());
    mount.run("mount", &["-o", "remount,size=4m"]);
    make(&mount.0, &tree, &memory, &options()).unwrap();
    assert_equal(&mount.0, &tree, &memory);
}

#[test]
fn lost_and_found_of_a_mount_is_left_alone_and_a_mount_inside_is_refused() {
    let (mount, mut memory) = (Mount::new("size=1m"), Memory::default());
    let tree = small(&mut memory);
    std::fs::create_dir(mount.0.path().join("lost+found")).unwrap();
    make(&mount.0, &tree, &memory, &options()).unwrap();
    assert!(mount.0.path().join("lost+found").is_dir());

    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let inner =
        Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(dir.path().join("d")).status().unwrap();
    let refused = make(&dir, &tree, &memory, &overwrite());
    let outer = Command::new("umount").arg(dir.path().join("d")).status().unwrap();
    assert!(inner.success() && outer.success());
    assert!(matches!(refused, Err(ReconcileError::Mount(path)) if path.ends_with("d")));
}

/// Runs on a thread that gave up root; the file system's checks are per thread on Linux.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let id: libc::uid_t = 65534;
            // SAFETY: plain numbers; the bare system calls change this thread only.
            let done = unsafe {
                libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>())
                    | libc::syscall(libc::SYS_setresgid, id, id, id)
                    | libc::syscall(libc::SYS_setresuid, id, id, id)
            };
            assert_eq!(done, 0);
            work()
        });
        thread.join().unwrap()
    })
}

#[test]
fn without_root_owners_are_reported_and_no_set_id_bit_is_given_away() {
    let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let tree = small(&mut memory);
    let report = as_nobody(|| make(&dir, &tree, &memory, &options()).unwrap());
    assert_eq!(report.refused, 4);
    assert!(report.refused_examples.iter().any(|example| example.starts_with("owner of")), "{report:?}");
    let meta = std::fs::metadata(dir.path().join("g")).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (65534, 0o755));

    let mut builder = Builder::new();
    builder.add(FileId::ROOT, b"null", Kind::CharDevice(1, 3), 0o666);
    let tree = builder.done();
    let error = as_nobody(|| make(&dir, &tree, &memory, &overwrite()).unwrap_err());
    assert!(matches!(&error, ReconcileError::Device(path) if path.ends_with("null")), "{error}");
}

#[test]
fn without_root_what_is_locked_is_opened_and_locked_again() {
    let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let page = memory.add(vec![7; 4096]);
    let locked = |memory: &mut Memory, byte: u8| {
        let other = memory.add(vec![byte; 4096]);
        let mut builder = Builder::new();
        let inner = builder.add(FileId::ROOT, b"d", Kind::Directory, 0);
        let file = builder.add(inner, b"f", Kind::File, 0o400);
        builder.data(file, 0, page, 0, 4096);
        builder.data(file, 4096, other, 0, 4096);
        for id in [FileId::ROOT, inner, file] {
            let mut meta = builder.tree.get(id).unwrap().meta;
            (meta.uid, meta.gid) = (65534, 65534);
            builder.apply(tidelock_proto::Op::SetMeta { id, meta });
        }
        builder.done()
    };
    for byte in [1, 2] {
        let tree = locked(&mut memory, byte);
        let report = as_nobody(|| make(&dir, &tree, &memory, &overwrite()).unwrap());
        assert_eq!(report.refused, 0);
        assert_equal(&dir, &tree, &memory);
    }
}

#[test]
fn a_pipe_in_place_of_a_file_does_not_block() {
    let (dir, mut memory) = (TempDir::new().unwrap(), Memory::default());
    let tree = small(&mut memory);
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("g"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    assert!(std::fs::metadata(dir.path().join("g")).unwrap().file_type().is_fifo());
    make(&dir, &tree, &memory, &overwrite()).unwrap();
    assert_equal(&dir, &tree, &memory);
}
