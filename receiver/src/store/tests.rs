//! The store through its front door, on a real directory.
#![allow(clippy::unwrap_used)]

mod cap;
mod compact;
mod crash;
mod crash_matrix;
mod damage;
mod damage_matrix;
mod delete;
mod forecast;
mod full;
pub(crate) mod harness;
mod mend;
mod model;
mod month;
mod retire;
mod sim;
mod thin;
mod vault;
mod verify;

use tidelock_proto::{Epoch, PointId, Seq};

use super::*;
use harness::{Source, volume};

#[test]
fn what_is_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = Source::new(volume("t/a"), 1);
    {
        let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
        for _ in 0..20 {
            store.append_and_wait(source.commit()).unwrap();
        }
        source.check_all(&store);
    }
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    assert!(!store.opened().rebuilt && store.opened().replayed == 0, "{:?}", store.opened());
    source.check_all(&store);
    store.append_and_wait(source.commit()).unwrap();
    source.check_all(&store);
}

#[test]
fn a_store_is_made_where_nothing_else_is_and_read_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("mine"), "data").unwrap();
    let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
    assert!(matches!(&error, StoreError::NotEmpty { found, .. } if found == "mine"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing was made");
    std::fs::remove_file(dir.path().join("mine")).unwrap();
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    store.append_and_wait(Source::new(volume("t/a"), 1).commit()).unwrap();
    drop(store);
    let mode = |path: &str| dir.path().join(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("log"), mode("index")), (0o700, 0o700));
    let segment = std::fs::read_dir(dir.path().join("log")).unwrap().next().unwrap().unwrap();
    assert_eq!(segment.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    drop(Store::open(dir.path(), StoreOptions::default()).unwrap());
}

#[test]
fn two_receivers_do_not_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
    assert!(matches!(&error, StoreError::Locked { pid, .. } if *pid == std::process::id().to_string()));
    assert!(error.to_string().contains("is in use by a receiver"), "{error}");
}

#[test]
fn an_epoch_fences_what_is_below_it_and_builds_on_its_base() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let mut source = Source::new(volume("t/a"), 1);
    for _ in 0..5 {
        store.append_and_wait(source.commit()).unwrap();
    }
    let base = PointId::new(Epoch(1), Seq(3));
    let raise = |expected, epoch| {
        block_on(async { store.raise_epoch(&source.volume, Epoch(expected), Epoch(epoch), base).await.await })
    };
    assert!(matches!(raise(2, 3), Err(StoreError::EpochMoved { current: Epoch(1), .. })));
    raise(1, 2).unwrap();
    assert!(matches!(raise(1, 2), Err(StoreError::EpochMoved { current: Epoch(2), .. })));
    let info = store.volume(&source.volume).unwrap();
    assert!(info.promoted && info.last.id == base && info.base == Some(base));

    let mut old = source.clone();
    assert!(matches!(store.append_and_wait(old.commit()), Err(StoreError::Fenced { epoch: Epoch(2), .. })));
    source.branch(Epoch(2), base);
    store.append_and_wait(source.commit()).unwrap();
    store.append_and_wait(source.commit()).unwrap();
    source.check_all(&store);
    assert!(!store.volume(&source.volume).unwrap().promoted);
    drop(store);
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    source.check_all(&store);
}

#[test]
fn numbers_that_were_left_out_are_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let name = volume("t/a");
    let mut source = Source::new(name.clone(), 1);
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    store.append_and_wait(source.commit()).unwrap();
    source.leave_out(40);
    store.append_and_wait(source.commit()).unwrap();
    store.append_and_wait(source.commit()).unwrap();
    assert_eq!(
        store.points(&name, None).unwrap().iter().map(|point| point.id.seq.0).collect::<Vec<_>>(),
        [1, 42, 43]
    );
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    source.check_all(&store);
    let never = store.point(&name, PointId::new(Epoch(1), Seq(7)));
    assert!(matches!(never, Err(StoreError::NoSuchPoint(..))), "{never:?}");
}

