//! Waiting for conditions instead of sleeping.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// What almost everything on a busy two-core machine must be done in.
pub const SOON: Duration = Duration::from_secs(30);

/// Looks until the probe finds something. Panics with `what` when `limit` passes first.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(started.elapsed() < limit, "waited {} s in vain: {what}", limit.as_secs_f32());
        thread::sleep(POLL);
    }
}

/// Looks until the condition holds.
pub fn until_true(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    until(what, limit, || condition().then_some(()));
}

/// Now, in nanoseconds since 1970: the clock that recovery points are stamped with.
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    u64::try_from(since.as_nanos()).expect("the clock is before 2554")
}
