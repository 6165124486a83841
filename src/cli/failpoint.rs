//! Where tests interrupt a command: `TIDELOCK_TEST_AT=kill:STEP` ends it there as SIGKILL does, `stop:STEP` holds it until SIGCONT.
//!
//! The steps are those that a promotion, or a restore into what is empty, tells of, `content`: the middle of writing, and `names`: half of them are made.

use std::sync::atomic::{AtomicBool, Ordering};

use tidelock_failover::Event;
use tidelock_receiver::reconcile::{Phase, Progress};

const VARIABLE: &str = "TIDELOCK_TEST_AT";
/// A step can come again; the second time it is passed.
static PASSED: AtomicBool = AtomicBool::new(false);

/// Before a step, or within it.
pub(crate) fn on(event: Event) {
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    let (Some((how, wanted)), Some(here)) = (wanted.split_once(':'), name(event)) else { return };
    if wanted != here || PASSED.swap(true, Ordering::Relaxed) {
        return;
    }
    let signal = if how == "stop" { libc::SIGSTOP } else { libc::SIGKILL };
    // SAFETY: a signal to ourselves.
    unsafe { libc::raise(signal) };
}

fn name(event: Event) -> Option<String> {
    match event {
        Event::Step(step) => Some(format!("{step:?}").to_lowercase()),
        Event::Progress(Progress { phase: Phase::Content, done, total }) if done >= total / 2 => {
            Some("content".to_owned())
        }
        Event::Progress(Progress { phase: Phase::Names, done, total }) if done >= total / 2 => {
            Some("names".to_owned())
        }
        Event::Progress(_) => None,
    }
}
