//! The sidecar: watch → cut → pack → ship.

mod capture;
pub mod config;
mod cut;
pub mod hooks;
pub mod http;
pub mod limits;
pub mod metrics;
pub mod pack;
mod run;
pub mod ship;
pub mod status;
pub mod watch;

pub use capture::{CaptureError, VolumeError};
pub use config::{Config, ConfigError, VolumeConfig};
pub use cut::CutError;
pub use run::{Outcome, RunError, run};
