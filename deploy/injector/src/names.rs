//! The names by which pods, namespaces and Tidelock know each other.

/// Every label and annotation begins so.
pub(crate) const PREFIX: &str = "tidelock.dev/";
/// The label by which a pod or a namespace asks for protection: `"true"` or `"false"`.
pub const INJECT_LABEL: &str = "tidelock.dev/inject";
/// The label of a namespace whose pods may have exact ranges: `"true"`.
pub const ALLOW_EXACT_LABEL: &str = "tidelock.dev/allow-exact";
/// The annotation that says, as JSON, what was done to a pod.
pub const STATUS: &str = "tidelock.dev/status";
/// The annotation that says which program did it.
pub const INJECTED_BY: &str = "tidelock.dev/injected-by";

/// The sidecar's container.
pub(crate) const SIDECAR: &str = "tidelock";
/// The container that fills empty volumes.
pub(crate) const RESTORE: &str = "tidelock-restore";
/// The volume with the sidecar's identity.
pub(crate) const IDENTITY_VOLUME: &str = "tidelock-identity";
/// The volume with the identity of the container that fills.
pub(crate) const RESTORE_IDENTITY_VOLUME: &str = "tidelock-restore-identity";
/// The volume with tracefs.
pub(crate) const TRACEFS_VOLUME: &str = "tidelock-tracefs";
/// The volume with the token by which the pod gets an identity.
pub(crate) const TOKEN_VOLUME: &str = "tidelock-token";
/// Where that is mounted; the token's file is `token`.
pub(crate) const TOKEN_DIR: &str = "/var/run/tidelock/token";
/// Whom the token is for.
pub(crate) const TOKEN_AUDIENCE: &str = "tidelock";
/// The variable with the authorities that the injector's certificate may be of.
pub(crate) const AUTHORITY_VARIABLE: &str = "TIDELOCK_IDENTITY_AUTHORITY";
/// Where an identity is mounted.
pub(crate) const IDENTITY_DIR: &str = "/var/run/tidelock/identity";
/// Where tracefs is, on the node and in the sidecar.
pub(crate) const TRACEFS_DIR: &str = "/sys/kernel/tracing";
/// Where volumes are mounted that cannot be at the application's path.
pub(crate) const VOLUMES_DIR: &str = "/var/run/tidelock/volumes";
/// The variable with the pod's name, for claims that are named after it.
pub(crate) const POD_VARIABLE: &str = "TIDELOCK_POD";
/// The first port that is tried for the sidecar.
pub(crate) const HTTP_PORT: i32 = 9902;
