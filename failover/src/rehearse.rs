//! A test failover: a point is opened beside the running replication, a check runs against it, and the point says how that went.
//!
//! It is what a promotion does without the fence: the same choice, and the same copy where the whole of it is to be seen. A command sees
//! a writable mount instead, where there can be one: what it does not read is not fetched, and nothing is to be removed. The price is that it vouches for
//! what it has read and no more. The result is a tag of the point, so it is in the log and `points` shows it; a point with a tag is kept by retention.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use tidelock_proto::{PointId, Verdict, VolumeName, limits::TAG_MAX_BYTES};
use tidelock_receiver::reconcile::Report;

use crate::{
    access::Access,
    at::At,
    error::FailoverError,
    limits,
    mount::{MountOptions, Mounted, mount},
    report::PointReport,
    restore::{Event, RestoreOptions, millis, restore},
};

/// What to open, and how to check it.
#[derive(Debug, Clone)]
pub struct RehearseOptions {
    /// Which point.
    pub at: At,
    /// `latest` and times may mean a fuzzy point.
    pub accept_fuzzy: bool,
    /// Run by `/bin/sh -c` in the directory; without one, opening the point is the check.
    pub command: Option<String>,
    /// How long the command may take; then it is killed with all it started.
    pub timeout: Duration,
    /// The directory stays as the command left it, so the point is copied.
    pub keep: bool,
    /// The point is copied, though it could be mounted.
    pub copy: bool,
    /// The result is written on the point.
    pub record: bool,
    /// When the next test is due, counted from this one; status says when it is overdue.
    pub again: Option<Duration>,
}

/// How a test failover went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RehearseReport {
    /// `TENANT/NAME`.
    pub volume: String,
    /// The point.
    pub point: PointReport,
    /// Whether it can be started on, as far as was checked.
    pub passed: bool,
    /// How the command ended, in words; without one, that the point was opened.
    pub outcome: String,
    /// When, RFC 3339.
    pub time: String,
    /// Choosing the point, and mounting or writing it, in milliseconds.
    pub open_ms: f64,
    /// The command, in milliseconds.
    pub check_ms: f64,
    /// Both: what a failover to this point would have taken.
    pub rto_ms: f64,
    /// What was written on the point; nothing, if it was not asked for or the point has too many names.
    pub recorded: Option<String>,
    /// Where it was opened.
    pub directory: PathBuf,
    /// What was done to copy it; nothing, if it was mounted.
    pub work: Option<Report>,
    /// Why it was not mounted, if it should have been.
    pub mount_missed: Option<String>,
}

/// A point that can be used.
struct Opened {
    volume: String,
    point: PointReport,
    work: Option<Report>,
    mounted: Option<Mounted>,
    mount_missed: Option<String>,
}

/// Opens a point in `directory`, which must be absent or empty, checks it, records the result, and cleans up. That the check failed
/// is no error. Once `interrupted` answers `true` the command is killed; what was written is removed all the same.
pub fn rehearse(
    access: &Arc<Access>,
    volume: &VolumeName,
    directory: &Path,
    options: &RehearseOptions,
    events: &(dyn Fn(Event) + Sync),
    interrupted: &dyn Fn() -> bool,
) -> Result<RehearseReport, FailoverError> {
    let begun = Instant::now();
    let was_there = directory.exists();
    let done = open(access, volume, directory, options, events)?;
    let open_ms = millis(begun);
    let checked = match &options.command {
        None => Ok((true, "opened".to_owned())),
        Some(command) => {
            let limit = Limit { timeout: options.timeout, interrupted };
            check(command, &done.volume, &done.point, directory, &limit)
        }
    };
    let rto_ms = millis(begun);
    match done.mounted {
        // Whoever still uses it sees it no more.
        Some(mounted) => drop(mounted.end()?),
        None if options.keep => {}
        None => clean_up(directory, was_there).map_err(FailoverError::CleanUp)?,
    }
    if interrupted() {
        return Err(FailoverError::Interrupted);
    }
    let (passed, outcome) = checked.map_err(FailoverError::Check)?;
    let now = SystemTime::now();
    let time = humantime::format_rfc3339_seconds(now).to_string();
    let verdict = Verdict {
        time: now,
        outcome: if passed { Ok(rto_ms.round() as u64) } else { Err(outcome.clone()) },
        mounted: done.work.is_none(),
        again: options.again,
    };
    let recorded = match options.record {
        true => record_result(access, volume, &done.point, verdict)?,
        false => None,
    };
    Ok(RehearseReport {
        volume: done.volume,
        point: done.point,
        passed,
        outcome,
        time,
        open_ms,
        check_ms: rto_ms - open_ms,
        rto_ms,
        recorded,
        directory: directory.to_owned(),
        work: done.work,
        mount_missed: done.mount_missed,
    })
}

