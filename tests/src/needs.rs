//! What a test needs from the machine. On a developer's machine a test whose needs are not met is skipped with a
//! printed reason; where `CI=true` it fails, so that nothing is skipped unseen.

use std::{fs, path::Path};

/// Something the machine may lack.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    /// Mounting file systems, setting owners and making device nodes.
    Root,
    /// Tracepoints: CAP_PERFMON and a readable tracefs.
    Tracepoints,
    /// Root, and a kernel that mounts FUSE file systems.
    Fuse,
    /// PostgreSQL 15 and its tools.
    PostgreSql,
    /// A program in the path.
    Program(&'static str),
}

impl Need {
    /// Why the need is not met; `None` if it is.
    pub fn lacking(self) -> Option<String> {
        match self {
            Self::Root => (!is_root()).then(|| "not root".to_owned()),
            Self::Tracepoints => {
                let events = Path::new("/sys/kernel/tracing/events/writeback/writeback_dirty_folio/id");
                match fs::read(events) {
                    Ok(_) if is_root() => None,
                    Ok(_) => Some("not root, so no CAP_PERFMON is assumed".to_owned()),
                    Err(error) => Some(format!("{}: {error}", events.display())),
                }
            }
            Self::Fuse if !is_root() => Some("not root".to_owned()),
            Self::Fuse => {
                let opened = std::fs::File::options().read(true).write(true).open("/dev/fuse");
                opened.err().map(|error| format!("/dev/fuse: {error}"))
            }
            Self::PostgreSql => crate::pg::find_programs().err(),
            Self::Program(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                let found = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
                (!found).then(|| format!("no program {name} in PATH"))
            }
        }
    }
}

/// Whether all needs are met. Panics instead of returning false where `CI=true`.
pub fn met(needs: &[Need]) -> bool {
    let Some(reason) = needs.iter().find_map(|need| need.lacking()) else { return true };
    assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "this test must run in CI, but: {reason}");
    println!("SKIPPED: {reason}");
    false
}

/// Whether we run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
