//! The receiver: ingest → log → journal → image → open a point.

pub mod archive;
mod background;
mod catalogue;
mod config;
mod error;
pub mod flock;
pub mod history;
mod http;
pub mod image;
pub mod index;
mod keeper;
pub mod limits;
pub mod log;
pub mod metrics;
mod operator;
pub mod reconcile;
pub mod retention;
mod run;
mod server;
pub mod session;
pub mod store;
pub mod vault;
pub mod verify;
pub mod volume;

pub use config::{Cap, Config};
pub use error::RunError;
pub use run::run;
