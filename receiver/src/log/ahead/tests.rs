use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    time::Duration,
};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::log::{
    disk::DirDisk,
    entry::Kind,
    frame::RECORDS_START,
    scan::{End, scan},
    writer::{LogOptions, LogWriter},
};

const STORE: [u8; 16] = [7; 16];

/// A directory whose zeros are slow, and which sees when somebody else comes between.
struct Watching {
    dir: DirDisk,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// The zeros that are being written: segment and bytes.
    under_way: Option<(u32, Range<u64>)>,
    /// Where the last write of each segment ended.
    written: std::collections::HashMap<u32, u64>,
    steps: u64,
    wrong: Vec<String>,
}

struct WatchedFile {
    segment: u32,
    file: Arc<dyn SegmentFile>,
    seen: Arc<Mutex<Seen>>,
}

impl Watching {
    fn watch(
        &self,
        segment: u32,
        file: io::Result<Arc<dyn SegmentFile>>,
    ) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(WatchedFile { segment, file: file?, seen: self.seen.clone() }))
    }
}

impl Disk for Watching {
    fn list(&self) -> io::Result<Vec<u32>> {
        self.dir.list()
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        self.watch(segment, self.dir.create(segment))
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        self.watch(segment, self.dir.open(segment))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        self.dir.remove(segment)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.dir.sync_names()
    }
}

impl SegmentFile for WatchedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let end = offset + bytes.len() as u64;
        let mut seen = self.seen.lock();
        if let Some((segment, step)) = &seen.under_way
            && *segment == self.segment
            && step.start < end
        {
            let wrong = format!("{offset}..{end} of {segment} written beside the zeros {step:?}");
            seen.wrong.push(wrong);
        }
        let written = seen.written.entry(self.segment).or_default();
        *written = end.max(*written);
        self.file.write_at(bytes, offset)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn write_zeros(&self, range: Range<u64>) -> io::Result<bool> {
        {
            let mut seen = self.seen.lock();
            seen.steps += 1;
            let written = seen.written.get(&self.segment).copied().unwrap_or(0);
            if range.start < written || seen.under_way.is_some() {
                let wrong =
                    format!("zeros {range:?} where {written} was written, beside {:?}", seen.under_way);
                seen.wrong.push(wrong);
            }
            seen.under_way = Some((self.segment, range.clone()));
        }
        // Long enough for somebody who does not wait to come between.
        std::thread::sleep(Duration::from_millis(1));
        let zeros = vec![0; (range.end - range.start) as usize];
        let result = self.file.write_at(&zeros, range.start);
        self.seen.lock().under_way = None;
        result.map(|()| true)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut seen = self.seen.lock();
        if let Some((segment, step)) = &seen.under_way
            && *segment == self.segment
        {
            let wrong = format!("{segment} cut to {len} beside the zeros {step:?}");
            seen.wrong.push(wrong);
        }
        self.file.truncate(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

fn options(segment_bytes: u64) -> LogOptions {
    LogOptions { store: STORE, segment_bytes, reserve_bytes: 0, cap_bytes: None, salt: rand::random }
}

fn begin(disk: Arc<dyn Disk>, segment_bytes: u64) -> LogWriter {
    let end = End { segment: 0, offset: RECORDS_START, proven: RECORDS_START, number: 0, continues: None };
    LogWriter::resume(disk, options(segment_bytes), end).expect("an empty directory")
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Sync,
    EndSegment,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_usize..20_000).prop_map(Step::Append),
        2 => (20_000_usize..400_000).prop_map(Step::Append),
        6 => Just(Step::Sync),
        1 => Just(Step::EndSegment),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn zeros_never_meet_a_record_nor_a_sealed_segment(steps in prop::collection::vec(step(), 1..120)) {
        let dir = tempfile::tempdir()?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let disk: Arc<dyn Disk> = Arc::new(Watching { dir: DirDisk::new(dir.path()), seen: seen.clone() });
        let segment_bytes = 3 * limits::AHEAD_BYTES;
        let mut writer = begin(disk.clone(), segment_bytes);
        let mut bodies: Vec<Vec<u8>> = Vec::new();
        for step in steps {
            match step {
                Step::Append(len) => {
                    // No zero in it.
                    let body = vec![bodies.len() as u8 | 1; len];
                    writer.append(None, Kind::Chunk, &[&body]).expect("an append");
                    bodies.push(body);
                }
                Step::Sync => writer.sync().expect("a sync"),
                Step::EndSegment => writer.end_segment(),
                Step::Reopen => {
                    writer.sync().expect("a sync");
                    drop(writer);
                    prop_assert_eq!(&seen.lock().under_way, &None, "still under way after the writer's end");
                    let outcome = scan(&*disk, STORE, None, 0, &mut |_| {}).expect("a scan");
                    writer = LogWriter::resume(disk.clone(), options(segment_bytes), outcome.end).expect("the end");
                }
            }
        }
        writer.sync().expect("a sync");
        drop(writer);
        let mut found = Vec::new();
        let outcome = scan(&*disk, STORE, None, 0, &mut |record| found.push(record.body.to_vec())).expect("a scan");
        prop_assert_eq!(outcome.damaged, 0);
        prop_assert!(!outcome.torn);
        prop_assert!(found == bodies, "{} records of {} are as they were written", found.len(), bodies.len());
        prop_assert_eq!(&seen.lock().wrong, &Vec::<String>::new());
    }
}

#[test]
fn zeros_are_kept_ahead_of_small_groups_and_not_of_large_ones() {
    let dir = tempfile::tempdir().expect("a directory");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let disk = Arc::new(Watching { dir: DirDisk::new(dir.path()), seen: seen.clone() });
    let mut writer = begin(disk, 64 * limits::AHEAD_BYTES);
    for _ in 0..4 {
        writer
            .append(None, Kind::Chunk, &[&vec![1; limits::AHEAD_GROUP_MAX_BYTES as usize]])
            .expect("an append");
        writer.sync().expect("a sync");
    }
    assert_eq!(seen.lock().steps, 0);
    let groups = 100;
    for _ in 0..groups {
        writer.append(None, Kind::Chunk, &[&[1; 64 * 1024]]).expect("an append");
        writer.sync().expect("a sync");
    }
    drop(writer);
    let seen = seen.lock();
    let steps = groups * 64 * 1024 / limits::AHEAD_BYTES;
    assert!((steps..=2 * steps + 2).contains(&seen.steps), "{} steps for {groups} groups", seen.steps);
    assert_eq!(seen.wrong, Vec::<String>::new());
}

#[test]
fn a_segment_is_cut_after_its_zeros() {
    let dir = tempfile::tempdir().expect("a directory");
    let seen = Arc::new(Mutex::new(Seen::default()));
    let disk = Arc::new(Watching { dir: DirDisk::new(dir.path()), seen: seen.clone() });
    let mut writer = begin(disk.clone(), 4 * limits::AHEAD_BYTES);
    for _ in 0..10 {
        // The first group of a segment begins a step.
        writer.append(None, Kind::Chunk, &[b"one"]).expect("an append");
        writer.sync().expect("a sync");
        writer.end_segment();
    }
    drop(writer);
    let seen = seen.lock();
    assert_eq!((seen.steps, &seen.wrong), (10, &Vec::new()));
    let len = |segment| disk.open(segment).and_then(|file| file.len()).expect("a segment");
    assert!((1..10).all(|segment| len(segment) < 4096), "sealed segments have no zeros behind them");
}

#[test]
fn an_error_ends_the_zeros_and_nothing_else() {
    struct Failing(DirDisk);
    struct FailingFile(Arc<dyn SegmentFile>);

    impl Disk for Failing {
        fn list(&self) -> io::Result<Vec<u32>> {
            self.0.list()
        }
        fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
            self.0.create(segment)
        }
        fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
            Ok(Arc::new(FailingFile(self.0.open(segment)?)))
        }
        fn remove(&self, segment: u32) -> io::Result<()> {
            self.0.remove(segment)
        }
        fn sync_names(&self) -> io::Result<()> {
            self.0.sync_names()
        }
    }

    impl SegmentFile for FailingFile {
        fn len(&self) -> io::Result<u64> {
            self.0.len()
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_at(buffer, offset)
        }
        fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
            self.0.write_at(bytes, offset)
        }
        fn allocate(&self, len: u64) -> io::Result<()> {
            self.0.allocate(len)
        }
        fn write_zeros(&self, _range: Range<u64>) -> io::Result<bool> {
            Err(io::Error::from(io::ErrorKind::Other))
        }
        fn truncate(&self, len: u64) -> io::Result<()> {
            self.0.truncate(len)
        }
        fn sync(&self) -> io::Result<()> {
            self.0.sync()
        }
    }

    let dir = tempfile::tempdir().expect("a directory");
    let disk = Arc::new(Failing(DirDisk::new(dir.path())));
    let mut writer = begin(disk.clone(), 4 * limits::AHEAD_BYTES);
    for _ in 0..200 {
        writer.append(None, Kind::Chunk, &[&[1; 64 * 1024]]).expect("an append");
        writer.sync().expect("a sync");
    }
    writer.ahead.rest();
    assert!(writer.ahead.off);
    drop(writer);
    let mut found = 0;
    scan(&*disk, STORE, None, 0, &mut |_| found += 1).expect("a scan");
    assert_eq!(found, 200);
}

