//! Many volumes that commit a little each: how long until a commit is acknowledged, beside what one `fdatasync` costs on the same disk in the same run.
//!
//! The receiver is the real one, a process of its own, with QUIC on loopback, its own log and its own fsyncs. The sidecars are played here by the pieces that real ones
//! have on the wire, one connection a volume, because fifty real ones would measure fifty watchers. Commits are due at random instants of a fixed schedule, whether earlier ones were
//! acknowledged or not, and the time of one that could not be sent yet counts from when it was due: a receiver that falls behind cannot hide it.
//!
//! `fdatasync` is timed before and after, for records of the same length in space reserved like a segment's. It is the floor: no commit can be acknowledged sooner.

use std::{
    collections::VecDeque,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tidelock_proto::{
    ChunkKey, Epoch, FileId, Op, PointId, Seq, Tree,
    chunk::Codec,
    identity::Identity,
    point::{Consistency, Cut, How},
    transport::{Connection, FrameReader, FrameWriter, connect},
    tree::{ChunkRef, Kind, Meta, Name, Piece},
    wire::{
        self, PROTOCOL_VERSION,
        messages::{
            Commit, Hello, Open, OpenKind, Ops, ToReceiver, ToReceiverKind, ToSidecar, ToSidecarKind,
        },
    },
};
use tidelock_tests::{procfs, site::Site};
use tokio::time::{sleep_until, timeout};

/// Bytes that a commit changes.
const PAGE: usize = 4096;
/// Pages of a volume.
const PAGES: u64 = 256;
/// What a record of the log takes for such a commit, about.
const RECORD: usize = PAGE + 512;
/// `fdatasync`s timed before, and again after.
const SYNCS: u64 = 1000;
/// The last acknowledgements may take so long.
const LAST: Duration = Duration::from_secs(30);

/// Prints how long small commits of many volumes take to be acknowledged, beside the disk's `fdatasync`. `TMPDIR` says on which disk.
#[derive(Debug, Parser)]
struct Options {
    /// Volumes, each with a connection of its own.
    #[arg(long, default_value_t = 50)]
    volumes: u64,
    /// Commits a second, of all volumes together.
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Seconds that count.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Seconds before that.
    #[arg(long, default_value_t = 3)]
    warm_up: u64,
    /// Prints JSON instead of lines.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let site = Site::new();
    let scratch = site.new_dir("scratch");
    let before = load();
    let mut syncs = fdatasyncs(&scratch)?;
    let mut receiver = site.receiver();
    receiver.process.allow("disconnected");
    let identities: Vec<_> =
        (0..options.volumes).map(|number| (number, site.sidecar_identity(&name(number)))).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let begun = cpu(receiver.process.pid());
    let mut acks = runtime.block_on(async {
        let start = Instant::now() + Duration::from_secs(1);
        let mut volumes = tokio::task::JoinSet::new();
        for (number, identity) in identities {
            let (listen, schedule) = (receiver.listen.clone(), Schedule::new(&options, start));
            volumes.spawn(async move { run(number, &listen, Identity::load(identity)?, schedule).await });
        }
        let mut acks = Vec::new();
        while let Some(volume) = volumes.join_next().await {
            acks.extend(volume??);
        }
        anyhow::Ok(acks)
    })?;
    let used = cpu(receiver.process.pid()) - begun;
    syncs.extend(fdatasyncs(&scratch)?);
    acks.sort();
    syncs.sort();
    let commits = options.rate * (options.seconds + options.warm_up);
    let report = json!({
        "volumes": options.volumes, "rate": options.rate, "commits": acks.len(),
        "acknowledged_us": spread(&acks), "fdatasync_us": spread(&syncs),
        "p99_by_fdatasync": micros(quantile(&acks, 0.99)) / micros(quantile(&syncs, 0.5)),
        "p99_by_fdatasync_p99": micros(quantile(&acks, 0.99)) / micros(quantile(&syncs, 0.99)),
        "receiver_us_per_commit": used.as_secs_f64() * 1e6 / commits.max(1) as f64,
        "load_before": before, "load_after": load(),
    });
    if options.json {
        println!("{report:#}")
    } else {
        print(&report)
    }
    receiver.process.stop();
    Ok(())
}

fn name(number: u64) -> String {
    format!("bench/volume-{number}")
}

/// When the commits of a volume are due.
struct Schedule {
    start: Instant,
    counts_from: Instant,
    slot: Duration,
    slots: u64,
}

impl Schedule {
    fn new(options: &Options, start: Instant) -> Self {
        let slot = Duration::from_secs_f64(options.volumes as f64 / options.rate.max(1) as f64);
        let seconds = options.warm_up + options.seconds;
        let slots = (seconds as f64 / slot.as_secs_f64()) as u64;
        Self { start, counts_from: start + Duration::from_secs(options.warm_up), slot, slots }
    }
}

/// Commits that are on their way: number, and since when.
type Waiting = Arc<Mutex<VecDeque<(Seq, Instant)>>>;

fn lock(waiting: &Waiting) -> MutexGuard<'_, VecDeque<(Seq, Instant)>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One volume: the times of its acknowledgements that count.
async fn run(number: u64, listen: &str, identity: Identity, schedule: Schedule) -> Result<Vec<Duration>> {
    let connection = connect(listen, &identity).await?;
    let (mut writer, mut reader) = open(&connection, number).await?;
    let waiting = Waiting::default();
    let counts_from = schedule.counts_from;
    let (queue, commits) = (waiting.clone(), schedule.slots + 1);
    let acks = tokio::spawn(async move { listen_to(&mut reader, &queue, commits, counts_from).await });
    let mut source = Source::new(number);
    let mut rng = StdRng::seed_from_u64(number);
    send(&mut writer, &waiting, source.first(), source.last(), Instant::now()).await?;
    for slot in 0..schedule.slots {
        let due = schedule.start + schedule.slot.mul_f64(slot as f64 + rng.random_range(0.0..1.0));
        // A timer fires up to a millisecond late, which is not the receiver's doing; a commit that is due before the one ahead of it could be sent is.
        let behind = Instant::now() >= due;
        sleep_until(due.into()).await;
        let since = if behind { due } else { Instant::now() };
        let frames = source.rewrite(&mut rng);
        send(&mut writer, &waiting, frames, source.last(), since).await?;
    }
    let acks = timeout(LAST, acks).await.context("acknowledgements are missing")???;
    writer.finish().await?;
    Ok(acks)
}

async fn open(connection: &Connection, number: u64) -> Result<(FrameWriter, FrameReader)> {
    let (mut writer, mut reader) = connection.open().await?;
    let hello = Hello {
        version: PROTOCOL_VERSION,
        volume: name(number),
        epoch: 1,
        instance: number + 1,
        build: "bench".to_owned(),
        tracker: "exact".to_owned(),
        raise_epoch: false,
        import: false,
    };
    writer.send(&Open { kind: Some(OpenKind::Hello(hello)) }).await?;
    match reader.next::<ToSidecar>().await?.and_then(|frame| frame.kind) {
        Some(ToSidecarKind::Welcome(_)) => Ok((writer, reader)),
        other => bail!("not welcome: {other:?}"),
    }
}

async fn send(
    writer: &mut FrameWriter,
    waiting: &Waiting,
    frames: Vec<ToReceiverKind>,
    seq: Seq,
    due: Instant,
) -> Result<()> {
    lock(waiting).push_back((seq, due));
    for kind in frames {
        writer.feed(&ToReceiver { kind: Some(kind) }).await?;
    }
    Ok(writer.flush().await?)
}

async fn listen_to(
    reader: &mut FrameReader,
    waiting: &Waiting,
    commits: u64,
    counts_from: Instant,
) -> Result<Vec<Duration>> {
    let (mut times, mut heard) = (Vec::new(), 0);
    while heard < commits {
        let acked = match reader.next::<ToSidecar>().await?.and_then(|frame| frame.kind) {
            Some(ToSidecarKind::Ack(ack)) => match ack.point {
                Some(point) => wire::point_id_from_wire(Some(point))?,
                None => continue,
            },
            other => bail!("no acknowledgement: {other:?}"),
        };
        let now = Instant::now();
        let mut waiting = lock(waiting);
        while waiting.front().is_some_and(|(seq, _)| *seq <= acked.seq)
            && let Some((_, due)) = waiting.pop_front()
        {
            heard += 1;
            if due >= counts_from {
                times.push(now.saturating_duration_since(due));
            }
        }
    }
    Ok(times)
}

/// A volume with one file whose pages are written anew, here and there.
struct Source {
    key: ChunkKey,
    tree: Tree,
    id: PointId,
}

impl Source {
    fn new(number: u64) -> Self {
        let tenant = name(number).split('/').next().expect("it has a tenant").to_owned();
        Self { key: ChunkKey::of_tenant(&tenant), tree: Tree::new(), id: PointId::new(Epoch(1), Seq(0)) }
    }

    fn last(&self) -> Seq {
        self.id.seq
    }

    fn first(&mut self) -> Vec<ToReceiverKind> {
        let (file, name) = (FileId(2), Name::new(b"file").expect("a valid name"));
        let piece = Piece { len: PAGES * PAGE as u64, chunk: None };
        let ops = [
            Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() },
            Op::Create { id: file, kind: Kind::File, meta: Meta::default() },
            Op::Link { dir: FileId::ROOT, name, id: file },
            Op::Write { id: file, offset: 0, pieces: vec![piece] },
        ];
        self.commit(Vec::new(), &ops)
    }

    fn rewrite(&mut self, rng: &mut StdRng) -> Vec<ToReceiverKind> {
        let mut page = vec![0; PAGE];
        rng.fill_bytes(&mut page);
        let id = self.key.id(&page);
        let piece = Piece { len: PAGE as u64, chunk: Some(ChunkRef { id, at: 0 }) };
        let offset = rng.random_range(0..PAGES) * PAGE as u64;
        let chunk = wire::chunk_to_wire(id, Codec::Raw, PAGE as u32, page.into());
        let op = Op::Write { id: FileId(2), offset, pieces: vec![piece] };
        self.commit(vec![ToReceiverKind::Chunk(chunk)], &[op])
    }

    fn commit(&mut self, mut frames: Vec<ToReceiverKind>, ops: &[Op]) -> Vec<ToReceiverKind> {
        for op in ops {
            self.tree.apply(op).expect("it applies");
        }
        self.tree.seal().expect("it is a tree");
        self.id.seq = self.id.seq.next();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let cut = Cut {
            time_ns: now.as_nanos() as u64,
            consistency: Consistency::Crash,
            tracker: "exact".to_owned(),
            conditions: Vec::new(),
            rounds: 1,
            how: How::Optimistic,
            group: Vec::new(),
            digest: self.tree.digest(),
        };
        frames.push(ToReceiverKind::Ops(Ops { ops: ops.iter().map(wire::encode_op).collect() }));
        let (id, cut) = (wire::point_id_to_wire(self.id), wire::cut_to_wire(&cut));
        frames.push(ToReceiverKind::Commit(Commit { id: Some(id), cut: Some(cut), tags: Vec::new() }));
        frames
    }
}

