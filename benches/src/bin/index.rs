//! Compares fjall and redb below the store's index, with the pattern it has: random 32-byte keys under a tenant's prefix,
//! small batches that are not synced one by one, a sync now and then, point reads that hit and miss.
//!
//! `index <fjall|redb> DIR KEYS BATCH [crash]`: with `crash` the process ends without closing, and the next call without
//! it reports how long the open takes.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

const CACHE_BYTES: u64 = 32 << 20;
const SYNC_EVERY: Duration = Duration::from_secs(10);
const READS: u64 = 20_000;

trait Engine {
    fn write(&mut self, pairs: &[(Vec<u8>, [u8; 14])]) -> Result<()>;
    fn sync(&mut self) -> Result<()>;
    fn get(&self, key: &[u8]) -> Result<bool>;
}

struct Fjall(fjall::Database, fjall::Keyspace);

impl Engine for Fjall {
    fn write(&mut self, pairs: &[(Vec<u8>, [u8; 14])]) -> Result<()> {
        let mut batch = self.0.batch();
        for (key, value) in pairs {
            batch.insert(&self.1, key.as_slice(), value.as_slice());
        }
        Ok(batch.commit()?)
    }

    fn sync(&mut self) -> Result<()> {
        Ok(self.0.persist(fjall::PersistMode::SyncAll)?)
    }

    fn get(&self, key: &[u8]) -> Result<bool> {
        Ok(self.1.get(key)?.is_some())
    }
}

struct Redb(redb::Database);

const TABLE: redb::TableDefinition<&[u8], &[u8]> = redb::TableDefinition::new("chunks");

impl Redb {
    fn commit(&mut self, pairs: &[(Vec<u8>, [u8; 14])], durability: redb::Durability) -> Result<()> {
        let mut transaction = self.0.begin_write()?;
        transaction.set_durability(durability)?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (key, value) in pairs {
                table.insert(key.as_slice(), value.as_slice())?;
            }
        }
        Ok(transaction.commit()?)
    }
}

impl Engine for Redb {
    fn write(&mut self, pairs: &[(Vec<u8>, [u8; 14])]) -> Result<()> {
        self.commit(pairs, redb::Durability::None)
    }

    fn sync(&mut self) -> Result<()> {
        self.commit(&[], redb::Durability::Immediate)
    }

    fn get(&self, key: &[u8]) -> Result<bool> {
        use redb::ReadableDatabase;
        Ok(self.0.begin_read()?.open_table(TABLE)?.get(key)?.is_some())
    }
}

fn open(name: &str, dir: &Path) -> Result<Box<dyn Engine>> {
    Ok(match name {
        "fjall" => {
            let db = fjall::Database::builder(dir).cache_size(CACHE_BYTES).worker_threads(1).open()?;
            let options = || fjall::KeyspaceCreateOptions::default().max_memtable_size(8 << 20);
            let chunks = db.keyspace("chunks", options)?;
            Box::new(Fjall(db, chunks))
        }
        "redb" => {
            std::fs::create_dir_all(dir)?;
            let db = redb::Database::builder()
                .set_cache_size(CACHE_BYTES as usize)
                .create(dir.join("index.redb"))?;
            Box::new(Redb(db))
        }
        other => bail!("unknown engine {other}"),
    })
}

fn key(number: u64) -> Vec<u8> {
    let mut key = b"tenant\0".to_vec();
    key.extend_from_slice(blake3::hash(&number.to_le_bytes()).as_bytes());
    key
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().context("engine")?;
    let dir = std::path::PathBuf::from(args.next().context("directory")?);
    let keys: u64 = args.next().context("keys")?.parse()?;
    let batch: u64 = args.next().context("batch")?.parse()?;
    let crash = args.next().is_some();

    let start = Instant::now();
    let mut engine = open(&name, &dir)?;
    println!("{name}: open {:.1} ms", ms(start.elapsed()));
    let (mut writes, mut syncs) = (Vec::new(), Vec::new());
    let (start, mut synced) = (Instant::now(), Instant::now());
    for first in (0..keys).step_by(batch as usize) {
        let pairs: Vec<_> = (first..first + batch).map(|number| (key(number), [7; 14])).collect();
        let before = Instant::now();
        engine.write(&pairs)?;
        writes.push(before.elapsed());
        if synced.elapsed() > SYNC_EVERY {
            let before = Instant::now();
            engine.sync()?;
            syncs.push(before.elapsed());
            synced = Instant::now();
        }
    }
    if crash {
        std::process::abort();
    }
    if keys > 0 {
        let before = Instant::now();
        engine.sync()?;
        syncs.push(before.elapsed());
        let rate = keys as f64 / start.elapsed().as_secs_f64();
        println!("{name}: {keys} keys in batches of {batch}: {rate:.0} keys/s");
        report("batch", writes);
        report("sync", syncs);
    }
    for (what, offset) in [("hit", 0), ("miss", 1 << 40)] {
        let mut reads = Vec::new();
        for at in 0..READS {
            let key = key(offset + at * 7919 % keys.max(1));
            let before = Instant::now();
            let found = engine.get(&key)?;
            reads.push(before.elapsed());
            anyhow::ensure!(found == (offset == 0) || keys == 0, "wrong answer");
        }
        report(what, reads);
    }
    let start = Instant::now();
    drop(engine);
    println!("  close {:.1} ms", ms(start.elapsed()));
    for (file, field) in [("io", "write_bytes"), ("status", "VmHWM"), ("status", "RssAnon")] {
        let text = std::fs::read_to_string(format!("/proc/self/{file}"))?;
        text.lines().filter(|line| line.starts_with(field)).for_each(|line| println!("  {line}"));
    }
    Ok(())
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("  {what:6} p50 {:.0} µs  p99 {:.0} µs  max {:.0} µs", at(0.5), at(0.99), at(1.0));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
