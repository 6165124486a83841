//! A promotion that is used at once: a database starts on it and writes while it hydrates, the process that serves it is killed and its disk loses power, and it ends as a plain directory.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rusqlite::{Connection, params};
use serde_json::Value;
use tidelock_tests::{
    model::{Mutator, Powers, differences},
    mount::{Format, Mount},
    needs::{self, Need},
    process::{self, Process},
    site::{Receiver, Site, VOLUME},
    wait::{self, SOON},
};

/// What nobody writes to, in bytes.
const LARGE_BYTES: usize = 160 << 20;
/// Rows that the volume has when it is promoted; each is longer than a page.
const ROWS: u64 = 4_000;
/// Commits between two kills.
const COMMITS: u64 = 40;
/// Kills of the process that serves.
const KILLS: u64 = 3;

#[test]
fn an_instant_promotion_loses_nothing_that_was_committed_and_ends_as_a_plain_directory() {
    if !needs::met(&[Need::Fuse, Need::Program("mkfs.ext4"), Need::Program("xfs_io")]) {
        return;
    }
    let site = Site::new();
    let volume = site.new_dir("volume");
    let worked = site.new_dir("volume/worked");
    Mutator::new(&worked, 31, Powers { mmap: false, root: true, reserve: false }).run(1_000);
    // No page is like another.
    let mut state = 7u64;
    let large: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_le_bytes()
    })
    .take(LARGE_BYTES / 8)
    .flatten()
    .collect();
    fs::write(volume.join("large"), &large).expect("the volume is writable");
    let bank = connect(&volume.join("bank.db"));
    bank.execute_batch("CREATE TABLE row (id INTEGER PRIMARY KEY, note BLOB)").expect("the schema");
    insert(&bank, 1, ROWS);
    drop(bank);
    let mut receiver = site.receiver();
    receiver.process.allow("promoted").allow("fenced").allow("disconnected");
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    sidecar.process.allow("fenced");
    sidecar.settle(SOON);
    sidecar.process.stop();

    let disk = Mount::new(&site.path("disk"), Format::Ext4, 1024);
    let to = disk.path().join("promoted");
    let acked = Arc::new(AtomicU64::new(ROWS));
    let (mut serving, report) = serve(&site, &receiver, &to);
    assert_eq!((&report["mounted"], &report["resumed"]), (&true.into(), &false.into()), "{report}");
    assert_eq!(report["absent_bytes"], report["total_bytes"], "nothing was copied: {report}");
    assert!(report["total_bytes"].as_u64() > Some(LARGE_BYTES as u64), "{report}");
    let mut plain = false;
    for kill in 0..KILLS {
        let until = acked.load(Ordering::Relaxed) + COMMITS;
        let writer = write(&to, &acked);
        wait::until_true("commits go on", SOON, || acked.load(Ordering::Relaxed) >= until);
        serving.kill();
        writer.join().expect("the writer ends with its file system");
        process::run(Command::new("umount").arg("--lazy").arg(&to));
        if kill == 0 {
            refused_while_it_is_not_mounted(&site, &receiver, &to);
        } else {
            // What was not synced is gone, too.
            disk.lose_power();
        }
        // The second life begins without the receiver.
        let away = kill == 1;
        if away {
            receiver.process.stop();
        }
        let report;
        (serving, report) = serve(&site, &receiver, &to);
        assert_eq!(report["resumed"], true, "{report}");
        if away {
            receiver = site.receiver();
            receiver.process.allow("disconnected");
        }
        if report["mounted"] == false {
            // All was local: it is a plain directory already.
            plain = true;
            break;
        }
        check(&to, &acked);
    }

    let mut last = None;
    if plain {
        assert!(serving.wait(SOON).success(), "{}", serving.log());
    } else {
        wait::until_true("everything is local", 2 * SOON, || hydration(&site, &to)["complete"] == true);
        let until = acked.load(Ordering::Relaxed) + COMMITS;
        let writer = write(&to, &acked);
        wait::until_true("commits go on", SOON, || acked.load(Ordering::Relaxed) >= until);
        last = Some(until);
        STOP.store(until, Ordering::Relaxed);
        writer.join().expect("the writer ends");
        // It needs nobody any more.
        receiver.process.stop();
        assert!(serving.stop().success(), "{}", serving.log());
    }
    assert_eq!(fs::metadata(&to).expect("there").dev(), fs::metadata(disk.path()).expect("there").dev());
    check(&to, &acked);
    assert!(last.is_none_or(|last| acked.load(Ordering::Relaxed) >= last));
    assert!(fs::read(to.join("large")).expect("there") == large, "what nobody wrote to is other than it was");
    assert_eq!(differences(&worked, &to.join("worked"), true), Vec::<String>::new());
    let mut left = names(&to);
    // The database's own, of a transaction that had changed nothing yet.
    left.retain(|name| name != "bank.db-journal");
    assert_eq!(left, [".marker", "bank.db", "large", "worked"], "nothing is left of how it was made");
}

