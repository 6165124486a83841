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
    let Closure { objects: found, excluded, .. } = closure(&all, &orders(), &Scope::default());
    let wanted: BTreeSet<Key> = all.iter().filter_map(Key::of).filter(|key| key.name != "token").collect();
    assert_eq!(keys(&found), wanted);
    assert!(excluded.is_empty());
}

#[test]
fn what_is_not_to_be_recorded_is_named_and_left_out() {
    let mut all = shop();
    let password = all.iter_mut().find(|object| object["metadata"]["name"] == "password").expect("there");
    password["metadata"]["labels"] = json!({NOT_RECORDED: "true"});
    let Closure { objects: found, excluded, .. } = closure(&all, &orders(), &Scope::default());
    assert!(!keys(&found).contains(&Key::new("Secret", "password")));
    assert_eq!(excluded.len(), 1);
    let without = Scope { secrets: false, ..Scope::default() };
    let Closure { objects: found, excluded, .. } = closure(&all, &orders(), &without);
    assert!(keys(&found).iter().all(|key| key.kind != "Secret"));
    assert_eq!(excluded.len(), 6);
}

#[test]
fn a_workload_that_is_not_there_has_nothing() {
    let all = shop();
    let found = closure(&all, &Key::new("Deployment", "orders"), &Scope::default()).objects;
    assert!(found.is_empty());
}

fn rule(rule: Value) -> Rule {
    rule.to_string().parse().expect("a rule")
}

/// A rule for each way to belong.
fn rules() -> Scope {
    let field = |field: &str, kind: &str| json!([{"field": field, "kind": kind}]);
    let tls = "cert-manager.io";
    let all = [
        json!({"group": tls, "version": "v1", "kind": "Certificate", "plural": "certificates",
            "names": field("/spec/secretName", "Secret"), "takes": field("/spec/issuerRef/name", "Issuer.cert-manager.io")}),
        json!({"group": tls, "version": "v1", "kind": "Issuer", "plural": "issuers",
            "takes": field("/spec/vault/secretRef/name", "Secret")}),
        json!({"group": tls, "version": "v1", "kind": "ClusterIssuer", "plural": "clusterissuers", "namespaced": false,
            "annotations": ["cert-manager.io/cluster-issuer"]}),
        json!({"group": "monitoring.example.org", "version": "v1", "kind": "Monitor", "plural": "monitors",
            "selects": [{"field": "/spec/selector", "kind": "Service"}, {"field": "/spec/pods", "kind": "Pod"}]}),
        json!({"group": "scale.example.org", "version": "v1alpha1", "kind": "Scaler", "plural": "scalers",
            "names": field("/spec/target/name", "StatefulSet")}),
        json!({"group": "db.example.org", "version": "v2", "kind": "Service", "plural": "services", "owns": true}),
        json!({"group": "db.example.org", "version": "v2", "kind": "User", "plural": "users", "owned": true}),
        json!({"group": "db.example.org", "version": "v2", "kind": "Backup", "plural": "backups", "labels": ["app", "tier"]}),
        json!({"group": "db.example.org", "version": "v2", "kind": "Quota", "plural": "quotas",
            "annotations": ["db.example.org/quota"]}),
        json!({"group": "networking.k8s.io", "version": "v1", "kind": "Ingress", "plural": "ingresses",
            "names": field("/spec/rules/*/http/paths/*/backend/service/name", "Service")}),
    ];
    Scope { secrets: true, rules: all.into_iter().map(rule).collect() }
}

