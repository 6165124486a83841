//! Stores that open before their segments are here: what they fetch, when they are killed, when the bucket is away, and when it is damaged.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, rngs::StdRng};
use tidelock_proto::{Epoch, PointId};

use super::{
    super::{is_archive, manifest::Outlined, url::ArchiveUrl},
    *,
};
use crate::{
    limits,
    store::tests::harness::{Source, key_of},
};

const MIB: u64 = 1 << 20;

fn large() -> StoreOptions {
    StoreOptions { segment_bytes: MIB, reserve_bytes: 0, ..StoreOptions::default() }
}

fn read_bytes(bucket: &Bucket) -> u64 {
    bucket.fuse.read.swap(0, Ordering::SeqCst)
}

/// Archives a store of some segments: a large volume, and within its history a small one. Tells where it is and what is in it.
async fn archived(bucket: &Bucket, options: StoreOptions, commits: usize) -> (Site, [Source; 2], u64) {
    let site = Site::new(bucket);
    site.attach().await.unwrap();
    let store = site.try_open(options).unwrap();
    let mut sources = [Source::new(volume("t/large"), 1), Source::new(volume("t/small"), 2)];
    sources[0].small = true;
    let mut uploader = site.uploader(&store).await.unwrap();
    for part in 0..10 {
        for _ in 0..commits / 10 {
            store.append_and_wait(sources[0].commit()).unwrap();
        }
        if part == 4 {
            (0..4).for_each(|_| store.append_and_wait(sources[1].commit()).unwrap());
        }
        up_to_date(&mut uploader).await.unwrap();
    }
    let last = *sources[0].points.keys().next_back().unwrap();
    store.checkpoint(&sources[0].volume, last).unwrap();
    up_to_date(&mut uploader).await.unwrap();
    let log_bytes = store.log_len();
    drop((uploader, store));
    (site, sources, log_bytes)
}

fn log_files(site: &Site, suffix: &str) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(site.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries
        .filter(|path| name(path).ends_with(suffix))
        .map(|path| (name(&path), std::fs::read(&path).unwrap()))
        .collect()
}

/// The segments up to where they end: the last one has space behind it.
fn segments(site: &Site) -> BTreeMap<String, Vec<u8>> {
    let mut files = log_files(site, ".seg");
    for bytes in files.values_mut() {
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        bytes.truncate(end);
    }
    files
}

