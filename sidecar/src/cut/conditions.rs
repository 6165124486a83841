//! Named conditions that the capture can be in. Each is in status, in metrics, in heartbeats and on the points it affects,
//! and goes when its cause goes.

/// Directories are not watched because the kernel allows no more watches: points are `fuzzy`.
pub(crate) const WATCH_LIMIT: &str = "watch-limit";
/// Something cannot be read: points are `fuzzy`.
pub(crate) const UNREADABLE: &str = "unreadable";
/// Events were lost; a scan restores the truth.
pub(crate) const UNVERIFIED: &str = "unverified";
/// No quiet instant has been found for long; lag grows.
pub(crate) const NOT_CONVERGING: &str = "not-converging";
/// The volume's root lost all its entries at once; not replicated as a deletion.
pub(crate) const ROOT_EMPTY: &str = "root-empty";
/// The volume is no longer at its path.
pub(crate) const ROOT_GONE: &str = "root-gone";
/// Another volume of the group cannot be cut, so this one is not either.
pub(crate) const GROUP_WAITS: &str = "group-waits";
