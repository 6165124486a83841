//! The sidecar: watch → cut → pack → ship.

pub mod watch;
