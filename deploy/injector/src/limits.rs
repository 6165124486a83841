//! Every limit of the injector.

use std::time::Duration;

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
/// Bytes of all bodies that are in memory at one time.
pub const BODIES_MAX_BYTES: usize = 64 << 20;
/// How long a body, and a place in the memory for it, may take. The API server waits for an answer for 30 s at most, and 10 by
/// default.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at one time. Others wait in the kernel's queue.
pub const CONNECTIONS_MAX: usize = 1024;
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be without a request, and the head of one may take: longer than the API server keeps an idle
/// connection (90 s), so that it is the one to close it.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The longest head of a request that is buffered.
pub const HEAD_MAX_BYTES: usize = 64 << 10;
/// Headers of a request.
pub const HEADERS_MAX: usize = 64;
/// How long requests are still taken after the end was asked for, while endpoints are taken back.
pub const LAME_DUCK: Duration = Duration::from_secs(3);
/// How long connections may then take to become idle.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a connection could not be taken.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The longest certificate or key file.
pub const CERTIFICATE_MAX_BYTES: u64 = 1 << 20;
