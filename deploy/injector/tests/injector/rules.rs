//! Who is left alone and why, and what the sidecar of the others is told.

use serde_json::{Value, json};

use crate::{
    pod_security::{container_faults, restricted},
    world::{
        arguments, ask, container, injected, patched, pod, pod_with, reasons, request, response, sidecar,
    },
};

fn refused(pod: &Value, names: &[&str]) -> &'static str {
    let answer = ask(&request(pod), names);
    assert!(!answer.injected, "{pod}");
    assert_eq!(response(&answer)["patch"], Value::Null);
    reasons(&answer)[0]
}

#[test]
fn who_is_left_alone() {
    type Change = fn(&mut Value);
    let cases: &[(&str, Change)] = &[
        ("opted-out", |pod| pod["metadata"]["labels"]["tidelock.dev/inject"] = json!("false")),
        ("bad-label", |pod| pod["metadata"]["labels"]["tidelock.dev/inject"] = json!("yes")),
        ("static-pod", |pod| pod["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"})),
        ("windows", |pod| pod["spec"]["os"] = json!({"name": "windows"})),
        ("host-network", |pod| pod["spec"]["hostNetwork"] = json!(true)),
        ("name-taken", |pod| pod["spec"]["containers"][0]["name"] = json!("tidelock")),
        ("name-taken", |pod| pod["spec"]["volumes"][0]["name"] = json!("tidelock-identity")),
        ("host-path", |pod| {
            pod["spec"]["volumes"][0] = json!({"name": "data", "hostPath": {"path": "/srv"}})
        }),
        ("no-writable-pvc", |pod| {
            pod["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true)
        }),
        ("no-writable-pvc", |pod| pod["spec"]["containers"][0]["volumeMounts"][0]["readOnly"] = json!(true)),
        ("unknown-user", |pod| pod["spec"]["securityContext"] = json!({})),
        ("block-volume", |pod| {
            pod["spec"]["containers"][0]["volumeDevices"] =
                json!([{"name": "data", "devicePath": "/dev/xvda"}]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([]);
        }),
        ("bad-annotation", |pod| {
            pod["metadata"]["annotations"] = json!({"tidelock.dev/restore": "sometimes"})
        }),
        ("bad-annotation", |pod| pod["metadata"]["annotations"] = json!({"tidelock.dev/on-fence": "stop"})),
        ("bad-annotation", |pod| {
            pod["metadata"]["annotations"] = json!({"tidelock.dev/consistency": "pause"})
        }),
        ("no-such-volume", |pod| pod["metadata"]["annotations"] = json!({"tidelock.dev/volumes": "wal"})),
    ];
    for (reason, change) in cases {
        let mut changed = pod();
        change(&mut changed);
        assert_eq!(refused(&changed, &["inject"]), *reason);
    }
}

#[test]
fn namespaces_of_the_cluster_and_of_the_injector_are_left_alone() {
    for (namespace, reason) in
        [("kube-system", "kube-system"), ("kube-node-lease", "kube-system"), ("tidelock", "own-namespace")]
    {
        let mut request = request(&pod());
        request["request"]["namespace"] = json!(namespace);
        assert_eq!(reasons(&ask(&request, &["inject"])), [reason]);
    }
}

#[test]
fn a_second_pass_changes_nothing() {
    let once = injected(&pod_with(&[("restore", "if-empty")]), &["inject"]);
    assert_eq!(refused(&once, &["inject"]), "already-injected");
    // A copy of a pod's annotations is not its sidecar.
    let mut copied = pod();
    copied["metadata"]["annotations"] = once["metadata"]["annotations"].clone();
    let answer = ask(&request(&copied), &["inject"]);
    assert!(answer.injected);
    let status = &patched(&copied, &answer)["metadata"]["annotations"]["tidelock.dev/status"];
    let status: Value = serde_json::from_str(status.as_str().unwrap()).unwrap();
    assert_eq!(status["state"], "injected");
    assert_eq!(status["volumes"][0]["name"], "shop/data-db-0");
}

#[test]
fn the_sidecar_is_the_application_with_less() {
    let pod = injected(&pod(), &[]);
    assert_eq!(restricted(&pod), Vec::<String>::new());
    let sidecar = sidecar(&pod);
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(sidecar["volumeMounts"][0]["mountPath"], "/var/lib/postgresql/data");
    assert_eq!(sidecar["volumeMounts"][0]["readOnly"], true);
    let security = &sidecar["securityContext"];
    assert_eq!((&security["runAsUser"], &security["runAsGroup"]), (&json!(999), &json!(998)));
    assert_eq!(security["readOnlyRootFilesystem"], true);
    // Nothing of it waits for the receiver.
    assert_eq!(sidecar["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": 9902}));
    assert_eq!((&sidecar["readinessProbe"], &sidecar["startupProbe"]), (&Value::Null, &Value::Null));
    assert!(arguments(sidecar).contains(&"--wait-for-identity"));
    assert!(container(&pod, "tidelock-restore").is_none());
}

