//! What a sidecar is told to do, and what is wrong with it.

use std::{
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tidelock_proto::{Epoch, VolumeName, identity::IdentityFileError, limits::GROUP_VOLUMES_MAX};

use crate::{
    ExcludeError, Excludes, ScrubConfig,
    capture::VolumeError,
    hooks::HookConfig,
    limits::{self, PAUSE_LIMIT_MAX, PAUSE_LIMIT_MIN},
    pause::{Escalate, PauseConfig, SelectError},
    watch::{NamesChoice, TrackerChoice},
};

/// One volume and where it is.
#[derive(Debug, Clone)]
pub struct VolumeConfig {
    /// Its name on the receiver.
    pub name: VolumeName,
    /// The directory that is protected.
    pub directory: PathBuf,
}

/// A pattern of names to leave out, of one volume or of all: see [`crate::Excludes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exclude {
    /// The volume, if it is only one.
    pub volume: Option<VolumeName>,
    /// The pattern.
    pub glob: String,
}

/// Everything a sidecar needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// What is protected; at least one.
    pub volumes: Vec<VolumeConfig>,
    /// `HOST:PORT` of the receiver.
    pub receiver: String,
    /// Directory with `tls.crt`, `tls.key`, `ca.crt`.
    pub identity: PathBuf,
    /// The writer epoch this sidecar was given.
    pub epoch: Epoch,
    /// The epoch was granted by a promotion at another receiver than the one streamed to, or of another volume of the
    /// group: the receiver raises its own.
    pub raise_epoch: bool,
    /// Which event sources to use.
    pub tracker: TrackerChoice,
    /// Where names come from.
    pub names: NamesChoice,
    /// Where health, metrics and status are served.
    pub http: SocketAddr,
    /// Written once the addresses are bound.
    pub port_file: Option<PathBuf>,
    /// One line for each acknowledged point: `EPOCH.SEQ CUT_NS ACK_NS`.
    pub trace_acks: Option<PathBuf>,
    /// One line for each cut: see [`crate::status::Status::trace_cuts`].
    pub trace_cuts: Option<PathBuf>,
    /// How long a cut is tried before it counts as overdue and is escalated.
    pub cut_deadline: Duration,
    /// What is done about an overdue cut.
    pub escalate: Escalate,
    /// Who is ended when this writer is fenced, and stopped for a planned move.
    pub on_fence: Option<PauseConfig>,
    /// Shortest time between the beginnings of two cuts.
    pub cut_interval: Duration,
    /// The part of one core that replication may take before cuts become rarer.
    pub cpu_share: f64,
    /// How volumes are compared with what was captured, for changes that no event told of.
    pub scrub: ScrubConfig,
    /// Names that are left out.
    pub excludes: Vec<Exclude>,
    /// How long the final cut and its acknowledgement may take after SIGTERM.
    pub drain_timeout: Duration,
    /// Threads that hash and compress.
    pub pack_threads: usize,
    /// zstd level.
    pub zstd_level: i32,
    /// The application's own commands around an `app` cut.
    pub hooks: HookConfig,
}

/// Two volumes of which one contains the other, or is the other.
#[derive(Debug, Error)]
#[error(
    "volumes {outer} and {inner} overlap: {} contains {}; protect only the outer one",
    outside.display(), inside.display()
)]
pub struct Overlap {
    outer: VolumeName,
    inner: VolumeName,
    outside: PathBuf,
    inside: PathBuf,
}

