//! Acknowledged points, as the sidecar's `--trace-acks` file tells them: one line `EPOCH.SEQ CUT_NS ACK_NS` each.
//! What stands here was promised to be durable.

use std::{fs, path::Path};

use tidelock_proto::PointId;

/// An acknowledged point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The point.
    pub id: PointId,
    /// The instant of its cut, in nanoseconds since 1970.
    pub cut_ns: u64,
    /// When the sidecar received the acknowledgement, in nanoseconds since 1970.
    pub ack_ns: u64,
}

/// All whole lines of the file; a line torn by a SIGKILL is no promise.
pub fn read(path: &Path) -> Vec<Ack> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(parse).collect()
}

/// How long after `from_ns` the sidecar knew everything up to `from_ns` to be durable. `acks` in order of their cuts.
pub fn lag_ns(acks: &[Ack], from_ns: u64) -> Option<u64> {
    let first = acks.partition_point(|ack| ack.cut_ns < from_ns);
    acks.get(first).map(|ack| ack.ack_ns.saturating_sub(from_ns))
}

fn parse(line: &str) -> Option<Ack> {
    let mut words = line.split(' ');
    let ack = Ack {
        id: words.next()?.parse().ok()?,
        cut_ns: words.next()?.parse().ok()?,
        ack_ns: words.next()?.parse().ok()?,
    };
    words.next().is_none().then_some(ack)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_is_no_promise() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        fs::write(file.path(), "1.1 100 150\n1.2 200 260\n1.3 300 3").expect("writable");
        let acks = read(file.path());
        assert_eq!(acks.len(), 2);
        assert_eq!(lag_ns(&acks, 100), Some(50));
        assert_eq!(lag_ns(&acks, 101), Some(159));
        assert_eq!(lag_ns(&acks, 201), None);
    }
}
