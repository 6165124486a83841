//! {flip, truncate, remove, zero} × {manifest, tails, pieces} × {fetch, go on, start again, give space back, take over}.
//!
//! Never a panic, never a wrong byte: what opens is what was committed, and what does not open names the object. A store that has its
//! log is not touched by what is in the bucket.
//!
//! One case cannot be told: the newest entry of the chain is gone. What is left is the archive as it was one entry before.

use super::{
    super::{manifest::entry_name, mend::mend},
    parts::open_point,
    *,
};
use crate::store::tests::harness::Source;

const HARMS: [&str; 4] = ["flip", "truncate", "remove", "zero"];

/// A store with its archive, and everything there is to damage.
struct Template {
    dir: TempDir,
    writer: Writer,
    objects: Vec<(String, bytes::Bytes)>,
    newest: String,
    source: Source,
}

impl Template {
    /// Several segments in several pieces, a manifest and tails behind it.
    async fn make() -> Self {
        let bucket = memory();
        let (site, mut source) = (Site::new(&bucket), Source::new(volume("t/a"), 8));
        source.small = true;
        site.attach().await.unwrap();
        let store = site.open();
        let mut uploader = site.uploader(&store).await.unwrap();
        for round in [40, 30, 2, 1, 2] {
            for _ in 0..round {
                store.append_and_wait(source.commit()).unwrap();
            }
            up_to_date(&mut uploader).await.unwrap();
        }
        let head = uploader.head().clone();
        assert!(head.tails.len() >= 3 && head.manifest.segments.len() >= 4, "{head:?}");
        drop((uploader, store));
        let mut objects = Vec::new();
        for folder in [CHAIN, DATA] {
            for found in bucket.list(folder).await.unwrap() {
                objects.push((found.name.clone(), bucket.get(&found.name).await.unwrap().unwrap()));
            }
        }
        let Site { dir, writer, .. } = site;
        Self { dir, writer, objects, newest: entry_name(head.number), source }
    }

    /// All entries of the chain; the first, a middle and the last piece.
    fn targets(&self) -> Vec<String> {
        let of =
            |folder| self.objects.iter().map(|(name, _)| name).filter(move |name| name.starts_with(folder));
        let pieces: Vec<&String> = of(DATA).collect();
        let chosen = [0, pieces.len() / 2, pieces.len() - 1].map(|index| pieces[index]);
        of(CHAIN).chain(chosen).cloned().collect()
    }

    /// A copy of both, with one object damaged.
    async fn damaged(&self, object: &str, harm: &str) -> Site {
        let bucket = memory();
        for (name, bytes) in &self.objects {
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
        let dir = scratch();
        std::fs::create_dir(dir.path().join("log")).unwrap();
        for entry in std::fs::read_dir(self.dir.path().join("log")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, dir.path().join("log").join(path.file_name().unwrap())).unwrap();
        }
        Site { dir, writer: self.writer.clone(), bucket }
    }
}

/// Opens the archive elsewhere: whether it is whole up to the newest commit. What there is, is right; what is not, is named.
async fn opens(site: &Site, source: &Source, case: &Case<'_>) -> bool {
    let dir = scratch();
    let fetched = async {
        let mut head = site.bucket.head().await?.ok_or(ArchiveError::Empty)?;
        hydrate(&site.bucket, &mut head, dir.path(), Amount::All).await
    };
    match fetched.await {
        Ok(_) => {
            let newest = check_opens(&site.bucket, source, 0, &case.to_string()).await;
            let whole = newest == source.points.keys().last().expect("a commit").seq.0 as usize;
            assert!(whole || case.cannot_be_told(), "{case}: opens up to {newest}");
            whole
        }
        Err(error) => {
            assert!(case.is_named(&error), "{case}: {error}");
            assert!(!dir.path().join("log").exists(), "{case}: nothing opens");
            false
        }
    }
}

struct Case<'a> {
    object: &'a str,
    harm: &'a str,
    then: &'a str,
    newest: &'a str,
}

impl std::fmt::Display for Case<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}, then {}", self.harm, self.object, self.then)
    }
}

impl Case<'_> {
    fn cannot_be_told(&self) -> bool {
        self.harm == "remove" && self.object == self.newest
    }

    /// The object, or the entry that has nothing to follow any more.
    fn is_named(&self, error: &ArchiveError) -> bool {
        let text = error.to_string();
        text.contains(self.object)
            || (self.harm == "remove" && text.contains("does not follow the one before"))
    }
}

const THENS: [&str; 5] = ["fetch", "go on", "start again", "give space back", "take over"];

