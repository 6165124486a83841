//! The store through its front door, on a real directory.
#![allow(clippy::unwrap_used)]

mod harness;

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
fn two_receivers_do_not_share_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let error = Store::open(dir.path(), StoreOptions::default()).unwrap_err();
    assert!(matches!(&error, StoreError::Locked { pid, .. } if *pid == std::process::id().to_string()));
    assert!(error.to_string().contains("is in use by another receiver"), "{error}");
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
