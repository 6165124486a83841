//! What is left out is as if it were not there, and comes whole once it is not left out any more.

use super::*;
use crate::excludes::Excludes;

fn rig(tracker: TrackerChoice, patterns: &[&str]) -> Rig {
    let mut rig = Rig::new(tracker);
    rig.engine.excludes = Excludes::new(patterns.iter().copied()).unwrap();
    rig
}

fn has(rig: &Rig, path: &str) -> bool {
    let step = |dir: Option<FileId>, name: &str| {
        rig.engine.stage.tree().lookup(dir?, &Name::new(name.as_bytes()).unwrap())
    };
    path.split('/').fold(Some(FileId::ROOT), step).is_some()
}

#[test]
fn what_is_left_out_is_not_there_and_what_moves_in_is_whole() {
    for tracker in [TrackerChoice::Inotify, TrackerChoice::Auto] {
        let mut rig = rig(tracker, &["*.tmp", "/scratch", "a/only"]);
        for dir in ["lost+found", "scratch/deep", "a"] {
            fs::create_dir_all(rig.root.join(dir)).unwrap();
        }
        for file in ["x.tmp", "lost+found/x", "scratch/deep/x", "a/only", "a/too", "a/y.tmp"] {
            fs::write(rig.root.join(file), file).unwrap();
        }
        rig.settle();
        assert!(has(&rig, "a/too"));
        for path in ["x.tmp", "lost+found", "scratch", "a/only", "a/y.tmp"] {
            assert!(!has(&rig, path), "{path}");
        }
        // Written while left out, then named otherwise.
        fs::write(rig.root.join("x.tmp"), "as it is").unwrap();
        fs::write(rig.root.join("scratch/deep/x"), "as it is").unwrap();
        rig.settle();
        fs::rename(rig.root.join("x.tmp"), rig.root.join("x")).unwrap();
        fs::rename(rig.root.join("scratch"), rig.root.join("kept")).unwrap();
        fs::rename(rig.root.join("a"), rig.root.join("b")).unwrap();
        fs::remove_file(rig.root.join("b/y.tmp")).unwrap();
        fs::remove_dir_all(rig.root.join("lost+found")).unwrap();
        rig.settle();
        rig.assert_equal();
        // And the other way.
        fs::rename(rig.root.join("x"), rig.root.join("x.tmp")).unwrap();
        fs::rename(rig.root.join("b"), rig.root.join("a")).unwrap();
        rig.settle();
        assert!(!has(&rig, "x") && !has(&rig, "x.tmp") && !has(&rig, "a/only") && has(&rig, "a/too"));
    }
}

#[test]
fn writing_what_is_left_out_is_no_work() {
    for tracker in [TrackerChoice::Inotify, TrackerChoice::Auto] {
        let mut rig = rig(tracker, &["*.log"]);
        let log = fs::File::create(rig.root.join("a.log")).unwrap();
        rig.settle();
        for _ in 0..10 {
            log.write_all_at(b"line", 0).unwrap();
            rig.engine.drain().unwrap();
            assert!(rig.engine.dirty.is_empty(), "{tracker:?}");
        }
    }
}

#[test]
fn a_file_that_also_has_a_name_that_counts_is_captured_whatever_name_it_is_written_by() {
    for tracker in [TrackerChoice::Inotify, TrackerChoice::Auto] {
        let mut rig = rig(tracker, &["*.tmp"]);
        fs::write(rig.root.join("x.tmp"), "as it was").unwrap();
        rig.settle();
        fs::hard_link(rig.root.join("x.tmp"), rig.root.join("x")).unwrap();
        rig.settle();
        for text in ["as it is", "as it is now"] {
            fs::write(rig.root.join("x.tmp"), text).unwrap();
            rig.settle();
            let id = rig.engine.stage.tree().lookup(FileId::ROOT, &Name::new(b"x").unwrap()).unwrap();
            let extents = rig.engine.stage.get(id).unwrap().extents().unwrap();
            let content = extents.iter().flat_map(|(_, extent)| &rig.engine.tap[&extent.chunk.id]).copied();
            assert_eq!(content.collect::<Vec<u8>>(), text.as_bytes(), "{tracker:?}");
        }
    }
}
