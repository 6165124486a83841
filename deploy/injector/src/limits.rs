//! Every limit of the injector.

/// The longest request body. The API server takes objects of 3 MiB at most, and sends the old one along.
pub const BODY_MAX_BYTES: usize = 8 << 20;
/// The longest warning: the API server cuts longer ones when there are several.
pub const WARNING_MAX_BYTES: usize = 256;
/// Warnings in one response.
pub const WARNINGS_MAX: usize = 12;
/// Protected volumes of one pod.
pub const VOLUMES_MAX: usize = 32;
/// Names that are left out of a volume.
pub const EXCLUDES_MAX: usize = 64;
/// The longest input of `tidelock inject`.
pub const MANIFESTS_MAX_BYTES: u64 = 64 << 20;
/// How deep a YAML document may be nested.
pub const YAML_DEPTH_MAX: usize = 100;
/// Nodes of one YAML document, those that aliases repeat among them.
pub const YAML_NODES_MAX: usize = 1_000_000;