/// One case: whether the archive is whole in the end.
async fn case(template: &Template, case: &Case<'_>) -> bool {
    let mut source = template.source.clone();
    let site = match case.then {
        // The uploader was there before the damage, and knows the chain.
        "go on" | "give space back" => template.damaged("", "none").await,
        _ => template.damaged(case.object, case.harm).await,
    };
    match case.then {
        "fetch" => {}
        "take over" => {
            let other = Site::new(&site.bucket);
            match other.attach().await {
                Ok(_) => {
                    let store = other.open();
                    let points = store.points(&source.volume, None).unwrap();
                    for point in &points {
                        // What is not here yet is looked at when it is read.
                        match open_point(&store, &source, point.id) {
                            Ok(tree) => assert!(tree == source.points[&point.id], "{case}"),
                            Err(error) => assert!(error.to_string().contains(case.object), "{case}: {error}"),
                        }
                    }
                    assert!(points.len() == source.points.len() || case.cannot_be_told(), "{case}");
                }
                Err(error) => assert!(case.is_named(&error), "{case}: {error}"),
            }
        }
        then => {
            let store = site.open();
            let mut uploader = match site.uploader(&store).await {
                Ok(uploader) => Some(uploader),
                Err(error) => {
                    assert!(case.is_named(&error), "{case}: {error}");
                    None
                }
            };
            if then != "start again" {
                let damaged = template.damaged(case.object, case.harm).await;
                match damaged.bucket.get(case.object).await.unwrap() {
                    Some(bytes) => site.bucket.put(case.object, bytes).await.unwrap(),
                    None => drop(site.bucket.remove([case.object.to_owned()]).await.unwrap()),
                }
            }
            for _ in 0..3 {
                store.append_and_wait(source.commit()).unwrap();
            }
            if then == "give space back" {
                store.thin(&source.volume, &"1s:1s".parse().unwrap(), 1 << 62).unwrap();
                assert!(store.retire(&mut |_| {}).unwrap().segments > 3, "{case}");
                let kept = store.points(&source.volume, None).unwrap();
                source.points.retain(|id, _| kept.iter().any(|point| point.id == *id));
            }
            if let Some(uploader) = &mut uploader {
                up_to_date(uploader).await.unwrap_or_else(|error| panic!("{case}: {error}"));
            }
            source.check_all(&store);
        }
    }
    opens(&site, &source, case).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_damage_in_the_archive_gives_a_wrong_byte_or_goes_unnamed() {
    let template = Template::make().await;
    let mut whole = std::collections::BTreeMap::new();
    for object in template.targets() {
        for harm in HARMS {
            for then in THENS {
                let case_of = Case { object: &object, harm, then, newest: &template.newest };
                let is_whole = case(&template, &case_of).await;
                let counted: &mut (u32, u32) = whole.entry(then).or_default();
                *counted = (counted.0 + u32::from(is_whole), counted.1 + 1);
            }
        }
    }
    println!("whole in the end, of how many: {whole:?}");
    assert_eq!(whole["fetch"].0, 0, "the test damages nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_mended_from_the_archive_and_only_from_its_own() {
    let template = Template::make().await;
    let intact = template.damaged("", "none").await;
    let holder = template.writer.holder;
    for segment in [1, 3] {
        for harm in HARMS {
            let site = template.damaged("", "none").await;
            let store = site.open();
            let path = site.path().join(format!("log/{segment:010}.seg"));
            let mut bytes = std::fs::read(&path).unwrap();
            let half = bytes.len() / 2;
            match harm {
                "flip" => bytes[half] ^= 1,
                "zero" => bytes[half..half + 3000].fill(0),
                "truncate" => bytes.truncate(half),
                _ => {}
            }
            match harm {
                "remove" => std::fs::remove_file(&path).unwrap(),
                _ => std::fs::write(&path, bytes).unwrap(),
            }
            let mended =
                mend(&site.bucket, holder, Arc::new(store.clone()), &[segment].into()).await.unwrap();
            assert!(mended > 0, "{harm} {segment}");
            template.source.check_all(&store);
            let same = [&site, &intact]
                .map(|site| std::fs::read(site.path().join(format!("log/{segment:010}.seg"))));
            assert!(same[0].as_ref().unwrap() == same[1].as_ref().unwrap(), "{harm} {segment}");
            let other = mend(&site.bucket, [9; 16], Arc::new(store), &[segment].into()).await;
            assert!(matches!(other, Err(ArchiveError::TakenOver { .. })), "{other:?}");
        }
    }
    // What is damaged there as well is not taken.
    let piece = template.targets().into_iter().find(|name| name.contains("data/0000000001")).unwrap();
    let site = template.damaged(&piece, "flip").await;
    let mended = mend(&site.bucket, holder, Arc::new(site.open()), &[1].into()).await;
    assert_eq!(mended.unwrap(), 0);
}
