//! The Kubernetes objects that belong to a protected workload.
//!
//! ```text
//! all objects of a namespace ─ closure ─▶ those of one workload ─ Document ─▶ the journal ─ plan ─▶ what is applied elsewhere
//! ```
//! Everything here is a pure function over objects as the API writes them. They are kept as JSON values and not as types, so
//! that fields this program does not know survive the way. Nothing is taken for wanted because it is there: an object belongs
//! to a workload only if the workload, or something that belongs to it, refers to it, or if it selects its pods.
//!
//! The price is that what an application finds by itself (a ConfigMap that it reads through the API, a name in a command
//! line) is not seen; the label [`BELONGS`] says so by hand. Of kinds that only some clusters have, a [`Rule`] says how they belong.

mod closure;
mod document;
mod mapping;
mod object;
mod plan;
mod rule;
mod sanitise;
mod scratch;

pub use closure::{Closure, Excluded, Place, Scope, closure};
pub use document::{DOCUMENT_VERSION, Document, DocumentError, Volume, file_name};
pub use mapping::{Mapping, MappingError, Set};
pub use object::{Key, KeyError, Selector, Workload};
pub use plan::{FILLED_WITH, Handover, Plan, PlanError, plan};
pub use rule::{Field, Rule, RuleError};
pub use sanitise::sanitise;
pub use scratch::{FILL, JOB, SCRATCH, Trial, trial, trial_namespace, trial_of};

/// The label by which an object says to which workload it belongs: `KIND.NAME`, such as `statefulset.orders`.
pub const BELONGS: &str = "tidelock.dev/belongs-to";
/// The label of an object that is not to be recorded: `"true"`.
pub const NOT_RECORDED: &str = "tidelock.dev/not-recorded";

/// The kinds that are looked at: API version, kind, plural.
pub const KINDS: &[(&str, &str, &str)] = &[
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("apps/v1", "Deployment", "deployments"),
    ("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("rbac.authorization.k8s.io/v1", "Role", "roles"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings"),
    ("v1", "ConfigMap", "configmaps"),
    ("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    ("v1", "Pod", "pods"),
    ("v1", "Secret", "secrets"),
    ("v1", "Service", "services"),
    ("v1", "ServiceAccount", "serviceaccounts"),
];
