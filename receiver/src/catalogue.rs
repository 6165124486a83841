//! The catalogue: what the store knows of every volume, and what each record changes in it.
//!
//! There is one way for it to change, [`Catalogue::apply`], for a record that is being written and for one that is
//! read back; so a rebuilt catalogue cannot differ from the one that was lost. [`Catalogue::check`] is the store's own guard
//! (a lower epoch, a number that is not above the last, a point on another parent), behind the guards of the sessions.

use std::collections::HashMap;

use prost::Message;
use tidelock_proto::{
    Epoch, PointId, Seq, VolumeName,
    point::Point,
    wire::{self, messages},
};

use crate::{
    index::{Put, Table, key},
    limits,
    log::{
        Place,
        entry::{Fact, Kind, PlaceMessage},
    },
    store::StoreError,
};

/// What a name begins with that holds its point: it stays until somebody releases it. A commit cannot bring one.
pub const HOLD: &str = "held: ";

/// What the name begins with under which an instant promotion holds its point; its directory follows.
pub const INSTANT_HOLD: &str = "held: instant promotion in ";

/// Whether a name holds its point.
pub fn is_hold(tag: &str) -> bool {
    tag.starts_with(HOLD)
}

/// What is known of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The current epoch.
    pub epoch: Epoch,
    /// The point that the current epoch builds on; `None` if the volume began in this epoch.
    pub base: Option<PointId>,
    /// The newest point that a commit of the current epoch builds on: its own newest, or the base.
    pub last: Point,
    /// Whether the epoch was raised and no commit of it has come yet.
    pub promoted: bool,
    /// Points of all epochs.
    pub points: u64,
    /// When the oldest point was cut, in nanoseconds since 1970 by the source's clock.
    pub oldest_ns: u64,
    /// Operations since the newest checkpoint on the way to `last`, in bytes as they are encoded.
    pub replay_bytes: u64,
    /// Commits since then.
    pub replay_commits: u64,
    /// Length of the newest checkpoint's snapshot, in bytes.
    pub snapshot_bytes: u64,
    /// It was deleted: nothing is left but the epoch from which on it may begin anew.
    pub(crate) deleted: bool,
    /// The number of the last record that this takes into account.
    pub(crate) as_of: u64,
}

impl VolumeInfo {
    /// What is left of it when it is deleted: whoever wrote it is of a lower epoch.
    pub(crate) fn tombstone(&self) -> Self {
        let epoch = if self.deleted { self.epoch } else { self.epoch.next() };
        Self {
            epoch,
            base: None,
            promoted: false,
            points: 0,
            replay_bytes: 0,
            replay_commits: 0,
            snapshot_bytes: 0,
            deleted: true,
            ..self.clone()
        }
    }

    /// All points there were before it was deleted are up to this one, and none that came after.
    pub(crate) fn end_of_deleted(&self) -> PointId {
        PointId::new(Epoch(self.epoch.0.saturating_sub(1)), Seq(u64::MAX))
    }

    /// Whether opening `last` would replay more than a checkpoint costs.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        let replay = self.replay_bytes + self.replay_commits * limits::CHECKPOINT_COMMIT_BYTES;
        replay >= limits::CHECKPOINT_REPLAY_BYTES.max(self.snapshot_bytes)
    }

    /// The point that comes next, at least: a volume of a group leaves out the numbers it missed.
    pub fn next(&self) -> PointId {
        let own = self.last.id.epoch == self.epoch;
        PointId::new(self.epoch, if own { self.last.id.seq.next() } else { Seq(1) })
    }
}

/// What the index knew of the points of a record before it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// Of a new epoch: the point that it builds on.
    pub(crate) base: Option<Point>,
    /// Of a drop: the points there are in its runs. Of a journal: those that are not in its. Of the first commit of a volume that was deleted: those that are
    /// still there.
    pub(crate) gone: Vec<PointId>,
    /// Of a deletion: keys of what else was known of them.
    pub(crate) rest: Vec<Vec<u8>>,
    /// Of a release: the names that the point loses.
    pub(crate) released: Vec<String>,
}