/// How long writes of a record take to be on the disk, each where the one before ends, in a file whose space is reserved.
fn fdatasyncs(dir: &Path) -> Result<Vec<Duration>> {
    let path = dir.join("syncs");
    let file = File::create(&path)?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SYNCS * RECORD as u64)?;
    file.sync_all()?;
    let record = vec![7; RECORD];
    let mut times = Vec::new();
    for number in 0..SYNCS {
        let begun = Instant::now();
        file.write_all_at(&record, number * RECORD as u64)?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    std::fs::remove_file(&path)?;
    Ok(times)
}

/// Processor time of a process. Linux counts it in hundredths of a second.
fn cpu(pid: u32) -> Duration {
    Duration::from_millis(procfs::cpu_ticks(pid) * 10)
}

/// Processes that ran or wanted to in the last minute, on average.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(f64::NAN)
}

/// The value that this part of all values does not exceed.
fn quantile(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * part).ceil() as usize).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn spread(sorted: &[Duration]) -> Value {
    let at = |part| micros(quantile(sorted, part)).round();
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0) })
}

fn print(report: &Value) {
    println!(
        "{} commits of a page from {} volumes, {} a second; load {} before, {} after",
        report["commits"], report["volumes"], report["rate"], report["load_before"], report["load_after"]
    );
    for (what, of) in [("acknowledged", "acknowledged_us"), ("fdatasync", "fdatasync_us")] {
        let at = |part: &str| report[of][part].as_f64().unwrap_or(f64::NAN);
        println!(
            "{what:13} p50 {:6.0} µs  p90 {:6.0} µs  p99 {:6.0} µs  max {:6.0} µs",
            at("p50"),
            at("p90"),
            at("p99"),
            at("max")
        );
    }
    let number = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
    println!(
        "acknowledged p99 is {:.1} x the median fdatasync, {:.1} x its p99; the receiver took {:.0} µs of CPU time a commit",
        number("p99_by_fdatasync"),
        number("p99_by_fdatasync_p99"),
        number("receiver_us_per_commit")
    );
}
