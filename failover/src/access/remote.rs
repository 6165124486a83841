//! A running receiver, over QUIC, one stream a request.
//!
//! The runtime below has one thread, for the connection; callers block on it from their own threads. Everything that
//! comes is checked: a chunk against its id, a tree against its digest, an answer against the question.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use bytes::Bytes;
use tidelock_proto::{
    ChunkId, ChunkKey, Epoch, PointId, Tree, VolumeName, chunk,
    identity::Identity,
    point::Point,
    transport::{Connection, FrameReader, TransportError, close, connect},
    wire::{
        PROTOCOL_VERSION, WireError, chunk_from_wire, decode_ops,
        messages::{
            ChunksRequest, CloneRequest, DeleteRequest, FindRequest, ImageRequest, Open, OpenKind,
            OperatorReply, OperatorRequest, PlanRequest, PointName, PointsRequest, PromoteRequest,
            ReleaseRequest, ReplyKind, RequestKind, StatusRequest, StorePlan, TagRequest, TreeRequest,
            UsageRequest, VerifyRequest, VolumePlan, VolumeStatus,
        },
        point_from_wire, point_id_from_wire, point_id_to_wire,
    },
};
use tidelock_receiver::{
    history::{Found, Usage},
    image::Given,
    reconcile::{Chunks, ChunksError},
    retention::Policy,
    store::Named,
};
use tokio::runtime::{Builder, Runtime};

use super::{Deleted, Image, Live, Probe, Volume, chunk_ids};
use crate::{
    error::FailoverError,
    limits,
    verify::{Summary, Told},
};

/// `Failed.code`: the epoch is another than expected.
const CODE_EPOCH: u32 = 5;

type Result<T> = std::result::Result<T, FailoverError>;

pub(super) struct Remote {
    runtime: Runtime,
    connection: Connection,
    /// See [`super::Access::patient`].
    pub(super) patient: bool,
}

/// The chunks of one volume.
pub(super) struct RemoteChunks<'a> {
    remote: &'a Remote,
    volume: &'a VolumeName,
    key: ChunkKey,
}

impl Remote {
    pub(super) fn connect(address: &str, identity: &Path) -> Result<Self> {
        let identity = Identity::load(identity)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(FailoverError::Start)?;
        let connection = runtime.block_on(connect(address, &identity))?;
        Ok(Self { runtime, connection, patient: false })
    }

    /// Asks, and hands every reply before `Done` to `each`, which returns `false` to hear no more.
    fn ask(&self, kind: RequestKind, each: impl FnMut(ReplyKind) -> Result<bool>) -> Result<()> {
        self.runtime.block_on(async {
            self.exchange(kind, each).await.map_err(|error| match error {
                // A lost stream says little; the connection knows why.
                FailoverError::Frame(_) => match self.connection.close_reason() {
                    Some(reason) => reason.into(),
                    None => error,
                },
                error => error,
            })
        })
    }

