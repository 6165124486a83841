//! The judges, judged: a good copy passes every check, a bad one fails.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tidelock_tests::{
    model::{Mutator, Powers, copy_tree, differences},
    mount::{Format, Mount},
    needs::{self, Need},
    pg::{
        Beat, Heartbeat, Load, Pg,
        check::{Expected, check_copy},
        pgbench_init,
    },
    process::run,
    site::scratch,
};

const SCALE: u32 = 1;

#[test]
fn a_postgresql_copy_at_rest_passes_and_damaged_ones_fail() {
    if !needs::met(&[Need::PostgreSql]) {
        return;
    }
    let dir = scratch();
    let (data, beats) = a_killed_server(dir.path());
    let judge_at = |cut_ns, name: &str, damage: &dyn Fn(&Path), beats: &[Beat]| {
        let copy = dir.path().join(name);
        run(Command::new("cp").arg("-a").arg(&data).arg(&copy));
        damage(&copy);
        check_copy(&copy, &dir.path().join("run").join(name), Expected { scale: SCALE, beats, cut_ns })
    };
    let judge = |name: &str, damage: &dyn Fn(&Path), beats: &[Beat]| judge_at(u64::MAX, name, damage, beats);

    assert_eq!(judge("good", &|_| (), &beats), Vec::<String>::new());

    let last = beats.last().expect("there were heartbeats").id;
    let never = [Beat { id: last + 1000, begun_ns: 0, acked_ns: 0 }];
    assert_ne!(judge("a-lost-commit", &|_| (), &never), Vec::<String>::new());
    let half = beats[beats.len() / 2].acked_ns;
    assert_ne!(judge_at(half, "commits-of-later", &|_| (), &beats), Vec::<String>::new());

    let index = relation(dir.path(), &data, "pgbench_accounts_pkey");
    assert_ne!(
        judge("lost-index-pages", &|copy| zero_pages(&copy.join(&index), 3..103), &beats),
        Vec::<String>::new()
    );
    assert_ne!(
        judge("no-control-file", &|copy| remove(&copy.join("global/pg_control")), &beats),
        Vec::<String>::new()
    );
}

/// A data directory whose server was killed under load, and the rows it had acknowledged.
fn a_killed_server(dir: &Path) -> (PathBuf, Vec<Beat>) {
    let data = dir.join("data");
    let mut pg = Pg::init(&data, &dir.join("run"));
    pg.start();
    pgbench_init(&pg, SCALE);
    let heartbeat = Heartbeat::start(&pg, Duration::from_millis(1));
    let load = Load::start(&pg, 4, Duration::from_secs(60));
    tidelock_tests::wait::until_true("some commits", Duration::from_secs(30), || {
        heartbeat.acked().len() > 500
    });
    // So that recovery has little to repair, and none of the damage that the test does is healed by it.
    pg.connect().batch_execute("CHECKPOINT").expect("a superuser may");
    pg.kill();
    load.kill();
    (data, heartbeat.stop())
}

/// The path of a relation's file beneath the data directory, asked of a copy.
fn relation(dir: &Path, data: &Path, name: &str) -> PathBuf {
    let copy = dir.join("ask");
    run(Command::new("cp").arg("-a").arg(data).arg(&copy));
    let mut pg = Pg::at(&copy, &dir.join("run/ask"));
    pg.start();
    let row =
        pg.connect().query_one("SELECT pg_relation_filepath(to_regclass($1))", &[&name]).expect("it exists");
    pg.stop();
    row.get::<_, String>(0).into()
}

fn zero_pages(file: &Path, pages: Range<u64>) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(file).expect("the relation's file");
    for page in pages {
        file.write_all_at(&[0; 8192], page * 8192).expect("writable");
    }
}

fn remove(file: &Path) {
    fs::remove_file(file).expect("it was there");
}

#[test]
fn a_copy_at_rest_of_the_model_is_equal_and_one_more_operation_shows() {
    if !needs::met(&[Need::Root, Need::Program("mkfs.ext4"), Need::Program("mkfs.xfs")]) {
        return;
    }
    let dir = scratch();
    for format in [Format::Ext4, Format::Xfs] {
        let mount = Mount::new(&dir.path().join(format!("{format:?}")), format, 1024);
        let (volume, copy) = (mount.path().join("volume"), dir.path().join(format!("{format:?}-copy")));
        fs::create_dir(&volume).expect("new");
        let mut mutator = Mutator::new(&volume, 3, Powers { mmap: true, root: true, reserve: true });
        mutator.run(3000);
        copy_tree(&volume, &copy);
        assert_eq!(differences(&volume, &copy, false), Vec::<String>::new());
        mutator.run(20);
        assert_ne!(differences(&volume, &copy, false), Vec::<String>::new());
    }
}
