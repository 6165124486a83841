//! A thin layer over `perf_event_open`: one event, for every process, on one CPU.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use perf_event_open_sys::{bindings, ioctls, perf_event_open};

use super::super::Unavailable;
use super::tracepoint::Tracepoint;

/// When a record makes the event's descriptor readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wakes {
    /// Each one, at once.
    AtOnce,
    /// When the ring is half full.
    HalfFull,
}

/// An open tracepoint.
pub(super) struct PerfEvent {
    fd: OwnedFd,
    counts_lost: bool,
}

impl PerfEvent {
    /// Opens a tracepoint for all processes on `cpu`; it is not enabled yet. With a leader it is enabled and disabled with that.
    pub(super) fn open(
        tracepoint: &Tracepoint,
        cpu: u32,
        wakes: Wakes,
        leader: Option<&Self>,
    ) -> Result<Self, Unavailable> {
        let open = |counts_lost| {
            open(tracepoint, cpu, wakes, leader, counts_lost).map(|fd| Self { fd, counts_lost })
        };
        let event = match open(true) {
            // Kernels before 6.0 do not count what they lose.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => open(false),
            other => other,
        };
        let event = event.map_err(Unavailable::io("perf_event_open"))?;
        let filter = CString::new(tracepoint.filter.as_str()).expect("filters are built without NUL");
        // SAFETY: the kernel copies the string and does not write to it.
        let result = unsafe { ioctls::SET_FILTER(event.fd.as_raw_fd(), filter.as_ptr().cast_mut()) };
        check(result, "PERF_EVENT_IOC_SET_FILTER")?;
        Ok(event)
    }

    /// Sends this event's records to another's ring.
    pub(super) fn set_output(&self, leader: &Self) -> Result<(), Unavailable> {
        // SAFETY: takes two descriptors, both open.
        check(
            unsafe { ioctls::SET_OUTPUT(self.fd.as_raw_fd(), leader.fd.as_raw_fd()) },
            "PERF_EVENT_IOC_SET_OUTPUT",
        )
    }

    /// From when this returns the event is recorded.
    pub(super) fn enable(&self) -> Result<(), Unavailable> {
        // SAFETY: takes a descriptor, which is open.
        check(unsafe { ioctls::ENABLE(self.fd.as_raw_fd(), 0) }, "PERF_EVENT_IOC_ENABLE")
    }

    /// From when this returns the event is not recorded any more.
    pub(super) fn disable(&self) -> Result<(), Unavailable> {
        // SAFETY: takes a descriptor, which is open.
        check(unsafe { ioctls::DISABLE(self.fd.as_raw_fd(), 0) }, "PERF_EVENT_IOC_DISABLE")
    }

    /// Waits until the CPU takes interrupts: what it did with interrupts disabled when it raised a record that was seen is done.
    /// Reading a counter asks the CPU itself, by an interrupt, and waits for its answer.
    pub(super) fn pass_cpu(&self) {
        let mut counters = [0u8; 16];
        let _ = rustix::io::read(&self.fd, &mut counters);
    }

    /// How many records were dropped so far because the ring was full; `None` if the kernel does not count them.
    pub(super) fn lost(&self) -> Option<u64> {
        let mut counters = [0u8; 16];
        let read = self.counts_lost && matches!(rustix::io::read(&self.fd, &mut counters), Ok(16));
        let lost = u64::from_ne_bytes(counters[8..].try_into().expect("8 bytes of 16"));
        read.then_some(lost)
    }
}

impl AsFd for PerfEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn open(
    tracepoint: &Tracepoint,
    cpu: u32,
    wakes: Wakes,
    leader: Option<&PerfEvent>,
    counts_lost: bool,
) -> io::Result<OwnedFd> {
    let mut attr = bindings::perf_event_attr::default();
    attr.type_ = bindings::PERF_TYPE_TRACEPOINT;
    attr.size = size_of::<bindings::perf_event_attr>() as u32;
    attr.config = u64::from(tracepoint.id);
    attr.sample_type = u64::from(bindings::PERF_SAMPLE_RAW);
    attr.read_format = if counts_lost { u64::from(bindings::PERF_FORMAT_LOST) } else { 0 };
    attr.sample_period = 1;
    // None means: at the kernel's watermark, which is half of the ring.
    attr.wakeup_events = u32::from(wakes == Wakes::AtOnce);
    attr.set_disabled(u64::from(leader.is_none()));
    let leader = leader.map_or(-1, |leader| leader.fd.as_raw_fd());
    let cpu = i32::try_from(cpu).map_err(io::Error::other)?;
    // SAFETY: the attributes are initialised and their size is given.
    let fd =
        unsafe { perf_event_open(&mut attr, -1, cpu, leader, u64::from(bindings::PERF_FLAG_FD_CLOEXEC)) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: i32, operation: &'static str) -> Result<(), Unavailable> {
    if result < 0 {
        return Err(Unavailable::io(operation)(io::Error::last_os_error()));
    }
    Ok(())
}
