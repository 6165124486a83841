//! A store and its archive as a whole: interrupted anywhere, taken over, and lost.
#![allow(clippy::unwrap_used)]

mod damage;
mod parts;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use object_store::{Error, memory::InMemory};
use tempfile::TempDir;

use super::{
    attach::Writer,
    bucket::Bucket,
    error::ArchiveError,
    hydrate::{Amount, hydrate},
    local::Local,
    manifest::{CHAIN, DATA, Head},
    reach::Reach,
    state::State,
    upload::{Progress, Uploader},
};
use crate::{
    store::{
        Record, Store, StoreError, StoreOptions,
        tests::harness::{self, volume},
    },
    verify,
};

/// Makes the n-th change of a bucket fail, before it is made or with its answer lost, and all after it.
#[derive(Debug)]
pub(super) struct Fuse {
    left: AtomicI64,
    answers: AtomicI64,
    /// Nothing can be read.
    away: AtomicBool,
    /// Bytes that were read of pieces and outlines.
    read: AtomicU64,
}

impl Default for Fuse {
    fn default() -> Self {
        Self {
            left: AtomicI64::new(i64::MAX),
            answers: AtomicI64::new(i64::MAX),
            away: AtomicBool::new(false),
            read: AtomicU64::new(0),
        }
    }
}

impl Fuse {
    pub(super) fn before(&self, name: &str) -> Result<(), ArchiveError> {
        blow(&self.left, name)
    }

    pub(super) fn after(&self, name: &str) -> Result<(), ArchiveError> {
        blow(&self.answers, name)
    }

    pub(super) fn read(&self, name: &str, bytes: u64) -> Result<(), ArchiveError> {
        if self.away.load(Ordering::SeqCst) {
            let source = std::io::Error::other("the bucket is away").into();
            return Err(ArchiveError::request("read", name)(Error::Generic { store: "test", source }));
        }
        if name.starts_with(DATA) {
            self.read.fetch_add(bytes, Ordering::SeqCst);
        }
        Ok(())
    }

    pub(super) fn left(&self) -> i64 {
        self.left.load(Ordering::SeqCst)
    }

    /// After so many changes.
    fn set(&self, changes: i64, answer_lost: bool) {
        let (left, answers) = if answer_lost { (i64::MAX, changes) } else { (changes, i64::MAX) };
        self.left.store(left, Ordering::SeqCst);
        self.answers.store(answers, Ordering::SeqCst);
    }
}

fn blow(left: &AtomicI64, name: &str) -> Result<(), ArchiveError> {
    if left.fetch_sub(1, Ordering::SeqCst) > 0 {
        return Ok(());
    }
    left.store(0, Ordering::SeqCst);
    let source = std::io::Error::other("the fuse has blown").into();
    Err(ArchiveError::request("change", name)(Error::Generic { store: "test", source }))
}

const TTL: Duration = Duration::from_millis(50);

fn options() -> StoreOptions {
    StoreOptions { segment_bytes: 64 * 1024, reserve_bytes: 0, ..StoreOptions::default() }
}

/// One receiver's side: its directory, its store and what it has committed.
struct Site {
    dir: TempDir,
    writer: Writer,
    bucket: Bucket,
}

/// In memory, where there is such a place: hundreds of stores are opened here, and no disk is tried.
fn scratch() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

