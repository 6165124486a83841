//! Byte ranges of every inode of one filesystem, from kernel tracepoints: exact on ext4 and xfs, a supplement on btrfs.
//!
//! One `perf_event_open` per tracepoint and CPU, for all processes, filtered in the kernel by device; all events of a
//! CPU share one ring. It needs CAP_PERFMON (and CAP_IPC_LOCK for rings beyond `kernel.perf_event_mlock_kb`), and a
//! readable tracefs.
//!
//! # What is promised
//! When a system call that changed a file has returned, its event is in a ring: a tracepoint fires in the calling thread
//! (direct I/O: before its completion is made known), and the kernel publishes the record before it goes on. A drain
//! that begins afterwards finds it. inotify's event for the same change is queued last of all, so draining inotify first
//! means that a file that "changed" is told where by the same drain.
//!
//! # Path → event → effect
//! *before*: the change may not be visible yet; whoever reads must first pass through the lock named
//! (`capture::barrier`). *after*: it is. Read from the sources of Linux 6.18, and tried on it: `watch/tests/paths.rs` looks
//! at the events, and the system tests (`tests/tests/system/paths.rs`) at the next point, byte by byte, for every path here
//! that changes bytes or names; each was also seen to be missed with the events named for it left out. Attributes have the model and
//! round-trip tests; the exchange of ranges was tried by hand only.
//!
//! | path | ext4 | xfs | btrfs |
//! | --- | --- | --- | --- |
//! | `write`, append, `splice`, `sendfile`, `copy_file_range` of ragged bytes, io_uring | `ext4_da_write_end`, `ext4_write_end`, `ext4_journalled_write_end`: once per folio; after the copy, *before* a new size; inode lock, and the folio's | `xfs_file_buffered_write`: once per call, *before* the copy; iolock, exclusive | `IN_MODIFY`: *after*; the whole file is compared |
//! | the same by `libaio`, for which inotify says nothing | the same | the same | `writeback_dirty_folio`: after the copy, *before* a new size; inode lock |
//! | direct write, also by io_uring and `libaio` | `iomap_dio_complete`: *after*, size included, in whatever thread completes it (`iomap_iter` tells writes from reads) | the same | the same; with checksums it goes through the page cache, as above |
//! | store through a mapping; a read, or another process, that stores into one | `writeback_dirty_folio`: *before* the store, under the folio's lock, which is held until the page is writable | `xfs_write_fault`, `writeback_dirty_folio`: the same | `writeback_dirty_folio`: the same |
//! | truncate, shrinking | `ext4_truncate_enter`, which names no size: all; *after* the size, before blocks go; inode lock | `xfs_itruncate_extents_start`: all from the new size on; *after* the size, before blocks go (`xfs_bunmap`); iolock, exclusive | `IN_MODIFY`: *after* |
//! | truncate, growing | **none**: only inotify, *after* | `xfs_setattr`: *before*; iolock, exclusive | `IN_MODIFY`: *after* |
//! | `fallocate`, extending | `ext4_fallocate_enter`: *before*; inode lock | `xfs_alloc_file_space`, `xfs_setattr`: *before*; iolock, exclusive | `IN_MODIFY`: *after* |
//! | `fallocate`, keeping the size, or in a hole | no byte changes | no byte changes | no byte changes |
//! | punch a hole | `ext4_punch_hole`: *before*; inode lock | `xfs_bunmap` (whole blocks), `iomap_zero_iter` (edges): *before*; iolock, exclusive | `IN_MODIFY`: *after* |
//! | zero a range | `ext4_zero_range`: *before*; inode lock | as for a hole | `IN_MODIFY`: *after* |
//! | collapse, insert | `ext4_collapse_range`, `ext4_insert_range`: all from the offset on; *before*; inode lock | `xfs_collapse_file_space`, `xfs_insert_file_space`: the whole file; *before*; iolock, exclusive | refused |
//! | `FICLONE`, `FICLONERANGE`, `copy_file_range` of whole blocks | refused, and copied as `write` does | `xfs_reflink_remap_range`: *before*; both iolocks, exclusive | `IN_MODIFY`: *after* |
//! | `FIDEDUPERANGE` | refused | as a reflink; no byte changes | no byte changes |
//! | exchange ranges | – | `xfs_exchrange_mappings`, `xfs_swap_extent_before`: both files whole; *before*; both iolocks, exclusive; not tried | – |
//! | rename over, exchange, link, unlink, `O_TMPFILE` and `linkat`, directories with what is below them | inotify, *after*; bytes by inode number, whatever the name | the same | inotify, *after*; bytes by the name used, or by inode number |
//! | metadata: mode, owner, xattrs | inotify, *after* | inotify, *after* | inotify, *after* |
//!
//! # Sizes
//! No record says what a size became in the end; whoever captures looks. What the tree must know besides is which bytes of
//! its own are no longer true:
//!
//! - A file that grew has the same bytes below its former size, and none of them is read for it ([`Event::Size`] only has the
//!   size looked at, after the lock). All bytes from the tree's size up to the new one are compared, whether or not a range
//!   says so: a hole there, or allocated space that nobody wrote, costs no read.
//! - A file that was cut short and grew again looks as if nothing had happened to its size. So a cut is told with the size
//!   that it left ([`Event::Cut`], the least of a drain), and all from there on is compared, as far as the file reaches by then.
//!   xfs names that size. It also cuts what was allocated beyond the end when a file is closed, at the size it has: nothing
//!   to compare. ext4 does not name it, so a file that is cut short is compared as a whole.
//! - `xfs_setattr` fires for every change of attributes; it counts as growth, which costs a look.
//!
//! # btrfs
//! No tracepoint of btrfs names the bytes that change. `btrfs_set_extent_bit` comes nearest: it fires for every range that
//! is written, but also for every one that is read from the disk or looked at, ours among them; what tells these apart is a
//! flag whose value the kernel does not describe, and its filesystem cannot be filtered by. So the tracker there is
//! `inotify`, which compares a file that was modified with the tree, and this source adds what inotify leaves out: stores
//! through mappings, and `libaio`.
//!
//! A change of a page either finds it clean, and then `writeback_dirty_folio` tells; or dirty since an event that was
//! not captured yet; for each capture of a file with such an event writes the file back first, and from then on its pages
//! are clean. So nothing can change silently after it was read, also through a mapping older than the source. The folio's
//! lock orders a store and the write-back; the inode's lock orders a write, its new size, and the look at the size.
//! The price is that what the application writes is written back at every cut, and that a modified file is read as a whole:
//! `--tracker exact` is refused, and the reason stands in status.
//!
//! An inode number is unique within a subvolume only, so a change in another one may cause a needless comparison.
//! A btrfs is found by the number of its mount: a subvolume's `st_dev` is not its filesystem's device.
//!
//! # Stores through a mapping
//! A store raises no event of its own. What the kernel reports is that a clean folio becomes dirty, once; until the folio
//! has been written back, further stores to it are silent. So for a mapped inode the reader must write the folio back
//! *before* it reads (`sync_file_range` with all three flags). Write-back removes the write permission of every mapping
//! of the whole folio: a store either came before that and is read, or faults again and makes the folio dirty again,
//! which is a new event. The same holds if the kernel wrote the folio back in the meantime.
//!
//! The event comes just before the page cache marks the folio for write-back, and a write-back without the mark does nothing: the
//! store would be silent from then on (seen after some hundred stores to one page). Both happen with interrupts disabled on one
//! CPU. So a drain that found such an event has every CPU answer an interrupt before it returns (reading a perf counter
//! does that); then the mark is there, and the write-back waits for the folio's lock. (Not so on a kernel with PREEMPT_RT, whose
//! locks leave interrupts enabled.)
//!
//! The event names only the folio's first page; a folio may be up to a huge page large. So the whole span that a folio
//! beginning there can have is reported, and every page that one silent store could have reached is covered.
//!
//! Doing this for every file would write back what the application does not want written. So an inode counts as mapped
//! only from the first sign of it, and until then events of dirtied folios are dropped if a `write` explains them:
//!
//! - xfs has an event for every store that faults. On btrfs every dirtied inode counts.
//! - On ext4 the signs are a page fault on the file (`mm_filemap_fault`, `mm_filemap_map_pages`: every page that becomes
//!   accessible through a mapping passes one of them; a huge page mapped read-only does not, but a store to it is split
//!   into small ones, which do), or a dirtied folio that no write of the same thread explains.
//!
//! At that moment some folios may be dirty from writes, and stored to already. Therefore the transition, [`Event::Mapped`],
//! asks for the whole file to be written back and verified. Before it nothing was stored; all that was stored up to the
//! write-back is verified; after it every folio that becomes dirty is reported. Nothing in between is missed for good.
//!
//! ## What remains
//! - Pages that were dirty, and mapped, before the source was opened: the first read of each file must write it back
//!   first. Then the argument above holds for it from that read on.
//! - ext4: a mapping made before the source was opened, which never faults on a page that was absent, whose folio a
//!   `write` made dirty, and which is then stored to: seen when the folio, once clean, is next stored to without a write
//!   of the same thread explaining it. Likewise for all mappings on kernels before 6.12, which lack the page fault
//!   events ([`RangeSource::sees_mappings`]). The scrub finds these.
//! - ext4, needlessly: where a file grows from within a block by `ftruncate` or a write further on, the zeroing of that
//!   block's rest looks like a store. So do reading through a mapping, and a name clash with an inode of another
//!   partition of the same disk. The price is one verification, and write-backs from then on.
//! - ext4 before 6.14 raises its `fallocate` events before it takes the inode lock, so passing through the lock does not
//!   prove the effect. inotify's event follows it there.
//! - Persistent memory (DAX) and `data=journal` are refused.
//!
//! # Loss
//! A full ring drops events; [`ring`] says how that is noticed even if no further event comes. A CPU that comes online
//! is noticed within a second, and counts as a loss. What the interpreter keeps of the past has holes then, too: for a
//! minute every direct I/O that completes counts as a write; a mapping of which the sign was lost is as one that was made
//! before the source was opened.

