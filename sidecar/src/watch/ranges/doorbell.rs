//! Wakes who waits, and costs nothing while nobody does.
//!
//! A record that wakes makes its CPU interrupt itself, inside the application's system call: some 8 µs on a virtual machine,
//! and pgbench dirties five clean pages in a transaction. So the events that are read wake nobody. What is worth waking
//! for is opened once more, as the doorbell of its CPU, with a ring of its own that is overwritten and never read:
//!
//! ```text
//! off ──turn_on, before a wait──▶ on ──turn_off_if_rung, after any wait──▶ off
//! ```
//! Whether it has rung is seen in memory, without a system call: the position in its ring has moved. Under a load that never
//! lets the cutter wait it stays off.
//!
//! A record that is being written on one CPU while its doorbell is turned on from another may neither be seen by who looks
//! into the rings next, nor ring. It is found by the next look of [`wait_any`](super::super::wait_any), like all that wakes nobody.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use perf_event_open_sys::bindings;

use super::super::Unavailable;
use super::folio::page_bytes;
use super::perf_event::{PerfEvent, Wakes};
use super::tracepoint::Tracepoint;

/// What wakes on one CPU.
pub(super) struct Doorbell {
    leader: PerfEvent,
    /// On and off with the leader, so that either takes one interrupt of the CPU.
    _others: Vec<PerfEvent>,
    map: MmapRaw,
    on: Cell<bool>,
    /// The position in the ring when it was last turned on or off.
    heard: Cell<u64>,
}

impl Doorbell {
    /// Opens the doorbell of a CPU, turned off; `None` if nothing is worth waking for.
    pub(super) fn open<'a>(
        cpu: u32,
        mut tracepoints: impl Iterator<Item = &'a Tracepoint>,
    ) -> Result<Option<Self>, Unavailable> {
        let Some(first) = tracepoints.next() else { return Ok(None) };
        let leader = PerfEvent::open(first, cpu, Wakes::AtOnce, None)?;
        // A mapping that cannot be written to has the kernel write over what nobody has read.
        let map = MmapOptions::new()
            .len(2 * page_bytes())
            .map_raw_read_only(leader.as_fd().as_raw_fd())
            .map_err(Unavailable::io("mapping a ring buffer"))?;
        let others = tracepoints.map(|tracepoint| {
            let event = PerfEvent::open(tracepoint, cpu, Wakes::AtOnce, Some(&leader))?;
            event.set_output(&leader).map(|()| event)
        });
        let others = others.collect::<Result<_, _>>()?;
        Ok(Some(Self { leader, _others: others, map, on: Cell::new(false), heard: Cell::new(0) }))
    }

    /// From when this returns the next event wakes who polls [`Doorbell::fd`].
    pub(super) fn turn_on(&self) -> Result<(), Unavailable> {
        if !self.on.replace(true) {
            self.heard.set(self.position());
            self.leader.enable()?;
        }
        Ok(())
    }

    /// Turns it off, if there was an event since it was turned on.
    pub(super) fn turn_off_if_rung(&self) -> Result<(), Unavailable> {
        if self.on.get() && self.position() != self.heard.get() {
            self.on.set(false);
            self.leader.disable()?;
        }
        Ok(())
    }

    /// Readable, once, after an event while it is on.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.leader.as_fd()
    }

    #[cfg(test)]
    pub(super) fn is_on(&self) -> bool {
        self.on.get()
    }

    fn position(&self) -> u64 {
        let offset = std::mem::offset_of!(bindings::perf_event_mmap_page, data_head);
        // SAFETY: an aligned u64 in the header page, which lives as long as the mapping; the kernel writes it, nobody here does.
        unsafe { &*self.map.as_ptr().add(offset).cast::<AtomicU64>() }.load(Ordering::Acquire)
    }
}
