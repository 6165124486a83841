//! LMDB in writemap mode: every change is a store to a shared mapping, which no system call announces.

mod raw;

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use tidelock_tests::{ledger::Writer, mount::Format};

use self::raw::{Env, Txn};
use super::{Database, Story, WRITERS};

const MAP_BYTES: usize = 64 << 20;
const ACCOUNTS: u64 = 5000;
/// Records kept of each writer; older ones are deleted, so that their pages are used again.
const RECORDS: u64 = 300;

#[test]
fn random_points_of_a_write_map_on_ext4_hold_every_commit() {
    let story = Story { format: Format::Ext4, programs: &[], whole: 20, slack: Duration::ZERO };
    story.tell(|data, _| Lmdb::create(data));
}

#[test]
fn random_points_of_a_write_map_on_xfs_hold_every_commit() {
    let story = Story { format: Format::Xfs, programs: &[], whole: 20, slack: Duration::ZERO };
    story.tell(|data, _| Lmdb::create(data));
}

struct Lmdb(Arc<Env>);

impl Lmdb {
    fn create(data: &Path) -> Self {
        let env = Env::open(data, MAP_BYTES).expect("a new environment");
        let fill = |all: &Txn| -> Result<(), String> {
            (0..ACCOUNTS).try_for_each(|account| all.put(&key(b'a', account), &1000u64.to_le_bytes()))?;
            (0..WRITERS as u64).try_for_each(|writer| all.put(&key(b'c', writer), &0u64.to_le_bytes()))
        };
        env.write(fill).expect("there is room");
        Self(Arc::new(env))
    }
}

impl Database for Lmdb {
    fn writer(&self, number: usize) -> Box<dyn Writer> {
        Box::new(Teller { env: Arc::clone(&self.0), number: number as u64 })
    }

    fn check(&self, copy: &Path, _run: &Path) -> Result<Vec<u64>, String> {
        let env = Env::open(copy, MAP_BYTES)?;
        let all = env.read()?;
        let (entries, length) = (all.entries()?, all.length()?);
        let (mut total, mut counters) = (0u64, Vec::new());
        let mut records: BTreeMap<u8, Vec<u64>> = BTreeMap::new();
        for (key, value) in &entries {
            let number = word(value)?;
            match key[0] {
                b'a' => total = total.wrapping_add(number),
                b'c' => counters.push(number),
                _ => records.entry(key[1]).or_default().push(number),
            }
        }
        let wanted = |counter: u64| counter.saturating_sub(RECORDS) + 1..=counter;
        let differ = (0u8..).zip(&counters).filter(|(writer, counter)| {
            !records.get(writer).into_iter().flatten().copied().eq(wanted(**counter))
        });
        let differ = differ.count();
        if total != ACCOUNTS * 1000 || entries.len() != length || differ != 0 {
            let walked = entries.len();
            return Err(format!(
                "{total} in all; {walked} entries of {length}; {differ} of {counters:?} differ"
            ));
        }
        Ok(counters)
    }
}

/// `a` and an account, or `c` and a writer.
fn key(kind: u8, number: u64) -> Vec<u8> {
    [&[kind][..], &number.to_be_bytes()].concat()
}

/// `r`, the writer, and the value, so that records are in order.
fn record(writer: u64, value: u64) -> Vec<u8> {
    let writer = u8::try_from(writer).expect("few writers");
    [&[b'r', writer][..], &value.to_be_bytes()].concat()
}

fn word(bytes: &[u8]) -> Result<u64, String> {
    let first = bytes.get(..8).and_then(|bytes| bytes.try_into().ok());
    first.map(u64::from_le_bytes).ok_or_else(|| format!("{} bytes instead of 8", bytes.len()))
}

struct Teller {
    env: Arc<Env>,
    number: u64,
}

impl Writer for Teller {
    fn commit(&mut self, value: u64) -> Result<(), String> {
        let n = self.number;
        let (from, to) = (value * 7919 % ACCOUNTS, (value * 104_729 + n) % ACCOUNTS);
        self.env.write(|all| {
            // Wrapping: an account may fall below zero, and only the sum counts.
            for (account, change) in [(from, 5u64.wrapping_neg()), (to, 5)] {
                let balance = word(&all.get(&key(b'a', account))?)?.wrapping_add(change);
                all.put(&key(b'a', account), &balance.to_le_bytes())?;
            }
            all.put(&record(n, value), &[&value.to_le_bytes()[..], &[b'x'; 300]].concat())?;
            if value > RECORDS {
                all.delete(&record(n, value - RECORDS))?;
            }
            all.put(&key(b'c', n), &value.to_le_bytes())
        })
    }
}
