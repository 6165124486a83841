//! Re-reading a store: what was looked at, and what is damaged.

use serde::Serialize;
use tidelock_proto::{
    VolumeName,
    wire::messages::{VerifyFinding, VerifyProgress, VerifySummary},
};

use crate::{access::Access, error::FailoverError};

/// What a verification has found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Intact records of the log.
    pub records: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Chunks that were opened and compared with their ids.
    pub chunks: u64,
    /// Volumes that were replayed.
    pub volumes: u64,
    /// Points that were replayed.
    pub points: u64,
    /// Checkpoints that were compared with their points.
    pub checkpoints: u64,
    /// Points that cannot be restored whole.
    pub damaged_points: u64,
    /// Chunks that sidecars have sent again, in a repair.
    pub resent_chunks: u64,
    /// Bytes of the log that were written again from the archive, in a repair.
    pub restored_bytes: u64,
    /// What is wrong, and what could not be looked at. Nothing, if the store is whole.
    pub findings: Vec<FindingReport>,
}

/// Something that is wrong, and what it touches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FindingReport {
    /// `log`, `chunk`, `lost-chunks`, `index` or `point`; or `locked`, which is no damage: a tenant was not looked at for want of its key.
    pub kind: String,
    /// In words.
    pub what: String,
    /// The segment of the log, if it is a place there.
    pub segment: Option<u32>,
    /// Where in the segment, in bytes.
    pub offset: Option<u64>,
    /// The volume it touches; none if it touches no point that was looked at.
    pub volume: Option<String>,
    /// The first point that cannot be restored whole.
    pub first: Option<String>,
    /// The last one.
    pub last: Option<String>,
    /// How many points cannot.
    pub points: u64,
    /// Checkpoints that cannot be used.
    pub checkpoints: u64,
    /// A file that is damaged in the first of these points.
    pub file: Option<String>,
}

impl FindingReport {
    /// Whether something is damaged; otherwise it could not be looked at.
    pub fn is_damage(&self) -> bool {
        self.kind != "locked"
    }
}

/// How far a verification has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyStep {
    /// Bytes of the log, of how many.
    Log(u64, u64),
    /// Points, of how many.
    Points(u64, u64),
}

/// Re-reads the whole log and replays one volume, or all that the operator may see. That damage was found is no error. With `repair` a
/// running receiver first fetches what is damaged from where it still is, and the report is of what is left.
pub fn verify(
    access: &Access,
    volume: Option<&VolumeName>,
    repair: bool,
    progress: &dyn Fn(VerifyStep),
) -> Result<VerifyReport, FailoverError> {
    if let Some(volume) = volume {
        access.volume(volume)?;
    }
    let mut report = VerifyReport::default();
    let summary = access.verify(volume, repair, &mut |told| match told {
        Told::Progress(at) if at.points => progress(VerifyStep::Points(at.done, at.total)),
        Told::Progress(at) => progress(VerifyStep::Log(at.done, at.total)),
        Told::Finding(finding) => report.findings.push(finding_report(finding)),
    })?;
    Ok(VerifyReport {
        records: summary.records,
        log_bytes: summary.log_bytes,
        chunks: summary.chunks,
        volumes: summary.volumes,
        points: summary.points,
        checkpoints: summary.checkpoints,
        damaged_points: summary.damaged_points,
        resent_chunks: summary.resent_chunks,
        restored_bytes: summary.restored_bytes,
        ..report
    })
}

/// What is told while it runs.
pub(crate) enum Told {
    Progress(VerifyProgress),
    Finding(VerifyFinding),
}

/// The end of it.
pub(crate) type Summary = VerifySummary;

fn finding_report(finding: VerifyFinding) -> FindingReport {
    let point = |id: Option<tidelock_proto::wire::messages::PointId>| {
        tidelock_proto::wire::point_id_from_wire(id).ok().map(|id| id.to_string())
    };
    FindingReport {
        kind: finding.kind,
        what: finding.what,
        segment: finding.segment,
        offset: finding.offset,
        volume: finding.volume,
        first: point(finding.first),
        last: point(finding.last),
        points: finding.points,
        checkpoints: finding.checkpoints,
        file: finding.file,
    }
}
