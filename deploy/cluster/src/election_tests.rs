use std::{
    cell::Cell,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;

/// A Lease as an API keeps it: a change is taken only of what is there.
#[derive(Default)]
struct Shelf {
    lease: Option<Lease>,
    version: u64,
}

impl Shelf {
    fn put(&mut self, mut lease: Lease) -> Result<(), ApiError> {
        let known = self.lease.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        if lease.metadata.resource_version != known {
            return Err(ApiError::Conflict("it was changed".to_owned()));
        }
        self.version += 1;
        lease.metadata.resource_version = Some(self.version.to_string());
        self.lease = Some(lease);
        Ok(())
    }

    fn holder(&self) -> Option<&str> {
        self.lease.as_ref()?.spec.as_ref()?.holder_identity.as_deref()
    }
}

#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Shelf>>);

impl ElectionCalls for Calls {
    async fn lease(&self) -> Result<Option<Lease>, ApiError> {
        Ok(self.0.lock().expect("not poisoned").lease.clone())
    }

    async fn create_lease(&self, lease: Lease) -> Result<(), ApiError> {
        self.0.lock().expect("not poisoned").put(lease)
    }

    async fn replace_lease(&self, lease: Lease) -> Result<(), ApiError> {
        self.0.lock().expect("not poisoned").put(lease)
    }
}

fn take(step: Step) -> Option<Lease> {
    match step {
        Step::Create(lease) | Step::Replace(lease) => Some(lease),
        Step::Wait => None,
    }
}

proptest! {
    /// Replicas look in any order, each at any time, and their changes arrive later or never. Whoever may work by its own
    /// count is the only one.
    #[test]
    fn never_do_two_work(turns in prop::collection::vec((0..3usize, 0..6000u64, 0..4u8), 1..200)) {
        let begun = Instant::now();
        let mut shelf = Shelf::default();
        let mut replicas: Vec<Candidate> = (0..3).map(|n| Candidate::new(&format!("r{n}"))).collect();
        let mut works: [Option<Instant>; 3] = [None; 3];
        let mut under_way: Vec<(usize, Instant, Lease)> = Vec::new();
        let mut now = begun;
        for (who, pause, fate) in turns {
            now += Duration::from_millis(pause);
            let mark = Timestamp::UNIX_EPOCH + now.duration_since(begun);
            if let Some(lease) = take(replicas[who].step(shelf.lease.clone(), now, mark)) {
                match fate {
                    // It arrives at once; or when the next turn is over; or never.
                    0 | 1 => works[who] = shelf.put(lease).map_or(works[who], |()| Some(now + limits::LEASE_WORK)),
                    2 => under_way.push((who, now, lease)),
                    _ => {}
                }
            } else {
                works[who] = None;
            }
            if fate == 3 {
                for (who, asked, lease) in std::mem::take(&mut under_way) {
                    if shelf.put(lease).is_ok() { works[who] = works[who].max(Some(asked + limits::LEASE_WORK)) }
                }
            }
            let busy = works.iter().filter(|until| until.is_some_and(|until| until > now)).count();
            prop_assert!(busy <= 1, "{:?} at {:?}", works, now);
        }
    }
}

#[test]
fn a_mark_that_stands_still_is_taken_over_and_one_that_moves_is_not() {
    let (mut one, mut other, mut shelf) = (Candidate::new("one"), Candidate::new("other"), Shelf::default());
    let begun = Instant::now();
    // Clocks that are far apart.
    let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH + Duration::from_secs(1 << 30));
    let made = take(one.step(None, begun, early)).expect("there was none");
    shelf.put(made).expect("taken");
    let mut now = begun;
    for round in 1..10u32 {
        now += limits::LEASE / 2;
        assert_eq!(other.step(shelf.lease.clone(), now, late), Step::Wait);
        let renewed = take(one.step(shelf.lease.clone(), now, early + Duration::from_secs(round.into())));
        shelf.put(renewed.expect("it is its own")).expect("taken");
    }
    assert_eq!(other.step(shelf.lease.clone(), now, late), Step::Wait);
    assert_eq!(other.step(shelf.lease.clone(), now + limits::LEASE / 2, late), Step::Wait);
    let taken = take(other.step(shelf.lease.clone(), now + limits::LEASE, late)).expect("it stood still");
    shelf.put(taken).expect("taken");
    assert_eq!(shelf.holder(), Some("other"));
    let spec = shelf.lease.clone().and_then(|lease| lease.spec).expect("a spec");
    assert_eq!(spec.lease_transitions, Some(1));
    assert_eq!(one.step(shelf.lease.clone(), now + limits::LEASE, early), Step::Wait);
}

const LOOK: Duration = Duration::from_millis(5);

async fn until(reached: impl Fn() -> bool) {
    let look = async {
        while !reached() {
            sleep(LOOK).await;
        }
    };
    timeout(Duration::from_secs(20), look).await.expect("it comes to that");
}

#[tokio::test]
async fn one_works_at_a_time_and_the_next_does_when_it_leaves() {
    let calls = Calls::default();
    let (busy, most, begun) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let work = || async {
        struct Gone<'a>(&'a Cell<i32>);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        busy.set(busy.get() + 1);
        begun.set(begun.get() + 1);
        most.set(most.get().max(busy.get()));
        let _gone = Gone(&busy);
        std::future::pending::<()>().await;
    };
    let look = || {
        let shelf = calls.0.lock().expect("not poisoned");
        (shelf.holder().map(str::to_owned), shelf.version)
    };
    tokio::select! {
        () = alone(&calls, "one", LOOK, work) => {}
        () = alone(&calls, "other", LOOK, work) => {}
        // It is renewed again and again.
        () = until(|| look().1 > 50) => {}
    }
    assert_eq!((most.get(), begun.get(), busy.get()), (1, 1, 0));
    let was = look().0.expect("held");
    leave(&calls, "somebody").await;
    assert_eq!(look().0.as_ref(), Some(&was));
    leave(&calls, &was).await;
    tokio::select! {
        () = alone(&calls, "next", LOOK, work) => {}
        () = until(|| begun.get() > 1) => {}
    }
    assert_eq!((look().0.as_deref(), most.get()), (Some("next"), 1));
    // Whoever finds it taken from it stops.
    tokio::select! {
        () = alone(&calls, "next", LOOK, work) => {}
        () = async {
            until(|| begun.get() > 2).await;
            let mut lease = calls.lease().await.expect("an answer").expect("there");
            lease.spec.as_mut().expect("a spec").holder_identity = Some("thief".to_owned());
            while calls.replace_lease(lease.clone()).await.is_err() {
                lease.metadata = calls.lease().await.expect("an answer").expect("there").metadata;
            }
            until(|| busy.get() == 0).await;
        } => {}
    }
    assert_eq!(look().0.as_deref(), Some("thief"));
}
