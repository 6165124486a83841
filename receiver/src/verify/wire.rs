//! Findings as messages, for operators near and far.

use tidelock_proto::wire::{
    messages::{VerifyFinding, VerifyProgress, VerifySummary},
    point_id_to_wire,
};

use super::{Finding, Progress, Summary};

impl From<Progress> for VerifyProgress {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::Log { done, total } => Self { points: false, done, total },
            Progress::Points { done, total } => Self { points: true, done, total },
        }
    }
}

impl From<&Finding> for VerifyFinding {
    fn from(finding: &Finding) -> Self {
        let touched = finding.touched.clone().unwrap_or_default();
        let place = finding.fault.place();
        Self {
            kind: finding.fault.kind().to_owned(),
            what: finding.fault.to_string(),
            segment: place.map(|(segment, _)| segment),
            offset: place.map(|(_, offset)| offset),
            volume: finding.volume.as_ref().map(ToString::to_string),
            first: touched.points.map(|(first, _)| point_id_to_wire(first)),
            last: touched.points.map(|(_, last)| point_id_to_wire(last)),
            points: touched.count,
            checkpoints: touched.checkpoints,
            file: touched.file,
        }
    }
}

impl From<Summary> for VerifySummary {
    fn from(summary: Summary) -> Self {
        Self {
            records: summary.records,
            log_bytes: summary.log_bytes,
            chunks: summary.chunks,
            volumes: summary.volumes,
            points: summary.points,
            checkpoints: summary.checkpoints,
            damaged_points: summary.damaged_points,
            resent_chunks: summary.resent_chunks,
            restored_bytes: summary.restored_bytes,
        }
    }
}
