//! What a trial may do: nothing outside of its namespace.

use proptest::prelude::*;

use super::*;
use crate::Scope;

fn object(version: &str, kind: &str, name: &str, rest: Value) -> Value {
    let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop", "uid": "1"}});
    object.as_object_mut().expect("a map").extend(rest.as_object().expect("a map").clone());
    object
}

fn recorded(pod: Value) -> Document {
    let template = json!({"metadata": {"labels": {"app": "orders"},
        "annotations": {"tidelock.dev/receiver": "a:1", "other": "stays"}}, "spec": pod});
    let outward = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": {"app": "orders"},
        "ports": [{"port": 5432, "nodePort": 30000}]});
    let mut service = object("v1", "Service", "orders", json!({"spec": outward}));
    service["metadata"]["annotations"] =
        json!({"external-dns.alpha.kubernetes.io/hostname": "orders.example.org"});
    let all = [
        object(
            "apps/v1",
            "StatefulSet",
            "orders",
            json!({"spec": {"replicas": 2, "serviceName": "orders",
            "selector": {"matchLabels": {"app": "orders"}}, "template": template,
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}]}}),
        ),
        service,
        object(
            "v1",
            "Service",
            "away",
            json!({"spec": {"type": "ExternalName", "externalName": "db.example.org",
            "selector": {"app": "orders"}}}),
        ),
        object("v1", "PersistentVolumeClaim", "data-orders-0", json!({"spec": {"storageClassName": "fast"}})),
        object(
            "policy/v1",
            "PodDisruptionBudget",
            "orders",
            json!({"spec": {"selector": {"matchLabels": {"app": "orders"}}}}),
        ),
        object(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            "orders",
            json!({"spec": {"scaleTargetRef": {"kind": "StatefulSet", "name": "orders"}}}),
        ),
    ];
    Document::record(&all, "shop", &"sts/orders".parse().expect("a workload"), &Scope::default())
        .expect("it is there")
}

fn pod() -> Value {
    json!({"containers": [{"name": "db", "ports": [{"containerPort": 5432, "hostPort": 5432}]}]})
}

#[test]
fn a_trial_has_its_own_namespace_and_reaches_nothing_outside() {
    let planned = trial(&recorded(pod()), &Mapping::default(), 9900).expect("a trial");
    let name = "tidelock-test-shop-sts-orders";
    assert_eq!(planned.plan.to, name);
    let labels = json!({SCRATCH: "shop.statefulset.orders", "tidelock.dev/inject": "false"});
    assert_eq!(planned.plan.namespace["metadata"], json!({"name": name, "labels": labels}));
    let all = || planned.policies.iter().chain(&planned.claims).chain(&planned.plan.objects);
    assert!(all().all(|one| one["metadata"]["namespace"] == name));
    let kinds: Vec<&str> = planned.plan.objects.iter().filter_map(|one| one["kind"].as_str()).collect();
    assert_eq!(kinds, ["Service", "StatefulSet"]);
    let service = &planned.plan.objects[0];
    assert_eq!(service["metadata"]["annotations"], Value::Null);
    assert_eq!(service["spec"], json!({"selector": {"app": "orders"}, "ports": [{"port": 5432}]}));
    let template = &planned.plan.objects[1]["spec"]["template"];
    let meta = json!({"labels": {"app": "orders", "tidelock.dev/inject": "false"}, "annotations": {"other": "stays"}});
    assert_eq!(template["metadata"], meta);
    assert_eq!(template["spec"], json!({"containers": [{"name": "db", "ports": [{"containerPort": 5432}]}]}));
    assert_eq!(planned.claims[0]["metadata"]["annotations"].get(FILLED_WITH), None);
    let said = planned.plan.warnings.join("\n");
    for part in
        ["service/away is not tried", "horizontalpodautoscaler/orders is not", "enforces NetworkPolicies"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// Whether a policy of the trial lets a pod with these labels send there.
fn may_send(policies: &[Value], labels: &Value, protocol: &str, port: u16, to: &Value) -> bool {
    let matches = |selector: &Value, labels: &Value| {
        let wanted = selector["matchLabels"].as_object().into_iter().flatten();
        wanted.into_iter().all(|(key, value)| &labels[key] == value)
    };
    let own = policies.iter().filter(|one| matches(&one["spec"]["podSelector"], labels));
    let mut rules = own.flat_map(|one| items(&one["spec"]["egress"]));
    rules.any(|rule| {
        let ports = items(&rule["ports"]).any(|one| one["protocol"] == protocol && one["port"] == port);
        let peers = items(&rule["to"]).any(|peer| match peer["namespaceSelector"].is_object() {
            true => {
                matches(&peer["namespaceSelector"], &to["namespace"])
                    && matches(&peer["podSelector"], &to["pod"])
            }
            false => to["trial"] == true && matches(&peer["podSelector"], &to["pod"]),
        });
        (rule["ports"].is_null() || ports) && (rule["to"].is_null() || peers)
    })
}

#[test]
fn only_what_fills_reaches_the_receiver_and_nobody_anything_else() {
    let policies = policies("t", 9900);
    for policy in &policies {
        assert!(
            policy["spec"]["policyTypes"].as_array().is_some_and(|types| types.contains(&json!("Egress")))
        );
    }
    let (application, filler) = (json!({"app": "orders"}), json!({JOB: FILL}));
    let world = json!({"pod": {}, "namespace": {}});
    let neighbour = json!({"pod": {"app": "orders"}, "trial": true});
    let dns =
        json!({"pod": {"k8s-app": "kube-dns"}, "namespace": {"kubernetes.io/metadata.name": "kube-system"}});
    let production = json!({"pod": {"app": "orders"}, "namespace": {"kubernetes.io/metadata.name": "shop"}});
    for (labels, protocol, port, to, may) in [
        (&application, "TCP", 5432, &neighbour, true),
        (&application, "UDP", 53, &dns, true),
        (&application, "TCP", 443, &dns, false),
        (&application, "TCP", 5432, &production, false),
        (&application, "UDP", 9900, &world, false),
        (&application, "TCP", 443, &world, false),
        (&filler, "UDP", 9900, &world, true),
        (&filler, "TCP", 9900, &world, false),
        (&filler, "TCP", 443, &world, false),
    ] {
        assert_eq!(may_send(&policies, labels, protocol, port, to), may, "{labels} {protocol} {port} {to}");
    }
    // Nobody from elsewhere comes in.
    assert_eq!(policies[0]["spec"]["ingress"], json!([{"from": [{"podSelector": {}}]}]));
    assert_eq!(policies[0]["spec"]["podSelector"], json!({}));
}

#[test]
fn pods_in_the_nodes_network_cannot_be_isolated() {
    let mut pod = pod();
    pod["hostNetwork"] = json!(true);
    let refused = trial(&recorded(pod), &Mapping::default(), 9900);
    assert!(matches!(refused, Err(PlanError::NotIsolated(_))), "{refused:?}");
}

proptest! {
    #[test]
    fn names_of_trials_are_names_and_differ(namespace in "[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name in "[a-z]([a-z0-9.-]{0,250}[a-z0-9])?") {
        let key = |kind: &str| Key::new(kind, &name);
        let of = trial_namespace(&namespace, &key("StatefulSet"));
        prop_assert!(of.len() <= 63 && of.starts_with("tidelock-test-"));
        prop_assert!(of.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'));
        prop_assert!(of.ends_with(|last: char| last != '-'));
        prop_assert_ne!(&of, &trial_namespace(&namespace, &key("Deployment")));
        prop_assert!(trial_of(&namespace, &key("StatefulSet")).len() <= 63);
    }
}