#[test]
fn wishes_become_arguments() {
    let mut pod = pod_with(&[
        ("receiver", "other.example.org:1"),
        ("exclude", "*.tmp, /$(HOME)"),
        ("consistency", "pause"),
        ("on-fence", "stop"),
        ("tracker", "inotify"),
        ("epoch", "4"),
        ("sidecar-image", "mine:2"),
        ("sidecar-memory-limit", "64Mi"),
        ("log-level", "debug"),
        ("identity-secret", "mine"),
    ]);
    pod["spec"]["shareProcessNamespace"] = json!(true);
    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": 9902}]);
    let pod = injected(&pod, &[]);
    let sidecar = sidecar(&pod);
    let arguments = arguments(sidecar);
    for wanted in [
        "--receiver=other.example.org:1",
        "--exclude=shop/data-db-0=*.tmp",
        "--exclude=shop/data-db-0=/$$(HOME)",
        "--escalate=pause",
        "--on-fence=stop",
        "--tracker=inotify",
        "--epoch=4",
        "--http=0.0.0.0:9903",
    ] {
        assert!(arguments.contains(&wanted), "{wanted} is not in {arguments:?}");
    }
    assert_eq!(sidecar["image"], "mine:2");
    assert_eq!(
        sidecar["resources"],
        json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}})
    );
    assert_eq!(sidecar["env"], json!([{"name": "TIDELOCK_LOG", "value": "debug"}]));
    assert_eq!(pod["spec"]["volumes"][1]["secret"], json!({"secretName": "mine", "optional": true}));
}

#[test]
fn exact_ranges_take_the_namespaces_leave() {
    let wish = pod_with(&[("tracker", "exact")]);
    let answer = ask(&request(&wish), &["inject"]);
    assert_eq!(reasons(&answer), ["exact-not-allowed"]);
    assert_eq!(restricted(&patched(&wish, &answer)), Vec::<String>::new());

    let pod = injected(&wish, &["inject", "allow-exact"]);
    let sidecar = sidecar(&pod);
    assert!(arguments(sidecar).contains(&"--tracker=exact"));
    // What it documents and nothing else: root, two capabilities, and tracefs to read.
    assert_eq!(
        container_faults(sidecar, &json!({})),
        ["runAsNonRoot", "runAsUser is 0", "capabilities are added"]
    );
    assert_eq!(sidecar["securityContext"]["capabilities"]["add"], json!(["PERFMON", "DAC_READ_SEARCH"]));
    assert_eq!(restricted(&pod).len(), 4);
    let tracefs = sidecar["volumeMounts"].as_array().unwrap().last().unwrap();
    assert_eq!(
        *tracefs,
        json!({"name": "tidelock-tracefs", "mountPath": "/sys/kernel/tracing", "readOnly": true})
    );

    // Where the application is root and may do nothing else, nothing else is added.
    let mut root = wish;
    root["spec"]["securityContext"] = json!({"runAsUser": 0});
    let pod = injected(&root, &["allow-exact"]);
    assert_eq!(crate::world::sidecar(&pod)["securityContext"]["capabilities"]["add"], json!(["PERFMON"]));
}
