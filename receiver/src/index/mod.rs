//! The index: where every chunk, point, tag and checkpoint is in the log. It holds nothing that the log does not.
//!
//! ```text
//! writer ──(durable)──▶ recent (memory) ──index thread──▶ key-value library
//! reader ───────────────▶ recent, then flushing, then the library
//! ```
//! The writer hands over an entry only after the `fdatasync` that made its record durable, so the index never claims what
//! the log may lose. Entries reach the library in batches, each with the [`Mark`] up to which it covers the log: atomic
//! together, so an index that lost its newest batches is behind, never wrong, and the log's tail is replayed
//! from its mark. Nothing of this is on the way of an acknowledgement unless the library falls behind by
//! [`limits::INDEX_RECENT_ENTRIES`]; then the writer waits, which bounds memory.

mod cover;
pub(crate) mod key;
mod kv;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Instant};

use parking_lot::{Condvar, Mutex, RwLock};

use cover::Cover;
use kv::Kv;
pub use kv::KvError;
pub(crate) use kv::Pair;

use crate::{
    limits,
    log::Mark,
    vault::{KeyId, Vault},
};

/// The index's two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// Chunks by tenant and id: random keys, point reads.
    Chunks,
    /// Everything else, in order.
    Catalogue,
}

/// An entry to be put in.
#[derive(Debug, Clone)]
pub(crate) struct Put {
    pub(crate) table: Table,
    pub(crate) key: Vec<u8>,
    /// `None` removes the key.
    pub(crate) value: Option<Vec<u8>>,
}

type Entries = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

#[derive(Default)]
struct Recent {
    active: Entries,
    flushing: Arc<Entries>,
    /// Removals in both of them, counted anew when they are empty.
    removals: usize,
    /// Up to where `active` covers the log.
    mark: Option<Mark>,
    /// Up to where the library does, if it has not said so yet.
    written: Option<Mark>,
    /// Up to where everything is known here: the durable end of the log.
    covered: Option<Mark>,
}

/// What the index knows of encrypted tenants.
pub(crate) struct Encrypted {
    /// Those with encrypted records, and which key these need.
    pub(crate) tenants: Vec<(String, KeyId)>,
    /// Those of which some records were not taken in.
    pub(crate) behind: Vec<String>,
}

/// See the module.
pub(crate) struct Index {
    kv: Kv,
    cover: Cover,
    store: [u8; 16],
    recent: RwLock<Recent>,
    flush: Mutex<Flush>,
    wake: Condvar,
    drained: Condvar,
}

#[derive(Default)]
struct Flush {
    wanted: bool,
    closing: bool,
    /// How often it was asked to be durable, and how often it was done.
    asked: u64,
    done: u64,
    /// The library has refused a batch; the index stays behind from then on.
    failed: Option<KvError>,
}

/// The version of the index's layout; another one is rebuilt.
const INDEX_VERSION: u8 = 2;
const MARK_KEY: &[u8] = b"m";

impl Index {
    /// Opens the index in `dir`, with the mark up to which it covers the log of this store. What cannot be used (damaged,
    /// of another layout, of another store) is removed and begun anew, without a mark.
    pub(crate) fn open(
        dir: &Path,
        store: [u8; 16],
        cache_bytes: u64,
        vault: &Arc<Vault>,
    ) -> Result<(Self, Option<Mark>), KvError> {
        let opened = Kv::open(dir, cache_bytes).and_then(|kv| {
            let mark = kv.get(Table::Catalogue, MARK_KEY)?;
            // Both tables say up to where they cover the log: the library makes one anew whose files are gone.
            let whole = kv.get(Table::Chunks, MARK_KEY)? == mark;
            Ok((kv, mark.filter(|_| whole), whole))
        });
        let opened = match opened {
            Ok((kv, _, false)) => {
                tracing::warn!("index lost a part of itself; rebuilding it from the log");
                drop(kv);
                return Ok((Self::create(dir, store, cache_bytes, vault)?, None));
            }
            Ok((kv, mark, true)) => Ok((kv, mark)),
            Err(error) => Err(error),
        };
        match opened {
            Ok((kv, None)) => Ok((Self::new(kv, store, vault), None)),
            Ok((kv, Some(bytes))) => match decode_mark(&bytes, store) {
                Some(mark) => Ok((Self::new(kv, store, vault), Some(mark))),
                None => {
                    drop(kv);
                    Ok((Self::create(dir, store, cache_bytes, vault)?, None))
                }
            },
            Err(error) => {
                tracing::warn!(%error, "index is not usable; rebuilding it from the log");
                Ok((Self::create(dir, store, cache_bytes, vault)?, None))
            }
        }
    }

