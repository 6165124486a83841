//! {flip, truncate, remove, zero} × {every kind of place in the log, every file of the index} × {open, restore, verify, ingest on}.
//!
//! Never a panic, never a wrong byte, and whatever cannot be restored is named by an error, by what the open reports, and by a
//! verification. Each case is opened with its index and without.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use tidelock_proto::{Epoch, PointId, Seq, VolumeName};

use super::{
    crash::scratch,
    harness::{Source, keys, volume},
    verify,
};
use crate::{
    log::{Place, disk::DirDisk, entry::Kind, scan::scan},
    store::{Batch, Record, Store, StoreError, StoreOptions},
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Harm {
    Flip,
    Truncate,
    Remove,
    Zero,
}

const HARMS: [Harm; 4] = [Harm::Flip, Harm::Truncate, Harm::Remove, Harm::Zero];

/// A part of a file.
#[derive(Debug, Clone)]
struct Target {
    what: String,
    file: PathBuf,
    from: u64,
    len: u64,
    /// In the last segment; and of the last group that was written.
    last: bool,
    newest: bool,
}

impl Target {
    fn harm(&self, dir: &Path, harm: Harm) {
        let path = dir.join(&self.file);
        let mut bytes = std::fs::read(&path).expect("the file is there");
        let (from, to) = (self.from as usize, ((self.from + self.len) as usize).min(bytes.len()));
        match harm {
            Harm::Flip if self.what.contains("segment header") => {
                // Either copy is enough, so both are hit.
                bytes[20] ^= 1;
                bytes[532] ^= 1;
            }
            Harm::Flip => bytes[from + (to - from) / 2] ^= 0x20,
            Harm::Truncate => bytes.truncate(from + (to - from) / 2),
            Harm::Zero => bytes[from..to].fill(0),
            Harm::Remove => return std::fs::remove_file(path).expect("removed"),
        }
        std::fs::write(path, bytes).expect("written");
    }
}

fn options() -> StoreOptions {
    StoreOptions { segment_bytes: 64 * 1024, keys: keys(), ..StoreOptions::default() }
}

/// A store with three volumes, checkpoints, a promotion, and several segments.
fn make(dir: &Path) -> Vec<Source> {
    let store = Store::open(dir, options()).expect("a new store");
    let mut sources = ["t/a", "t/b", "u/c"].map(|name| Source::new(volume(name), 7)).to_vec();
    for round in 1..=14 {
        for source in &mut sources {
            store.append_and_wait(source.commit_of(2)).expect("written");
        }
        if round == 7 {
            store.checkpoint(&sources[0].volume, PointId::new(Epoch(1), Seq(7))).expect("written");
        }
    }
    let base = PointId::new(Epoch(1), Seq(13));
    let name = sources[1].volume.clone();
    let raise = Record::Epoch { volume: name, expected: Epoch(1), epoch: Epoch(2), base };
    store.append_and_wait(Batch::of(raise)).expect("promoted");
    sources[1].branch(Epoch(2), base);
    for source in &mut sources {
        store.append_and_wait(source.commit_of(1)).expect("written");
    }
    store.quiesce();
    sources
}

fn files(dir: &Path, below: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir.join(below)).expect("listed") {
        let entry = entry.expect("listed");
        let path = format!("{below}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            found.extend(files(dir, &path));
        } else {
            found.push(path.into());
        }
    }
    found
}

fn segment(number: u32) -> PathBuf {
    format!("log/{number:010}.seg").into()
}