fn clean(store: &Store, context: &str) {
    let summary = verify::verify(store, &|_| true, &mut |event| {
        assert!(!matches!(event, verify::Event::Finding(_)), "{context}: {event:?}");
        true
    });
    assert!(summary.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_opens_with_little_and_a_point_fetches_about_what_it_needs() {
    let bucket = memory();
    let (first, sources, whole) = archived(&bucket, large(), 1_200).await;
    read_bytes(&bucket);
    let site = Site::new(&bucket);
    site.attach().await.unwrap();
    let store = site.try_open(large()).unwrap();
    let opening = read_bytes(&bucket);
    for source in &sources {
        let ids: Vec<PointId> =
            store.points(&source.volume, None).unwrap().iter().map(|point| point.id).collect();
        assert_eq!(ids, source.points.keys().copied().collect::<Vec<_>>());
    }
    assert_eq!(store.log_len(), whole, "the log is as long as it was");
    assert_eq!(read_bytes(&bucket), 0, "points are listed without any of it");
    // The last segment comes whole.
    assert!(opening < 2 * MIB && opening * 4 < whole, "{opening} of {whole} bytes");
    assert_eq!(store.opened().damage, []);

    let small = *sources[1].points.keys().next_back().unwrap();
    sources[1].check(&store, small);
    let fetched = read_bytes(&bucket);
    println!("{whole} bytes in all, {opening} to open, {fetched} for a small volume's point");
    assert!(fetched > 0 && fetched < 8 * limits::OUTLINE_BLOCK_BYTES, "{fetched}");
    sources[1].check(&store, small);
    assert_eq!(read_bytes(&bucket), 0, "what was fetched stays");

    assert!(matches!(store.retire(&mut |_| {}), Err(StoreError::Filling(_))), "nothing goes meanwhile");
    let parts = store.parts().unwrap();
    assert!(parts.is_filling() && parts.absent_bytes() > whole / 2);
    while parts.fill().unwrap() {}
    assert!(!parts.is_filling() && parts.absent_bytes() == 0);
    let rest = read_bytes(&bucket);
    assert!(rest + opening + fetched < whole + whole / 10, "each byte comes once: {rest}");
    assert_eq!(log_files(&site, ".part").len() + log_files(&site, ".outline").len(), 0);
    assert!(segments(&site) == segments(&first), "the same log");
    bucket.fuse.away.store(true, Ordering::SeqCst);
    clean(&store, "whole");
    store.retire(&mut |_| {}).unwrap();
    drop(store);
    let store = Store::open(site.path(), large()).unwrap();
    sources.iter().for_each(|source| source.check_all(&store));
}

/// Between any two things that it does the process dies and the machine loses what was not synced.
#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_a_half_fetched_store_reopens_right() {
    let bucket = memory();
    let options = StoreOptions { segment_bytes: 256 * 1024, reserve_bytes: 0, ..StoreOptions::default() };
    let (first, sources, _) = archived(&bucket, options.clone(), 300).await;
    for seed in 0..6 {
        let mut rng = StdRng::seed_from_u64(seed);
        let site = Site::new(&bucket);
        let local = Site { dir: scratch(), writer: first.writer.clone(), bucket: bucket.clone() };
        // As its own holder: nothing of the chain changes.
        local.attach().await.unwrap();
        drop(site);
        let mut site = local;
        for life in 0..4 {
            let store = site.try_open(options.clone()).unwrap();
            assert_eq!(store.opened().damage, [], "seed {seed}, life {life}");
            for _ in 0..rng.random_range(0..6) {
                let source = &sources[rng.random_range(0..2)];
                let ids: Vec<_> = source.points.keys().copied().collect();
                match rng.random_range(0..3) {
                    0 => source.check(&store, ids[rng.random_range(0..ids.len())]),
                    1 => drop(store.points(&source.volume, None).unwrap()),
                    _ => (0..rng.random_range(0..4)).for_each(|_| {
                        if let Some(parts) = store.parts() {
                            parts.fill().unwrap();
                        }
                    }),
                }
            }
            drop(store);
            lose(&site, &mut rng);
            site = Site { dir: site.dir, writer: first.writer.clone(), bucket: bucket.clone() };
        }
        let store = site.try_open(options.clone()).unwrap();
        sources.iter().for_each(|source| source.check_all(&store));
        store.complete().unwrap();
        clean(&store, &format!("seed {seed}"));
        drop(store);
        assert!(segments(&site) == segments(&first), "seed {seed}: the same log");
        assert_eq!(log_files(&site, ".part").len(), 0);
    }
}

/// Sectors of segments that are not whole become what they were before, or nonsense; an outline may stay behind, and the index may be gone.
fn lose(site: &Site, rng: &mut StdRng) {
    for name in log_files(site, ".part").keys() {
        let path = site.path().join("log").join(name.replace(".part", ".seg"));
        let mut bytes = std::fs::read(&path).unwrap();
        for sector in bytes.chunks_mut(512).skip(2) {
            match rng.random_range(0..40) {
                0 => sector.fill(0),
                1 => rng.fill(sector),
                _ => {}
            }
        }
        std::fs::write(&path, bytes).unwrap();
    }
    if rng.random_bool(0.3) {
        std::fs::write(site.path().join("log/0000000001.outline"), "left behind").unwrap_or_default();
    }
    if rng.random_bool(0.5) {
        std::fs::remove_dir_all(site.path().join("index")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_away_is_named_and_nothing_is_lost() {
    let bucket = memory();
    let (first, mut sources, _) = archived(&bucket, large(), 600).await;
    let site = Site { dir: scratch(), writer: first.writer.clone(), bucket: bucket.clone() };
    site.attach().await.unwrap();
    drop(site.try_open(large()).unwrap());
    bucket.fuse.away.store(true, Ordering::SeqCst);
    // It starts without the bucket, as a store that has everything does.
    let store = site.try_open(large()).unwrap();
    let oldest = *sources[0].points.keys().next().unwrap();
    let error = store.tree_at(&sources[0].volume, oldest).unwrap_err();
    assert!(error.is_absent() && !error.is_damage(), "{error}");
    let text = error.to_string();
    assert!(text.contains("not here yet") && text.contains("the bucket is away"), "{text}");
    let error = verify::verify(&store, &|_| true, &mut |event| panic!("{event:?}")).unwrap_err();
    assert!(error.is_absent(), "{error}");
    let thinned = store.thin(&sources[1].volume, &"1s:1s".parse().unwrap(), 1 << 62);
    assert!(thinned.unwrap_err().is_absent(), "nothing is dropped that cannot be merged");
    for source in &mut sources {
        store.append_and_wait(source.commit()).unwrap();
    }
    bucket.fuse.away.store(false, Ordering::SeqCst);
    sources.iter().for_each(|source| source.check_all(&store));
    let mut uploader = site.uploader(&store).await.unwrap();
    up_to_date(&mut uploader).await.unwrap();
    clean(&store, "back again");
    drop((uploader, store));
    // Without any archive what is here can be read.
    let elsewhere = Site { dir: scratch(), writer: first.writer.clone(), bucket: bucket.clone() };
    elsewhere.attach().await.unwrap();
    let alone = Store::open(elsewhere.path(), large()).unwrap();
    assert_eq!(alone.points(&sources[0].volume, None).unwrap().len(), sources[0].points.len());
    let error = alone.tree_at(&sources[0].volume, oldest).unwrap_err();
    assert!(error.to_string().contains("start the receiver with its --archive"), "{error}");
}

/// Without a receiver, from a directory that plays the bucket.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_fetched_store_is_read_beside_its_archive_and_changes_nothing_in_it() {
    let remote = scratch();
    let url: ArchiveUrl = format!("file://{}", remote.path().display()).parse().unwrap();
    let bucket = Bucket::new(url.open().unwrap());
    let (first, sources, _) = archived(&bucket, large(), 600).await;
    let site = Site { dir: scratch(), writer: first.writer.clone(), bucket: bucket.clone() };
    site.attach().await.unwrap();
    let entries = bucket.list(CHAIN).await.unwrap();
    let store = crate::archive::open(&url, site.path(), large()).unwrap();
    assert!(store.parts().unwrap().is_filling());
    sources.iter().for_each(|source| source.check_all(&store));
    assert_eq!(bucket.list(CHAIN).await.unwrap(), entries);
    // What the archive lost is damage, and never a reason to wait.
    let segment = *bucket.head().await.unwrap().unwrap().manifest.outlines.keys().next().unwrap();
    let names = bucket.list(DATA).await.unwrap().into_iter().map(|found| found.name);
    let of_it = format!("{DATA}/{segment:010}-0");
    let pieces: Vec<String> = names.filter(|name| name.starts_with(&of_it)).collect();
    assert!(!pieces.is_empty());
    bucket.remove(pieces).await.unwrap();
    drop(store);
    let elsewhere = Site { dir: scratch(), writer: first.writer.clone(), bucket: bucket.clone() };
    elsewhere.attach().await.unwrap();
    let store = crate::archive::open(&url, elsewhere.path(), large()).unwrap();
    let ids = sources[0].points.keys();
    let errors: Vec<_> = ids.filter_map(|id| open_point(&store, &sources[0], *id).err()).collect();
    assert!(!errors.is_empty());
    assert!(
        errors.iter().all(|error| (error.is_lost() || error.is_damage()) && !error.is_absent()),
        "{errors:?}"
    );
}

/// As where the directory was a mount that somebody took away.
#[tokio::test(flavor = "multi_thread")]
async fn a_directory_without_an_archive_in_it_has_lost_nothing() {
    let remote = scratch();
    let (mounted, away) = (remote.path().join("mounted"), remote.path().join("away"));
    let url: ArchiveUrl = format!("file://{}", mounted.display()).parse().unwrap();
    let bucket = Bucket::new(url.open().unwrap());
    let (first, sources, _) = archived(&bucket, large(), 300).await;
    let site = Site { dir: scratch(), writer: first.writer.clone(), bucket: bucket.clone() };
    site.attach().await.unwrap();
    let store = crate::archive::open(&url, site.path(), large()).unwrap();
    assert!(is_archive(&mounted) && !is_archive(site.path()));
    std::fs::rename(&mounted, &away).unwrap();
    for there in [false, true] {
        if there {
            std::fs::create_dir(&mounted).unwrap();
        }
        let ids = sources[0].points.keys();
        let errors: Vec<_> = ids.filter_map(|id| store.tree_at(&sources[0].volume, *id).err()).collect();
        assert!(!errors.is_empty() && errors.iter().all(StoreError::is_absent), "{errors:?}");
    }
    std::fs::remove_dir(&mounted).unwrap();
    std::fs::rename(&away, &mounted).unwrap();
    sources.iter().for_each(|source| source.check_all(&store));
}

/// Commits and uploads go on while parts are absent, and another receiver takes over from there.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_parts_are_absent_is_archived_and_taken_over() {
    let bucket = memory();
    let (_first, mut sources, _) = archived(&bucket, options(), 200).await;
    let mut retired = 0;
    for round in 0..3 {
        let site = Site::new(&bucket);
        site.attach().await.unwrap();
        let store = site.open();
        let mut uploader = site.uploader(&store).await.unwrap();
        for number in 0..60 {
            store.append_and_wait(sources[number % 2].commit()).unwrap();
        }
        up_to_date(&mut uploader).await.unwrap();
        assert!(store.parts().unwrap().is_filling(), "round {round}");
        let raise = Record::Epoch {
            volume: sources[1].volume.clone(),
            expected: Epoch(1 + round),
            epoch: Epoch(2 + round),
            base: *sources[1].points.keys().next_back().unwrap(),
        };
        store.append_and_wait(crate::store::Batch::of(raise)).unwrap();
        sources[1].branch_to(Epoch(2 + round));
        up_to_date(&mut uploader).await.unwrap();
        if round == 1 {
            store.complete().unwrap();
            store.thin(&sources[0].volume, &"1s:1s".parse().unwrap(), 1 << 62).unwrap();
            retired += store.retire(&mut |_| {}).unwrap().segments;
            let kept = store.points(&sources[0].volume, None).unwrap();
            sources[0].points.retain(|id, _| kept.iter().any(|point| point.id == *id));
            up_to_date(&mut uploader).await.unwrap();
            is_tidy(&bucket).await;
        }
        sources.iter().for_each(|source| source.check_all(&store));
    }
    assert!(retired > 0);
    let newest = sources[0].points.len();
    assert!(check_opens(&bucket, &sources[0], newest.min(1), "in the end").await >= newest);
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_volumes_open_with_their_key_and_say_nothing_without() {
    let bucket = memory();
    let with_key = || StoreOptions { keys: key_of(&["t"]), ..large() };
    let (first, sources, _) = archived(&bucket, with_key(), 600).await;
    let head = bucket.head().await.unwrap().unwrap();
    assert!(head.manifest.outlines.len() >= 2);
    for (segment, outline) in &head.manifest.outlines {
        let bytes = bucket.get(&outline.name(*segment)).await.unwrap().unwrap();
        let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
        assert!(!has(b"t/large") && !has(b"file 3"), "segment {segment}");
        for (_, inode) in sources[0].points.values().next_back().unwrap().iter() {
            let extents = inode.extents().into_iter().flat_map(|extents| extents.iter());
            assert!(!extents.map(|(_, extent)| extent.chunk.id).any(|id| has(&id.0)), "no plain id");
        }
    }
    read_bytes(&bucket);
    let site = Site { dir: scratch(), writer: first.writer.clone(), bucket: bucket.clone() };
    site.attach().await.unwrap();
    let locked = site.try_open(large()).unwrap();
    assert_eq!((locked.locked_tenants(), locked.volumes()), (vec!["t".to_owned()], vec![]));
    assert!(locked.outline(1).unwrap().is_none(), "nothing is outlined that cannot be read");
    drop(locked);
    let store = site.try_open(with_key()).unwrap();
    assert!(read_bytes(&bucket) < store.log_len() / 2);
    sources.iter().for_each(|source| source.check_all(&store));
    store.complete().unwrap();
    clean(&store, "encrypted");
}

/// {flip, truncate, remove, zero} × {a piece, an outline} × {open, read, complete, verify, compact}.
#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_bucket_costs_what_it_touches_and_is_named() {
    let whole = memory();
    let (first, sources, _) = archived(&whole, options(), 120).await;
    let head = whole.head().await.unwrap().unwrap();
    let mut objects = Vec::new();
    for folder in [CHAIN, DATA] {
        for found in whole.list(folder).await.unwrap() {
            objects.push((found.name.clone(), whole.get(&found.name).await.unwrap().unwrap()));
        }
    }
    let segment = *head.manifest.outlines.keys().nth(1).unwrap();
    let piece = head.manifest.segments[&segment][0].name(segment);
    let outline = Outlined::name(&head.manifest.outlines[&segment], segment);
    for (object, is_piece) in [(&piece, true), (&outline, false)] {
        for harm in ["flip", "truncate", "remove", "zero"] {
            let bucket = memory();
            for (name, bytes) in &objects {
                let mut bytes = bytes.to_vec();
                let half = bytes.len() / 2;
                match harm {
                    _ if name != object => {}
                    "flip" => bytes[half] ^= 0x20,
                    "truncate" => bytes.truncate(half),
                    "zero" => bytes.fill(0),
                    _ => continue,
                }
                bucket.put(name, bytes.into()).await.unwrap();
            }
            let context = format!("{harm} {object}");
            let site = Site { dir: scratch(), writer: first.writer.clone(), bucket: bucket.clone() };
            let attached = site.attach().await.unwrap_or_else(|error| panic!("{context}: {error}"));
            let store = site.open();
            if !is_piece {
                // Its segment came as a whole.
                sources.iter().for_each(|source| source.check_all(&store));
                store.complete().unwrap();
                clean(&store, &context);
                // Another outline is made for whoever comes next, even if nothing else comes.
                let mut uploader = site.uploader_from(&store, attached).await.unwrap();
                up_to_date(&mut uploader).await.unwrap();
                let outlined = bucket.get(&outline).await.unwrap().expect(&context);
                assert!(head.manifest.outlines[&segment].is(&outlined), "{context}");
                continue;
            }
            let (mut right, mut named) = (0, 0);
            for source in &sources {
                for (id, tree) in &source.points {
                    match open_point(&store, source, *id) {
                        Ok(found) => {
                            assert!(found == *tree, "{context}: {id}");
                            right += 1;
                        }
                        Err(error) => {
                            let text = error.to_string();
                            assert!(text.contains(&piece), "{context}: {text}");
                            named += 1;
                        }
                    }
                }
            }
            assert!(right > 0 && named > 0, "{context}: {right} right, {named} named");
            store.complete().unwrap();
            let mut findings = 0;
            verify::verify(&store, &|_| true, &mut |event| {
                findings += u32::from(matches!(event, verify::Event::Finding(_)));
                true
            })
            .unwrap();
            assert!(findings > 0, "{context}");
            // It does not stand in the way of what comes.
            let mut going_on = sources[0].clone();
            store.append_and_wait(going_on.commit()).unwrap();
            let retired = store.retire(&mut |_| {});
            assert!(retired.is_err(), "{context}: nothing goes where a point cannot be read");
        }
    }
}

/// The tree of a point, with all of its content read.
pub(super) fn open_point(
    store: &Store,
    source: &Source,
    id: PointId,
) -> Result<tidelock_proto::Tree, StoreError> {
    let tree = store.tree_at(&source.volume, id)?;
    for (_, inode) in tree.iter() {
        for (_, extent) in inode.extents().into_iter().flat_map(|extents| extents.iter()) {
            store.read_content(source.volume.tenant(), extent.chunk.id)?;
        }
    }
    Ok(tree)
}