impl Known {
    /// Takes what is gone out of the index.
    fn take_out(&self, volume: &VolumeName, puts: &mut Vec<Put>) {
        let spaces = [key::POINT, key::CHECKPOINT];
        let points = self.gone.iter().flat_map(|id| spaces.map(|space| key::point(space, volume, *id)));
        let keys = points.chain(self.rest.iter().cloned());
        puts.extend(keys.map(|key| Put { table: Table::Catalogue, key, value: None }));
    }
}

/// All volumes by name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Catalogue {
    volumes: HashMap<VolumeName, VolumeInfo>,
}

impl Catalogue {
    /// The volumes as the index has them.
    pub(crate) fn load(pairs: Vec<(Vec<u8>, Vec<u8>)>) -> Option<Self> {
        let volumes = pairs.into_iter().map(|(key, value)| {
            let volume = std::str::from_utf8(&key[1..]).ok()?.parse().ok()?;
            Some((volume, decode_info(&value)?))
        });
        Some(Self { volumes: volumes.collect::<Option<_>>()? })
    }

    /// A volume that is there.
    pub(crate) fn get(&self, volume: &VolumeName) -> Option<&VolumeInfo> {
        self.entry(volume).filter(|info| !info.deleted)
    }

    /// A volume that is there, or was deleted.
    pub(crate) fn entry(&self, volume: &VolumeName) -> Option<&VolumeInfo> {
        self.volumes.get(volume)
    }

    /// Of a volume that was deleted: no point that it had is beyond this one.
    pub(crate) fn end_of_deleted(&self, volume: &VolumeName) -> Option<PointId> {
        self.entry(volume).filter(|info| info.deleted).map(VolumeInfo::end_of_deleted)
    }

