//! Filling empty volumes before the application starts.

use serde_json::{Value, json};

use crate::{
    pod_security::restricted,
    world::{arguments, container, injected, pod_with},
};

#[test]
fn an_empty_volume_is_filled_before_anybody_touches_it() {
    let mut pod = pod_with(&[("restore", "if-empty")]);
    let volumes = pod["spec"]["volumes"].as_array_mut().unwrap();
    volumes.push(json!({"name": "wal", "persistentVolumeClaim": {"claimName": "wal-db-0"}}));
    let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array_mut().unwrap();
    mounts.push(json!({"name": "wal", "mountPath": "/wal"}));
    pod["spec"]["initContainers"] = json!([{
        "name": "prepare", "image": "x:1",
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}
    }]);
    let pod = injected(&pod, &[]);
    let order: Vec<_> =
        pod["spec"]["initContainers"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(order, ["tidelock-restore", "prepare", "tidelock"]);
    let restore = container(&pod, "tidelock-restore").unwrap();
    assert_eq!(restore["restartPolicy"], Value::Null);
    assert_eq!(
        arguments(restore),
        [
            "restore",
            "shop/data-db-0",
            "--to=/var/lib/postgresql/data",
            "--also=shop/wal-db-0=/wal",
            "--if-empty",
            "--at=latest",
            "--receiver=standby.example.org:9900",
            "--identity=/var/run/tidelock/identity",
        ]
    );
    assert_eq!(restore["volumeMounts"][1], json!({"name": "wal", "mountPath": "/wal"}));
    assert_eq!(restricted(&pod), Vec::<String>::new());
    // An operator's identity is in no other container.
    let holders = |pod: &Value| {
        let containers =
            ["containers", "initContainers"].map(|list| pod["spec"][list].as_array().cloned().unwrap());
        let holds = |one: &Value| one["volumeMounts"].to_string().contains("tidelock-restore-identity");
        containers.concat().iter().filter(|one| holds(one)).count()
    };
    assert_eq!(holders(&pod), 1);
}

#[test]
fn a_time_is_handed_on() {
    let pod = injected(&pod_with(&[("restore", "2026-01-31T12:30:00Z")]), &[]);
    let restore = container(&pod, "tidelock-restore").unwrap();
    assert!(arguments(restore).contains(&"--at=2026-01-31T12:30:00Z"));
}
