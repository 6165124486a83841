//! The sidecar: watch → cut → pack → ship.

mod capture;
pub mod config;
mod cut;
mod excludes;
pub mod hooks;
pub mod http;
mod import;
pub mod limits;
pub mod metrics;
pub mod pack;
pub mod pause;
mod run;
mod scrub;
pub mod ship;
pub mod status;
pub mod watch;

pub use capture::{CaptureError, VolumeError};
pub use config::{Config, ConfigError, Exclude, VolumeConfig};
pub use cut::CutError;
pub use excludes::{DEFAULT_EXCLUDES, ExcludeError, Excludes};
pub use import::{ImportConfig, Imported, import};
pub use run::{Outcome, RunError, run};
pub use scrub::ScrubConfig;