    /// All there are, and those that were deleted.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&VolumeName, &VolumeInfo)> {
        self.volumes.iter()
    }

    pub(crate) fn set(&mut self, volume: VolumeName, info: VolumeInfo) {
        self.volumes.insert(volume, info);
    }

    /// Whether a commit may follow.
    pub(crate) fn check_commit(&self, volume: &VolumeName, point: &Point) -> Result<(), StoreError> {
        let entry = self.entry(volume);
        if let Some(info) = entry.filter(|info| point.id.epoch < info.epoch) {
            return Err(StoreError::Fenced { volume: volume.clone(), epoch: info.epoch });
        }
        let Some(info) = entry.filter(|info| !info.deleted) else {
            let first = point.id.seq >= Seq(1) && point.id.epoch >= Epoch::FIRST && point.parent.is_none();
            let expected = PointId::new(point.id.epoch.max(Epoch::FIRST), Seq(1));
            return if first { Ok(()) } else { Err(out_of_order(volume, point, expected, None)) };
        };
        // A volume of a group may leave numbers out; whether it may now is the session's to know. So is whether it begins anew, upon nothing.
        let follows = point.parent.is_none_or(|parent| parent == info.last.id);
        if point.id < info.next() || point.id.epoch != info.epoch || !follows {
            return Err(out_of_order(volume, point, info.next(), Some(info.last.id)));
        }
        Ok(())
    }

    /// Whether the epoch may rise to `epoch`.
    pub(crate) fn check_epoch(
        &self,
        volume: &VolumeName,
        expected: Epoch,
        epoch: Epoch,
    ) -> Result<(), StoreError> {
        let info = self.get(volume).ok_or_else(|| StoreError::NoSuchVolume(volume.clone()))?;
        if info.epoch != expected || epoch <= info.epoch {
            return Err(StoreError::EpochMoved { volume: volume.clone(), expected, current: info.epoch });
        }
        Ok(())
    }

    /// Takes in record `number`, which is at `place`, and says what the index has to hold of it. A record that is already taken into account changes nothing, so a replay may begin too early.
    /// A record read back from a damaged log may not follow from the one before; it is taken as it is, and what is
    /// missing shows when a tree is asked for.
    pub(crate) fn apply(
        &mut self,
        number: u64,
        fact: &Fact,
        place: Place,
        known: &Known,
        puts: &mut Vec<Put>,
    ) {
        let placed = PlaceMessage::from(place).encode_to_vec();
        let mut put = |key, value| puts.push(Put { table: Table::Catalogue, key, value: Some(value) });
        let volume = match fact {
            Fact::Ops => return,
            Fact::Chunk { tenant, id, len } => {
                let value = PlaceMessage { content_len: *len, ..place.into() }.encode_to_vec();
                puts.push(Put { table: Table::Chunks, key: key::chunk(tenant, id), value: Some(value) });
                return;
            }
            Fact::Tag { volume, point, tag } => {
                put(key::tag(volume, *point, tag), Vec::new());
                return;
            }
            Fact::Release { volume, point } => {
                for tag in &known.released {
                    let key = key::tag(volume, *point, tag);
                    puts.push(Put { table: Table::Catalogue, key, value: None });
                }
                return;
            }
            Fact::Commit { volume, point, .. } => {
                known.take_out(volume, puts);
                let mut put =
                    |key, value| puts.push(Put { table: Table::Catalogue, key, value: Some(value) });
                put(key::point(key::POINT, volume, point.id), encode_point(place, point, None));
                // In the commit itself, so that it is never there without the names it was promised under.
                for tag in point.tags.iter().filter(|tag| !is_hold(tag)) {
                    put(key::tag(volume, point.id, tag), Vec::new());
                }
                volume
            }
            Fact::Merged { volume, point, on } => {
                let step = Merged { on: on.map(wire::point_id_to_wire) };
                put(key::point(key::POINT, volume, point.id), encode_point(place, point, Some(step)));
                for tag in point.tags.iter().filter(|tag| !is_hold(tag)) {
                    put(key::tag(volume, point.id, tag), Vec::new());
                }
                volume
            }
            Fact::Retired(retired) => {
                put(vec![key::RETIRED], retired.encode_to_vec());
                return;
            }
            Fact::Drop { volume, .. } | Fact::Journal { volume, .. } => {
                known.take_out(volume, puts);
                volume
            }
            Fact::Checkpoint { volume, point, .. } => {
                put(key::point(key::CHECKPOINT, volume, *point), placed);
                volume
            }
            Fact::Epoch { volume, .. } | Fact::Volume { volume, .. } => volume,
        };
        if self.entry(volume).is_some_and(|info| info.as_of >= number) {
            return;
        }
        match fact {
            Fact::Commit { point, ops_bytes, .. } => self.on_commit(volume, point, *ops_bytes),
            Fact::Checkpoint { point, snapshot_bytes, .. } => {
                self.on_checkpoint(volume, *point, *snapshot_bytes);
            }
            Fact::Epoch { epoch, .. } => self.on_epoch(volume, *epoch, known.base.clone()),
            Fact::Volume { info, .. } | Fact::Journal { info, .. } => {
                if let Some(info) = decode_info(info) {
                    self.volumes.insert(volume.clone(), info);
                }
            }
            Fact::Drop { count, oldest_ns, .. } => self.on_drop(volume, *count, *oldest_ns),
            Fact::Chunk { .. } | Fact::Ops | Fact::Merged { .. } | Fact::Retired(_) => {}
            Fact::Tag { .. } | Fact::Release { .. } => {}
        }
        if let Some(info) = self.volumes.get_mut(volume) {
            info.as_of = number;
            let value = Some(encode_info(info));
            puts.push(Put { table: Table::Catalogue, key: key::volume(volume), value });
        }
    }

    fn on_drop(&mut self, volume: &VolumeName, count: u64, oldest_ns: u64) {
        let Some(info) = self.volumes.get_mut(volume) else { return };
        info.points = info.points.saturating_sub(count);
        info.oldest_ns = oldest_ns;
    }

    /// The fence holds even if the base is not readable any more; then the epoch builds on what there is.
    fn on_epoch(&mut self, volume: &VolumeName, epoch: Epoch, base: Option<Point>) {
        let Some(info) = self.volumes.get_mut(volume) else { return };
        if let Some(base) = base {
            info.last = base;
        }
        info.epoch = info.epoch.max(epoch);
        info.base = Some(info.last.id);
        info.promoted = true;
    }

    fn on_commit(&mut self, volume: &VolumeName, point: &Point, ops_bytes: u64) {
        if self.get(volume).is_none() {
            // It begins, or begins anew.
            self.volumes.remove(volume);
        }
        let info = self.volumes.entry(volume.clone()).or_insert_with(|| VolumeInfo {
            epoch: point.id.epoch,
            base: None,
            last: point.clone(),
            promoted: false,
            points: 0,
            oldest_ns: point.cut.time_ns,
            replay_bytes: 0,
            replay_commits: 0,
            snapshot_bytes: 0,
            deleted: false,
            as_of: 0,
        });
        info.epoch = info.epoch.max(point.id.epoch);
        info.last = Point { tags: Vec::new(), ..point.clone() };
        info.promoted = false;
        info.points += 1;
        info.oldest_ns = info.oldest_ns.min(point.cut.time_ns);
        info.replay_bytes += ops_bytes;
        info.replay_commits += 1;
    }

    /// What was committed while the checkpoint was made is counted as not covered by it only roughly: by its distance.
    fn on_checkpoint(&mut self, volume: &VolumeName, point: PointId, snapshot_bytes: u64) {
        let Some(info) = self.volumes.get_mut(volume) else { return };
        info.snapshot_bytes = snapshot_bytes;
        if point.epoch != info.last.id.epoch || point > info.last.id {
            return;
        }
        let behind = info.last.id.seq.0 - point.seq.0;
        let rest = behind.min(info.replay_commits);
        info.replay_bytes = match info.replay_commits {
            0 => 0,
            commits => (u128::from(info.replay_bytes) * u128::from(rest) / u128::from(commits)) as u64,
        };
        info.replay_commits = rest;
    }
}

