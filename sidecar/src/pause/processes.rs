//! Processes and threads as `/proc` shows them.

use std::{fs, io};

/// A process. Pid and start time together mean one process for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) pid: i32,
    pub(super) parent: i32,
    /// In clock ticks since the machine started.
    pub(super) started: u64,
    pub(super) name: String,
    zombie: bool,
}

/// What a process's threads are doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    Running,
    /// Every one is stopped by a signal, or by a tracer.
    Stopped,
    /// None is left that could run.
    Gone,
}

/// Every process that could run, in the order of their ids.
pub(super) fn all() -> io::Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        // Whoever is gone meanwhile is gone.
        seen.extend(pid.and_then(look));
    }
    seen.sort_unstable_by_key(|process: &Seen| process.pid);
    Ok(seen)
}

/// One process; `None` if there is none with that id that could run.
pub(super) fn look(pid: i32) -> Option<Seen> {
    let seen = parse(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)?;
    // The first thread may be gone while others run.
    let alone = || fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() <= 1);
    (!seen.zombie || !alone()).then_some(seen)
}

/// What the threads of a process do. Threads that end meanwhile do not count.
pub(super) fn threads(pid: i32) -> Threads {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Threads::Gone };
    let mut threads = Threads::Gone;
    for task in tasks.flatten() {
        let Ok(stat) = fs::read(task.path().join("stat")) else { continue };
        match after_name(&stat).and_then(|rest| rest.bytes().next()) {
            Some(b'T' | b't') => threads = Threads::Stopped,
            Some(b'Z' | b'X') | None => {}
            Some(_) => return Threads::Running,
        }
    }
    threads
}

fn parse(pid: i32, stat: &[u8]) -> Option<Seen> {
    let name = &stat[stat.iter().position(|byte| *byte == b'(')? + 1..];
    let name = &name[..name.iter().rposition(|byte| *byte == b')')?];
    let fields: Vec<&str> = after_name(stat)?.split_ascii_whitespace().collect();
    Some(Seen {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
        name: String::from_utf8_lossy(name).into_owned(),
        zombie: matches!(fields.first(), Some(&("Z" | "X"))),
    })
}

/// The fields behind the name, which may hold anything.
fn after_name(stat: &[u8]) -> Option<&str> {
    let end = stat.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(stat.get(end + 2..)?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let mut stat = b"77 (a) S 1 (b) T 5 ".to_vec();
        stat.extend(b"0 ".repeat(17));
        stat.extend(b"4242 0 0");
        let seen = parse(77, &stat).unwrap();
        assert_eq!((seen.name.as_str(), seen.parent, seen.started), ("a) S 1 (b", 5, 4242));
        assert_eq!(parse(77, b"77 (cut off"), None);
        assert_eq!(parse(77, b"77 (short) R 1 2"), None);
    }

    #[test]
    fn this_process_is_seen_running() {
        let me = std::process::id().try_into().unwrap();
        assert!(all().unwrap().iter().any(|seen| seen.pid == me));
        assert_eq!(threads(me), Threads::Running);
        assert_eq!(threads(i32::MAX), Threads::Gone);
    }
}