#[test]
fn zeros_make_reserved_space_written_space_where_that_helps() {
    let Some(dir) = overwriting() else { return };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(dir.path().join("segment"))
        .expect("a file");
    SegmentFile::allocate(&file, 1 << 20).expect("space");
    file.write_all_at(b"record", 100).expect("a write");
    assert!(!written(&file, 8192..12288), "only reserved");
    assert!(SegmentFile::write_zeros(&file, 4096..65536).expect("zeros"));
    assert!(written(&file, 8192..12288), "written");
    assert!(!written(&file, 1 << 19..1 << 20), "only what was asked for");
    let mut found = vec![1; 1 << 20];
    SegmentFile::read_at(&file, &mut found, 0).expect("a read");
    assert_eq!(&found[100..106], b"record");
    assert!(found[106..].iter().all(|byte| *byte == 0));
}

/// A directory on ext4 or xfs: the target's, because `/tmp` may be in memory.
fn overwriting() -> Option<tempfile::TempDir> {
    let exe = std::env::current_exe().expect("the test's own path");
    let dir = tempfile::tempdir_in(exe.parent().expect("a directory")).expect("a directory");
    let kind = rustix::fs::statfs(dir.path()).expect("a file system").f_type;
    if [0xef53, 0x5846_5342].contains(&kind) {
        return Some(dir);
    }
    let _ = writeln!(std::io::stderr(), "skipped: the target directory is neither on ext4 nor on xfs");
    None
}

/// Whether the file system holds data for these bytes, and no mere reservation. Bytes that were synced are no longer in the page cache's favour:
/// they are dropped from it first.
fn written(file: &File, range: Range<u64>) -> bool {
    use rustix::fs::{Advice, SeekFrom, fadvise, seek};
    file.sync_all().expect("a sync");
    fadvise(file, 0, None, Advice::DontNeed).expect("advice");
    seek(file, SeekFrom::Data(range.start)).is_ok_and(|data| data < range.end)
}
