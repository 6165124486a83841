//! `tidelock seed`: what an old primary left, in a receiver; and `tidelock branches`, what was kept so.

use std::{path::PathBuf, time::Instant};

use serde::Serialize;
use tidelock_failover::{Access, At, Begun, PointReport, begin_branch, branches, check_old_primary, points};
use tidelock_proto::{Epoch, VolumeName, limits::EPOCH_MAX};
use tidelock_sidecar::{ImportConfig, Imported, Outcome, RunError, VolumeConfig, import};

use super::{
    exit::{Failure, REFUSED, USAGE},
    output,
    restore::warn_unseen,
    source::Source,
};

/// Import the directory of an old primary into a receiver, so that only what differs from it has to be sent there
///
/// The application and its sidecar must be stopped. The directory becomes the newest point of the volume in the epoch it was written in;
/// the receiver refuses that if it knows a newer epoch, or if the volume has a writer. With `--branch` it becomes a volume of its own,
/// which leaves this one at the last point that the old primary's epoch has: what it wrote after that is kept, and
/// `tidelock diff` shows it. The directory is only read. An interrupted import is continued by the same command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The directory of the old primary
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    #[command(flatten)]
    old: Old,
    /// Keep the directory as this new volume of the same tenant, a branch of the other
    #[arg(long, value_name = "TENANT/NAME")]
    branch: Option<VolumeName>,
    /// Where the branch leaves the volume, if not at the last point of the epoch
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true, requires = "branch")]
    at: Option<At>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

/// What is known of the old primary.
#[derive(Debug, clap::Args)]
pub(crate) struct Old {
    /// The epoch that the directory was written in: what the old primary's sidecar was started with
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=EPOCH_MAX))]
    pub(crate) epoch: u64,
    /// Names that are left out, as by the sidecar; may be given several times
    #[arg(long, value_name = "GLOB")]
    pub(crate) exclude: Vec<String>,
    /// Though processes have files open there
    #[arg(long)]
    pub(crate) force: bool,
}

/// A directory that was imported.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    volume: String,
    /// Where the volume leaves another one, if it is a branch.
    branch: Option<Begun>,
    directory: PathBuf,
    /// The directory as it was found.
    point: PointReport,
    read_bytes: u64,
    sent_bytes: u64,
    took_ms: f64,
}

/// List the branches and clones of a volume
#[derive(Debug, clap::Args)]
pub(crate) struct Branches {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    args.source.running()?;
    let openers = check_old_primary(&args.from, args.old.force).map_err(Failure::failover)?;
    let access = args.source.open()?;
    let directory = (&args.volume, &args.from);
    let report = match &args.branch {
        Some(branch) => keep(&access, &args.source, directory, &args.old, args.at.as_ref(), branch)?,
        None => seed(&access, &args.source, directory, &args.old)?,
    };
    if args.json {
        return Ok(output::json(&report)?);
    }
    report.print();
    warn_unseen(openers.unseen);
    Ok(())
}

pub(crate) fn run_branches(args: &Branches) -> Result<(), Failure> {
    let found = branches(&args.source.open()?, &args.volume).map_err(Failure::failover)?;
    if args.json {
        return Ok(output::json(&found)?);
    }
    let rows: Vec<_> = found
        .iter()
        .map(|branch| {
            let [base, last] = [branch.base.clone(), branch.last.id.clone()];
            [branch.branch.clone(), base, last, branch.last.time.clone(), branch.last.tags.join(", ")]
        })
        .collect();
    output::table(["BRANCH", "LEAVES AT", "NEWEST", "TIME", "TAGS"], &rows);
    Ok(())
}

/// Keeps a directory as a branch of its volume.
pub(crate) fn keep(
    access: &Access,
    source: &Source,
    (volume, directory): (&VolumeName, &PathBuf),
    old: &Old,
    at: Option<&At>,
    branch: &VolumeName,
) -> Result<Report, Failure> {
    let begun = begin_branch(access, volume, Epoch(old.epoch), at, branch).map_err(Failure::failover)?;
    // A branch has epochs of its own.
    let mut report = imported(access, source, (branch, directory), old, Epoch::FIRST)?;
    report.branch = Some(begun);
    Ok(report)
}

/// Makes a directory the newest point of its volume.
pub(crate) fn seed(
    access: &Access,
    source: &Source,
    directory: (&VolumeName, &PathBuf),
    old: &Old,
) -> Result<Report, Failure> {
    imported(access, source, directory, old, Epoch(old.epoch))
}

fn imported(
    access: &Access,
    source: &Source,
    (volume, directory): (&VolumeName, &PathBuf),
    old: &Old,
    epoch: Epoch,
) -> Result<Report, Failure> {
    let began = Instant::now();
    let (receiver, identity) = source.running()?;
    let config = ImportConfig {
        volume: VolumeConfig { name: volume.clone(), directory: directory.clone() },
        receiver: receiver.to_owned(),
        identity: identity.to_owned(),
        epoch,
        excludes: old.exclude.clone(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let ended = runtime.block_on(import(config));
    runtime.shutdown_background();
    let (outcome, Imported { read_bytes, sent_bytes }) = ended.map_err(|error| match error {
        RunError::Config(error) => Failure::new(USAGE, error),
        error @ RunError::Denied { .. } => Failure::new(REFUSED, error),
        error => error.into(),
    })?;
    match outcome {
        Outcome::Complete => {}
        Outcome::Fenced { volume, epoch: there } => {
            return Err(Failure::new(
                REFUSED,
                anyhow::anyhow!(
                    "volume {volume} is at epoch {there} there, which is newer than a directory of epoch {epoch}: keep it \
                     beside the volume with --branch, or seed the receiver that the new primary is to replicate to before it does"
                ),
            ));
        }
        Outcome::Superseded(volume) => {
            return Err(Failure::new(
                REFUSED,
                anyhow::anyhow!("a sidecar began to replicate volume {volume}"),
            ));
        }
        Outcome::Incomplete => return Err(anyhow::anyhow!("{} was taken away", directory.display()).into()),
    }
    let newest = || {
        let mut newest = points(access, volume, Some(1)).map_err(Failure::failover)?;
        newest.pop().ok_or_else(|| Failure::from(anyhow::anyhow!("volume {volume} has no point after all")))
    };
    let id = newest()?.id.parse().map_err(|_| anyhow::anyhow!("not a point"))?;
    // So that retention keeps it, and people find it.
    let tag = format!("old primary of epoch {} as found", old.epoch);
    access.tag(volume, id, &tag).map_err(Failure::failover)?;
    Ok(Report {
        volume: volume.to_string(),
        branch: None,
        directory: directory.clone(),
        point: newest()?,
        read_bytes,
        sent_bytes,
        took_ms: began.elapsed().as_secs_f64() * 1e3,
    })
}

impl Report {
    pub(crate) fn print(&self) {
        let what = if self.branch.is_some() { "kept" } else { "seeded" };
        let mut facts = vec![
            (what, format!("{} as {} {}", self.directory.display(), self.volume, self.point.id)),
            ("found at", format!("{} ({})", self.point.time, self.point.consistency)),
            ("read", output::bytes(self.read_bytes)),
            ("sent", output::bytes(self.sent_bytes)),
            ("took", output::duration(self.took_ms)),
        ];
        if let Some(branch) = &self.branch {
            facts.insert(1, ("branch of", format!("{} {}", branch.volume, branch.base.id)));
        }
        output::facts(&facts);
        if self.branch.is_some() {
            output::print(&format!(
                "\nWhat nobody else has of it: tidelock diff {} 1.1 {}",
                self.volume, self.point.id
            ));
        }
    }
}