/// Why a sidecar cannot start. Each is one line that says what to do.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No volume was given.
    #[error("no volume to protect: give --volume TENANT/NAME=DIRECTORY at least once")]
    NoVolume,
    /// Too many for one group.
    #[error(
        "{0} volumes are too many for one sidecar, which cuts them together: at most {GROUP_VOLUMES_MAX}"
    )]
    TooMany(usize),
    /// The directory cannot be protected.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// One volume is inside another.
    #[error(transparent)]
    Overlap(Box<Overlap>),
    /// Two volumes are one directory.
    #[error("volumes {} and {} are the same directory, {}: give it one name", .0.outer, .0.inner, .0.outside.display())]
    Same(Box<Overlap>),
    /// Two volumes have one name.
    #[error("volume {0} is given twice: every --volume needs a name of its own")]
    Twice(VolumeName),
    /// The identity cannot be loaded.
    #[error(transparent)]
    Identity(#[from] IdentityFileError),
    /// The certificate is for other volumes.
    #[error(
        "the certificate in {} does not cover volume {volume}: issue one with `tidelock pki issue sidecar --tenant {} --volume {}`",
        identity.display(), volume.tenant(), volume.name()
    )]
    NotCovered {
        /// The volume.
        volume: VolumeName,
        /// Where the certificate is.
        identity: PathBuf,
    },
    /// The certificate is no operator's of this volume.
    #[error(
        "the certificate in {} is no operator's of volume {volume}: issue one with `tidelock pki issue operator`",
        identity.display()
    )]
    NotOperated {
        /// The volume.
        volume: VolumeName,
        /// Where the certificate is.
        identity: PathBuf,
    },
    /// The address for health and metrics cannot be bound.
    #[error("cannot listen on {address} for health and metrics: {source}; choose another --http address")]
    Http {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A pattern cannot be understood.
    #[error(transparent)]
    Exclude(#[from] ExcludeError),
    /// A pattern is for a volume that is not protected.
    #[error("--exclude names volume {0}, which no --volume protects")]
    ExcludeOf(VolumeName),
    /// The application cannot be paused as asked.
    #[error(transparent)]
    Pause(#[from] SelectError),
    /// There are no hooks that could bring the application to rest.
    #[error("--escalate hooks needs --quiesce-hook and --unquiesce-hook")]
    NoHooks,
    /// The limit of a pause makes no sense.
    #[error("--pause-limit {0:?} is not between {PAUSE_LIMIT_MIN:?} and {PAUSE_LIMIT_MAX:?}")]
    PauseLimit(Duration),
    /// A time makes no sense.
    #[error("{option} {value:?} is not between {:?} and {:?}", range.start(), range.end())]
    Time {
        /// The option.
        option: &'static str,
        /// What it was given.
        value: Duration,
        /// What it may be.
        range: RangeInclusive<Duration>,
    },
    /// The share of a core makes no sense.
    #[error("--cpu-share {0} is not above 0 and at most 1")]
    CpuShare(f64),
}

impl Config {
    /// Finds what is wrong before anything is opened or bound.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.volumes.is_empty() {
            return Err(ConfigError::NoVolume);
        }
        if self.volumes.len() > GROUP_VOLUMES_MAX {
            return Err(ConfigError::TooMany(self.volumes.len()));
        }
        if !(self.cpu_share > 0.0 && self.cpu_share <= 1.0) {
            return Err(ConfigError::CpuShare(self.cpu_share));
        }
        for (option, value, range) in [
            ("--cut-interval", self.cut_interval, limits::CUT_INTERVALS),
            ("--cut-deadline", self.cut_deadline, limits::CUT_DEADLINES),
            ("--hook-timeout", self.hooks.timeout, limits::HOOK_TIMEOUTS),
            ("--scrub-every", self.scrub.every, limits::SCRUB_EVERY),
        ] {
            if !range.contains(&value) {
                return Err(ConfigError::Time { option, value, range });
            }
        }
        if let Escalate::Pause(pause) = &self.escalate
            && !(PAUSE_LIMIT_MIN..=PAUSE_LIMIT_MAX).contains(&pause.limit)
        {
            return Err(ConfigError::PauseLimit(pause.limit));
        }
        if matches!(self.escalate, Escalate::Hooks) && self.hooks.quiesce.is_none() {
            return Err(ConfigError::NoHooks);
        }
        let mut real: Vec<(VolumeName, PathBuf)> = Vec::new();
        for volume in &self.volumes {
            let directory = real_directory(&volume.directory)?;
            for (other, there) in &real {
                check_pair(&volume.name, &directory, other, there)?;
            }
            real.push((volume.name.clone(), directory));
            self.excludes_of(&volume.name)?;
        }
        let protected = |name: &&VolumeName| self.volumes.iter().any(|volume| volume.name == **name);
        match self.excludes.iter().filter_map(|exclude| exclude.volume.as_ref()).find(|name| !protected(name))
        {
            Some(unknown) => Err(ConfigError::ExcludeOf(unknown.clone())),
            None => Ok(()),
        }
    }

    /// What is left out of a volume.
    pub(crate) fn excludes_of(&self, volume: &VolumeName) -> Result<Excludes, ConfigError> {
        let all = self.excludes.iter();
        let these = all.filter(|exclude| exclude.volume.as_ref().is_none_or(|only| only == volume));
        Ok(Excludes::new(these.map(|exclude| exclude.glob.as_str()))?)
    }
}

