//! How long the store takes to acknowledge a small commit (one 4 KiB chunk and its operations), beside what one
//! `fdatasync` of as many bytes costs on the same disk in the same seconds: the two are measured in turns.
//!
//! `append DIR [COMMITS]`

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tidelock_proto::{
    ChunkKey, FileId, Op, PointId, Seq, Tree, VolumeName,
    chunk::Codec,
    point::{Consistency, Cut, Point},
    tree::{ChunkRef, Kind, Meta, Piece},
};
use tidelock_receiver::store::{Batch, Commit, Record, Store, StoreOptions, encode_model_ops};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = std::path::PathBuf::from(args.next().context("append DIR [COMMITS]")?);
    let commits = args.next().map_or(Ok(5000), |text| text.parse())?;
    std::fs::create_dir_all(&dir)?;
    let raws = [Raw::new(&dir, "reserved", false)?, Raw::new(&dir, "zeroed", true)?];
    let store = Store::open(&dir.join("store"), StoreOptions::default())?;
    let mut source = Source::new("bench/volume".parse()?);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (mut appends, mut reserved, mut zeroed) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..commits {
        let batch = source.commit();
        let before = Instant::now();
        runtime.block_on(async { store.append(batch).await.await })?;
        appends.push(before.elapsed());
        reserved.push(raws[0].write(number)?);
        zeroed.push(raws[1].write(number)?);
    }
    report("append, acknowledged", &mut appends);
    report("fdatasync, space reserved", &mut reserved);
    report("fdatasync, space written", &mut zeroed);
    let start = Instant::now();
    let receipts: Vec<_> = (0..commits).map(|_| runtime.block_on(store.append(source.commit()))).collect();
    for receipt in receipts {
        receipt.wait()?;
    }
    println!("pipelined: {:.0} commits/s", commits as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_micros();
    println!(
        "{what:26} p50 {:4} µs  p90 {:4} µs  p99 {:5} µs  max {:6} µs",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

/// A file that is written and synced by hand.
struct Raw(File);

const RECORD: usize = 4600;

impl Raw {
    fn new(dir: &Path, name: &str, zeroed: bool) -> Result<Self> {
        let file = File::create(dir.join(name))?;
        let len = 64 << 20;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
        if zeroed {
            file.write_all_at(&vec![0; len as usize], 0)?;
        }
        file.sync_all()?;
        Ok(Self(file))
    }

    fn write(&self, number: u64) -> Result<Duration> {
        let before = Instant::now();
        let at = (number * RECORD as u64) % (60 << 20);
        self.0.write_all_at(&[7; RECORD], at)?;
        self.0.sync_data()?;
        Ok(before.elapsed())
    }
}

/// Overwrites pages of one file.
struct Source {
    volume: VolumeName,
    tree: Tree,
    last: Option<PointId>,
    page: u64,
}

impl Source {
    fn new(volume: VolumeName) -> Self {
        Self { volume, tree: Tree::new(), last: None, page: 0 }
    }

    fn commit(&mut self) -> Batch {
        let mut batch = Batch::new();
        self.page += 1;
        let content: Vec<u8> = (0..512).flat_map(|word: u64| (word * self.page).to_le_bytes()).collect();
        let id = ChunkKey::of_tenant(self.volume.tenant()).id(&content);
        batch.push_chunk(self.volume.tenant(), id, Codec::Raw, 4096, content.into());
        let mut ops = Vec::new();
        if self.last.is_none() {
            ops.push(Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() });
            ops.push(Op::Create { id: FileId(2), kind: Kind::File, meta: Meta::default() });
            let name = tidelock_proto::tree::Name::new(b"data").expect("a valid name");
            ops.push(Op::Link { dir: FileId::ROOT, name, id: FileId(2) });
        }
        let pieces = vec![Piece { len: 4096, chunk: Some(ChunkRef { id, at: 0 }) }];
        ops.push(Op::Write { id: FileId(2), offset: self.page * 7919 % 1024 * 4096, pieces });
        ops.iter().for_each(|op| self.tree.apply(op).expect("valid"));
        self.tree.seal().expect("a tree");
        let seq = self.last.map_or(Seq(1), |last| last.seq.next());
        let point = Point {
            id: PointId { epoch: tidelock_proto::Epoch::FIRST, seq },
            parent: self.last,
            cut: Cut {
                time_ns: self.page,
                consistency: Consistency::Crash,
                tracker: "exact".to_owned(),
                conditions: Vec::new(),
                rounds: 1,
                how: tidelock_proto::point::How::Optimistic,
                group: Vec::new(),
                digest: self.tree.digest(),
            },
            received_ns: self.page,
            tags: Vec::new(),
        };
        self.last = Some(point.id);
        batch.push(Record::Commit(Commit { volume: self.volume.clone(), point, ops: encode_model_ops(ops) }));
        batch
    }
}
