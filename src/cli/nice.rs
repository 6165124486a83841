//! Standing back behind the application where there are too few processors.

use rustix::process::{getpriority_process, setpriority_process};

/// Lowers the priority of this thread, and so of all that it starts, to this `nice` value. Who started it may have put it
/// further back already; there it stays: to come forward takes a capability that nobody should need.
pub(super) fn stand_back(nice: i32) -> rustix::io::Result<()> {
    match getpriority_process(None)? {
        already if already >= nice => Ok(()),
        _ => setpriority_process(None, nice),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stands_further_back_already_stays_there() {
        let of = |before: i32, nice: i32| {
            let thread = std::thread::spawn(move || {
                setpriority_process(None, before)
                    .and_then(|()| stand_back(nice))
                    .expect("no privilege is needed");
                getpriority_process(None).expect("ours")
            });
            thread.join().expect("it ends")
        };
        let now = getpriority_process(None).expect("ours");
        assert_eq!(of((now + 3).min(19), now), (now + 3).min(19));
        assert_eq!(of(now, (now + 3).min(19)), (now + 3).min(19));
    }
}