mod coalesce;
mod device;
mod doorbell;
mod ext4;
mod folio;
mod interpret;
mod pages;
mod perf_event;
mod ring;
mod tracefs;
mod tracepoint;
mod xfs;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;

use self::device::{Device, Filesystem};
use self::doorbell::Doorbell;
use self::folio::Folios;
use self::interpret::{Interpreter, PASSES_MAX, Stores};
use self::perf_event::{PerfEvent, Wakes};
use self::ring::{Record, Ring};
use self::tracepoint::Tracepoint;
use super::{Event, LostReason, RING_MIN_BYTES, Source, Unavailable, WatchError, WatchLimits};

/// How often the set of online CPUs is looked at.
const CPUS_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest time that a direct write is believed to be under way, after which a loss of its beginning does not matter.
const DIRECT_WRITE_MAX: Duration = Duration::from_secs(60);

/// Exact byte ranges of every inode of one filesystem.
pub struct RangeSource {
    tracepoints: Vec<Tracepoint>,
    /// For a tracepoint's id, which of `tracepoints` its records are decoded by.
    decoders: Vec<(u16, Vec<usize>)>,
    limits: WatchLimits,
    cpus: Vec<Cpu>,
    /// Readable, once, after an event that wakes while somebody listens, or when a ring is half full.
    wakeups: Option<OwnedFd>,
    online: String,
    online_checked: Instant,
    interpreter: Interpreter,
    exact: bool,
    lost_at: Option<Instant>,
}

