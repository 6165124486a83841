//! The sidecar: watch → cut → pack → ship.

pub mod limits;
pub mod pack;
pub mod ship;
pub mod watch;