impl Site {
    fn new(bucket: &Bucket) -> Self {
        let dir = scratch();
        let writer = Writer::new(&Local::new());
        Self { dir, writer, bucket: bucket.clone() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    async fn attach(&self) -> Result<Head, ArchiveError> {
        let reach = Reach::new(self.bucket.clone()).unwrap();
        let open = |dir: &Path| Store::prepare(dir)?.open_with(options(), Some(Arc::new(reach))).map(drop);
        self.writer.attach(&self.bucket, self.path(), TTL, Box::new(open)).await
    }

    fn open(&self) -> Store {
        self.try_open(options()).unwrap()
    }

    /// What is not here is fetched.
    fn try_open(&self, options: StoreOptions) -> Result<Store, StoreError> {
        let reach = Reach::new(self.bucket.clone()).unwrap();
        Store::prepare(self.path())?.open_with(options, Some(Arc::new(reach)))
    }

    async fn uploader(&self, store: &Store) -> Result<Uploader, ArchiveError> {
        let head = self.attach().await?;
        self.uploader_from(store, head).await
    }

    /// As a receiver does it, which attaches once.
    async fn uploader_from(&self, store: &Store, head: Head) -> Result<Uploader, ArchiveError> {
        let state = Arc::new(State::new());
        Uploader::new(self.bucket.clone(), self.writer.clone(), Arc::new(store.clone()), state, head).await
    }
}

async fn up_to_date(uploader: &mut Uploader) -> Result<(), ArchiveError> {
    while uploader.step().await? == Progress::More {}
    Ok(())
}

fn memory() -> Bucket {
    Bucket::new(Arc::new(InMemory::new()))
}

/// What the archive is, opened somewhere else: whole, and with this many points of the source at least, each as it was committed.
async fn check_opens(bucket: &Bucket, source: &harness::Source, at_least: usize, context: &str) -> usize {
    let Some(mut head) = bucket.head().await.unwrap() else {
        assert_eq!(at_least, 0, "{context}: something was archived");
        return 0;
    };
    let dir = scratch();
    hydrate(bucket, &mut head, dir.path(), Amount::All).await.unwrap();
    let store = Store::open(dir.path(), options()).unwrap();
    assert_eq!((store.opened().damaged, store.opened().torn), (0, false), "{context}: {:?}", store.opened());
    let findings = verify::verify(&store, &|_| true, &mut |event| {
        assert!(!matches!(event, verify::Event::Finding(_)), "{context}: {event:?}");
        true
    });
    assert!(findings.unwrap().is_some());
    let points = match store.volume(&source.volume) {
        Some(_) => store.points(&source.volume, None).unwrap(),
        None => Vec::new(),
    };
    points.iter().for_each(|point| source.check(&store, point.id));
    let newest = points.last().map_or(0, |point| point.id.seq.0 as usize);
    assert!(newest >= at_least, "{context}: {newest} of {at_least}");
    newest
}

async fn is_tidy(bucket: &Bucket) {
    let head = bucket.head().await.unwrap().unwrap();
    let there: Vec<String> = bucket.list(DATA).await.unwrap().into_iter().map(|found| found.name).collect();
    assert_eq!(there, head.names().into_iter().collect::<Vec<_>>());
    assert_eq!(bucket.list(CHAIN).await.unwrap().len() as u64, head.number - head.base + 1);
}

/// Commits, archives, thins and compacts; tells up to which commit the archive was said to be, and how many segments were retired.
async fn live(site: &Site, source: &mut harness::Source, acked: &mut usize) -> Result<u64, ArchiveError> {
    let mut retired = 0;
    source.small = true;
    let store = site.open();
    let mut uploader = site.uploader(&store).await?;
    for round in 0..14 {
        for _ in 0..=(round * 5 % 13) {
            store.append_and_wait(source.commit()).unwrap();
        }
        up_to_date(&mut uploader).await?;
        *acked = source.points.len();
        if round % 5 == 4 {
            let policy = "1s:1s".parse().unwrap();
            store.thin(&source.volume, &policy, 1 << 62).unwrap();
            retired += store.retire(&mut |_| {}).unwrap().segments;
        }
    }
    up_to_date(&mut uploader).await?;
    Ok(retired)
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_at_any_change_the_archive_opens_and_goes_on() {
    let whole = memory();
    let (site, mut source, mut acked) = (Site::new(&whole), harness::Source::new(volume("t/a"), 1), 0);
    let retired = live(&site, &mut source, &mut acked).await.unwrap();
    assert_eq!(check_opens(&whole, &source, acked, "uninterrupted").await, acked);
    is_tidy(&whole).await;
    let changes = i64::MAX - whole.fuse_left();
    assert!(changes > 50 && retired > 3, "{changes} changes, {retired} segments retired");

    let mut interrupted = 0;
    for lost in [false, true] {
        // The first ten try the preconditions.
        for change in (10..changes).step_by(if lost { 3 } else { 1 }) {
            let bucket = memory();
            bucket.fuse.set(change, lost);
            let (site, mut source, mut acked) =
                (Site::new(&bucket), harness::Source::new(volume("t/a"), 1), 0);
            let context = format!("change {change}, answer lost: {lost}");
            interrupted += i32::from(live(&site, &mut source, &mut acked).await.is_err());
            bucket.fuse.set(i64::MAX, false);
            check_opens(&bucket, &source, acked, &context).await;

            let store = site.open();
            let mut uploader = site.uploader(&store).await.expect(&context);
            store.append_and_wait(source.commit()).unwrap();
            up_to_date(&mut uploader).await.unwrap();
            assert_eq!(
                check_opens(&bucket, &source, source.points.len(), &context).await,
                source.points.len()
            );
            is_tidy(&bucket).await;
        }
    }
    assert!(interrupted > 40, "{interrupted} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_receiver_goes_on_where_a_lost_one_ended() {
    let bucket = memory();
    let (first, second) = (Site::new(&bucket), Site::new(&bucket));
    let mut source = harness::Source::new(volume("t/a"), 2);
    first.attach().await.unwrap();
    let store = first.open();
    let mut uploader = first.uploader(&store).await.unwrap();
    for _ in 0..30 {
        store.append_and_wait(source.commit()).unwrap();
        up_to_date(&mut uploader).await.unwrap();
    }
    second.attach().await.unwrap();
    let taken = second.open();
    source.check_all(&taken);
    let mut going_on = second.uploader(&taken).await.unwrap();
    taken.append_and_wait(source.clone().commit()).unwrap();
    up_to_date(&mut going_on).await.unwrap();

    // The first one was only slow: it cannot add anything, nor come back.
    store.append_and_wait(source.commit()).unwrap();
    assert!(matches!(uploader.step().await, Err(ArchiveError::TakenOver { .. })));
    assert!(matches!(first.attach().await, Err(ArchiveError::TakenOver { .. })));
    check_opens(&bucket, &source, 31, "of the second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_archived_is_not_uploaded_again() {
    let bucket = memory();
    let site = Site::new(&bucket);
    let mut source = harness::Source::new(volume("t/a"), 3);
    site.attach().await.unwrap();
    let store = site.open();
    for _ in 0..60 {
        store.append_and_wait(source.commit()).unwrap();
    }
    up_to_date(&mut site.uploader(&store).await.unwrap()).await.unwrap();
    // The manifests are lost as if they had never been written; the pieces are there, and the entry with which the chain began.
    let chain = bucket.list(CHAIN).await.unwrap().into_iter().map(|found| found.name);
    bucket.remove(chain).await.unwrap();
    let what = super::entry::What::Manifest(super::manifest::Manifest::default());
    bucket.append(&site.writer.entry(1, what)).await.unwrap().unwrap();
    let head = site.attach().await.unwrap();
    let state = Arc::new(State::new());
    let uploading =
        Uploader::new(bucket.clone(), site.writer.clone(), Arc::new(store.clone()), state.clone(), head);
    up_to_date(&mut uploading.await.unwrap()).await.unwrap();
    assert_eq!(state.observe(std::time::Instant::now()).uploaded_bytes, 0);
    check_opens(&bucket, &source, 60, "adopted").await;
}

/// The newest segment is gone, or nothing is in it: what is appended would take the places of what is archived.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_lost_its_newest_segment_is_refused() {
    for harm in ["remove", "empty"] {
        let bucket = memory();
        let (site, mut source) = (Site::new(&bucket), harness::Source::new(volume("t/a"), 3));
        site.attach().await.unwrap();
        let store = site.open();
        for _ in 0..60 {
            store.append_and_wait(source.commit()).unwrap();
        }
        up_to_date(&mut site.uploader(&store).await.unwrap()).await.unwrap();
        drop(store);
        let archived = bucket.list(DATA).await.unwrap();
        let mut segments: Vec<_> =
            std::fs::read_dir(site.path().join("log")).unwrap().map(|entry| entry.unwrap().path()).collect();
        segments.sort();
        let newest = segments.pop().unwrap();
        match harm {
            "remove" => std::fs::remove_file(&newest).unwrap(),
            _ => std::fs::File::create(&newest).map(drop).unwrap(),
        }
        let store = site.open();
        let refused = site.uploader(&store).await.map(drop);
        assert!(matches!(refused, Err(ArchiveError::Diverged)), "{harm}: {refused:?}");
        // Nor when it has gone on without its archive for a while.
        let mut other = harness::Source::new(volume("t/b"), 4);
        (0..3).for_each(|_| store.append_and_wait(other.commit()).unwrap());
        let refused = site.uploader(&store).await.map(drop);
        assert!(matches!(refused, Err(ArchiveError::Diverged)), "{harm}: {refused:?}");
        assert_eq!(bucket.list(DATA).await.unwrap(), archived, "{harm}");
        check_opens(&bucket, &source, 60, harm).await;
    }
}

/// Whoever began the chain anew would remove everything that it does not name.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_without_its_chain_is_left_alone() {
    let bucket = memory();
    let (site, mut source) = (Site::new(&bucket), harness::Source::new(volume("t/a"), 3));
    site.attach().await.unwrap();
    let store = site.open();
    (0..9).for_each(|_| store.append_and_wait(source.commit()).unwrap());
    up_to_date(&mut site.uploader(&store).await.unwrap()).await.unwrap();
    let archived = bucket.list(DATA).await.unwrap();
    let mut chain = Vec::new();
    for found in bucket.list(CHAIN).await.unwrap() {
        chain.push((found.name.clone(), bucket.get(&found.name).await.unwrap().unwrap()));
    }
    bucket.remove(chain.iter().map(|(name, _)| name.clone())).await.unwrap();
    for refused in [Site::new(&bucket).attach().await, site.attach().await] {
        let Err(ArchiveError::NoChain { objects }) = refused else { panic!("{refused:?}") };
        assert_eq!(objects, archived.len());
    }
    assert_eq!(bucket.list(DATA).await.unwrap(), archived);
    assert!(bucket.list(CHAIN).await.unwrap().is_empty());
    for (name, bytes) in chain {
        bucket.put(&name, bytes).await.unwrap();
    }
    check_opens(&bucket, &source, 9, "the chain is back").await;
}

/// A newcomer whose key is another one, or whose disk is too small, has taken nothing from anybody.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_cannot_be_opened_here_is_not_taken_over() {
    let bucket = memory();
    let (first, mut source) = (Site::new(&bucket), harness::Source::new(volume("t/a"), 3));
    first.attach().await.unwrap();
    let store = first.open();
    (0..30).for_each(|_| store.append_and_wait(source.commit()).unwrap());
    up_to_date(&mut first.uploader(&store).await.unwrap()).await.unwrap();
    drop(store);
    let chain = bucket.list(CHAIN).await.unwrap();
    let second = Site::new(&bucket);
    let wrong = |dir: &Path| {
        // What was fetched is all there.
        let store = Store::prepare(dir)?.open(options())?;
        Err(StoreError::NoSuchVolume(store.volumes().remove(0)))
    };
    let refused = second.writer.attach(&bucket, second.path(), TTL, Box::new(wrong)).await;
    assert!(matches!(refused, Err(ArchiveError::Store(_))), "{refused:?}");
    assert_eq!(bucket.list(CHAIN).await.unwrap(), chain, "nothing was added");
    let store = first.open();
    (0..3).for_each(|_| store.append_and_wait(source.commit()).unwrap());
    up_to_date(&mut first.uploader(&store).await.unwrap()).await.unwrap();
    drop(store);
    // With the right key it goes.
    second.attach().await.unwrap();
    assert!(!second.path().join("fetch.new").exists());
    source.check_all(&second.open());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_set_back_is_refused() {
    let bucket = memory();
    let site = Site::new(&bucket);
    let mut source = harness::Source::new(volume("t/a"), 4);
    site.attach().await.unwrap();
    let store = site.open();
    store.append_and_wait(source.commit()).unwrap();
    drop(store);
    let copy = tempfile::tempdir().unwrap();
    let segment = "log/0000000001.seg";
    std::fs::copy(site.path().join(segment), copy.path().join("old")).unwrap();
    let store = site.open();
    let mut uploader = site.uploader(&store).await.unwrap();
    for _ in 0..3 {
        store.append_and_wait(source.commit()).unwrap();
    }
    up_to_date(&mut uploader).await.unwrap();
    drop((uploader, store));
    std::fs::copy(copy.path().join("old"), site.path().join(segment)).unwrap();
    std::fs::remove_dir_all(site.path().join("index")).unwrap();
    let store = site.open();
    assert!(matches!(site.uploader(&store).await, Err(ArchiveError::Diverged)));
    // Not even if it has grown as long since.
    let mut other = harness::Source::new(volume("t/b"), 5);
    for _ in 0..9 {
        store.append_and_wait(other.commit()).unwrap();
    }
    assert!(matches!(site.uploader(&store).await, Err(ArchiveError::Diverged)));
    check_opens(&bucket, &source, 4, "untouched").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_archive_is_named_and_never_opened() {
    let bucket = memory();
    let site = Site::new(&bucket);
    let mut source = harness::Source::new(volume("t/a"), 6);
    site.attach().await.unwrap();
    let store = site.open();
    for _ in 0..40 {
        store.append_and_wait(source.commit()).unwrap();
    }
    up_to_date(&mut site.uploader(&store).await.unwrap()).await.unwrap();
    for folder in [DATA, CHAIN] {
        let object = bucket.list(folder).await.unwrap().pop().unwrap().name;
        let bytes = bucket.get(&object).await.unwrap().unwrap();
        for damage in ["flip", "cut", "zero", "remove"] {
            let mut bad = bytes.to_vec();
            match damage {
                "flip" => bad[bytes.len() / 2] ^= 1,
                "cut" => bad.truncate(bytes.len() - 1),
                "zero" => bad.fill(0),
                _ => {}
            }
            match damage {
                "remove" => _ = bucket.remove([object.clone()]).await.unwrap(),
                _ => bucket.put(&object, bad.into()).await.unwrap(),
            }
            let dir = tempfile::tempdir().unwrap();
            let opened = async {
                let mut head = bucket.head().await?.ok_or(ArchiveError::Empty)?;
                hydrate(&bucket, &mut head, dir.path(), Amount::All).await
            };
            let error = opened.await.expect_err(damage).to_string();
            let gone = damage == "remove" && folder == CHAIN;
            assert!(gone || error.contains(&object), "{damage}: {error}");
            assert!(!dir.path().join("log").exists(), "nothing opens");
            bucket.put(&object, bytes.clone()).await.unwrap();
        }
    }
    check_opens(&bucket, &source, 40, "repaired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_goes_from_the_archive_too() {
    let bucket = memory();
    let site = Site::new(&bucket);
    site.attach().await.unwrap();
    let store = site.open();
    let mut uploader = site.uploader(&store).await.unwrap();
    let (mut gone, mut stays) =
        (harness::Source::new(volume("t/gone"), 1), harness::Source::new(volume("t/stays"), 2));
    let mut contents = Vec::new();
    for _ in 0..30 {
        let batch = gone.commit();
        contents.extend(batch.records.iter().filter_map(|record| match record {
            Record::Chunk(chunk) if chunk.payload.len() >= 100 => Some(chunk.payload.slice(..100)),
            _ => None,
        }));
        store.append_and_wait(batch).unwrap();
        store.append_and_wait(stays.commit()).unwrap();
    }
    up_to_date(&mut uploader).await.unwrap();
    let found = async || {
        let mut found = 0;
        for folder in [CHAIN, DATA] {
            for object in bucket.list(folder).await.unwrap() {
                let bytes = bucket.get(&object.name).await.unwrap().unwrap();
                found += contents
                    .iter()
                    .filter(|content| bytes.windows(100).any(|window| window == &content[..]))
                    .count();
            }
        }
        found
    };
    assert!(found().await >= contents.len() && contents.len() > 20);
    store.delete(&gone.volume, tidelock_proto::Epoch(1)).unwrap();
    while store.retire(&mut |_| {}).unwrap().segments > 0 {}
    up_to_date(&mut uploader).await.unwrap();
    assert_eq!(found().await, 0);
    check_opens(&bucket, &stays, 30, "after the deletion").await;
}