fn out_of_order(
    volume: &VolumeName,
    point: &Point,
    expected: PointId,
    parent: Option<PointId>,
) -> StoreError {
    StoreError::OutOfOrder { volume: volume.clone(), point: point.id, expected, parent }
}

/// A point in the index.
#[derive(Clone, PartialEq, Message)]
struct PointEntry {
    #[prost(message, optional, tag = "1")]
    place: Option<PlaceMessage>,
    #[prost(message, optional, tag = "2")]
    point: Option<messages::Point>,
    /// Only of a merged point.
    #[prost(message, optional, tag = "3")]
    merged: Option<Merged>,
}

/// What the operations of a merged point apply to; those of any other apply to its parent.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
struct Merged {
    #[prost(message, optional, tag = "1")]
    on: Option<messages::PointId>,
}

/// A point of the index, as far as its tree is concerned.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    /// Where its record is.
    pub(crate) place: Place,
    /// The kind of that record.
    pub(crate) kind: Kind,
    /// The point, without tags.
    pub(crate) point: Point,
    /// What its operations apply to; `None` is an empty tree or, if it has a checkpoint, that.
    pub(crate) on: Option<PointId>,
}

fn encode_point(place: Place, point: &Point, merged: Option<Merged>) -> Vec<u8> {
    PointEntry { place: Some(place.into()), point: Some(wire::point_to_wire(point)), merged }.encode_to_vec()
}

/// Reads a point of the index with what its operations apply to.
pub(crate) fn decode_step(value: &[u8]) -> Option<Step> {
    let entry = PointEntry::decode(value).ok()?;
    let (place, point) = (entry.place?.into(), wire::point_from_wire(entry.point?).ok()?);
    Some(match entry.merged {
        None => Step { place, kind: Kind::Commit, on: point.parent, point },
        Some(Merged { on: None }) => Step { place, kind: Kind::Merged, on: None, point },
        Some(Merged { on }) => {
            Step { place, kind: Kind::Merged, on: Some(wire::point_id_from_wire(on).ok()?), point }
        }
    })
}

/// Reads a point of the index: where its commit is, and itself without tags.
pub(crate) fn decode_point(value: &[u8]) -> Option<(Place, Point)> {
    decode_step(value).map(|step| (step.place, step.point))
}

/// Reads the length of a chunk's content from the index.
pub(crate) fn decode_content_len(value: &[u8]) -> Option<u32> {
    PlaceMessage::decode(value).ok().map(|place| place.content_len)
}

/// Reads a place of the index.
pub(crate) fn decode_place(value: &[u8]) -> Option<Place> {
    PlaceMessage::decode(value).ok().map(Place::from)
}

