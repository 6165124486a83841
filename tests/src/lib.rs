//! The harness of the system tests: real processes, real file systems, a real PostgreSQL.
//!
//! A helper here panics when the world is not as the test needs it: that is the test's failure, with the logs of
//! every process on the way out. Nothing a test starts outlives it, not even when the test itself is killed.

pub mod acks;
pub mod compare;
pub mod cuts;
pub mod http;
pub mod https;
pub mod ledger;
pub mod menagerie;
pub mod model;
pub mod mount;
pub mod needs;
pub mod paths;
pub mod pg;
pub mod places;
pub mod process;
pub mod procfs;
pub mod s3;
pub mod site;
pub mod wait;
pub mod witness;