    /// Removes whatever is in `dir` and begins anew.
    pub(crate) fn create(
        dir: &Path,
        store: [u8; 16],
        cache_bytes: u64,
        vault: &Arc<Vault>,
    ) -> Result<Self, KvError> {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(fjall::Error::Io(error).into());
            }
            _ => {}
        }
        Ok(Self::new(Kv::open(dir, cache_bytes)?, store, vault))
    }

    fn new(kv: Kv, store: [u8; 16], vault: &Arc<Vault>) -> Self {
        Self {
            kv,
            cover: Cover(vault.clone()),
            store,
            recent: RwLock::default(),
            flush: Mutex::default(),
            wake: Condvar::new(),
            drained: Condvar::new(),
        }
    }

    /// The value of a key.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        {
            let recent = self.recent.read();
            let wanted = (table, key.to_vec());
            if let Some(value) = recent.active.get(&wanted).or_else(|| recent.flushing.get(&wanted)) {
                return Ok(value.clone());
            }
        }
        if self.cover.is_idle() {
            return self.kv.get(table, key);
        }
        let key = self.cover.key(table, key);
        let Some(value) = self.kv.get(table, &key)? else { return Ok(None) };
        Ok(self.cover.inward(table, (key, value))?.map(|(_, value)| value))
    }

    /// From now on it is to be made anew, by whoever opens it next.
    pub(crate) fn set_stale(&self) -> Result<(), KvError> {
        let (key, value) = (vec![key::STALE], Some(Vec::new()));
        self.kv.write(std::iter::once((Table::Catalogue, &key, &value)))?;
        self.kv.persist()
    }

    /// Whether it is to be made anew.
    pub(crate) fn is_stale(&self) -> Result<bool, KvError> {
        Ok(self.kv.get(Table::Catalogue, &[key::STALE])?.is_some())
    }

    /// What it knows of encrypted tenants, without their keys.
    pub(crate) fn encrypted(&self) -> Result<Encrypted, KvError> {
        let tenant = |key: &[u8]| String::from_utf8_lossy(&key[1..]).into_owned();
        let space = |space: u8| self.kv.range(Table::Catalogue, &[space], &[space + 1], false, usize::MAX);
        let (encrypted, behind) = (space(key::ENCRYPTED)?, space(key::BEHIND)?);
        let read = |(key, value): &Pair| Some((tenant(key), *value.first_chunk()?));
        let behind = behind.iter().map(|(key, _)| tenant(key)).collect();
        Ok(Encrypted { tenants: encrypted.iter().filter_map(read).collect(), behind })
    }

    /// At most `limit` pairs of the catalogue with `first <= key < end`, in order; if `newest`, the last ones, from the last.
    pub(crate) fn range(
        &self,
        first: &[u8],
        end: &[u8],
        newest: bool,
        limit: usize,
    ) -> Result<Vec<Pair>, KvError> {
        self.range_of(Table::Catalogue, first, end, newest, limit)
    }

    /// At most `limit` chunks from a key on, in the order of their keys.
    pub(crate) fn chunks_from(&self, first: &[u8], limit: usize) -> Result<Vec<Pair>, KvError> {
        // Every key of a chunk begins with a tenant's name.
        self.range_of(Table::Chunks, first, &[0xff], false, limit)
    }

    fn range_of(
        &self,
        table: Table,
        first: &[u8],
        end: &[u8],
        newest: bool,
        limit: usize,
    ) -> Result<Vec<Pair>, KvError> {
        if first >= end {
            return Ok(Vec::new());
        }
        let mut merged: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        let wanted = limit;
        let limit = {
            let recent = self.recent.read();
            // What is removed hides as many others at most.
            let limit = limit.saturating_add(recent.removals);
            for entries in [&*recent.flushing, &recent.active] {
                let range = entries.range((table, first.to_vec())..(table, end.to_vec()));
                let pair =
                    |((_, key), value): (&(Table, Vec<u8>), &Option<Vec<u8>>)| (key.clone(), value.clone());
                if newest {
                    merged.extend(range.rev().take(limit).map(pair));
                } else {
                    merged.extend(range.take(limit).map(pair));
                }
            }
            limit
        };
        for pair in self.kv.range(table, first, end, newest, limit)? {
            if let Some((key, value)) = self.cover.inward(table, pair)? {
                merged.entry(key).or_insert(Some(value));
            }
        }
        let there = merged.into_iter().filter_map(|(key, value)| Some((key, value?)));
        Ok(if newest { there.rev().take(wanted).collect() } else { there.take(wanted).collect() })
    }

    /// Takes in the entries of durable records up to `mark`, in the order of the log. Waits if the library is far behind;
    /// fails if it can take no more.
    pub(crate) fn put(&self, puts: Vec<Put>, mark: Mark) -> Result<(), KvError> {
        let full = {
            let mut recent = self.recent.write();
            recent.removals += puts.iter().filter(|put| put.value.is_none()).count();
            recent.active.extend(puts.into_iter().map(|put| ((put.table, put.key), put.value)));
            recent.mark = Some(mark);
            recent.covered = Some(mark);
            recent.active.len() >= limits::INDEX_RECENT_ENTRIES
        };
        if !full {
            return Ok(());
        }
        let mut flush = self.flush.lock();
        flush.wanted = true;
        self.wake.notify_one();
        while flush.wanted && !flush.closing && flush.failed.is_none() {
            self.drained.wait(&mut flush);
        }
        flush.failed.clone().map_or(Ok(()), Err)
    }

    /// Takes in what was read back from the log, at once. `mark` says that this was the end of it.
    pub(crate) fn load(&self, puts: Vec<Put>, mark: Option<Mark>) -> Result<(), KvError> {
        let puts: Vec<Put> = puts.into_iter().map(|put| self.cover.outward(put)).collect();
        self.kv.write(puts.iter().map(|put| (put.table, &put.key, &put.value)))?;
        if mark.is_some() {
            let mut recent = self.recent.write();
            recent.written = mark;
            recent.covered = mark;
        }
        Ok(())
    }

    /// Up to where it covers the log, which is durable up to there.
    pub(crate) fn covered(&self) -> Option<Mark> {
        self.recent.read().covered
    }

    /// The index thread: writes out what is recent when it is wanted or a pause has passed, until closed.
    pub(crate) fn run(&self) {
        let mut persisted = Instant::now();
        loop {
            let (closing, asked) = {
                let mut flush = self.flush.lock();
                if !flush.wanted && !flush.closing && flush.asked == flush.done {
                    self.wake.wait_for(&mut flush, limits::INDEX_WRITE_PAUSE);
                }
                (flush.closing, flush.asked)
            };
            let mut done = self.write_out();
            if closing || asked > self.flush.lock().done || persisted.elapsed() >= limits::INDEX_PERSIST_PAUSE
            {
                done = done.and_then(|()| self.persist());
                persisted = Instant::now();
            }
            let mut flush = self.flush.lock();
            flush.wanted = false;
            flush.done = asked;
            if let Err(error) = done {
                tracing::error!(%error, "index cannot be written");
                flush.failed = Some(error);
            }
            self.drained.notify_all();
            if closing || flush.failed.is_some() {
                return;
            }
        }
    }

    /// Waits until the library has everything that was put so far, durably.
    pub(crate) fn persist_now(&self) -> Result<(), KvError> {
        let mut flush = self.flush.lock();
        flush.asked += 1;
        let asked = flush.asked;
        self.wake.notify_one();
        while flush.done < asked && flush.failed.is_none() {
            self.drained.wait(&mut flush);
        }
        flush.failed.clone().map_or(Ok(()), Err)
    }

    /// Ends [`Index::run`] after a last write.
    pub(crate) fn close(&self) {
        self.flush.lock().closing = true;
        self.wake.notify_all();
        self.drained.notify_all();
    }

    /// Writes everything recent into the library.
    pub(crate) fn write_out(&self) -> Result<(), KvError> {
        let (entries, mark) = {
            let mut recent = self.recent.write();
            let Some(mark) = recent.mark.take() else { return Ok(()) };
            recent.flushing = Arc::new(std::mem::take(&mut recent.active));
            (recent.flushing.clone(), mark)
        };
        if self.cover.is_idle() {
            self.kv.write(entries.iter().map(|((table, key), value)| (*table, key, value)))?;
        } else {
            let put = |((table, key), value): (&(Table, Vec<u8>), &Option<Vec<u8>>)| {
                self.cover.outward(Put { table: *table, key: key.clone(), value: value.clone() })
            };
            let puts: Vec<Put> = entries.iter().map(put).collect();
            self.kv.write(puts.iter().map(|put| (put.table, &put.key, &put.value)))?;
        }
        let mut recent = self.recent.write();
        recent.flushing = Arc::default();
        recent.removals = recent.active.values().filter(|value| value.is_none()).count();
        recent.written = Some(mark);
        Ok(())
    }

    /// Makes the library durable and then, and only then, says up to where it covers the log: so no order in which
    /// the library's own files reach the disk can make it claim what it does not hold.
    pub(crate) fn persist(&self) -> Result<(), KvError> {
        let Some(mark) = self.recent.write().written.take() else { return Ok(()) };
        self.kv.persist()?;
        let (mark_key, mark) = (MARK_KEY.to_vec(), Some(encode_mark(mark, self.store)));
        let tables = [Table::Catalogue, Table::Chunks];
        self.kv.write(tables.iter().map(|table| (*table, &mark_key, &mark)))?;
        self.kv.persist()
    }
}

fn encode_mark(mark: Mark, store: [u8; 16]) -> Vec<u8> {
    let mut bytes = vec![INDEX_VERSION];
    bytes.extend_from_slice(&store);
    bytes.extend_from_slice(&mark.segment.to_le_bytes());
    bytes.extend_from_slice(&mark.offset.to_le_bytes());
    bytes.extend_from_slice(&mark.number.to_le_bytes());
    bytes
}

fn decode_mark(bytes: &[u8], store: [u8; 16]) -> Option<Mark> {
    if bytes.len() != 33 || bytes[0] != INDEX_VERSION || bytes[1..17] != store {
        return None;
    }
    Some(Mark {
        segment: u32::from_le_bytes(bytes[17..21].try_into().ok()?),
        offset: u32::from_le_bytes(bytes[21..25].try_into().ok()?),
        number: u64::from_le_bytes(bytes[25..33].try_into().ok()?),
    })
}