/// Custom resources of the application, and what they bring along.
fn custom() -> Vec<Value> {
    let object = |version: &str, kind: &str, name: &str, rest: Value| {
        let mut object =
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}});
        for (key, value) in rest.as_object().expect("a map") {
            match key.as_str() {
                "spec" => object["spec"] = value.clone(),
                key => object["metadata"][key] = value.clone(),
            }
        }
        object
    };
    let owner = |version: &str, kind: &str, name: &str| json!([{"apiVersion": version, "kind": kind, "name": name, "uid": "1"}]);
    let (tls, db) = ("cert-manager.io/v1", "db.example.org/v2");
    let paths = json!([{"backend": {"service": {"name": "orders"}}}]);
    let mut whole = object(tls, "ClusterIssuer", "public", json!({}));
    whole["metadata"].as_object_mut().expect("a map").remove("namespace");
    vec![
        object(
            tls,
            "Certificate",
            "orders",
            json!({"spec": {"secretName": "tls", "issuerRef": {"kind": "Issuer", "name": "here"}},
                "annotations": {"cert-manager.io/cluster-issuer": "public"}}),
        ),
        object(tls, "Issuer", "here", json!({"spec": {"vault": {"secretRef": {"name": "vault"}}}})),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "vault", "namespace": "shop"}}),
        whole,
        object(
            "monitoring.example.org/v1",
            "Monitor",
            "service",
            json!({"spec": {"selector": {"matchLabels": {"s": "1"}}}}),
        ),
        object("monitoring.example.org/v1", "Monitor", "pods", json!({"spec": {"pods": {"app": "orders"}}})),
        object(
            "scale.example.org/v1alpha1",
            "Scaler",
            "orders",
            json!({"spec": {"target": {"name": "orders"}}}),
        ),
        // Of the kind's name that Kubernetes has, too, with the name of one of its objects.
        object(db, "Service", "orders", json!({})),
        object(db, "User", "owned", json!({"ownerReferences": owner("apps/v1", "StatefulSet", "orders")})),
        object(db, "User", "of-user", json!({"ownerReferences": owner(db, "User", "owned")})),
        object(db, "Backup", "orders", json!({"labels": {"app": "orders", "tier": "back", "more": "x"}})),
        object(db, "Quota", "small", json!({})),
        object(
            "networking.k8s.io/v1",
            "Ingress",
            "web",
            json!({"spec": {"rules": [{"http": {"paths": paths}}]}}),
        ),
    ]
}

/// Custom resources of others, whose relations are near.
fn custom_of_others() -> Vec<Value> {
    let object = |version: &str, kind: &str, name: &str, rest: Value| {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": rest});
        if !rest["labels"].is_null() {
            object["metadata"]["labels"] = rest["labels"].clone();
        }
        object
    };
    let (tls, db) = ("cert-manager.io/v1", "db.example.org/v2");
    let elsewhere =
        json!([{"http": {"paths": [{"backend": {"service": {"name": "orders", "namespace": "bank"}}}]}}]);
    vec![
        // The issuer is the workload's, because it is taken along; who else uses it is not.
        object(tls, "Certificate", "web", json!({"secretName": "web", "issuerRef": {"name": "here"}})),
        object(tls, "Issuer", "there", json!({})),
        object("monitoring.example.org/v1", "Monitor", "all", json!({"selector": {}, "pods": {}})),
        object(
            "monitoring.example.org/v1",
            "Monitor",
            "web",
            json!({"selector": {"matchLabels": {"s": "2"}}}),
        ),
        object("scale.example.org/v1alpha1", "Scaler", "web", json!({"target": {"name": "web"}})),
        object(
            "scale.example.org/v1alpha1",
            "Scaler",
            "kind",
            json!({"target": {"kind": "Deployment", "name": "orders"}}),
        ),
        object(db, "User", "nobody", json!({})),
        object(db, "Backup", "half", json!({"labels": {"app": "orders"}})),
        object(db, "Quota", "orders", json!({})),
        object("networking.k8s.io/v1", "Ingress", "elsewhere", json!({"rules": elsewhere})),
        // Of a kind without a rule.
        object("other.example.org/v1", "Certificate", "orders", json!({"secretName": "tls"})),
    ]
}

/// The application with what its custom resources look for.
fn shop_with_custom() -> Vec<Value> {
    let mut all = shop();
    let owner = json!([{"apiVersion": "db.example.org/v2", "kind": "Service", "name": "orders", "uid": "1"}]);
    all[0]["metadata"]["ownerReferences"] = owner;
    all[0]["spec"]["template"]["metadata"] = json!({"labels": {"app": "orders", "tier": "back"}, "annotations": {"db.example.org/quota": "small"}});
    all[2]["metadata"]["labels"] = json!({"s": "1"});
    all.extend(custom());
    all
}

