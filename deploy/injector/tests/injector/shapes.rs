//! Pods of many shapes: whatever they are, what was there stays, a second pass changes nothing, and a pod that passed
//! *restricted* before passes it afterwards.

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Map, Value, json};
use tidelock_injector::{Namespace, Protection, Reason, protection};

use crate::{
    pod_security::restricted,
    world::{ask, config, labels, patched, reasons, request},
};

const PATHS: [&str; 9] = [
    "/data",
    "/data/wal",
    "/",
    "/var/lib/x",
    "/sys/kernel",
    "/proc/a",
    "/tidelock",
    "/var/run/tidelock/identity",
    "/d$(X)",
];
const VOLUMES: [&str; 5] = ["a", "b", "c", "tmp", "host"];

fn or_none<T: std::fmt::Debug + Clone + 'static>(
    some: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = Option<T>> {
    prop::option::of(some)
}

fn object(fields: Vec<(&'static str, Option<Value>)>) -> Value {
    let set = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(set.collect::<Map<_, _>>())
}

fn security() -> impl Strategy<Value = Value> {
    let user = or_none(prop::sample::select(vec![0, 1, 999]));
    let capabilities = or_none(prop::sample::select(vec![
        json!({"drop": ["ALL"]}),
        json!({"add": ["CHOWN"]}),
        json!({"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
    ]));
    (user, or_none(0..3i64), or_none(any::<bool>()), or_none(Just(false)), capabilities, any::<bool>())
        .prop_map(|(user, group, non_root, escalation, capabilities, profile)| {
            object(vec![
                ("runAsUser", user.map(Value::from)),
                ("runAsGroup", group.map(Value::from)),
                ("runAsNonRoot", non_root.map(Value::from)),
                ("allowPrivilegeEscalation", escalation.map(Value::from)),
                ("capabilities", capabilities),
                ("seccompProfile", profile.then(|| json!({"type": "RuntimeDefault"}))),
            ])
        })
}

fn mount() -> impl Strategy<Value = Value> {
    let paths = prop::sample::select(PATHS.to_vec());
    let parts = or_none(prop::sample::select(vec!["x", "y"]));
    (prop::sample::select(VOLUMES.to_vec()), paths, or_none(any::<bool>()), parts).prop_map(
        |(name, path, read_only, part)| {
            object(vec![
                ("name", Some(json!(name))),
                ("mountPath", Some(json!(path))),
                ("readOnly", read_only.map(Value::from)),
                ("subPath", part.map(Value::from)),
            ])
        },
    )
}

fn container(name: String) -> impl Strategy<Value = Value> {
    let mounts = or_none(prop::collection::vec(mount(), 0..4));
    let ports =
        or_none(prop::sample::select(vec![json!([{"containerPort": 9902}]), json!([{"containerPort": 80}])]));
    (or_none(security()), mounts, ports, or_none(Just("Always"))).prop_map(
        move |(security, mounts, ports, restart)| {
            // One path once in a container, as the API server has it.
            let mounts = mounts.map(|mounts| {
                let mut paths = std::collections::BTreeSet::new();
                Value::Array(
                    mounts.into_iter().filter(|mount| paths.insert(mount["mountPath"].to_string())).collect(),
                )
            });
            object(vec![
                ("name", Some(json!(name))),
                ("image", Some(json!("app:1"))),
                ("securityContext", security),
                ("volumeMounts", mounts),
                ("ports", ports),
                ("restartPolicy", restart.filter(|_| name.starts_with("init")).map(Value::from)),
            ])
        },
    )
}

/// A pod as the API server might send it; every other one is made to pass *restricted*.
pub(crate) fn pods() -> impl Strategy<Value = Value> {
    (any_pods(), any::<bool>()).prop_map(|(pod, strict)| if strict { restrict(pod) } else { pod })
}

fn restrict(mut pod: Value) -> Value {
    let spec = &mut pod["spec"];
    spec["securityContext"] =
        json!({"runAsUser": 999, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array_mut().into_iter().flatten() {
            let group = container["securityContext"]["runAsGroup"].clone();
            container["securityContext"] = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "runAsGroup": 5});
            if group.is_null() {
                container["securityContext"].as_object_mut().expect("an object").remove("runAsGroup");
            }
        }
        if spec[list].is_null() {
            spec.as_object_mut().expect("an object").remove(list);
        }
    }
    for volume in spec["volumes"].as_array_mut().into_iter().flatten() {
        if !volume["hostPath"].is_null() {
            *volume = json!({"name": "host", "emptyDir": {}});
        }
    }
    pod
}

fn any_pods() -> impl Strategy<Value = Value> {
    let containers = (1..3usize)
        .prop_flat_map(|many| (0..many).map(|n| container(format!("main{n}"))).collect::<Vec<_>>());
    let init = or_none(
        (0..3usize)
            .prop_flat_map(|many| (0..many).map(|n| container(format!("init{n}"))).collect::<Vec<_>>()),
    );
    let annotation = prop::sample::select(vec![
        ("restore", "if-empty"),
        ("restore", "2026-01-31T12:30:00Z"),
        ("tracker", "inotify"),
        ("volumes", "a,b"),
        ("volumes", "c"),
        ("exclude", "*.tmp"),
        ("on-fence", "stop"),
        ("consistency", "pause"),
        ("sidecar-cpu-request", "2"),
        ("sidecar-memory-limit", "32Mi"),
        ("log-level", "warn"),
        ("epoch", "2"),
        ("misspelt", "x"),
    ]);
    let annotations = or_none(prop::collection::vec(annotation, 0..5));
    (containers, init, annotations, or_none(security()), any::<bool>(), 0..6usize).prop_map(
        |(containers, init, annotations, security, share, volumes)| {
            let annotations = annotations.map(|all| {
                all.into_iter()
                    .map(|(name, text)| (format!("tidelock.dev/{name}"), json!(text)))
                    .collect::<Map<_, _>>()
            });
            let shared = security.map(|mut security| {
                let fields = security.as_object_mut().expect("an object");
                fields.remove("capabilities");
                fields.remove("allowPrivilegeEscalation");
                security
            });
            let volume = |name: &str| match name {
                "tmp" => json!({"name": name, "emptyDir": {}}),
                "host" => json!({"name": name, "hostPath": {"path": "/srv"}}),
                name => json!({"name": name, "persistentVolumeClaim": {"claimName": format!("{name}-db-0")}}),
            };
            // Without a host path half of the time, so that many pods are restricted.
            let volumes: Vec<_> = VOLUMES.iter().take(volumes.max(3)).map(|name| volume(name)).collect();
            let known = |mount: &Value| volumes.iter().any(|volume| volume["name"] == mount["name"]);
            let mend = |list: Vec<Value>| -> Value {
                let mend = |mut one: Value| {
                    if let Some(mounts) = one["volumeMounts"].as_array_mut() {
                        mounts.retain(known);
                    }
                    one
                };
                list.into_iter().map(mend).collect()
            };
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": object(vec![
                    ("name", Some(json!("db-0"))),
                    ("namespace", Some(json!("shop"))),
                    ("annotations", annotations.map(Value::Object)),
                ]),
                "spec": object(vec![
                    ("containers", Some(mend(containers))),
                    ("initContainers", init.map(mend)),
                    ("securityContext", shared),
                    ("shareProcessNamespace", share.then_some(Value::Bool(true))),
                    ("volumes", Some(json!(volumes))),
                ]),
            })
        },
    )
}