struct Cpu {
    number: u32,
    events: Vec<PerfEvent>,
    ring: Ring,
    doorbell: Option<Doorbell>,
    lost: u64,
}

impl RangeSource {
    /// Starts recording the filesystem that holds `root`.
    pub fn open(root: BorrowedFd<'_>, limits: &WatchLimits) -> Result<Self, Unavailable> {
        let device = Device::of(root)?;
        let tracefs = tracefs::locate().ok_or(Unavailable::NoTracefs)?;
        let (mut specs, stores) = match device.filesystem {
            Filesystem::Ext4 => (ext4::TRACEPOINTS.to_vec(), Stores::AreUnexplained),
            Filesystem::Xfs => (xfs::TRACEPOINTS.to_vec(), Stores::AreReported),
            Filesystem::Btrfs => (Vec::new(), Stores::CountAsWrites),
        };
        if device.filesystem == Filesystem::Xfs
            && tracefs::format_of(&tracefs, "iomap/iomap_zero_iter").is_none()
        {
            specs.extend_from_slice(xfs::WITHOUT_ZERO_ITER);
        }
        specs.extend_from_slice(pages::TRACEPOINTS);
        let tracepoints = tracepoint::resolve(&tracefs, &specs, &device)?;
        let mut decoders: Vec<(u16, Vec<usize>)> = Vec::new();
        for (index, tracepoint) in tracepoints.iter().enumerate() {
            match decoders.iter_mut().find(|(id, _)| *id == tracepoint.id) {
                Some((_, indices)) => indices.push(index),
                None => decoders.push((tracepoint.id, vec![index])),
            }
        }
        decoders.sort_unstable();
        let mut source = Self {
            tracepoints,
            decoders,
            limits: limits.clone(),
            cpus: Vec::new(),
            wakeups: None,
            online: String::new(),
            online_checked: Instant::now(),
            interpreter: Interpreter::new(Folios::here(), stores, limits),
            exact: device.filesystem != Filesystem::Btrfs,
            lost_at: None,
        };
        source.record()?;
        Ok(source)
    }

