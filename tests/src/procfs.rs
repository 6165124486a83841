//! What the kernel says of a process.

use std::{fs, ops::Range};

/// Peak resident memory in bytes (`VmHWM`).
pub fn peak_memory_bytes(pid: u32) -> u64 {
    field(pid, "status", "VmHWM:") * 1024
}

/// Bytes that passed through its read calls so far, from page cache or disk (`rchar`).
pub fn read_bytes(pid: u32) -> u64 {
    field(pid, "io", "rchar:")
}

/// CPU time used so far, user and system, in clock ticks of 10 ms.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    ticks(&stat, 11..13)
}

/// CPU time used so far by a process and its children, those included that have ended, in clock ticks of 10 ms.
pub fn family_cpu_ticks(pid: u32) -> u64 {
    let living = children(pid).into_iter().map(|child| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat"));
        // One that has ended since is counted with its parent.
        stat.map_or(0, |stat| ticks(&stat, 11..13))
    });
    let living: u64 = living.sum();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    living + ticks(&stat, 11..15)
}

/// The sum of some of the fields that follow the command, counted from 0.
fn ticks(stat: &str, fields: Range<usize>) -> u64 {
    let after = stat.rsplit_once(')').expect("the command ends with a parenthesis").1;
    let all: Vec<&str> = after.split_ascii_whitespace().collect();
    all[fields].iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum()
}

/// The nice values of its threads.
pub fn nice_values(pid: u32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs").flatten();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let nice = |stat: String| stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(16)?.parse().ok();
    stats.filter_map(nice).collect()
}

/// Whether its first thread is stopped by a signal.
pub fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"))
}

/// Its children.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    texts
        .flat_map(|text| text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Sends a signal, to a process that a test knows to be its own.
pub fn signal(pid: u32, signal: i32) {
    let pid = i32::try_from(pid).expect("a process id is positive");
    // SAFETY: plain system call.
    unsafe { libc::kill(pid, signal) };
}

fn field(pid: u32, file: &str, key: &str) -> u64 {
    let path = format!("/proc/{pid}/{file}");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{path} has no {key}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn our_own_process_can_be_read() {
        let me = std::process::id();
        assert!(super::peak_memory_bytes(me) > 100 << 10);
        let before = super::read_bytes(me);
        std::fs::read("/proc/self/exe").expect("readable");
        assert!(super::read_bytes(me) > before + 1000);
        super::cpu_ticks(me);
    }

    #[test]
    fn children_that_have_ended_count() {
        let me = std::process::id();
        let before = super::family_cpu_ticks(me);
        let mut busy = std::process::Command::new("sh");
        let status = busy.args(["-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"]).status();
        assert!(status.expect("there is a shell").success());
        assert!(super::family_cpu_ticks(me) > before);
    }
}
