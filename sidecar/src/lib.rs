//! The sidecar: watch → cut → pack → ship.

pub mod http;
pub mod limits;
pub mod metrics;
pub mod pack;
pub mod ship;
pub mod status;
pub mod watch;
