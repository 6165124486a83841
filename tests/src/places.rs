//! Two places with a network between them that can be cut: network namespaces and a veth pair.
//!
//! A thread is in one place at a time, and so is every child that it starts there; sockets stay where they were made. The namespaces have
//! no names: they go with the last process that is there.

use std::{fs::File, os::fd::AsRawFd, process::Command};

use crate::process::run;

const LINK: &str = "between";

/// One of the two places.
pub struct Place {
    namespace: File,
    /// Its address, which the other one reaches as long as the network is whole.
    pub address: &'static str,
}

/// Both places.
pub struct Places {
    /// Where the primary is at first.
    pub home: Place,
    /// Where the standby is at first.
    pub away: Place,
}

impl Places {
    /// Two new places; this thread is in the second. Takes root.
    pub fn new() -> Self {
        let (home, away) = (Place::new("10.231.7.1"), Place::new("10.231.7.2"));
        let there = format!("/proc/{}/fd/{}", std::process::id(), home.namespace.as_raw_fd());
        run(ip(&["link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns"]).arg(there));
        for place in [&home, &away] {
            place.inside(|| {
                run(&mut ip(&["addr", "add", &format!("{}/24", place.address), "dev", LINK]));
                run(&mut ip(&["link", "set", LINK, "up"]));
            });
        }
        Self { home, away }
    }

    /// Cuts the network between the places, or heals it.
    pub fn set_whole(&self, whole: bool) {
        self.home.inside(|| run(ip(&["link", "set", LINK]).arg(if whole { "up" } else { "down" })));
    }
}

impl Default for Places {
    fn default() -> Self {
        Self::new()
    }
}

impl Place {
    fn new(address: &'static str) -> Self {
        // SAFETY: only this thread gets another network; no memory is involved.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(unshared, 0, "cannot unshare the network: {}", std::io::Error::last_os_error());
        run(&mut ip(&["link", "set", "lo", "up"]));
        Self { namespace: here(), address }
    }

    /// This thread, and what it starts from now on, is in this place.
    pub fn enter(&self) {
        enter(&self.namespace);
    }

    fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = here();
        self.enter();
        let done = work();
        enter(&before);
        done
    }

    /// Bytes that have left this place for the other one, with all that the network adds to them.
    pub fn sent_bytes(&self) -> u64 {
        let text = self.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"));
        let text = text.expect("the network has devices");
        let line = text.lines().find_map(|line| line.trim().strip_prefix("between:"));
        let counters = line.expect("it has this one").split_ascii_whitespace();
        counters.skip(8).map(|bytes| bytes.parse().expect("a counter")).next().expect("a ninth column")
    }
}

fn here() -> File {
    File::open("/proc/thread-self/ns/net").expect("a thread has a network")
}

fn enter(namespace: &File) {
    // SAFETY: plain system call on a descriptor that is open; it changes this thread alone.
    let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "cannot enter a place: {}", std::io::Error::last_os_error());
}

fn ip(arguments: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command.args(arguments);
    command
}