/// Mounts the point for a command, or writes all of it: without a command that is the check.
fn open(
    access: &Arc<Access>,
    volume: &VolumeName,
    directory: &Path,
    options: &RehearseOptions,
    events: &(dyn Fn(Event) + Sync),
) -> Result<Opened, FailoverError> {
    let mut mount_missed = None;
    if options.command.is_some() && !options.keep && !options.copy {
        let writable = MountOptions {
            at: options.at.clone(),
            accept_fuzzy: options.accept_fuzzy,
            writable: true,
            ..MountOptions::default()
        };
        match mount(access.clone(), None, volume, directory, &writable) {
            Ok(mounted) => {
                let report = mounted.report();
                return Ok(Opened {
                    volume: report.volume.clone(),
                    point: report.point.clone(),
                    work: None,
                    mounted: Some(mounted),
                    mount_missed: None,
                });
            }
            Err(FailoverError::Mount(error)) => mount_missed = Some(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let whole = RestoreOptions {
        at: options.at.clone(),
        accept_fuzzy: options.accept_fuzzy,
        ..RestoreOptions::default()
    };
    let done =
        restore(access, volume, directory, &whole, events).map_err(FailoverError::without_overwrite)?;
    Ok(Opened { volume: done.volume, point: done.point, work: Some(done.work), mounted: None, mount_missed })
}

/// Names a point by the result of a test, unless it has so many names that those people give would find no room. Tells what was
/// written: a name is one line, and not a long one.
pub fn record_result(
    access: &Access,
    volume: &VolumeName,
    point: &PointReport,
    mut verdict: Verdict,
) -> Result<Option<String>, FailoverError> {
    let Ok(id) = point.id.parse::<PointId>() else { return Ok(None) };
    let room = limits::RESULTS_PER_POINT.saturating_sub(point.tags.len());
    if room == 0 {
        return Ok(None);
    }
    // After the last one nobody hears of the next on this point, so none is announced: nothing is overdue that was only not written.
    verdict.again = verdict.again.filter(|_| room > 1);
    let mut line = String::new();
    for letter in verdict.to_string().chars().map(|letter| if letter.is_control() { ' ' } else { letter }) {
        if line.len() + letter.len_utf8() > TAG_MAX_BYTES {
            break;
        }
        line.push(letter);
    }
    access.tag(volume, id, &line)?;
    Ok(Some(line))
}

/// When a command is ended that does not end by itself.
struct Limit<'a> {
    timeout: Duration,
    interrupted: &'a dyn Fn() -> bool,
}

/// Runs the command in a process group of its own and waits for it.
fn check(
    command: &str,
    volume: &str,
    point: &PointReport,
    directory: &Path,
    limit: &Limit<'_>,
) -> io::Result<(bool, String)> {
    let directory = fs::canonicalize(directory)?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .current_dir(&directory)
        .env("TIDELOCK_VOLUME", volume)
        .env("TIDELOCK_POINT", &point.id)
        .env("TIDELOCK_DIR", &directory)
        .stdin(Stdio::null())
        // Its words are for people; standard output is the report's.
        .stdout(io::stderr())
        .process_group(0)
        .spawn()?;
    let begun = Instant::now();
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if begun.elapsed() >= limit.timeout || (limit.interrupted)() {
            break None;
        }
        thread::sleep(limits::CHECK_POLL);
    };
    // Whatever it left behind works on a directory that goes.
    end_group(&mut child)?;
    Ok(match ended {
        Some(status) => (status.success(), status.to_string()),
        None => (false, format!("not done after {}", humantime::format_duration(limit.timeout))),
    })
}

fn end_group(child: &mut Child) -> io::Result<()> {
    let group = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(group) = group {
        // Nobody may be left in it.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
    child.wait().map(drop)
}

/// Leaves the directory as it was found: absent, or empty.
fn clean_up(directory: &Path, was_there: bool) -> io::Result<()> {
    if !was_there {
        return fs::remove_dir_all(directory);
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == "lost+found" {
            continue;
        }
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    Ok(())
}
