//! What becomes of a recorded workload elsewhere.

use super::*;
use crate::Scope;

fn handover() -> Handover {
    Handover { at: "2026-01-31T12:30:00Z".to_owned(), epoch: Some(2), receiver: None }
}

fn object(version: &str, kind: &str, name: &str) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop", "uid": name}})
}

fn recorded() -> Document {
    let pod = json!({"serviceAccountName": "db", "containers": [{"name": "db", "image": "db:1",
        "envFrom": [{"secretRef": {"name": "password"}}],
        "env": [{"name": "PEER", "value": "orders-0.headless.shop.svc"}]}]});
    let claims = json!([{"metadata": {"name": "data"}, "spec": {"storageClassName": "fast"}}]);
    let mut set = object("apps/v1", "StatefulSet", "orders");
    set["spec"] = json!({"serviceName": "headless", "volumeClaimTemplates": claims,
        "template": {"metadata": {"labels": {"app": "orders"}}, "spec": pod}});
    let mut binding = object("rbac.authorization.k8s.io/v1", "RoleBinding", "db");
    binding["subjects"] = json!([{"kind": "ServiceAccount", "name": "db", "namespace": "shop"}]);
    binding["roleRef"] = json!({"kind": "ClusterRole", "name": "view"});
    let mut claim = object("v1", "PersistentVolumeClaim", "data-orders-0");
    claim["spec"] = json!({"volumeName": "pv-1", "storageClassName": "fast"});
    claim["status"] = json!({"capacity": {"storage": "20Gi"}});
    let all = [
        set,
        binding,
        claim,
        object("v1", "Service", "headless"),
        object("v1", "ServiceAccount", "db"),
        object("v1", "Secret", "password"),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {
            "kubernetes.io/metadata.name": "shop", "tidelock.dev/inject": "true", "tidelock.dev/allow-exact": "true",
            "pod-security.kubernetes.io/enforce": "restricted", "mesh.example.org/inject": "yes"}}}),
    ];
    let workload = "sts/orders".parse().expect("a workload");
    Document::record(&all, "shop", &workload, &Scope::default()).expect("it is there")
}

fn kinds(plan: &Plan) -> Vec<&str> {
    plan.objects.iter().filter_map(|object| object["kind"].as_str()).collect()
}

#[test]
fn what_others_refer_to_comes_first_and_pods_are_told_where_their_data_is() {
    let plan = plan(&recorded(), &Mapping::default(), &handover()).expect("a plan");
    let wanted =
        ["ServiceAccount", "Secret", "RoleBinding", "PersistentVolumeClaim", "Service", "StatefulSet"];
    assert_eq!(kinds(&plan), wanted);
    assert_eq!(plan.volumes["data-orders-0"].to_string(), "shop/data-orders-0");
    let set = plan.objects.last().expect("the workload");
    let meta = &set["spec"]["template"]["metadata"];
    assert_eq!(meta["labels"], json!({"app": "orders", "tidelock.dev/inject": "true"}));
    let annotations = json!({"tidelock.dev/restore": "2026-01-31T12:30:00Z", "tidelock.dev/epoch": "2"});
    assert_eq!(meta["annotations"], annotations);
    assert!(plan.objects.iter().all(|object| object["metadata"]["uid"].is_null()));
    let claim = plan.objects.iter().find(|one| one["kind"] == "PersistentVolumeClaim").expect("planned");
    assert_eq!(claim["metadata"]["annotations"][FILLED_WITH], "shop/data-orders-0 for epoch 2");
}

#[test]
fn the_namespace_has_the_labels_that_decide_on_its_pods_and_the_rest_is_told_of() {
    let namespaces = BTreeMap::from([("shop".to_owned(), "shop-dr".to_owned())]);
    let mapping = Mapping { namespaces, ..Mapping::default() };
    let planned = plan(&recorded(), &mapping, &handover()).expect("a plan");
    let labels = json!({"tidelock.dev/inject": "true", "pod-security.kubernetes.io/enforce": "restricted"});
    assert_eq!(planned.namespace["metadata"], json!({"name": "shop-dr", "labels": labels}));
    let said = planned.warnings.join("\n");
    assert!(said.contains("mesh.example.org/inject, tidelock.dev/allow-exact"), "{said}");
    // What was recorded before labels were has none.
    let mut text: Value = serde_json::from_str(&recorded().to_text()).expect("JSON");
    text.as_object_mut().expect("a map").remove("namespace_labels");
    let older = Document::parse(text.to_string().as_bytes()).expect("read");
    let planned = plan(&older, &Mapping::default(), &handover()).expect("a plan");
    assert_eq!(planned.namespace["metadata"], json!({"name": "shop"}));
}