#[test]
fn a_refused_commit_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let mut source = Source::new(volume("t/a"), 1);
    store.append_and_wait(source.commit()).unwrap();
    let mut ahead = source.clone();
    let (next, gap) = (ahead.commit(), ahead.commit());
    let chunk = match &gap.records[0] {
        Record::Chunk(chunk) => chunk.id,
        other => panic!("{other:?}"),
    };
    let other = Source::new(volume("t/b"), 2).commit();
    let (gap, other) = block_on(async { (store.append(gap).await, store.append(other).await) });
    assert!(store.has_chunk_or_pending("t", chunk).unwrap());
    assert!(matches!(block_on(gap), Err(StoreError::OutOfOrder { expected, .. }) if expected.seq == Seq(2)));
    block_on(other).unwrap();
    // Others may count on its chunks already.
    assert!(store.has_chunk("t", chunk).unwrap() && !store.has_chunk("u", chunk).unwrap());
    store.append_and_wait(next).unwrap();
    assert_eq!(store.volume(&source.volume).unwrap().points, 2);
}

/// Hangs where tokio counts the answers against the budget of the task.
#[tokio::test]
async fn a_task_may_wait_for_any_number_of_answers() {
    for _ in 0..300 {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        sender.send(()).unwrap();
        block_on(receiver).unwrap();
    }
}

#[test]
fn a_commit_larger_than_a_segment_is_one_point() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions { segment_bytes: 64 * 1024, ..StoreOptions::default() };
    let store = Store::open(dir.path(), options.clone()).unwrap();
    let mut source = Source::new(volume("t/a"), 1);
    store.append_and_wait(source.commit_of(9000)).unwrap();
    store.append_and_wait(source.commit()).unwrap();
    source.check_all(&store);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(dir.path(), options).unwrap();
    assert!(store.opened().rebuilt && store.opened().damage.is_empty());
    source.check_all(&store);
}

#[test]
fn volumes_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    // A queue that is always full.
    let options =
        StoreOptions { segment_bytes: 256 * 1024, queue_bytes: 16 * 1024, ..StoreOptions::default() };
    let store = Store::open(dir.path(), options).unwrap();
    let names = (0..8).map(|number| volume(&format!("t{}/v{number}", number % 3)));
    let writers: Vec<_> = names
        .map(|name| {
            let store = store.clone();
            std::thread::spawn(move || {
                let mut source = Source::new(name, 4);
                for _ in 0..40 {
                    let receipts: Vec<_> = (0..3).map(|_| block_on(store.append(source.commit()))).collect();
                    receipts.into_iter().for_each(|receipt| receipt.wait().unwrap());
                    let last = store.volume(&source.volume).unwrap().last.id;
                    assert_eq!(Some(&last), source.points.keys().next_back());
                }
                source
            })
        })
        .collect();
    let sources: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    assert_eq!(store.volumes().len(), 8);
    for source in &sources {
        assert_eq!(store.points(&source.volume, Some(5)).unwrap().len(), 5);
        source.check(&store, *source.points.keys().next_back().unwrap());
    }
}

#[test]
fn checkpoints_come_by_themselves_and_cost_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let mut source = Source::new(volume("t/a"), 1);
    // Enough operations that one checkpoint is due, and no second one.
    let writes = limits::CHECKPOINT_REPLAY_BYTES as usize / 45;
    store.append_and_wait(source.commit_of(writes)).unwrap();
    let last = source.next_id();
    store.append_and_wait(source.commit()).unwrap();
    store.quiesce();
    let info = store.volume(&source.volume).unwrap();
    assert!(info.snapshot_bytes > 0 && !info.wants_checkpoint(), "{info:?}");
    source.check(&store, last);
    store.append_and_wait(source.commit_of(2)).unwrap();
    let point = store.volume(&source.volume).unwrap().last.id;
    let added = checkpoint::write(store.shared(), &source.volume, point).unwrap();
    let all = info.snapshot_bytes as usize / (64 << 10);
    assert!((1..=8).contains(&added) && all > 30, "{added} chunks of about {all} were new");
    source.check(&store, point);
}

#[test]
fn the_length_of_a_chunk_is_known_before_and_after_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let id = tidelock_proto::ChunkKey::of_tenant("t").id(b"a page");
    let mut batch = Batch::new();
    batch.push_chunk("t", id, tidelock_proto::chunk::Codec::Raw, 6, Bytes::from_static(b"a page"));
    let receipt = block_on(store.append(batch));
    assert_eq!(store.chunk_len_or_pending("t", id).unwrap(), Some(6));
    receipt.wait().unwrap();
    assert_eq!(store.chunk_len_or_pending("t", id).unwrap(), Some(6));
    assert_eq!(store.chunk_len_or_pending("u", id).unwrap(), None, "chunks of a tenant are its own");
    drop(store);
    let store = Store::open(dir.path(), StoreOptions::default()).unwrap();
    assert_eq!(store.chunk_len_or_pending("t", id).unwrap(), Some(6));
}
