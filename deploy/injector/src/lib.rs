//! Adds the sidecar to pods that ask for it.
//!
//! The decision is a pure function of the pod, its namespace's labels and a [`Config`]: [`decide`]. It touches neither
//! clock, file nor network, so it is safe in a dry run, and asked twice it says the same. [`review`] is that function as
//! an admission webhook speaks it, [`server`] what an API server asks, [`offline`] the same on files.
//!
//! Two rules shape everything here. *The application is never held up*: whatever cannot be done leaves the pod as it is,
//! admitted, with a reason a program can read ([`Reason`]). And *a sidecar may never do more than the container whose
//! volume it reads*: same user, no capability beyond that container's own, mounts read-only; what exact ranges need on
//! top of that takes a label that only those who may label namespaces can set.
//!
//! The price of deciding from the pod alone is that what only the cluster knows (whether a claim exists, which user an
//! image runs as) has to be in the pod, or the pod is left out and told so.

pub mod annotations;
mod claims;
mod config;
mod container;
mod decide;
mod label;
pub mod limits;
mod names;
pub mod offline;
mod patch;
mod protection;
mod reason;
mod review;
pub mod server;
mod user;
mod yaml;

pub use config::{Config, IdentityFrom, Resources};
pub use decide::{Namespace, Outcome, Plan, Protected, decide};
pub use label::{Asked, asked};
pub use names::{ALLOW_EXACT_LABEL, INJECT_LABEL, INJECTED_BY, STATUS};
pub use protection::{Protection, protection};
pub use reason::{Note, Reason};
pub use review::{Answer, ReviewError, review};
pub use yaml::YamlError;
