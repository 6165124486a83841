//! Every cut and every pause, as the sidecar's `--trace-cuts` file tells them: one line
//! `EPOCH.SEQ CUT_NS ROUNDS TOOK_NS PAUSED_NS` each, with `-` for the point of a pause in which none was cut.

use std::{fs, path::Path, time::Duration};

use tidelock_proto::PointId;

/// A cut, or a pause in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// The point; `None` if the pause was in vain.
    pub id: Option<PointId>,
    /// The instant of the cut, in nanoseconds since 1970.
    pub cut_ns: u64,
    /// Rounds of capture.
    pub rounds: u32,
    /// From the first change to convergence.
    pub took: Duration,
    /// How long the application was paused; zero if it was not.
    pub paused: Duration,
}

/// All whole lines of the file.
pub fn read(path: &Path) -> Vec<Cut> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| parse(line).unwrap_or_else(|| panic!("not a cut: {line:?}"))).collect()
}

/// What no pause may exceed. Root's watchdog has real-time priority, so its bound is the kernel's promise; anybody else's may have to
/// wait for a processor.
pub fn longest_pause(limit: Duration) -> Duration {
    // SAFETY: plain system call.
    if unsafe { libc::geteuid() } == 0 { limit } else { limit * 2 }
}

fn parse(line: &str) -> Option<Cut> {
    let mut words = line.split(' ');
    let id = match words.next()? {
        "-" => None,
        id => Some(id.parse().ok()?),
    };
    let mut number = || words.next()?.parse::<u64>().ok();
    let (cut_ns, rounds, took, paused) = (number()?, number()?, number()?, number()?);
    let rounds = rounds.try_into().ok()?;
    Some(Cut { id, cut_ns, rounds, took: Duration::from_nanos(took), paused: Duration::from_nanos(paused) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_and_pauses_in_vain_are_told_apart() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        fs::write(file.path(), "1.7 100 3 2000 0\n- 200 0 0 50\n1.8 30").expect("writable");
        let cuts = read(file.path());
        assert_eq!(cuts.len(), 2);
        assert_eq!((cuts[0].rounds, cuts[0].took), (3, Duration::from_micros(2)));
        assert_eq!((cuts[1].id, cuts[1].paused), (None, Duration::from_nanos(50)));
    }
}