fn targets(dir: &Path) -> Vec<Target> {
    let mut places: BTreeMap<u8, Vec<Place>> = BTreeMap::new();
    let mut id = [0; 16];
    id.copy_from_slice(&std::fs::read(dir.join(segment(1))).expect("a segment")[16..32]);
    let outcome = scan(&DirDisk::new(&dir.join("log")), id, None, 0, &mut |found| {
        places.entry(found.kind).or_default().push(found.place);
    });
    let last = outcome.expect("the log reads").end.segment;
    assert!(last >= 4, "{last} segments");
    let mut targets = Vec::new();
    for number in [1, 2, last] {
        let what = format!("segment header {number}");
        targets.push(Target {
            what,
            file: segment(number),
            from: 0,
            len: 1024,
            last: number == last,
            newest: false,
        });
    }
    for (kind, places) in &places {
        // One early, one in the middle, the newest.
        let chosen: BTreeSet<usize> = [0, places.len() / 2, places.len() - 1].into();
        for index in chosen {
            let place = places[index];
            let (file, from) = (segment(place.segment), u64::from(place.offset));
            let (at_end, newest) = (place.segment == last, index + 1 == places.len());
            let what = format!("{:?} {index} in {}", Kind::from_tag(*kind), place.segment);
            targets.push(Target {
                what: format!("header of {what}"),
                file: file.clone(),
                from,
                len: 40,
                last: at_end,
                newest,
            });
            targets.push(Target {
                what,
                file,
                from: from + 40,
                len: u64::from(place.len),
                last: at_end,
                newest,
            });
        }
    }
    for file in files(dir, "index") {
        let len = std::fs::metadata(dir.join(&file)).expect("there").len();
        if len > 0 {
            targets.push(Target {
                what: format!("{}", file.display()),
                file,
                from: 0,
                len,
                last: false,
                newest: false,
            });
        }
    }
    targets
}

/// Which points can be restored whole. What is restored is what was committed; what is not is named.
fn restore(store: &Store, sources: &[Source], context: &str) -> BTreeSet<(VolumeName, PointId)> {
    let mut whole = BTreeSet::new();
    for source in sources {
        for (id, expected) in &source.points {
            match store.tree_at(&source.volume, *id) {
                Ok(tree) => {
                    assert!(tree == *expected, "{context}: {id} of {} is another tree", source.volume);
                    let chunks = tree.iter().filter_map(|(_, inode)| inode.extents());
                    let mut chunks = chunks
                        .flat_map(|extents| extents.iter().map(|(_, at)| at.chunk.id).collect::<Vec<_>>());
                    let bad = chunks.find_map(|id| store.read_content(source.volume.tenant(), id).err());
                    match bad {
                        None => drop(whole.insert((source.volume.clone(), *id))),
                        Some(error) => assert!(names(&error), "{context}: {error}"),
                    }
                }
                Err(error) => assert!(names(&error), "{context}: {error}"),
            }
        }
    }
    whole
}

/// An error that says that something is damaged, or not there.
fn names(error: &StoreError) -> bool {
    error.is_damage()
        || matches!(
            error,
            StoreError::Index(_)
                | StoreError::NoSuchPoint(..)
                | StoreError::NoSuchVolume(_)
                | StoreError::NoSuchChunk(_)
        )
}