/// A volume in the index.
#[derive(Clone, PartialEq, Message)]
struct InfoEntry {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(message, optional, tag = "2")]
    base: Option<messages::PointId>,
    #[prost(message, optional, tag = "3")]
    last: Option<messages::Point>,
    #[prost(bool, tag = "4")]
    promoted: bool,
    #[prost(uint64, tag = "5")]
    points: u64,
    #[prost(fixed64, tag = "6")]
    oldest_ns: u64,
    #[prost(uint64, tag = "7")]
    replay_bytes: u64,
    #[prost(uint64, tag = "8")]
    replay_commits: u64,
    #[prost(uint64, tag = "9")]
    snapshot_bytes: u64,
    #[prost(uint64, tag = "10")]
    as_of: u64,
    #[prost(bool, tag = "11")]
    deleted: bool,
}

/// A volume as it is put into a log that begins with it.
pub(crate) fn encode_volume(info: &VolumeInfo) -> Vec<u8> {
    encode_info(&VolumeInfo { as_of: 0, ..info.clone() })
}

fn encode_info(info: &VolumeInfo) -> Vec<u8> {
    InfoEntry {
        epoch: info.epoch.0,
        base: info.base.map(wire::point_id_to_wire),
        last: Some(wire::point_to_wire(&info.last)),
        promoted: info.promoted,
        points: info.points,
        oldest_ns: info.oldest_ns,
        replay_bytes: info.replay_bytes,
        replay_commits: info.replay_commits,
        snapshot_bytes: info.snapshot_bytes,
        deleted: info.deleted,
        as_of: info.as_of,
    }
    .encode_to_vec()
}

fn decode_info(value: &[u8]) -> Option<VolumeInfo> {
    let entry = InfoEntry::decode(value).ok()?;
    Some(VolumeInfo {
        epoch: Epoch(entry.epoch),
        base: match entry.base {
            Some(base) => Some(wire::point_id_from_wire(Some(base)).ok()?),
            None => None,
        },
        last: wire::point_from_wire(entry.last?).ok()?,
        promoted: entry.promoted,
        points: entry.points,
        oldest_ns: entry.oldest_ns,
        replay_bytes: entry.replay_bytes,
        replay_commits: entry.replay_commits,
        snapshot_bytes: entry.snapshot_bytes,
        deleted: entry.deleted,
        as_of: entry.as_of,
    })
}

#[cfg(test)]
mod tests {
    use tidelock_proto::{
        TreeDigest,
        point::{Consistency, Cut},
    };

    use super::*;

    #[test]
    fn a_record_that_is_taken_in_twice_counts_once() {
        let volume: VolumeName = "t/a".parse().expect("valid");
        let cut = Cut {
            time_ns: 1,
            consistency: Consistency::Crash,
            tracker: String::new(),
            conditions: Vec::new(),
            rounds: 1,
            how: tidelock_proto::point::How::Optimistic,
            group: Vec::new(),
            digest: TreeDigest([1; 32]),
        };
        let id = PointId::new(Epoch(1), Seq(1));
        let point = Point { id, parent: None, cut, received_ns: 1, tags: Vec::new() };
        let fact = Fact::Commit { volume: volume.clone(), point, ops_bytes: 10 };
        let place = Place { segment: 1, offset: 1024, len: 9 };
        let (mut catalogue, mut puts) = (Catalogue::default(), Vec::new());
        catalogue.apply(7, &fact, place, &Known::default(), &mut puts);
        // The index may hold more than its mark says.
        let pair = |put: &Put| (put.key.clone(), put.value.clone().expect("nothing is removed"));
        let volumes = puts.iter().filter(|put| put.key[0] == key::VOLUME).map(pair).collect();
        let mut loaded = Catalogue::load(volumes).expect("loads");
        assert_eq!(loaded.get(&volume), catalogue.get(&volume));
        loaded.apply(7, &fact, place, &Known::default(), &mut puts);
        assert_eq!(loaded.get(&volume), catalogue.get(&volume));
        assert_eq!(catalogue.get(&volume).map(|info| (info.points, info.replay_bytes)), Some((1, 10)));
    }
}