    /// Whether every change of bytes comes with its range. If not, ranges are only what inotify does not announce.
    pub fn is_exact(&self) -> bool {
        self.exact
    }

    /// Whether mappings are seen as they are made. Without that a store to a page that a write has dirtied goes unseen
    /// until the page is clean and stored to again.
    pub fn sees_mappings(&self) -> bool {
        self.tracepoints.iter().any(Tracepoint::shows_mappings)
    }

    /// Whether an event is queued.
    pub fn is_empty(&self) -> bool {
        self.cpus.iter().all(|cpu| cpu.ring.is_empty())
    }

    /// From when this returns an event that is worth waking for makes [`Source::pollable`] readable, until
    /// [`RangeSource::hush`]. Who has called this looks into the rings once more before he waits.
    pub fn listen(&self) -> Result<(), Unavailable> {
        self.doorbells().try_for_each(Doorbell::turn_on)
    }

    /// Who waited does not wait any more: CPUs that have woken him stop doing so.
    pub fn hush(&self) -> Result<(), Unavailable> {
        self.doorbells().try_for_each(Doorbell::turn_off_if_rung)
    }

    fn doorbells(&self) -> impl Iterator<Item = &Doorbell> {
        self.cpus.iter().filter_map(|cpu| cpu.doorbell.as_ref())
    }

    /// How many CPUs would wake who waits.
    #[cfg(test)]
    pub(in crate::watch) fn listening(&self) -> usize {
        self.doorbells().filter(|doorbell| doorbell.is_on()).count()
    }

    /// Opens every event on every CPU that is online, and lets go of those that were open.
    fn record(&mut self) -> Result<(), Unavailable> {
        let online = online_cpus()?;
        let numbers = parse_cpus(&online).ok_or(Unavailable::UnknownDevice)?;
        let mut ring_bytes = ring_bytes(&self.limits, numbers.len());
        self.cpus = loop {
            let cpus: Result<Vec<Cpu>, _> = numbers
                .iter()
                .map(|cpu| Cpu::open(*cpu, &self.tracepoints, &self.decoders, ring_bytes))
                .collect();
            match cpus {
                Err(Unavailable::Io { operation: "mapping a ring buffer", .. })
                    if ring_bytes > RING_MIN_BYTES =>
                {
                    ring_bytes /= 2;
                }
                other => break other?,
            }
        };
        self.online = online;
        self.wakeups = Some(wakeups(&self.cpus).map_err(Unavailable::io("epoll"))?);
        self.cpus.iter().flat_map(|cpu| &cpu.events).try_for_each(PerfEvent::enable)
    }

    fn check_cpus(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        if self.online_checked.elapsed() < CPUS_CHECK_INTERVAL {
            return Ok(());
        }
        self.online_checked = Instant::now();
        if online_cpus()? != self.online {
            events.push(Event::Lost(LostReason::CpusChanged));
            self.lost_at = Some(Instant::now());
            self.record()?;
        }
        Ok(())
    }
}

impl Source for RangeSource {
    fn name(&self) -> &'static str {
        "ranges"
    }

    fn drain(&mut self, events: &mut Vec<Event>) -> Result<(), WatchError> {
        for _ in 0..PASSES_MAX {
            let before = self.interpreter.doubts();
            let known = events.len();
            for cpu in &mut self.cpus {
                cpu.consume(&self.tracepoints, &self.decoders, &mut self.interpreter, events);
            }
            if events.len() > known {
                // Nothing but losses is told before the end of the drain.
                self.lost_at = Some(Instant::now());
            }
            let lost = self.lost_at.is_some_and(|at| at.elapsed() < DIRECT_WRITE_MAX);
            self.interpreter.set_direct_lost(lost);
            self.interpreter.settle_doubts(before);
            if self.interpreter.doubts() == 0 {
                break;
            }
        }
        self.interpreter.finish(events);
        if self.interpreter.take_dirtied() {
            self.cpus.iter().filter_map(|cpu| cpu.events.first()).for_each(PerfEvent::pass_cpu);
        }
        self.check_cpus(events)
    }

    fn pollable(&self) -> Vec<BorrowedFd<'_>> {
        self.wakeups.iter().map(AsFd::as_fd).collect()
    }
}