fn real_directory(path: &Path) -> Result<PathBuf, VolumeError> {
    let real = path.canonicalize().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => VolumeError::Missing(path.to_owned()),
        _ => VolumeError::Open { path: path.to_owned(), source },
    })?;
    if real.is_dir() { Ok(real) } else { Err(VolumeError::NotDirectory(path.to_owned())) }
}

fn check_pair(a: &VolumeName, at: &Path, b: &VolumeName, there: &Path) -> Result<(), ConfigError> {
    if a == b {
        return Err(ConfigError::Twice(a.clone()));
    }
    let overlap = |outer: &VolumeName, outside: &Path, inner: &VolumeName, inside: &Path| {
        Box::new(Overlap {
            outer: outer.clone(),
            inner: inner.clone(),
            outside: outside.to_owned(),
            inside: inside.to_owned(),
        })
    };
    if there == at {
        Err(ConfigError::Same(overlap(b, there, a, at)))
    } else if there.starts_with(at) {
        Err(ConfigError::Overlap(overlap(a, at, b, there)))
    } else if at.starts_with(there) {
        Err(ConfigError::Overlap(overlap(b, there, a, at)))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn config(volumes: &[(&str, &Path)]) -> Config {
        let volume = |(name, directory): &(&str, &Path)| VolumeConfig {
            name: name.parse().unwrap(),
            directory: directory.to_path_buf(),
        };
        Config {
            volumes: volumes.iter().map(volume).collect(),
            receiver: "localhost:1".into(),
            identity: "/nowhere".into(),
            epoch: Epoch::FIRST,
            raise_epoch: false,
            tracker: TrackerChoice::Auto,
            names: NamesChoice::Auto,
            http: "127.0.0.1:0".parse().unwrap(),
            port_file: None,
            trace_acks: None,
            trace_cuts: None,
            cut_deadline: Duration::from_secs(1),
            escalate: Escalate::Optimistic,
            on_fence: None,
            cut_interval: Duration::from_millis(2),
            cpu_share: 0.1,
            scrub: ScrubConfig::OFF,
            excludes: Vec::new(),
            drain_timeout: Duration::from_secs(1),
            hooks: HookConfig::default(),
            pack_threads: 1,
            zstd_level: crate::pack::LEVEL_DEFAULT,
        }
    }

    #[test]
    fn what_is_wrong_is_said_before_anything_starts() {
        let dir = tempfile::tempdir().unwrap();
        let (outer, inner, file) = (dir.path(), dir.path().join("inner"), dir.path().join("file"));
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(&file, "x").unwrap();
        std::os::unix::fs::symlink(&inner, dir.path().join("alias")).unwrap();
        let says = |volumes: &[(&str, &Path)]| config(volumes).check().unwrap_err().to_string();
        assert!(says(&[]).contains("no volume"));
        assert!(says(&[("t/a", outer), ("t/b", &inner)]).contains("overlap"));
        assert!(says(&[("t/a", &inner), ("t/b", &dir.path().join("alias"))]).contains("same directory"));
        assert!(says(&[("t/a", &inner), ("t/a", &inner)]).contains("twice"));
        assert!(says(&[("t/a", &file)]).contains("not a directory"));
        assert!(says(&[("t/a", &dir.path().join("none"))]).contains("does not exist"));
        assert!(config(&[("t/a", &inner)]).check().is_ok());
    }
}
