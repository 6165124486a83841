//! What belongs to a workload, and that nothing else does.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A namespace with an application, and another one beside it.
fn shop() -> Vec<Value> {
    let object =
        |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name, "namespace": "shop"}});
    let with = |kind: &str, name: &str, more: Value| {
        let mut object = object(kind, name);
        object.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        object
    };
    let pod = json!({
        "serviceAccountName": "db",
        "imagePullSecrets": [{"name": "pull"}],
        "containers": [{"name": "db", "env": [
            {"name": "A", "valueFrom": {"secretKeyRef": {"name": "password", "key": "p"}}},
            {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "s"}}},
        ], "envFrom": [{"configMapRef": {"name": "more"}}, {"secretRef": {"name": "keys"}}]}],
        "initContainers": [{"name": "first", "envFrom": [{"configMapRef": {"name": "first"}}]}],
        "volumes": [
            {"name": "tls", "secret": {"secretName": "tls"}},
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}},
            {"name": "all", "projected": {"sources": [{"secret": {"name": "part"}}, {"configMap": {"name": "bit"}}]}},
        ],
    });
    let template = json!({"metadata": {"labels": {"app": "orders"}}, "spec": pod});
    let set = json!({"spec": {"serviceName": "headless", "template": template,
        "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}});
    let mut all = vec![
        with("StatefulSet", "orders", set),
        with("Service", "headless", json!({"spec": {"clusterIP": "None"}})),
        with("Service", "orders", json!({"spec": {"selector": {"app": "orders"}}})),
        with(
            "PodDisruptionBudget",
            "orders",
            json!({"spec": {"selector": {"matchLabels": {"app": "orders"}}}}),
        ),
        with(
            "HorizontalPodAutoscaler",
            "orders",
            json!({"spec": {"scaleTargetRef": {"kind": "StatefulSet", "name": "orders"}}}),
        ),
        with("ServiceAccount", "db", json!({"imagePullSecrets": [{"name": "pull-of-account"}]})),
        with(
            "RoleBinding",
            "db",
            json!({"subjects": [{"kind": "ServiceAccount", "name": "db", "namespace": "shop"}],
            "roleRef": {"kind": "Role", "name": "db"}}),
        ),
        object("Role", "db"),
        with("Secret", "token", json!({"type": "kubernetes.io/service-account-token"})),
    ];
    for name in ["pull", "password", "keys", "tls", "part", "pull-of-account"] {
        all.push(object("Secret", name));
    }
    for name in ["settings", "more", "first", "conf", "bit"] {
        all.push(object("ConfigMap", name));
    }
    for name in ["data-orders-0", "data-orders-12", "shared"] {
        all.push(object("PersistentVolumeClaim", name));
    }
    let mut labelled = object("ConfigMap", "read-by-itself");
    labelled["metadata"]["labels"] = json!({BELONGS: "statefulset.orders"});
    all.push(labelled);
    all
}

/// Objects of others, whose names are near.
fn others() -> Vec<Value> {
    let meta = |name: &str| json!({"name": name, "namespace": "shop"});
    let foreign = json!([{"kind": "ServiceAccount", "name": "db", "namespace": "bank"}]);
    let mut all = vec![
        json!({"kind": "Service", "metadata": meta("web"), "spec": {"selector": {"app": "web"}}}),
        json!({"kind": "Service", "metadata": meta("all"), "spec": {"selector": {}}}),
        json!({"kind": "Service", "metadata": meta("more"), "spec": {"selector": {"app": "orders", "x": "y"}}}),
        json!({"kind": "PodDisruptionBudget", "metadata": meta("all"), "spec": {"selector": {}}}),
        json!({"kind": "RoleBinding", "metadata": meta("bank"), "subjects": foreign,
            "roleRef": {"kind": "Role", "name": "bank"}}),
        json!({"kind": "HorizontalPodAutoscaler", "metadata": meta("web"),
            "spec": {"scaleTargetRef": {"kind": "Deployment", "name": "orders"}}}),
    ];
    for (kind, name) in [
        ("Role", "bank"),
        ("Secret", "other"),
        ("ConfigMap", "password"),
        ("Secret", "settings"),
        ("PersistentVolumeClaim", "data-orders-x"),
        ("PersistentVolumeClaim", "data-orders-"),
        ("PersistentVolumeClaim", "more-orders-0"),
        ("Pod", "orders-0"),
    ] {
        all.push(json!({"kind": kind, "metadata": meta(name)}));
    }
    all
}

fn orders() -> Key {
    Key::new("StatefulSet", "orders")
}

fn keys(objects: &[&Value]) -> BTreeSet<Key> {
    objects.iter().filter_map(|object| Key::of(object)).collect()
}

#[test]
fn all_that_a_workload_needs_belongs_to_it() {
    let all = shop();
    let (found, excluded) = closure(&all, &orders(), true);
    let wanted: BTreeSet<Key> = all.iter().filter_map(Key::of).filter(|key| key.name != "token").collect();
    assert_eq!(keys(&found), wanted);
    assert!(excluded.is_empty());
}

#[test]
fn what_is_not_to_be_recorded_is_named_and_left_out() {
    let mut all = shop();
    let password = all.iter_mut().find(|object| object["metadata"]["name"] == "password").expect("there");
    password["metadata"]["labels"] = json!({NOT_RECORDED: "true"});
    let (found, excluded) = closure(&all, &orders(), true);
    assert!(!keys(&found).contains(&Key::new("Secret", "password")));
    assert_eq!(excluded.len(), 1);
    let (found, excluded) = closure(&all, &orders(), false);
    assert!(keys(&found).iter().all(|key| key.kind != "Secret"));
    assert_eq!(excluded.len(), 6);
}

#[test]
fn a_workload_that_is_not_there_has_nothing() {
    let all = shop();
    let (found, _) = closure(&all, &Key::new("Deployment", "orders"), true);
    assert!(found.is_empty());
}

proptest! {
    /// Order and what is beside it make no difference, and every object is there for a reason: without it the closure is
    /// the smaller by what only it refers to, and never larger.
    #[test]
    fn a_closure_is_of_the_workload_alone(
        shuffled in Just(shop().into_iter().chain(others()).collect::<Vec<_>>()).prop_shuffle(),
        gone in any::<prop::sample::Index>(),
    ) {
        let (whole, _) = closure(&shuffled, &orders(), true);
        let alone = shop();
        prop_assert_eq!(keys(&whole), keys(&closure(&alone, &orders(), true).0));
        let mut fewer = shuffled.clone();
        let gone = fewer.remove(gone.index(fewer.len()));
        let (rest, _) = closure(&fewer, &orders(), true);
        prop_assert!(keys(&rest).is_subset(&keys(&whole)));
        if !keys(&whole).contains(&Key::of(&gone).expect("a key")) {
            prop_assert_eq!(keys(&rest), keys(&whole));
        }
    }
}
