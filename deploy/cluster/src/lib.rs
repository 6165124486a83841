//! What Tidelock asks of a Kubernetes API, and what it makes of the answers.
//!
//! Every call is in [`api`], one file for each program that makes it, and is as thin as can be: what is decided is decided
//! by pure functions over the objects. Tests keep what each call sends as a file, and the chart's rights are compared
//! with these files; that an API server does with them what its documentation says is not proved by that.
//!
//! - [`authority`]: the injector's own authority, kept in a Secret, and the certificates it needs itself.
//! - [`check`]: which pods that asked for protection have it.
//! - [`election`]: one of several replicas does what only one should do.
//! - [`identity`]: how pods get certificates of that authority.
//! - [`failover`]: a workload is brought up elsewhere, from what was recorded of it.
//! - [`failback`]: and back, where its old volumes are.
//! - [`trial`]: or only to see whether it comes up.
//! - [`jobs`]: what works on volumes while no pod of theirs runs.
//! - [`managed`]: the injector with both.
//! - [`probe`]: injector and receiver are asked from outside whether they do their work.
//! - [`ready`]: a workload is waited for.
//! - [`record`]: what belongs to protected workloads is written down.
//! - [`watch`]: pods that asked for protection and do not have it are counted and told of.

pub mod api;
pub mod authority;
pub mod check;
pub mod election;
pub mod failback;
pub mod failover;
pub mod identity;
pub mod jobs;
pub mod limits;
pub mod managed;
pub mod probe;
pub mod ready;
pub mod record;
#[cfg(test)]
mod shelf;
pub mod trial;
pub mod watch;