#[test]
fn custom_resources_belong_by_what_their_rules_say() {
    let all = shop_with_custom();
    let whole = closure(&all, &orders(), &rules());
    let wanted: BTreeSet<Key> = all.iter().filter_map(Key::of).filter(|key| key.name != "token").collect();
    assert_eq!(keys(&whole.objects), wanted);
    let place = |kind: &str, name: &str| whole.custom[&Key::new(kind, name)];
    assert_eq!(place("Certificate.cert-manager.io", "orders"), Place::Before);
    assert_eq!(place("Scaler.scale.example.org", "orders"), Place::After);
    assert_eq!(place("Service.db.example.org", "orders"), Place::Maker);
    assert_eq!(place("ClusterIssuer.cert-manager.io", "public"), Place::ClusterWide);
    assert_eq!(whole.custom.len(), custom().len() - 1, "the Secret is none");
    // Without rules none of it is seen.
    let plain = closure(&all, &orders(), &Scope::default());
    assert!(plain.custom.is_empty());
    assert_eq!(keys(&plain.objects), keys(&closure(&shop(), &orders(), &Scope::default()).objects));
}

#[test]
fn each_relation_is_why_something_belongs() {
    let all = shop_with_custom();
    let whole = keys(&closure(&all, &orders(), &rules()).objects);
    for (index, gone) in rules().rules.iter().enumerate() {
        let mut fewer = rules();
        fewer.rules.remove(index);
        // What has no rule is not listed.
        let is_other = |object: &&Value| Key::of(object).is_some_and(|key| key.kind != gone.qualified());
        let listed: Vec<Value> = all.iter().filter(is_other).cloned().collect();
        let rest = keys(&closure(&listed, &orders(), &fewer).objects);
        assert!(rest.is_subset(&whole) && rest.len() < whole.len(), "{gone:?}");
        let without = Rule {
            owns: false,
            owned: false,
            labels: vec![],
            selects: vec![],
            names: vec![],
            annotations: vec![],
            ..gone.clone()
        };
        fewer.rules.push(without);
        let unrelated = keys(&closure(&all, &orders(), &fewer).objects);
        assert!(unrelated.len() < whole.len() || gone.kind == "Issuer", "{gone:?}: only taken along");
    }
    let mut labelled = all;
    labelled.push(json!({"apiVersion": "cert-manager.io/v1", "kind": "Issuer",
        "metadata": {"name": "by-hand", "namespace": "shop", "labels": {BELONGS: "statefulset.orders"}}}));
    labelled.push(json!({"apiVersion": "cert-manager.io/v1", "kind": "ClusterIssuer",
        "metadata": {"name": "of-all", "labels": {BELONGS: "statefulset.orders"}}}));
    let found = keys(&closure(&labelled, &orders(), &rules()).objects);
    assert!(found.contains(&Key::new("Issuer.cert-manager.io", "by-hand")));
    assert!(!found.contains(&Key::new("ClusterIssuer.cert-manager.io", "of-all")), "it has no namespace");
}

proptest! {
    /// Order and what is beside it make no difference, and every object is there for a reason: without it the closure is
    /// the smaller by what only it refers to, and never larger.
    #[test]
    fn a_closure_is_of_the_workload_alone(
        shuffled in Just([shop_with_custom(), others(), custom_of_others()].concat()).prop_shuffle(),
        gone in any::<prop::sample::Index>(),
    ) {
        let of = |objects: &[Value]| keys(&closure(objects, &orders(), &rules()).objects);
        let whole = of(&shuffled);
        prop_assert_eq!(&whole, &of(&shop_with_custom()));
        let mut fewer = shuffled.clone();
        let gone = fewer.remove(gone.index(fewer.len()));
        let rest = of(&fewer);
        prop_assert!(rest.is_subset(&whole));
        if !whole.contains(&Key::of(&gone).expect("a key")) {
            prop_assert_eq!(rest, whole);
        }
    }
}
