//! Encrypted tenants: what can be read without a key, what happens without one, and everything else as ever.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tidelock_proto::{
    ChunkKey, FileId, Op, PointId, TreeDigest,
    chunk::Codec,
    tree::{ChunkRef, Kind, Meta, Name, Piece, Xattrs},
};

use super::{
    crash::scratch,
    crash_matrix, damage_matrix,
    harness::{Source, key_of, volume, with_keys},
    retire, verify,
};
use crate::{
    log::{disk::DirDisk, entry, scan::scan},
    store::{Batch, CompactOptions, Record, Store, StoreError, StoreOptions},
    vault::{KeyError, TenantKeys},
    verify::Fault,
};

fn options(keys: &TenantKeys) -> StoreOptions {
    StoreOptions { segment_bytes: 64 * 1024, keys: keys.clone(), ..StoreOptions::default() }
}

fn keys(tenants: &[&str]) -> TenantKeys {
    key_of(tenants)
}

/// Something that nobody else has written, and that does not compress.
fn marker(rng: &mut StdRng) -> Vec<u8> {
    (0..24).map(|_| rng.random_range(b'A'..=b'Z')).collect()
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("listed").map(|entry| entry.expect("listed").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn holds(dir: &Path, wanted: &[u8]) -> bool {
    files(dir).iter().any(|path| {
        let bytes = std::fs::read(path).expect("read");
        bytes.windows(wanted.len()).any(|window| window == wanted)
    })
}

/// A commit with markers wherever words of users may be; the answer is what must not be found.
fn tell(source: &mut Source, store: &Store, rng: &mut StdRng) -> Vec<(&'static str, Vec<u8>)> {
    let mut secrets = Vec::new();
    let mut secret = |what| {
        let marker = marker(rng);
        secrets.push((what, marker.clone()));
        marker
    };
    source.tags = vec![String::from_utf8(secret("a name given with the point")).expect("text")];
    let file = source.tree.next_id().max(FileId(2));
    let link = FileId(file.0 + 1);
    let key = ChunkKey::of_tenant(source.volume.tenant());
    let content = [&[b'-'; 4000][..], &secret("content")].concat();
    let id = key.id(&content);
    let packed = zstd::bulk::compress(&content, 3).expect("compressed");
    let (attribute, value) = ([b"user.".to_vec(), secret("attribute")].concat(), secret("its value"));
    let pieces = vec![Piece { len: content.len() as u64, chunk: Some(ChunkRef { id, at: 0 }) }];
    let mut ops = vec![
        Op::Create { id: file, kind: Kind::File, meta: Meta::default() },
        Op::Link { dir: FileId::ROOT, name: Name::new(&secret("file name")).expect("a name"), id: file },
        Op::SetXattrs { id: file, xattrs: Xattrs::from([(attribute, value)]) },
        Op::Write { id: file, offset: 0, pieces },
        Op::Create { id: link, kind: Kind::Symlink(secret("link")), meta: Meta::default() },
        Op::Link { dir: FileId::ROOT, name: Name::new(&secret("name of a link")).expect("a name"), id: link },
    ];
    if source.points.is_empty() {
        ops.insert(0, Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() });
    }
    let chunk = Batch::of_chunk(source.volume.tenant(), id, Codec::Zstd, &content, packed.into());
    let batch = source.commit_ops(Batch::of(chunk), ops);
    store.append_and_wait(batch).expect("written");
    let TreeDigest(digest) = source.tree.digest();
    secrets.push(("id of a chunk", id.0.to_vec()));
    secrets.push(("digest of the tree", digest.to_vec()));
    let point = *source.points.keys().next_back().expect("a point");
    let tag = String::from_utf8(marker(rng)).expect("text");
    secrets.push(("a name given later", tag.clone().into_bytes()));
    let record = Record::Tag { volume: source.volume.clone(), point, tag };
    store.append_and_wait(Batch::of(record)).expect("tagged");
    source.tags.clear();
    secrets
}

#[test]
fn nothing_of_an_encrypted_tenant_can_be_read_in_its_store() {
    let dir = scratch();
    let keys = keys(&["t"]);
    let mut rng = StdRng::seed_from_u64(5);
    let mut sources = ["t/a", "plain/b"].map(|name| Source::new(volume(name), 1));
    let mut told = ["t/c", "plain/d"].map(|name| Source::new(volume(name), 1));
    let mut secrets = [Vec::new(), Vec::new()];
    for round in 0..3 {
        // The index has written its memory out when the store is closed.
        let store = Store::open(dir.path(), options(&keys)).expect("opens");
        for (source, (teller, secrets)) in sources.iter_mut().zip(told.iter_mut().zip(&mut secrets)) {
            for _ in 0..12 {
                store.append_and_wait(source.commit_of(3)).expect("written");
            }
            secrets.extend(tell(teller, &store, &mut rng));
            for source in [source, teller] {
                let last = *source.points.keys().next_back().expect("points");
                store.checkpoint(&source.volume, last).expect("written");
                if round == 1 {
                    let policy = "all:5s,10s:forever".parse().expect("a policy");
                    store.thin(&source.volume, &policy, 3_000_000_000_000).expect("thinned");
                    let left = store.points(&source.volume, None).expect("points");
                    source.points.retain(|id, _| left.iter().any(|point| point.id == *id));
                }
            }
        }
        if round == 2 {
            store.retire(&mut |_| {}).expect("compacted");
        }
    }
    Store::compact(dir.path(), options(&keys), &CompactOptions::default()).expect("compacted");
    let store = Store::open(dir.path(), options(&keys)).expect("opens");
    assert_eq!(verify::run(&store).0, []);
    for source in sources.iter().chain(&told) {
        source.check_all(&store);
    }
    drop(store);
    for (what, secret) in &secrets[0] {
        assert!(!holds(dir.path(), secret), "{what} can be read");
    }
    // What is not encrypted is found by the same look.
    let last = secrets[1].len() - 10..;
    let found: BTreeSet<_> = secrets[1][last]
        .iter()
        .filter(|(_, secret)| holds(dir.path(), secret))
        .map(|(what, _)| *what)
        .collect();
    for what in ["file name", "content", "its value", "link", "a name given later", "id of a chunk"] {
        assert!(found.contains(what), "the test does not look at the {what}: {found:?}");
    }
}

#[test]
fn equal_chunks_of_two_tenants_have_other_ids_and_other_bytes() {
    let dir = scratch();
    let store = Store::open(dir.path(), options(&keys(&["t", "u"]))).expect("opens");
    let content = b"the same in both".repeat(100);
    for tenant in ["t", "u"] {
        // Even under one id, which a tenant cannot choose, they have nothing in common.
        let id = ChunkKey::of_tenant("t").id(&content);
        store.append_and_wait(Batch::chunk(tenant, id, &content)).expect("written");
    }
    let index = store.shared().index.chunks_from(&[], 10).expect("read");
    let ids: BTreeSet<_> = index.iter().map(|(key, _)| crate::index::key::chunk_id(key)).collect();
    assert_eq!(ids.len(), 2);
    assert!(!ids.contains(&Some(ChunkKey::of_tenant("t").id(&content))));
    drop(store);
    let (mut bodies, disk) = (Vec::new(), DirDisk::new(&dir.path().join("log")));
    let id = crate::store::open::store_id(&disk).expect("read").expect("a header");
    scan(&disk, id, None, 0, &mut |found| {
        assert!(found.encrypted && found.kind == entry::Kind::Chunk as u8);
        bodies.push(found.body);
    })
    .expect("read");
    let [a, b] = &bodies[..] else { panic!("two chunks") };
    let common = a.windows(8).filter(|window| b.windows(8).any(|other| other == *window)).count();
    assert_eq!(common, 0, "they share bytes");
}

/// A store with an encrypted tenant and a plain one.
fn two_tenants(dir: &Path) -> [Source; 2] {
    let mut sources = [Source::new(volume("t/a"), 1), Source::new(volume("u/b"), 2)];
    let store = Store::open(dir, options(&keys(&["t"]))).expect("opens");
    for _ in 0..20 {
        for source in &mut sources {
            store.append_and_wait(source.commit_of(2)).expect("written");
        }
    }
    sources
}

#[test]
fn a_lost_key_locks_its_tenant_and_nobody_else() {
    let dir = scratch();
    let [mut locked, mut other] = two_tenants(dir.path());
    let missing = |error: &StoreError| matches!(error, StoreError::Key(KeyError::Missing(who)) if who == "t");
    for rebuild in [false, true] {
        if rebuild {
            std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
        }
        let store = Store::open(dir.path(), options(&TenantKeys::default())).expect("opens");
        assert_eq!(store.opened().damage, []);
        assert_eq!(
            (store.volumes(), store.locked_tenants()),
            (vec![other.volume.clone()], vec!["t".to_owned()])
        );
        other.check_all(&store);
        store.append_and_wait(other.commit()).expect("the other tenant goes on");
        other.check_all(&store);
        let refused = store.append_and_wait(locked.clone().commit()).expect_err("there is no key");
        assert!(missing(&refused), "{refused}");
        for error in [
            store.points(&locked.volume, None).expect_err("locked"),
            store.tree_at(&locked.volume, PointId::default()).expect_err("locked"),
            store.retire(&mut |_| {}).expect_err("nobody knows what its points need"),
        ] {
            assert!(missing(&error) && error.to_string().contains("tenant t "), "{error}");
        }
        let (findings, _) = verify::run(&store);
        let told = |fault: &Fault| matches!(fault, Fault::Locked { tenant, .. } if tenant == "t");
        assert!(findings.len() == 1 && told(&findings[0].fault), "{findings:?}");
        drop(store);
        let error = Store::compact(dir.path(), options(&TenantKeys::default()), &CompactOptions::default());
        assert!(missing(&error.expect_err("it would lose the tenant's data")));
    }
    // It is back with its key, whatever the index has missed.
    for rebuilt in [true, false] {
        let store = Store::open(dir.path(), options(&keys(&["t"]))).expect("opens");
        assert_eq!(store.opened().rebuilt, rebuilt, "{:?}", store.opened());
        store.append_and_wait(locked.commit()).expect("the tenant goes on");
        locked.check_all(&store);
        other.check_all(&store);
        assert_eq!(verify::run(&store).0, []);
    }
}

#[test]
fn a_wrong_key_is_found_before_anything_is_written() {
    let dir = scratch();
    let [locked, _] = two_tenants(dir.path());
    let log = || -> Vec<Vec<u8>> {
        files(&dir.path().join("log")).iter().map(|path| std::fs::read(path).expect("read")).collect()
    };
    let before = log();
    let mut wrong = TenantKeys::default();
    wrong.add_variables([("TIDELOCK_KEY_T".to_owned(), "ab".repeat(32))]).expect("a key");
    for rebuild in [false, true] {
        if rebuild {
            std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
        }
        let error = Store::open(dir.path(), options(&wrong)).expect_err("it is another key");
        assert!(matches!(&error, StoreError::Key(KeyError::Wrong(who)) if who == "t"), "{error}");
        assert!(log() == before, "something was written");
    }
    locked.check_all(&Store::open(dir.path(), options(&keys(&["t"]))).expect("opens"));
}

#[test]
fn a_tenant_with_plain_data_does_not_become_encrypted() {
    let dir = scratch();
    let [mut locked, mut other] = two_tenants(dir.path());
    let both = keys(&["t", "u"]);
    for rebuild in [false, true] {
        if rebuild {
            std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
        }
        let error = Store::open(dir.path(), options(&both)).expect_err("it has plain data");
        assert!(matches!(&error, StoreError::Key(KeyError::Plain(who)) if who == "u"), "{error}");
    }
    let store = Store::open(dir.path(), options(&keys(&["t"]))).expect("opens");
    for source in [&mut locked, &mut other] {
        store.append_and_wait(source.commit()).expect("goes on");
        source.check_all(&store);
    }
    // Chunks alone are data, too.
    let id = ChunkKey::of_tenant("v").id(b"early");
    store.append_and_wait(Batch::chunk("v", id, b"early")).expect("written");
    drop(store);
    let store =
        Store::open(dir.path(), options(&keys(&["t", "v"]))).expect("opens: no volume says otherwise");
    let refused = store.append_and_wait(Source::new(volume("v/a"), 1).commit()).expect_err("it has a chunk");
    assert!(matches!(&refused, StoreError::Key(KeyError::Plain(who)) if who == "v"), "{refused}");
}

#[test]
fn space_comes_back_and_crashes_lose_nothing_when_tenants_are_encrypted() {
    with_keys(&["t", "u"], || {
        retire::the_log_is_not_much_longer_than_what_is_needed();
        retire::a_crash_while_compacting_leaves_every_point();
        retire::operations_in_another_segment_than_their_point_come_along();
        crash_matrix::run(7);
    });
}

#[test]
fn no_damage_gives_a_wrong_byte_when_a_tenant_is_encrypted() {
    with_keys(&["t"], || damage_matrix::run(4));
}

impl Batch {
    fn chunk(tenant: &str, id: tidelock_proto::ChunkId, content: &[u8]) -> Self {
        Self::of(Self::of_chunk(tenant, id, Codec::Raw, content, content.to_vec().into()))
    }

    fn of_chunk(
        tenant: &str,
        id: tidelock_proto::ChunkId,
        codec: Codec,
        content: &[u8],
        payload: bytes::Bytes,
    ) -> Record {
        let len = content.len() as u32;
        Record::Chunk(entry::ChunkEntry { tenant: tenant.to_owned(), id, codec, len, payload })
    }
}