    async fn exchange(
        &self,
        kind: RequestKind,
        mut each: impl FnMut(ReplyKind) -> Result<bool>,
    ) -> Result<()> {
        let (mut writer, mut reader) = self.connection.open().await?;
        let request = OperatorRequest { version: PROTOCOL_VERSION, patient: self.patient, kind: Some(kind) };
        writer.send(&Open { kind: Some(OpenKind::Request(request)) }).await?;
        writer.finish().await?;
        while let Some(reply) = next(&mut reader).await? {
            if !each(reply)? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn volumes(&self) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        self.ask(RequestKind::Status(StatusRequest {}), |reply| match reply {
            ReplyKind::Volume(status) => {
                volumes.push(volume(status)?);
                Ok(true)
            }
            _ => Err(FailoverError::Answer),
        })?;
        Ok(volumes)
    }

    pub(super) fn points(&self, name: &VolumeName, newest: Option<usize>) -> Result<Vec<Point>> {
        let mut points = Vec::new();
        let request = PointsRequest { volume: name.to_string(), newest: newest.unwrap_or(0) as u64 };
        self.ask(RequestKind::Points(request), |reply| match reply {
            ReplyKind::Points(batch) => {
                for point in batch.points {
                    points.push(point_from_wire(point)?);
                }
                Ok(true)
            }
            _ => Err(FailoverError::Answer),
        })?;
        Ok(points)
    }

    pub(super) fn tree(&self, name: &VolumeName, point: PointId) -> Result<Tree> {
        let mut tree = Tree::new();
        let request = TreeRequest { volume: name.to_string(), point: Some(point_id_to_wire(point)) };
        self.ask(RequestKind::Tree(request), |reply| match reply {
            ReplyKind::Tree(part) => {
                for op in decode_ops(part.ops)? {
                    tree.apply(&op)?;
                }
                Ok(true)
            }
            _ => Err(FailoverError::Answer),
        })?;
        tree.seal()?;
        Ok(tree)
    }

    pub(super) fn chunks<'a>(&'a self, volume: &'a VolumeName) -> RemoteChunks<'a> {
        RemoteChunks { remote: self, volume, key: ChunkKey::of_tenant(volume.tenant()) }
    }

    /// There is no question for "are they there" but asking for them, so only some are read, from all over the tree.
    pub(super) fn probe(&self, name: &VolumeName, tree: &Tree) -> Result<Probe> {
        let ids = chunk_ids(tree);
        let step = ids.len().div_ceil(limits::PROBE_CHUNKS).max(1);
        let ids: Vec<ChunkId> = ids.into_iter().step_by(step).collect();
        let mut read = 0;
        let count = |_, _| {
            read += 1;
            true
        };
        match self.chunks(name).ask(&ids, count) {
            Ok(()) | Err(FailoverError::Failed { .. } | FailoverError::Chunk(_)) => {
                Ok(Probe { looked_for: ids.len() as u64, missing: ids.len() as u64 - read })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn raise_epoch(
        &self,
        name: &VolumeName,
        expected: Epoch,
        base: Option<PointId>,
    ) -> Result<(Epoch, PointId)> {
        let base = base.map(point_id_to_wire);
        self.promote(
            name,
            PromoteRequest { volume: name.to_string(), base, expected_epoch: expected.0, planned: false },
        )
    }

    pub(super) fn move_away(&self, name: &VolumeName, expected: Epoch) -> Result<(Epoch, PointId)> {
        self.promote(
            name,
            PromoteRequest {
                volume: name.to_string(),
                base: None,
                expected_epoch: expected.0,
                planned: true,
            },
        )
    }

    fn promote(&self, name: &VolumeName, request: PromoteRequest) -> Result<(Epoch, PointId)> {
        let expected = Epoch(request.expected_epoch);
        let mut raised = None;
        let asked = self.ask(RequestKind::Promote(request), |reply| match reply {
            ReplyKind::Promoted(promoted) => {
                raised = Some((Epoch(promoted.epoch), point_id_from_wire(promoted.base)?));
                Ok(true)
            }
            _ => Err(FailoverError::Answer),
        });
        match asked {
            Err(FailoverError::Failed { code: CODE_EPOCH, .. }) => {
                Err(FailoverError::EpochMoved { volume: name.clone(), expected })
            }
            asked => asked.and_then(|()| raised.ok_or(FailoverError::Answer)),
        }
    }

    pub(super) fn image(&self, name: &VolumeName, release: bool) -> Result<Given> {
        let request = ImageRequest { volume: name.to_string(), release };
        let mut image = None;
        self.ask(RequestKind::Image(request), |reply| match reply {
            ReplyKind::Image(given) => {
                image = Some(Given {
                    path: OsStr::from_bytes(&given.path).into(),
                    device: given.device,
                    inode: given.inode,
                    point: point_id_from_wire(given.point)?,
                    root: decode_ops(given.root)?,
                });
                Ok(true)
            }
            _ => Err(FailoverError::Answer),
        })?;
        image.ok_or(FailoverError::Answer)
    }

    pub(super) fn verify(
        &self,
        name: Option<&VolumeName>,
        repair: bool,
        told: &mut dyn FnMut(Told),
    ) -> Result<Summary> {
        let request = VerifyRequest { volume: name.map(ToString::to_string), repair };
        let mut summary = None;
        self.ask(RequestKind::Verify(request), |reply| {
            match reply {
                ReplyKind::VerifyProgress(progress) => told(Told::Progress(progress)),
                ReplyKind::VerifyFinding(finding) => told(Told::Finding(finding)),
                ReplyKind::VerifySummary(end) => summary = Some(end),
                _ => return Err(FailoverError::Answer),
            }
            Ok(true)
        })?;
        summary.ok_or(FailoverError::Answer)
    }

    pub(super) fn plan(
        &self,
        name: Option<&VolumeName>,
        policy: Option<&Policy>,
        cap_bytes: Option<u64>,
    ) -> Result<(Vec<VolumePlan>, StorePlan)> {
        let (volume, keep) = (name.map(ToString::to_string), policy.map(ToString::to_string));
        let (mut volumes, mut store) = (Vec::new(), None);
        self.ask(RequestKind::Plan(PlanRequest { volume, keep, cap_bytes }), |reply| {
            match reply {
                ReplyKind::VolumePlan(plan) => volumes.push(plan),
                ReplyKind::StorePlan(plan) => store = Some(plan),
                _ => return Err(FailoverError::Answer),
            }
            Ok(true)
        })?;
        Ok((volumes, store.ok_or(FailoverError::Answer)?))
    }

    pub(super) fn find(
        &self,
        name: &VolumeName,
        pattern: &str,
        (first, last): (PointId, PointId),
        changes: bool,
        each: &mut dyn FnMut(Found) -> bool,
    ) -> Result<()> {
        let request = FindRequest {
            volume: name.to_string(),
            pattern: pattern.to_owned(),
            first: (first != PointId::default()).then(|| point_id_to_wire(first)),
            last: Some(point_id_to_wire(last)),
            changes,
        };
        self.ask(RequestKind::Find(request), |reply| match reply {
            ReplyKind::Found(found) => Ok(each(found.try_into()?)),
            _ => Err(FailoverError::Answer),
        })
    }

    pub(super) fn usage(&self, name: &VolumeName, point: Option<PointId>) -> Result<Usage> {
        let request = UsageRequest { volume: name.to_string(), point: point.map(point_id_to_wire) };
        let mut usage = None;
        self.ask(RequestKind::Usage(request), |reply| match reply {
            ReplyKind::Usage(found) => {
                usage = Some(found.into());
                Ok(true)
            }
            _ => Err(FailoverError::Answer),
        })?;
        usage.ok_or(FailoverError::Answer)
    }

    pub(super) fn clone_volume(&self, name: &VolumeName, point: PointId, to: &VolumeName) -> Result<Point> {
        let point = Some(point_id_to_wire(point));
        let request = CloneRequest { volume: name.to_string(), point, to: to.to_string() };
        let mut first = None;
        self.ask(RequestKind::Clone(request), |reply| match reply {
            ReplyKind::Cloned(point) => {
                first = Some(point_from_wire(point)?);
                Ok(true)
            }
            _ => Err(FailoverError::Answer),
        })?;
        first.ok_or(FailoverError::Answer)
    }

    pub(super) fn tag(&self, name: &VolumeName, point: PointId, tag: &str) -> Result<()> {
        let point = Some(point_id_to_wire(point));
        let request = TagRequest { volume: name.to_string(), point, tag: tag.to_owned() };
        self.ask(RequestKind::Tag(request), |_| Err(FailoverError::Answer))
    }

    pub(super) fn delete(&self, name: &VolumeName, expected: Epoch, force: bool) -> Result<Deleted> {
        let request = DeleteRequest { volume: name.to_string(), expected_epoch: expected.0, force };
        let mut deleted = None;
        let asked = self.ask(RequestKind::Delete(request), |reply| match reply {
            ReplyKind::Deleted(done) => {
                let (points, epoch) = (done.points, Epoch(done.epoch));
                deleted = Some(Deleted { points, epoch, freed_bytes: None });
                Ok(true)
            }
            _ => Err(FailoverError::Answer),
        });
        match asked {
            Err(FailoverError::Failed { code: CODE_EPOCH, .. }) => {
                Err(FailoverError::EpochMoved { volume: name.clone(), expected })
            }
            asked => asked.and_then(|()| deleted.ok_or(FailoverError::Answer)),
        }
    }

    pub(super) fn release(&self, name: &VolumeName, point: PointId) -> Result<()> {
        let request = ReleaseRequest { volume: name.to_string(), point: Some(point_id_to_wire(point)) };
        self.ask(RequestKind::Release(request), |_| Err(FailoverError::Answer))
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.connection.close(close::DONE, "done");
        self.runtime.block_on(self.connection.drained());
    }
}

impl RemoteChunks<'_> {
    fn ask(&self, ids: &[ChunkId], mut each: impl FnMut(usize, Bytes) -> bool) -> Result<()> {
        let mut at = 0;
        for batch in ids.chunks(limits::CHUNKS_PER_REQUEST) {
            let end = at + batch.len();
            let mut more = true;
            let joined = batch.iter().flat_map(|id| id.0).collect();
            let request = ChunksRequest { volume: self.volume.to_string(), ids: joined };
            self.remote.ask(RequestKind::Chunks(request), |reply| {
                let (ReplyKind::Chunk(chunk), Some(wanted)) = (reply, ids[..end].get(at)) else {
                    return Err(FailoverError::Answer);
                };
                let (id, codec, len, payload) = chunk_from_wire(chunk)?;
                if id != *wanted {
                    return Err(FailoverError::Answer);
                }
                let content = chunk::open_checked(&self.key, id, codec, len as usize, &payload)?;
                let content = match content {
                    std::borrow::Cow::Borrowed(_) => payload.clone(),
                    std::borrow::Cow::Owned(content) => content.into(),
                };
                more = each(at, content);
                at += 1;
                Ok(more)
            })?;
            if !more {
                break;
            }
            if at != end {
                return Err(FailoverError::Answer);
            }
        }
        Ok(())
    }
}

impl Chunks for RemoteChunks<'_> {
    fn fetch(
        &self,
        ids: &[ChunkId],
        each: &mut dyn FnMut(usize, Bytes) -> bool,
    ) -> std::result::Result<(), ChunksError> {
        Ok(self.ask(ids, each)?)
    }
}

/// The next reply, or nothing after `Done`.
async fn next(reader: &mut FrameReader) -> Result<Option<ReplyKind>> {
    let Some(reply) = reader.next::<OperatorReply>().await? else {
        return Err(TransportError::Reset.into());
    };
    match reply.kind.ok_or(WireError::Missing("reply"))? {
        ReplyKind::Done(_) => Ok(None),
        ReplyKind::Failed(failed) => Err(FailoverError::Failed { code: failed.code, reason: failed.reason }),
        reply => Ok(Some(reply)),
    }
}

fn volume(status: VolumeStatus) -> Result<Volume> {
    let verdict = status.tested.map(point_name).transpose()?;
    let instants = status.instants.into_iter().map(point_name).collect::<Result<_>>()?;
    // A result that this version cannot read is none.
    let verdict = verdict.and_then(|(point, name)| Some((point, name.parse().ok()?)));
    let named = Named { verdict, instants };
    Ok(Volume {
        name: status.volume.parse().map_err(|_| WireError::Bad("volume"))?,
        epoch: Epoch(status.epoch),
        promoted: status.promoted,
        last: status.last.map(point_from_wire).transpose()?,
        points: status.points,
        oldest_ns: status.oldest_ns,
        named,
        live: Some(Live {
            connected: status.connected,
            lag_ns: status.lag_ns,
            heartbeat: status.heartbeat,
            archive: status.archive,
            store_conditions: status.store_conditions,
            image: status.image.map(|state| {
                let point = status.image_point.and_then(|point| point_id_from_wire(Some(point)).ok());
                Image { state, point, failure: status.image_failure }
            }),
            throughput: status.content_bytes_per_s.zip(status.wire_bytes_per_s),
            inodes: status.inodes,
            data_bytes: status.data_bytes,
        }),
    })
}

fn point_name(named: PointName) -> Result<(PointId, String)> {
    Ok((point_id_from_wire(named.point)?, named.name))
}
