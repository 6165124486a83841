//! Promotions that are taken back, or committed.

use std::time::{Duration, SystemTime};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn with_window(text: &str) -> PromoteOptions {
    PromoteOptions { window: Some(HOUR), ..at(text) }
}

/// Promoted at this point, with a window; what the test's writer commits next is of the new primary.
fn promoted(text: &str) -> World {
    let mut world = World::new();
    let report = world.promote(with_window(text)).unwrap();
    assert_eq!(report.window.as_ref().map(|window| window.point.as_str()), Some("1.3"), "{report:?}");
    go_on(&mut world, 2, text);
    world
}

/// The next commit is the first of this epoch, upon that point.
fn go_on(world: &mut World, epoch: u64, base: &str) {
    let base: PointId = if base == "latest" { "1.3" } else { base }.parse().unwrap();
    let tree = world.access().store().tree_at(&world.volume(), base).unwrap();
    (world.epoch, world.last, world.tree) = (Epoch(epoch), Some(base), tree);
}

fn back(world: &World) -> Result<UnpromoteReport, FailoverError> {
    unpromote(&world.access(), &world.volume(), SystemTime::now(), &|_| {})
}

fn tags(world: &World, id: &str) -> Vec<String> {
    let all = points(&world.access(), &world.volume(), None).unwrap();
    all.into_iter().find(|point| point.id == id).unwrap().tags
}

/// Whether a writer of this epoch is still taken.
fn is_taken(world: &mut World, epoch: u64, base: &str) -> bool {
    go_on(world, epoch, base);
    let access = world.access();
    let commit = std::panic::AssertUnwindSafe(|| world.commit_to(&access.store(), Consistency::Crash));
    std::panic::catch_unwind(commit).is_ok()
}

#[test]
fn a_promotion_is_taken_back_to_where_the_old_primary_was() {
    // The promoted point is not always the old primary's last.
    for base in ["latest", "1.2"] {
        let mut world = promoted(base);
        world.commit(Consistency::Crash);
        world.commit(Consistency::Crash);
        let held = &tags(&world, "1.3")[0];
        assert!(held.starts_with("held: promotion to epoch 2 can be taken back until 2"), "{held}");

        let done = back(&world).unwrap();
        assert_eq!((done.taken_back, done.epoch, done.resumed), (2, 3, false));
        assert_eq!((done.point.id.as_str(), done.left.as_deref()), ("1.3", Some("2.2")));
        assert!(done.next_command.contains("--volume t/v=DIR --epoch 3"), "{}", done.next_command);
        let volume = &status(&world.access(), None).unwrap()[0];
        assert_eq!(
            (volume.epoch, volume.promoted, volume.last.as_ref().unwrap().id.as_str()),
            (3, true, "1.3")
        );
        // Nothing is held any more, and both ends are named.
        for id in ["1.3", "2.2"] {
            assert_eq!(tags(&world, id), ["epoch 2 was taken back as epoch 3"], "{id}");
        }
        let again = back(&world).unwrap();
        assert_eq!(again, UnpromoteReport { resumed: true, point: again.point.clone(), ..done });

        // Both former writers are over; the old primary goes on.
        assert!(!is_taken(&mut world, 1, "1.3") && !is_taken(&mut world, 2, "2.2"));
        assert!(is_taken(&mut world, 3, "1.3"));
        let all = points(&world.access(), &world.volume(), None).unwrap();
        let current: Vec<&str> = all.iter().filter(|point| point.current).map(|point| &*point.id).collect();
        assert_eq!(current, ["1.1", "1.2", "1.3", "3.1"]);
        assert_eq!(back(&world).unwrap().epoch, 3);
    }
}

#[test]
fn taking_back_ends_the_same_wherever_it_was_interrupted() {
    for step in [Step::Select, Step::Fence, Step::Complete, Step::Done] {
        let mut world = promoted("latest");
        world.commit(Consistency::Crash);
        let interrupted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let events = |event| assert_ne!(event, Event::Step(step), "interrupted on purpose");
            unpromote(&world.access(), &world.volume(), SystemTime::now(), &events)
        }));
        assert!(interrupted.is_err(), "{step:?} never came");
        let raised = matches!(step, Step::Complete | Step::Done);
        assert_eq!(world.epoch(), if raised { 3 } else { 2 }, "{step:?}");
        if raised {
            // The old primary does not wait for the command.
            assert!(is_taken(&mut world, 3, "1.3"));
        }
        let done = back(&world).unwrap();
        assert_eq!((done.epoch, done.left.as_deref(), done.resumed), (3, Some("2.1"), raised), "{step:?}");
        assert_eq!(tags(&world, "1.3"), ["epoch 2 was taken back as epoch 3"], "{step:?}");
        assert_eq!(world.epoch(), 3, "{step:?}");
    }
}

