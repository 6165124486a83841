//! What a receiver keeps is never a target, whatever is said.

use std::collections::BTreeMap;

use super::*;

/// The log, byte for byte.
fn log(store: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(store.join("log")).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

fn refuse(done: Result<(), FailoverError>, target: &Path) -> String {
    let Err(error) = done else { panic!("{} was overwritten", target.display()) };
    assert!(error.is_refusal(), "{}: {error}", target.display());
    error.to_string()
}

fn restore_over(world: &World, access: &Access, target: &Path) -> Result<(), FailoverError> {
    let options = RestoreOptions { at: At::Latest, overwrite: true, ..RestoreOptions::default() };
    restore(access, &world.volume(), target, &options, &|_| {}).map(drop)
}

#[test]
fn a_store_is_not_overwritten_nor_what_it_lies_in() {
    let world = World::new();
    let (store, above) = (world.store(), world.dir.path());
    let deep = above.join("a/b/c");
    fs::create_dir_all(&deep).unwrap();
    let before = log(&store);
    let access = world.access();
    for (target, said) in [
        (store.clone(), "is the store of a receiver"),
        (store.join("log"), "lies inside"),
        (store.join("new/volume"), "lies inside"),
        (store.join("index/../log"), "lies inside"),
        (above.to_owned(), "holds"),
    ] {
        let told = refuse(restore_over(&world, &access, &target), &target);
        assert!(told.contains(said), "{told}");
        let options = PromoteOptions { overwrite: true, ..PromoteOptions::default() };
        let promoted = promote(&access, &world.volume(), &target, &options, &|_| {});
        refuse(promoted.map(drop), &target);
        assert_eq!(log(&store), before, "{}", target.display());
    }
    assert!(deep.exists() && !store.join("new").exists());
    // Neither needs leave to overwrite: a directory that is absent is made.
    let (absent, options) = (store.join("new"), RestoreOptions::default());
    refuse(restore(&access, &world.volume(), &absent, &options, &|_| {}).map(drop), &absent);
    let absent_too = Fill::look(vec![(world.volume(), absent.clone())]).map(drop);
    refuse(absent_too, &absent);
    assert!(!absent.exists());
    drop(access);
    assert_eq!(world.epoch(), 1, "nobody was fenced");
    // Beside it is where targets belong.
    let access = world.access();
    restore_over(&world, &access, &above.join("a")).unwrap();
    assert_eq!(fs::read_to_string(above.join("a/which")).unwrap(), "this is 1.3");
}

#[test]
fn a_link_to_a_store_is_the_store() {
    let world = World::new();
    let link = world.dir.path().join("link");
    std::os::unix::fs::symlink(world.store(), &link).unwrap();
    let before = log(&world.store());
    let access = world.access();
    for target in [link.clone(), link.join("new")] {
        refuse(restore_over(&world, &access, &target), &target);
    }
    assert_eq!(log(&world.store()), before);
}

#[test]
fn an_application_s_directories_named_like_a_store_s_are_its_own() {
    let world = World::new();
    let target = world.target();
    for dir in ["log", "index", "data/log"] {
        fs::create_dir_all(target.join(dir)).unwrap();
    }
    for file in ["lock", "log/a.log", "log/1.seg", "data/log/0000000001.seg"] {
        fs::write(target.join(file), "mine").unwrap();
    }
    restore_over(&world, &world.access(), &target).unwrap();
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
}

#[test]
fn a_store_before_its_first_header_is_one_by_its_lock_and_index() {
    let world = World::new();
    for (path, bytes) in log(&world.store()) {
        fs::write(path, vec![0; bytes.len()]).unwrap();
    }
    let other = World::new();
    let access = other.access();
    let told = refuse(restore_over(&other, &access, &world.store()), &world.store());
    assert!(told.contains("is the store"), "{told}");
}

#[test]
fn an_archive_in_a_directory_is_no_target() {
    let world = World::new();
    let (archive, target) = (world.dir.path().join("kept/bucket"), world.target());
    let access = world.access();
    for (dir, entry) in [(&archive, &b"TIDEARC\n and what follows"[..]), (&target, b"the seventh block")] {
        fs::create_dir_all(dir.join("chain")).unwrap();
        fs::write(dir.join("chain/00000000000000000007"), entry).unwrap();
    }
    for (target, said) in
        [(archive.clone(), "is the archive"), (archive.join("data"), "inside"), (archive.join(".."), "holds")]
    {
        let told = refuse(restore_over(&world, &access, &target), &target);
        assert!(told.contains(said), "{told}");
    }
    assert!(archive.join("chain/00000000000000000007").exists());
    // By its names alone it is the application's.
    restore_over(&world, &access, &target).unwrap();
}

#[test]
fn a_directory_of_images_is_no_target() {
    let world = World::new();
    let images = world.dir.path().join("kept/images");
    let image = images.join("t/v");
    drop(Access::direct_with(&world.store(), Default::default(), Some(&images), None).unwrap());
    fs::create_dir_all(&image).unwrap();
    fs::write(image.join("which"), "is following").unwrap();
    let access = world.access();
    for (target, said) in
        [(images.clone(), "is the dir"), (image.clone(), "inside"), (images.join(".."), "holds")]
    {
        let told = refuse(restore_over(&world, &access, &target), &target);
        assert!(told.contains(said) && told.contains("hot images"), "{told}");
    }
    assert_eq!(fs::read_to_string(image.join("which")).unwrap(), "is following");
}