/// Whether everything in `before` is in `after`, lists in the same order.
fn holds(before: &Value, after: &Value) -> bool {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            before.iter().all(|(key, value)| after.get(key).is_some_and(|other| holds(value, other)))
        }
        (Value::Array(before), Value::Array(after)) => {
            let mut rest = after.iter();
            before.iter().all(|value| rest.any(|other| value == other))
        }
        _ => before == after,
    }
}

#[test]
fn the_shapes_are_worth_their_time() {
    let mut runner = runner();
    let (mut protected, mut strict) = (0, 0);
    for _ in 0..1500 {
        let pod = pods().new_tree(&mut runner).expect("nothing is filtered").current();
        let injected = ask(&request(&pod), &["inject"]).injected;
        protected += u32::from(injected);
        strict += u32::from(injected && restricted(&pod).is_empty());
    }
    assert!(
        protected > 300 && strict > 100,
        "{protected} of 1500 are protected, {strict} of these restricted"
    );
}

/// The same pods in every run.
pub(crate) fn runner() -> TestRunner {
    TestRunner::new_with_rng(Config::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn what_is_reported_of_a_pod_is_what_was_told_when_it_was_created(pod in pods(), own in any::<bool>()) {
        let mut pod = pod;
        if own {
            pod["metadata"]["labels"] = json!({"tidelock.dev/inject": "true"});
        }
        let judge = |pod: &Value, names: &[&str]| {
            let pod = serde_json::from_value(pod.clone()).expect("a pod");
            let namespace = Namespace { name: "shop".to_owned(), labels: labels(names) };
            protection(&pod, &namespace, &config())
        };
        let answer = ask(&request(&pod), &["inject"]);
        let told = reasons(&answer)[..].first().copied().unwrap_or("none");
        match judge(&pod, &["inject"]) {
            Protection::Unprotected(note) if answer.injected => prop_assert_eq!(note.reason, Reason::Missed),
            Protection::Unprotected(note) => prop_assert_eq!(note.reason.code(), told),
            Protection::Nothing => prop_assert!(!own && told == "no-writable-pvc", "{}", told),
            other => prop_assert!(false, "{:?}", other),
        }
        if answer.injected {
            prop_assert_eq!(judge(&patched(&pod, &answer), &["inject"]), Protection::Starting);
        }
        if !own {
            prop_assert_eq!(judge(&pod, &[]), Protection::NotAsked);
        }
    }

    #[test]
    fn a_pod_keeps_what_it_had_and_what_it_was(pod in pods()) {
        let answer = ask(&request(&pod), &["inject"]);
        let after = patched(&pod, &answer);
        if !answer.injected {
            prop_assert!(!answer.notes.is_empty(), "nobody says why");
            prop_assert_eq!(&after, &pod);
            return Ok(());
        }
        prop_assert!(holds(&pod, &after), "{} became {}", pod, after);
        let before = restricted(&pod);
        if before.is_empty() {
            prop_assert_eq!(restricted(&after), before, "{}", after);
        }
        // No path twice, no mount within another.
        let mounts = crate::world::sidecar(&after)["volumeMounts"].as_array().unwrap();
        let paths: Vec<_> = mounts.iter().map(|mount| std::path::Path::new(mount["mountPath"].as_str().unwrap())).collect();
        for (index, path) in paths.iter().enumerate() {
            prop_assert!(paths[..index].iter().all(|other| !path.starts_with(other) && !other.starts_with(path)), "{:?}", paths);
        }
        let again = ask(&request(&after), &["inject"]);
        prop_assert!(!again.injected);
        prop_assert_eq!(patched(&after, &again), after);
    }
}