#[test]
fn a_promotion_that_is_repeated_has_one_window() {
    let world = World::new();
    let first = world.promote(with_window("1.2")).unwrap().window;
    let again = world.promote(PromoteOptions { window: Some(HOUR * 9), ..at("1.2") }).unwrap();
    assert_eq!((again.resumed, again.window), (true, first));
    assert_eq!(tags(&world, "1.3").len(), 1);
}

#[test]
fn a_window_ends_by_time_and_by_commit() {
    let world = promoted("latest");
    let access = world.access();
    let late = SystemTime::now() + HOUR + Duration::from_secs(1);
    let over = unpromote(&access, &world.volume(), late, &|_| {}).unwrap_err();
    assert!(matches!(over, FailoverError::WindowOver { .. }) && over.is_refusal(), "{over}");
    hold(&access, &world.volume(), &"1.3".parse().unwrap(), "the auditors").unwrap();
    assert_eq!(commit(&access, &world.volume()).unwrap().released, ["1.3"]);
    assert!(commit(&access, &world.volume()).unwrap().released.is_empty());
    drop(access);
    assert_eq!(tags(&world, "1.3"), ["held: the auditors"]);
    let none = back(&world).unwrap_err();
    assert!(matches!(none, FailoverError::NoWindow(_)) && none.is_refusal(), "{none}");
    assert_eq!(world.epoch(), 2);
}

#[test]
fn what_came_after_a_promotion_is_not_taken_back_with_it() {
    let world = promoted("latest");
    // Somebody promotes once more, without a window, and before anybody wrote in the epoch of the window.
    world.access().raise_epoch(&world.volume(), Epoch(2), None).unwrap();
    let moved = back(&world).unwrap_err();
    assert!(matches!(moved, FailoverError::EpochMoved { .. }) && moved.is_refusal(), "{moved}");
    assert_eq!(world.epoch(), 3);
    // Nor is a promotion that comes after taking back.
    let world = promoted("latest");
    back(&world).unwrap();
    world.access().raise_epoch(&world.volume(), Epoch(3), None).unwrap();
    assert!(matches!(back(&world).unwrap_err(), FailoverError::NoWindow(_)));
}

/// The epoch that was raised to give the volume back is the old primary's: a promotion fences it, and is none that an earlier run began.
#[test]
fn a_promotion_after_one_was_taken_back_fences_the_old_primary() {
    let world = promoted("latest");
    assert_eq!(back(&world).unwrap().epoch, 3);
    let mut options = with_window("latest");
    options.overwrite = true;
    let plan = plan_promotion(&world.access(), &world.volume(), &world.target(), &options, &|_| {}).unwrap();
    assert_eq!((plan.epoch, plan.new_epoch, plan.resumes), (3, 4, false));
    let report = world.promote(options).unwrap();
    assert_eq!((report.old_epoch, report.epoch, report.resumed), (3, 4, false));
    let mut world = world;
    assert!(!is_taken(&mut world, 3, "1.3"), "the old primary is fenced");
    assert!(is_taken(&mut world, 4, "1.3"));
    // It is completed by the same command, and can be taken back itself.
    assert_eq!(back(&world).unwrap().epoch, 5);
}

/// Two that take the same promotion back both hear that it is, and nothing is left held.
#[test]
fn who_takes_back_what_another_has_just_taken_back_hears_how_it_ended() {
    let world = promoted("latest");
    let access = world.access();
    let events = |event| {
        // The first has announced it, and is about to raise the epoch.
        if event == Event::Step(Step::Fence) {
            unpromote(&access, &world.volume(), SystemTime::now(), &|_| {}).unwrap();
        }
    };
    let done = unpromote(&access, &world.volume(), SystemTime::now(), &events).unwrap();
    assert_eq!((done.taken_back, done.epoch, done.resumed), (2, 3, true));
    drop(access);
    assert_eq!(tags(&world, "1.3"), ["epoch 2 was taken back as epoch 3"]);
    assert_eq!(world.epoch(), 3);
}
