//! The same on files.

use std::collections::BTreeMap;

use serde_json::Value;
use tidelock_injector::offline::{Injected, Options, inject};

use crate::world::{config, sidecar};

const SHOP: &str = "\
# The shop.
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tidelock.dev/inject: 'true'}}
---
apiVersion: v1
kind: ConfigMap   # untouched
metadata:
  name: settings
data:
  script: |
    ---x
    yes
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      securityContext: {runAsUser: 999}
      containers:
      - name: db
        image: postgres:15
        command: [sh, -c, \"echo yes\\nexec postgres\\n\"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: other, namespace: elsewhere}
spec: {schedule: '* * * * *', jobTemplate: {spec: {template: {spec: {containers: []}}}}}
";

fn run(text: &str) -> Injected {
    let options = Options { namespace: "default".to_owned(), labels: BTreeMap::new() };
    inject(text, &options, &config()).expect("readable")
}

/// What stands behind a marker of documents.
fn parts(text: &str) -> Vec<&str> {
    text.split("\n---\n").collect()
}

#[test]
fn only_what_asked_is_written_anew() {
    let done = run(SHOP);
    let (before, after) = (parts(SHOP), parts(&done.text));
    assert_eq!(after.len(), 4, "{}", done.text);
    for untouched in [0, 1, 3] {
        assert_eq!(after[untouched].trim_end(), before[untouched].trim_end());
    }
    let subjects: Vec<_> =
        done.reports.iter().map(|report| (report.subject.as_str(), report.added.len())).collect();
    assert_eq!(subjects, [("StatefulSet shop/db", 2), ("CronJob elsewhere/other", 0)]);
    assert_eq!(done.reports[1].notes[0].reason.code(), "not-asked");
    // Once more, and nothing is left to do.
    let again = run(&done.text);
    assert_eq!(again.text, done.text);
    assert_eq!(again.reports[0].notes[0].reason.code(), "already-injected");
}

#[test]
fn a_claim_of_a_statefulset_is_named_after_its_pod() {
    let done = run(SHOP);
    let text = parts(&done.text)[2].to_owned();
    assert!(text.contains("--volume=shop/data-$(TIDELOCK_POD)=/data"), "{text}");
    assert!(text.contains("fieldPath: metadata.name"), "{text}");
    // The claim's volume is the controller's to add.
    assert!(!text.contains("persistentVolumeClaim"), "{text}");
    assert!(text.contains("echo yes\n          exec postgres\n"), "{text}");
}

#[test]
fn lists_and_json_are_read_and_labels_can_be_lent() {
    let pod = crate::world::pod();
    let mut plain = pod.clone();
    plain["metadata"]["labels"] = Value::Null;
    plain["metadata"]["namespace"] = Value::Null;
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [pod, plain]});
    let options =
        |names: &[&str]| Options { namespace: "lent".to_owned(), labels: crate::world::labels(names) };
    let added = |names: &[&str]| {
        let done = inject(&list.to_string(), &options(names), &config()).expect("readable");
        done.reports
            .iter()
            .map(|report| (report.subject.clone(), !report.added.is_empty()))
            .collect::<Vec<_>>()
    };
    let both = |second| vec![("Pod shop/db-0".to_owned(), true), ("Pod lent/db-0".to_owned(), second)];
    assert_eq!(added(&[]), both(false));
    assert_eq!(added(&["inject"]), both(true));
}

#[test]
fn the_webhook_leaves_what_was_done_here() {
    let done = run(&crate::world::pod().to_string());
    assert_eq!(done.reports[0].notes, []);
    let once = crate::world::injected(&crate::world::pod(), &[]);
    let request = crate::world::request(&once);
    assert_eq!(sidecar(&once)["name"], "tidelock");
    assert_eq!(crate::world::reasons(&crate::world::ask(&request, &[])), ["already-injected"]);
}

#[test]
fn a_broken_document_is_named() {
    let options = Options::default();
    let error = inject("a: 1\n---\nb: [\n", &options, &config()).expect_err("not closed");
    assert_eq!(error.number, 2);
    assert!(error.to_string().starts_with("document 2: "), "{error}");
}