/// One case; the answer is how many points were lost.
fn case(template: &Path, sources: &[Source], target: &Target, harm: Harm, index: bool) -> usize {
    let context = format!("{harm:?} {}, index {index}", target.what);
    let dir = scratch();
    super::crash_matrix::copy(template, dir.path());
    target.harm(dir.path(), harm);
    if !index {
        std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
    }
    let store = Store::open(dir.path(), options())
        .unwrap_or_else(|error| panic!("{context}: does not open: {error}"));
    let whole = restore(&store, sources, &context);
    let all: usize = sources.iter().map(|source| source.points.len()).sum();
    let lost = all - whole.len();
    let (findings, summary) = verify::run(&store);
    let offered: u64 =
        sources.iter().filter_map(|source| store.volume(&source.volume)).map(|info| info.points).sum();
    let told = !findings.is_empty() || store.opened().damaged > 0 || store.opened().torn;
    // Nothing on the disk says that there was more, once the index is lost too: docs/format.md.
    let cut = matches!(harm, Harm::Truncate | Harm::Remove);
    let unknowable = !index && target.last && (cut || target.newest);
    assert!(lost == 0 || told || unknowable, "{context}: {lost} points are lost and nobody says so");
    // Every point that is offered is judged as restoring it does.
    assert_eq!(
        summary.points - summary.damaged_points,
        whole.len() as u64,
        "{context}: {findings:?} of {offered}"
    );
    // Only what rests on the place is lost.
    if harm == Harm::Flip && (target.what.contains("Chunk") || target.what.contains("Commit")) {
        let hit: BTreeSet<_> = sources
            .iter()
            .filter(|source| source.points.keys().any(|id| !whole.contains(&(source.volume.clone(), *id))))
            .map(|source| &source.volume)
            .collect();
        assert!(hit.len() <= 1, "{context}: {hit:?}");
    }
    let mut next = sources.to_vec();
    for source in &mut next {
        if let Err(error) = store.append_and_wait(source.commit_of(1)) {
            let refused = matches!(error, StoreError::OutOfOrder { .. } | StoreError::Fenced { .. });
            assert!(refused, "{context}: {error}");
        }
    }
    assert!(store.refusal().is_none(), "{context}: it takes no more writes");
    drop(store);
    let store = Store::open(dir.path(), options()).unwrap_or_else(|error| panic!("{context}: {error}"));
    let after = restore(&store, &next, &context);
    assert!(whole.is_subset(&after), "{context}: another point was lost by going on");
    lost
}

/// A case of the index; the answer is whether the open alone made it whole. A rebuild always does.
fn index_case(template: &Path, sources: &[Source], target: &Target, harm: Harm) -> bool {
    let context = format!("{harm:?} {}", target.what);
    let dir = scratch();
    super::crash_matrix::copy(template, dir.path());
    target.harm(dir.path(), harm);
    let store = Store::open(dir.path(), options())
        .unwrap_or_else(|error| panic!("{context}: does not open: {error}"));
    let all: usize = sources.iter().map(|source| source.points.len()).sum();
    let healed = restore(&store, sources, &context).len() == all;
    let mut found = 0;
    let verified = crate::verify::verify(&store, &|_| true, &mut |event| {
        found += usize::from(matches!(event, crate::verify::Event::Finding(_)));
        true
    });
    assert!(healed || found > 0 || verified.is_err(), "{context}: points are lost and nobody says so");
    drop(store);
    let store = Store::rebuild(dir.path(), options()).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(restore(&store, sources, &context).len(), all, "{context}: the index can be made anew");
    assert_eq!(verify::run(&store).0, [], "{context}");
    for source in &mut sources.to_vec() {
        store.append_and_wait(source.commit_of(1)).unwrap_or_else(|error| panic!("{context}: {error}"));
    }
    healed
}

#[test]
fn no_damage_gives_a_wrong_byte_or_goes_unnamed() {
    run(1);
}

/// With one of so many places.
pub(super) fn run(every: usize) {
    let template = scratch();
    let sources = make(template.path());
    let (mut cases, mut harmless, mut index_cases, mut healed) = (0, 0, 0, 0);
    for target in targets(template.path()).into_iter().step_by(every) {
        for harm in HARMS {
            if target.file.starts_with("index") {
                index_cases += 1;
                healed += usize::from(index_case(template.path(), &sources, &target, harm));
                continue;
            }
            for index in [true, false] {
                let lost = case(template.path(), &sources, &target, harm, index);
                cases += 1;
                harmless += usize::from(lost == 0);
            }
        }
    }
    println!(
        "{cases} cases of the log, {harmless} of them lost no point; {healed} of {index_cases} of the index healed at the open"
    );
    assert!(
        cases * every > 150 && harmless * 4 < cases * 3,
        "{cases} cases, {harmless} harmless: the test tests nothing"
    );
}
