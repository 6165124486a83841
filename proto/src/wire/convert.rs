//! Messages to types of the model and back. Decoding checks; encoding cannot fail.

use bytes::Bytes;

use super::{WireError, messages};
use crate::{
    chunk::Codec,
    ids::{ChunkId, Epoch, PointId, Seq, TreeDigest},
    limits,
    point::{Consistency, Cut, How, Point},
};

/// A point's identity as a message.
pub fn point_id_to_wire(id: PointId) -> messages::PointId {
    messages::PointId { epoch: id.epoch.0, seq: id.seq.0 }
}

/// Reads a point's identity; zero is neither an epoch nor a number.
pub fn point_id_from_wire(id: Option<messages::PointId>) -> Result<PointId, WireError> {
    let id = id.ok_or(WireError::Missing("point"))?;
    if id.epoch == 0 || id.seq == 0 {
        return Err(WireError::Bad("point"));
    }
    Ok(PointId::new(Epoch(id.epoch), Seq(id.seq)))
}

/// Reads a tree digest.
pub fn digest_from_wire(bytes: &[u8]) -> Result<TreeDigest, WireError> {
    TreeDigest::from_slice(bytes).ok_or(WireError::Bad("digest"))
}

/// A cut as a message.
pub fn cut_to_wire(cut: &Cut) -> messages::Cut {
    messages::Cut {
        time_ns: cut.time_ns,
        consistency: match cut.consistency {
            Consistency::Crash => 1,
            Consistency::App => 2,
            Consistency::Fuzzy => 3,
        },
        tracker: cut.tracker.clone(),
        conditions: cut.conditions.clone(),
        rounds: cut.rounds,
        digest: Bytes::copy_from_slice(&cut.digest.0),
        how: match cut.how {
            How::Optimistic => 0,
            How::Pause => 1,
            How::Hooks => 2,
        },
        group: cut.group.iter().map(ToString::to_string).collect(),
    }
}

/// Reads a cut.
pub fn cut_from_wire(cut: Option<messages::Cut>) -> Result<Cut, WireError> {
    let cut = cut.ok_or(WireError::Missing("cut"))?;
    let short = |text: &String| text.len() <= limits::TEXT_MAX_BYTES;
    if !short(&cut.tracker) || cut.conditions.len() > limits::TAGS_MAX || !cut.conditions.iter().all(short) {
        return Err(WireError::TooMany("conditions"));
    }
    if cut.group.len() > limits::GROUP_VOLUMES_MAX {
        return Err(WireError::TooMany("volumes of a group"));
    }
    Ok(Cut {
        time_ns: cut.time_ns,
        consistency: match cut.consistency {
            1 => Consistency::Crash,
            2 => Consistency::App,
            3 => Consistency::Fuzzy,
            _ => return Err(WireError::Bad("consistency")),
        },
        tracker: cut.tracker,
        conditions: cut.conditions,
        rounds: cut.rounds,
        digest: digest_from_wire(&cut.digest)?,
        how: match cut.how {
            0 => How::Optimistic,
            1 => How::Pause,
            2 => How::Hooks,
            _ => return Err(WireError::Bad("how")),
        },
        group: cut
            .group
            .iter()
            .map(|name| name.parse().map_err(|_| WireError::Bad("volume of a group")))
            .collect::<Result<_, _>>()?,
    })
}

/// Reads the names of a point.
pub fn tags_from_wire(tags: Vec<String>) -> Result<Vec<String>, WireError> {
    if tags.len() > limits::TAGS_MAX {
        return Err(WireError::TooMany("tags"));
    }
    if tags.iter().any(|tag| !is_tag(tag)) {
        return Err(WireError::Bad("tag"));
    }
    Ok(tags)
}

/// Whether a point may have this name: not empty, not too long, no control characters.
pub fn is_tag(tag: &str) -> bool {
    !tag.is_empty() && tag.len() <= limits::TAG_MAX_BYTES && !tag.chars().any(char::is_control)
}

/// A recovery point as a message.
pub fn point_to_wire(point: &Point) -> messages::Point {
    messages::Point {
        id: Some(point_id_to_wire(point.id)),
        parent: point.parent.map(point_id_to_wire),
        cut: Some(cut_to_wire(&point.cut)),
        received_ns: point.received_ns,
        tags: point.tags.clone(),
    }
}

/// Reads a recovery point.
pub fn point_from_wire(point: messages::Point) -> Result<Point, WireError> {
    if point.tags.len() > limits::TAGS_MAX {
        return Err(WireError::TooMany("tags"));
    }
    Ok(Point {
        id: point_id_from_wire(point.id)?,
        parent: point.parent.map(|parent| point_id_from_wire(Some(parent))).transpose()?,
        cut: cut_from_wire(point.cut)?,
        received_ns: point.received_ns,
        tags: point.tags,
    })
}

/// A chunk as a message; `len` is that of its content.
pub fn chunk_to_wire(id: ChunkId, codec: Codec, len: u32, payload: Bytes) -> messages::Chunk {
    messages::Chunk { id: Bytes::copy_from_slice(&id.0), codec: codec as u32, len, payload }
}

/// Reads a chunk's frame. The payload is not opened: see [`crate::chunk::open_checked`].
pub fn chunk_from_wire(chunk: messages::Chunk) -> Result<(ChunkId, Codec, u32, Bytes), WireError> {
    let id = ChunkId::from_slice(&chunk.id).ok_or(WireError::Bad("chunk id"))?;
    let codec = Codec::from_number(chunk.codec).ok_or(WireError::Bad("chunk codec"))?;
    if !(1..=limits::CHUNK_MAX_BYTES).contains(&(chunk.len as usize)) {
        return Err(WireError::Bad("chunk length"));
    }
    Ok((id, codec, chunk.len, chunk.payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_cut_was_taken_is_kept_and_an_unknown_way_is_refused() {
        let digest = Bytes::from_static(&[7; 32]);
        let wire = |how| messages::Cut { consistency: 1, digest: digest.clone(), how, ..Default::default() };
        for (number, how) in [(0, How::Optimistic), (1, How::Pause), (2, How::Hooks)] {
            let cut = cut_from_wire(Some(wire(number))).expect("known");
            assert_eq!((cut.how, cut_to_wire(&cut).how), (how, number));
        }
        assert!(cut_from_wire(Some(wire(9))).is_err());
    }
}