#[test]
fn in_another_namespace_the_volumes_are_new_ones_and_addresses_are_told_of() {
    let namespaces = BTreeMap::from([("shop".to_owned(), "shop-dr".to_owned())]);
    let mapping = Mapping { namespaces, ..Mapping::default() };
    let plan = plan(&recorded(), &mapping, &handover()).expect("a plan");
    assert!(plan.objects.iter().all(|object| object["metadata"]["namespace"] == "shop-dr"));
    let set = plan.objects.last().expect("the workload");
    let annotations = &set["spec"]["template"]["metadata"]["annotations"];
    assert_eq!(annotations["tidelock.dev/restore-tenant"], "shop");
    assert_eq!(annotations["tidelock.dev/epoch"], Value::Null, "a new volume begins with the first epoch");
    let said = plan.warnings.join("\n");
    for part in ["ClusterRole view", "storage class fast", "addresses in .shop.svc"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// The record with custom resources of each place.
fn with_custom() -> Document {
    let mut document = recorded();
    let mut add = |version: &str, kind: &str, name: &str, place: Place, namespace: bool| {
        let mut one = object(version, kind, name);
        one["spec"] = json!({"where": {"namespace": "shop"}});
        if !namespace {
            one["metadata"].as_object_mut().expect("a map").remove("namespace");
        }
        document.custom.insert(Key::of(&one).expect("a key").to_string(), place);
        document.objects.push(one);
    };
    add("scale.example.org/v1", "Scaler", "a", Place::After, true);
    add("cert-manager.io/v1", "Certificate", "orders", Place::Before, true);
    add("db.example.org/v1", "Database", "orders", Place::Maker, true);
    add("cert-manager.io/v1", "ClusterIssuer", "public", Place::ClusterWide, false);
    document
}

#[test]
fn custom_resources_come_before_the_pods_or_after_what_they_name_and_some_never() {
    let document = with_custom();
    let read = Document::parse(document.to_text().as_bytes()).expect("read");
    assert_eq!(read, document);
    let namespaces = BTreeMap::from([("shop".to_owned(), "shop-dr".to_owned())]);
    let mapping = Mapping { namespaces, ..Mapping::default() };
    let mut plan = plan(&document, &mapping, &handover()).expect("a plan");
    let wanted = [
        "ServiceAccount",
        "Secret",
        "RoleBinding",
        "PersistentVolumeClaim",
        "Service",
        "Certificate",
        "StatefulSet",
        "Scaler",
    ];
    assert_eq!(kinds(&plan), wanted);
    assert!(plan.objects.iter().all(|object| object["metadata"]["namespace"] == "shop-dr"));
    let said = plan.warnings.join("\n");
    for part in [
        "database.db.example.org/orders made the workload and is not applied",
        "clusterissuer.cert-manager.io/public is of the whole cluster and is not applied",
        "certificate.cert-manager.io/orders names the namespace shop",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let pair = |version: &str, kind: &str| (version.to_owned(), kind.to_owned());
    let custom = [pair("cert-manager.io/v1", "Certificate"), pair("scale.example.org/v1", "Scaler")];
    assert_eq!(plan.custom_kinds(), custom.into());
    let told = plan.leave_out(&[pair("cert-manager.io/v1", "Certificate")].into());
    assert_eq!(kinds(&plan).len(), wanted.len() - 1);
    assert!(told[0].contains("does not know Certificate of cert-manager.io/v1"), "{told:?}");
    assert_eq!(plan.warnings.last(), told.first());
    // Records of before have none.
    let mut text: Value = serde_json::from_str(&recorded().to_text()).expect("JSON");
    text.as_object_mut().expect("a map").remove("custom");
    assert_eq!(Document::parse(text.to_string().as_bytes()).expect("read"), recorded());
}

#[test]
fn a_record_that_reaches_elsewhere_is_refused() {
    let mut foreign = recorded();
    foreign.objects[0]["metadata"]["namespace"] = json!("kube-system");
    assert!(matches!(plan(&foreign, &Mapping::default(), &handover()), Err(PlanError::Foreign(..))));
    let mut bad = recorded();
    bad.objects.push(json!("nonsense"));
    assert_eq!(plan(&bad, &Mapping::default(), &handover()), Err(PlanError::BadObject));
    let mut without = recorded();
    without.objects.retain(|object| object["kind"] != "StatefulSet");
    assert!(matches!(plan(&without, &Mapping::default(), &handover()), Err(PlanError::NoWorkload(_))));
}

#[test]
fn a_document_is_read_as_it_was_written_and_another_version_is_refused() {
    let document = recorded();
    assert_eq!(document.volumes[0].size.as_deref(), Some("20Gi"));
    assert_eq!(Document::parse(document.to_text().as_bytes()).expect("read"), document);
    let newer = document.to_text().replace("\"version\": 1", "\"version\": 2");
    assert!(matches!(Document::parse(newer.as_bytes()), Err(crate::DocumentError::Version(2))));
    for bad in ["", "{}", "[]", "null"] {
        assert!(Document::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}