/// The writer ends once so many are committed.
static STOP: AtomicU64 = AtomicU64::new(u64::MAX);

fn connect(file: &Path) -> Connection {
    let bank = Connection::open(file).expect("it opens");
    bank.busy_timeout(Duration::from_secs(20)).expect("a number");
    // A commit is the removal of the journal, which is durable with EXTRA alone.
    bank.execute_batch("PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA").expect("both are known");
    bank
}

fn note(id: u64) -> Vec<u8> {
    id.to_le_bytes().repeat(700)
}

fn insert(bank: &Connection, from: u64, to: u64) {
    bank.execute_batch("BEGIN").expect("nobody else writes");
    for id in from..=to {
        bank.execute("INSERT INTO row VALUES (?1, ?2)", params![id, note(id)]).expect("new");
    }
    bank.execute_batch("COMMIT").expect("nobody else writes");
}

/// Commits a row after the other, with an update of an old one, until its file system is gone, or it is to stop.
fn write(to: &Path, acked: &Arc<AtomicU64>) -> thread::JoinHandle<()> {
    let (file, acked) = (to.join("bank.db"), acked.clone());
    thread::spawn(move || {
        let bank = connect(&file);
        loop {
            // The last of the life before may be there although nobody was told.
            let last: u64 = match bank.query_row("SELECT max(id) FROM row", [], |row| row.get(0)) {
                Ok(last) => last,
                Err(_) => return,
            };
            let id = last + 1;
            let sql = "INSERT INTO row VALUES (?1, ?2)";
            if last >= STOP.load(Ordering::Relaxed) || bank.execute(sql, params![id, note(id)]).is_err() {
                return;
            }
            acked.fetch_max(id, Ordering::Relaxed);
            let old = id * 7 % ROWS + 1;
            if bank.execute("UPDATE row SET note = ?2 WHERE id = ?1", params![old, note(old)]).is_err() {
                return;
            }
        }
    })
}

/// Every row that was committed is there, and whole.
fn check(to: &Path, acked: &AtomicU64) {
    let bank = connect(&to.join("bank.db"));
    let whole: String = bank.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer");
    assert_eq!(whole, "ok");
    let acked = acked.load(Ordering::Relaxed);
    let mut rows = bank.prepare("SELECT id, note FROM row ORDER BY id").expect("a query");
    let found = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("an answer");
    let found: Vec<(u64, Vec<u8>)> = found.collect::<Result<_, _>>().expect("all can be read");
    assert!(found.len() as u64 >= acked, "{} of {acked} committed rows", found.len());
    for (number, (id, bytes)) in (1..).zip(found) {
        assert!(id == number && bytes == note(id), "row {id}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("there").map(|entry| entry.expect("there").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn serve(site: &Site, receiver: &Receiver, to: &Path) -> (Process, Value) {
    let mut command = site.operator_command(receiver, &["promote", VOLUME, "--instant", "--to", text(to)]);
    let (mut process, report) = site.mounted(&mut command);
    process.allow("waits for the receiver").allow("cannot hydrate").allow("cannot read");
    (process, report)
}

fn hydration(site: &Site, to: &Path) -> Value {
    tidelock_tests::site::json(&process::output(&mut site.tidelock(["hydration", "--json", text(to)])))
}

/// Nothing else takes the directory, or what is beneath it, for its own.
fn refused_while_it_is_not_mounted(site: &Site, receiver: &Receiver, to: &Path) {
    for arguments in
        [&["restore", VOLUME, "--overwrite", "--to", text(to)][..], &["promote", VOLUME, "--to", text(to)]]
    {
        let out = process::output(&mut site.operator_command(receiver, arguments));
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("promote --instant"), "{said}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