impl Cpu {
    fn open(
        number: u32,
        tracepoints: &[Tracepoint],
        decoders: &[(u16, Vec<usize>)],
        ring_bytes: usize,
    ) -> Result<Self, Unavailable> {
        let mut events = Vec::with_capacity(decoders.len());
        for (_, indices) in decoders {
            events.push(PerfEvent::open(&tracepoints[indices[0]], number, Wakes::HalfFull, None)?);
        }
        let lines = decoders.iter().map(|(_, indices)| &tracepoints[indices[0]]);
        let doorbell = Doorbell::open(number, lines.filter(|tracepoint| tracepoint.wakes))?;
        let ring = Ring::map(events[0].as_fd(), ring_bytes)?;
        events[1..].iter().try_for_each(|event| event.set_output(&events[0]))?;
        Ok(Self { number, events, ring, doorbell, lost: 0 })
    }

    fn consume(
        &mut self,
        tracepoints: &[Tracepoint],
        decoders: &[(u16, Vec<usize>)],
        interpreter: &mut Interpreter,
        events: &mut Vec<Event>,
    ) {
        let mut lost = 0;
        let mut undecodable = false;
        let consumed = self.ring.consume(|record| match record {
            Record::Sample(raw) => {
                let id = raw.first_chunk::<2>().map(|id| u16::from_ne_bytes(*id));
                let decoder = decoders.binary_search_by_key(&id, |(id, _)| Some(*id));
                let indices = decoder.map_or(&[][..], |found| &decoders[found].1);
                undecodable |= indices.is_empty();
                for index in indices {
                    match tracepoints[*index].decode(raw) {
                        Some(fact) => interpreter.observe(fact),
                        None => undecodable = true,
                    }
                }
            }
            Record::Lost(count) => lost += count.max(1),
            Record::Throttled => lost += 1,
        });
        let cpu = self.number;
        if consumed.malformed || undecodable {
            events.push(Event::Lost(LostReason::RingMalformed { cpu }));
        }
        if lost > 0 || consumed.suspicious {
            let counted: Option<u64> = self.events.iter().map(PerfEvent::lost).sum();
            // A record of a loss that was counted before is no news; a kernel that does not count has to be distrusted.
            let news = match counted {
                Some(counted) => counted.saturating_sub(std::mem::replace(&mut self.lost, counted)),
                None => lost.max(1),
            };
            if news > 0 {
                events.push(Event::Lost(LostReason::RingOverflow { cpu, lost: news }));
            }
        }
    }
}

/// One descriptor for the rings of all CPUs, of which there may be hundreds.
fn wakeups(cpus: &[Cpu]) -> io::Result<OwnedFd> {
    let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let rings = cpus.iter().filter_map(|cpu| cpu.events.first()).map(AsFd::as_fd);
    let doorbells = cpus.iter().filter_map(|cpu| cpu.doorbell.as_ref()).map(Doorbell::fd);
    for event in rings.chain(doorbells) {
        epoll::add(&all, event, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    }
    Ok(all)
}

fn ring_bytes(limits: &WatchLimits, cpus: usize) -> usize {
    let share = (limits.ring_bytes / cpus.max(1)).max(RING_MIN_BYTES).min(limits.ring_bytes_per_cpu);
    let share = share.max(folio::page_bytes());
    1 << share.ilog2()
}

fn online_cpus() -> Result<String, Unavailable> {
    fs::read_to_string("/sys/devices/system/cpu/online").map_err(Unavailable::io("reading the online CPUs"))
}

/// Parses a list such as `0-3,8`.
fn parse_cpus(text: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_lists_of_cpus() {
        assert_eq!(parse_cpus("0-2,8\n"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_cpus("0"), Some(vec![0]));
        assert_eq!(parse_cpus("a-b"), None);
    }

    #[test]
    fn a_ring_is_a_power_of_two_within_its_limits() {
        let limits = |ring_bytes, ring_bytes_per_cpu| WatchLimits {
            ring_bytes,
            ring_bytes_per_cpu,
            ..Default::default()
        };
        assert_eq!(ring_bytes(&limits(32 << 20, 4 << 20), 2), 4 << 20);
        assert_eq!(ring_bytes(&limits(32 << 20, 4 << 20), 12), 2 << 20);
        assert_eq!(ring_bytes(&limits(1 << 20, 4 << 20), 128), RING_MIN_BYTES);
        assert_eq!(ring_bytes(&limits(1 << 20, 4096), 1), 4096);
    }
}
