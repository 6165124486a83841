//! Branches of a volume that went on without them.

use super::*;

/// Promoted to a point before the last one that the old primary made.
fn promoted() -> World {
    let mut world = World::new();
    world.promote(at("1.2")).unwrap();
    (world.epoch, world.last) = (Epoch(2), Some("1.2".parse().unwrap()));
    let tree = world.access().store().tree_at(&world.volume(), world.last.unwrap());
    world.tree = tree.unwrap();
    world.commit(Consistency::Crash);
    world
}

fn begin(world: &World, epoch: u64, at: Option<&str>, to: &str) -> Result<Begun, FailoverError> {
    let at = at.map(|at| at.parse().unwrap());
    begin_branch(&world.access(), &world.volume(), Epoch(epoch), at.as_ref(), &to.parse().unwrap())
}

#[test]
fn a_branch_leaves_where_its_writer_was_last_heard() {
    let world = promoted();
    let begun = begin(&world, 1, None, "t/tail").unwrap();
    assert_eq!((begun.base.id.as_str(), begun.base.current, begun.resumed), ("1.3", false, false));
    // Again is the same branch; another place, or another volume's name, is a mistake.
    assert!(begin(&world, 1, None, "t/tail").unwrap().resumed);
    for (epoch, at, to) in [(1, Some("1.2"), "t/tail"), (2, None, "t/tail"), (1, None, "t/v")] {
        let error = begin(&world, epoch, at, to).unwrap_err();
        assert!(matches!(error, FailoverError::NotThatBranch { .. }) && error.is_refusal(), "{error}");
    }
    assert!(begin(&world, 1, None, "other/tail").unwrap_err().to_string().contains("another tenant"));
    let listed = branches(&world.access(), &world.volume()).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].branch.as_str(), listed[0].base.as_str()), ("t/tail", "1.3"));
    assert!(branches(&world.access(), &"t/tail".parse().unwrap()).unwrap().is_empty());
}

#[test]
fn what_cannot_be_an_old_primary_is_refused() {
    let dir = TempDir::new().unwrap();
    let check = || check_old_primary(dir.path(), false);
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    let empty = check().unwrap_err();
    assert!(matches!(empty, FailoverError::NothingThere(_)) && empty.is_refusal(), "{empty}");
    fs::write(dir.path().join("file"), "content").unwrap();
    check().unwrap();
    fs::write(marker_path(dir.path()), "").unwrap();
    let half = check().unwrap_err();
    assert!(matches!(half, FailoverError::HalfWritten(_)) && half.is_refusal(), "{half}");
    fs::remove_file(marker_path(dir.path())).unwrap();
    let mut worker = std::process::Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
    let (used, forced) = (check(), check_old_primary(dir.path(), true));
    worker.kill().unwrap();
    worker.wait().unwrap();
    assert!(matches!(used.unwrap_err(), FailoverError::InUse { .. }));
    forced.unwrap();
}
