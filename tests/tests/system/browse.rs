//! Looking into points, by a running receiver and on its store: both say the same.

use std::{fs, os::unix::ffi::OsStrExt, path::Path, process::Command};

use serde_json::Value;
use tidelock_tests::{
    process,
    site::{Site, VOLUME, json},
    wait::SOON,
};

#[test]
fn a_receiver_and_its_store_show_the_same_history() {
    let site = Site::new();
    let volume = site.new_dir("volume");
    let mut receiver = site.receiver();
    let mut sidecar = site.sidecar(&receiver, &volume).start();
    let odd = std::ffi::OsStr::from_bytes(b"odd\xff\n");
    fs::create_dir(volume.join("dir")).expect("writable");
    fs::write(volume.join("dir").join(odd), vec![7; 10_000]).expect("writable");
    fs::write(volume.join("dir/same"), vec![7; 10_000]).expect("writable");
    fs::write(volume.join("gone.log"), "soon").expect("writable");
    let first = sidecar.settle(SOON).id.to_string();
    fs::remove_file(volume.join("gone.log")).expect("it is there");
    fs::rename(volume.join("dir"), volume.join("moved")).expect("it is there");
    fs::write(volume.join("new.log"), "later").expect("writable");
    let second = sidecar.settle(SOON).id.to_string();
    sidecar.process.stop();

    let questions: [&[&str]; 9] = [
        &["ls", VOLUME, "--at", &first, "-R"],
        &["ls", VOLUME, "moved"],
        &["cat", VOLUME, "gone.log", "--at", &first],
        &["cat", VOLUME, "moved/same", "--offset", "9000"],
        &["diff", VOLUME, &first, &second],
        &["find", VOLUME, "*.log"],
        &["find", VOLUME, "same", "--from", &first, "--to", &second, "--changes"],
        &["stats", VOLUME],
        &["points", VOLUME, "--all"],
    ];
    let asked: Vec<Value> = questions.iter().map(|question| site.operator(&receiver, question)).collect();
    let part = site.path("part");
    let to = part.to_str().expect("test paths are UTF-8");
    site.operator(&receiver, &["restore", VOLUME, "--at", &first, "--to", to, "--include", "*.log"]);
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).expect("restored").map(|entry| entry.expect("readable").file_name());
        entries.collect::<Vec<_>>()
    };
    assert_eq!(names(&part), ["gone.log"]);
    assert_eq!(fs::read(part.join("gone.log")).expect("restored"), b"soon");
    receiver.process.stop();

    let on_store = |question: &[&str]| -> Command {
        let mut command = site.tidelock(question.iter().copied());
        command.arg("--store").arg(site.store());
        command
    };
    for (question, asked) in questions.iter().zip(&asked) {
        let found = json(&process::output(on_store(question).arg("--json")));
        assert_eq!(found, *asked, "{question:?}");
    }
    let entry = asked[0]["entries"].as_array().expect("entries").iter().find(|entry| {
        // odd\xff\n in dir
        entry["path_base64"] == "ZGlyL29kZP8K"
    });
    assert_eq!(entry.expect("the odd name")["size"], 10_000);
    let shown = process::run(&mut on_store(&["ls", VOLUME, "moved"]));
    assert!(shown.contains("moved/odd\\xff\\n"), "{shown}");
    // The raw bytes, named by bytes.
    let content = process::output(on_store(&["cat", VOLUME]).arg({
        let mut path = std::ffi::OsString::from("moved/");
        path.push(odd);
        path
    }));
    assert_eq!(content.stdout, vec![7; 10_000], "{}", String::from_utf8_lossy(&content.stderr));
    let change = |kind: &str| {
        let changes = asked[4]["changes"].as_array().expect("changes").iter();
        changes.filter(|it| it["change"] == kind).map(|it| it["path"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (change("removed"), change("renamed"), change("added")),
        (vec!["gone.log".into()], vec!["moved".into()], vec!["new.log".into()])
    );
    let gone = &asked[5]["found"][0];
    assert_eq!((&gone["path"], gone["spans"][0]["removed"].is_string()), (&"gone.log".into(), true));
    assert!(asked[7]["dedup_ratio"].as_f64().expect("a ratio") > 1.5, "{}", asked[7]);
}
