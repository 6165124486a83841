//! What the kernel says of a process.

use std::fs;

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
    let after = stat.rsplit_once(')').expect("the command ends with a parenthesis").1;
    let fields: Vec<&str> = after.split_ascii_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("ticks")).sum()
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
}
