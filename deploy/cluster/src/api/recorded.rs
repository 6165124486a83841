//! What calls send, kept as files.
//!
//! The client's far end is a function that notes each request and gives the next answer of a list. It is no API server: nothing
//! is checked, stored or decided there. The files say which rights a program needs, and tests of the chart read them.
//! `TIDELOCK_BLESS=1` writes them anew.

use std::{
    convert::Infallible,
    path::Path,
    sync::{Arc, Mutex},
};

use http_body_util::BodyExt;
use hyper::{Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tower::service_fn;

/// The notes of a client.
#[derive(Clone, Default)]
pub(crate) struct Recorded(Arc<Mutex<Vec<Value>>>);

/// A client that gets these answers, one after the other, each a status and a body.
pub(crate) fn client(answers: Vec<(u16, Value)>) -> (Client, Recorded) {
    let recorded = Recorded::default();
    let (notes, answers) = (recorded.clone(), Arc::new(Mutex::new(answers.into_iter())));
    let service = service_fn(move |request: Request<Body>| {
        let (notes, answers) = (notes.clone(), answers.clone());
        async move {
            notes.note(request).await;
            let next = answers.lock().expect("not poisoned").next();
            let (status, body) = next.expect("an answer to each call");
            let response = Response::builder().status(status).header("content-type", "application/json");
            let body = Body::from(serde_json::to_vec(&body).expect("JSON"));
            Ok::<_, Infallible>(response.body(body).expect("a response"))
        }
    });
    (Client::new(service, "default"), recorded)
}

impl Recorded {
    async fn note(&self, request: Request<Body>) {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a body in memory").to_bytes();
        let query = head.uri.query().unwrap_or_default();
        let (method, path) = (head.method.as_str(), head.uri.path());
        let mut note =
            json!({"call": right(method, path, query), "request": format!("{method} {}", head.uri)});
        if !body.is_empty() {
            note["type"] = json!(head.headers["content-type"].to_str().expect("text"));
            note["body"] = serde_json::from_slice(&body).expect("JSON");
        }
        self.0.lock().expect("not poisoned").push(note);
    }

    /// Compares what was sent with the file.
    pub(crate) fn check(&self, name: &str) {
        let notes = Value::from(self.0.lock().expect("not poisoned").clone());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/calls/{name}.json"));
        if std::env::var_os("TIDELOCK_BLESS").is_some() {
            let text = serde_json::to_string_pretty(&notes).expect("JSON");
            std::fs::write(&path, text + "\n").expect("writable");
        }
        let kept = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kept: Value = serde_json::from_slice(&kept).expect("JSON");
        assert_eq!(notes, kept, "{}: TIDELOCK_BLESS=1 writes it anew", path.display());
    }
}

/// The right that a request needs, as RBAC says it: verb, group, resource, namespace, name.
fn right(method: &str, path: &str, query: &str) -> Value {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (group, rest) = match parts[..] {
        ["api", _, ref rest @ ..] => ("", rest),
        ["apis", group, _, ref rest @ ..] => (group, rest),
        _ => panic!("not a path of the API: {path}"),
    };
    if rest.is_empty() && method == "GET" {
        return json!("discovery, which everybody may ask");
    }
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
        rest => (None, rest),
    };
    let (resource, name) = match rest {
        [resource] => ((*resource).to_owned(), None),
        [resource, name] => ((*resource).to_owned(), Some(*name)),
        [resource, name, sub] => (format!("{resource}/{sub}"), Some(*name)),
        _ => panic!("not a path of the API: {path}"),
    };
    let verb = match (method, name) {
        ("GET", None) if query.contains("watch=true") => "watch",
        ("GET", None) => "list",
        ("GET", Some(_)) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", Some(_)) => "delete",
        _ => panic!("not a call of ours: {method} {path}"),
    };
    json!({"verb": verb, "group": group, "resource": resource, "namespace": namespace, "name": name})
}

#[cfg(test)]
mod tests {
    use super::super::*;
    use super::*;
    use std::pin::pin;

    use futures_util::StreamExt;
    use k8s_openapi::{
        api::{coordination::v1::Lease, core::v1::Secret},
        jiff::Timestamp,
    };

    use crate::{election, watch};

    #[tokio::test]
    async fn what_the_injector_sends() {
        let webhooks = json!({"metadata": {"name": "tide-tidelock-injector-protection"}});
        let review = json!({"spec": {}, "status": {"authenticated": true}});
        let not_there = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
        let (client, recorded) = client(vec![
            (404, not_there),
            (201, json!({"metadata": {}})),
            (200, webhooks.clone()),
            (200, webhooks),
            (201, review),
            (200, json!({"metadata": {"name": "orders-0"}})),
        ]);
        let place = Place {
            namespace: "protection".to_owned(),
            secret: "tidelock-authority".to_owned(),
            webhooks: "tide-tidelock-injector-protection".to_owned(),
        };
        let api = InjectorApi::new(client, place);
        assert!(api.secret().await.expect("an answer").is_none());
        api.create_secret(Secret::default()).await.expect("created");
        api.webhooks().await.expect("there");
        let names = ["namespace.inject.tidelock.dev".to_owned(), "pod.inject.tidelock.dev".to_owned()];
        api.set_bundle(&names, "42", "LS0t").await.expect("patched");
        assert_eq!(api.review("the token").await.expect("an answer").authenticated, Some(true));
        assert!(api.pod("shop", "orders-0").await.expect("an answer").is_some());
        recorded.check("injector");
    }

    #[tokio::test]
    async fn what_bringing_a_workload_somewhere_sends() {
        let not_there =
            || (404, json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}));
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        let pods = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [
            {"metadata": {"name": "orders-0"}}]});
        let (client, recorded) = client(vec![
            not_there(),
            (201, namespace.clone()),
            (200, json!({"metadata": {"name": "password"}})),
            (200, json!({"metadata": {"name": "orders"}})),
            (
                200,
                json!({"metadata": {"name": "orders", "generation": 1}, "spec": {}, "status": {"readyReplicas": 1}}),
            ),
            (200, pods),
            (200, json!({"metadata": {"name": "orders"}, "spec": {"replicas": 0}})),
            (200, json!({"metadata": {"name": "orders-copy"}})),
            (200, json!({"metadata": {"name": "orders-copy"}})),
            not_there(),
            (200, json!({"kind": "Status", "status": "Success"})),
        ]);
        let api = ApplyApi::new(client);
        let meta = |name: &str| json!({"name": name, "namespace": "shop"});
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": meta("password"), "type": "Opaque"});
        let set =
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta("orders"), "spec": {}});
        let job =
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": meta("orders-copy"), "spec": {}});
        assert!(api.namespace("shop").await.expect("an answer").is_none());
        api.create_namespace(&namespace).await.expect("created");
        api.apply(&secret).await.expect("applied");
        api.apply(&set).await.expect("applied");
        let seen = api.read("StatefulSet", "shop", "orders").await.expect("an answer").expect("there");
        assert_eq!(
            (&seen["status"]["readyReplicas"], &seen["metadata"]["generation"]),
            (&json!(1), &json!(1))
        );
        assert!(matches!(api.read("Node", "shop", "a").await, Err(ApiError::Kind(_))));
        assert_eq!(api.pods("shop", "app=orders,tier=db").await.expect("an answer").len(), 1);
        api.scale("StatefulSet", "shop", "orders", 0).await.expect("scaled");
        api.apply(&job).await.expect("applied");
        api.remove("Job", "shop", "orders-copy").await.expect("removed");
        api.remove("Job", "shop", "orders-copy").await.expect("gone is removed");
        api.remove_namespace("shop").await.expect("removed");
        recorded.check("failover");
    }

    #[tokio::test]
    async fn what_applying_custom_resources_sends() {
        let not_there = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
        let resource = |name: &str, kind: &str, namespaced: bool| {
            json!({"name": name, "singularName": "", "kind": kind,
            "namespaced": namespaced, "verbs": ["get", "list", "patch"]})
        };
        let resources = [
            resource("certificates", "Certificate", true),
            resource("certificates/status", "Certificate", true),
            resource("clusterissuers", "ClusterIssuer", false),
        ];
        let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "cert-manager.io/v1",
            "resources": resources});
        let (client, recorded) =
            client(vec![(404, not_there), (200, list), (200, json!({"metadata": {"name": "orders"}}))]);
        let api = ApplyApi::new(client);
        assert!(api.kinds("other.example.org/v1").await.expect("an answer").is_empty());
        assert_eq!(
            api.kinds("cert-manager.io/v1").await.expect("an answer"),
            ["Certificate".to_owned()].into()
        );
        let mut object = json!({"apiVersion": "cert-manager.io/v1", "kind": "Certificate",
            "metadata": {"name": "orders", "namespace": "shop"}, "spec": {"secretName": "tls"}});
        // What is known is not asked for again.
        api.apply(&object).await.expect("applied");
        object["kind"] = json!("ClusterIssuer");
        assert!(matches!(api.apply(&object).await, Err(ApiError::Kind(_))));
        recorded.check("apply-custom");
    }

    /// The rules are those of the chart's example, so that its rights are compared with what is sent.
    #[tokio::test]
    async fn what_recording_custom_resources_sends() {
        let rule = |group: &str,
                    version: &str,
                    kind: &str,
                    plural: &str,
                    namespaced: bool|
         -> tidelock_manifests::Rule {
            let rule = json!({"group": group, "version": version, "kind": kind, "plural": plural, "namespaced": namespaced});
            rule.to_string().parse().expect("a rule")
        };
        let rules = [
            rule("cert-manager.io", "v1", "Certificate", "certificates", true),
            rule("cert-manager.io", "v1", "Issuer", "issuers", true),
            rule("cert-manager.io", "v1", "ClusterIssuer", "clusterissuers", false),
            rule("monitoring.coreos.com", "v1", "PodMonitor", "podmonitors", true),
            rule("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects", true),
            rule("networking.k8s.io", "v1", "Ingress", "ingresses", true),
        ];
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": [{"metadata": {"name": "x"}}]});
        let mut answers: Vec<_> = rules.iter().skip(1).map(|_| (200, list.clone())).collect();
        answers
            .push((404, json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"})));
        let (client, recorded) = client(answers);
        let api = RecorderApi::new(client);
        for (index, rule) in rules.iter().enumerate() {
            let found = api.custom("shop", rule).await.expect("an answer");
            let last = index + 1 == rules.len();
            assert_eq!(found.is_none(), last, "a kind that is not there is no error");
            let first = found.and_then(|all| all.into_iter().next()).unwrap_or_default();
            assert!(
                last || (first["kind"] == *rule.kind && first["apiVersion"] == *rule.api_version()),
                "{first}"
            );
        }
        recorded.check("recorder-custom");
    }

    #[tokio::test]
    async fn what_the_recorder_sends() {
        let list = |items: Value, next: &str| {
            (200, json!({"kind": "List", "apiVersion": "v1", "metadata": {"continue": next}, "items": items}))
        };
        let pod = |name: &str| json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": name}});
        let mut answers = vec![list(json!([pod("a")]), "more"), list(json!([pod("b")]), "")];
        answers.extend(kinds().map(|_| list(json!([{"metadata": {"name": "x"}, "spec": {}}]), "")));
        let namespace = json!({"name": "shop", "labels": {"a": "b"}});
        answers.push((
            200,
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": namespace}),
        ));
        let (client, recorded) = client(answers);
        let api = RecorderApi::new(client);
        assert_eq!(api.pods().await.expect("an answer").len(), 2);
        for kind in kinds() {
            let found = api.objects("shop", kind).await.expect("an answer");
            assert_eq!((&found[0]["kind"], &found[0]["metadata"]["name"]), (&json!(kind), &json!("x")));
        }
        let found = api.namespace("shop").await.expect("an answer").expect("there");
        assert_eq!((&found["kind"], &found["metadata"]["labels"]["a"]), (&json!("Namespace"), &json!("b")));
        recorded.check("recorder");
    }

    #[tokio::test]
    async fn what_looks_after_pods_sends() {
        let list = |name: &str| {
            let of_list = json!({"resourceVersion": "7"});
            (
                200,
                json!({"kind": "List", "apiVersion": "v1", "metadata": of_list, "items": [{"metadata": {"name": name}}]}),
            )
        };
        let metadata = |name: &str| {
            let (_, mut all) = list(name);
            all["items"][0]["kind"] = json!("PartialObjectMetadata");
            all["items"][0]["apiVersion"] = json!("meta.k8s.io/v1");
            (200, all)
        };
        let change = |name: &str, kind: &str, version: &str| {
            let meta = json!({"name": name, "resourceVersion": "8"});
            let object = json!({"kind": kind, "apiVersion": version, "metadata": meta});
            (200, json!({"type": "ADDED", "object": object}))
        };
        let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "1", "controller": true});
        let set = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"name": "web-5d7c", "ownerReferences": [owner]}});
        let not_there = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"});
        let (client, recorded) = client(vec![
            list("orders-0"),
            change("orders-1", "Pod", "v1"),
            metadata("shop"),
            change("bank", "PartialObjectMetadata", "meta.k8s.io/v1"),
            (200, set),
            (201, json!({"metadata": {}})),
            (404, not_there),
            (201, json!({"metadata": {}})),
            (200, json!({"metadata": {}})),
        ]);
        let api = WatchApi::new(client.clone());
        {
            let mut pods = pin!(api.pods());
            for wanted in ["Init", "InitApply(orders-0)", "InitDone", "Apply(orders-1)"] {
                let event = pods.next().await.expect("an event").expect("no error");
                assert_eq!(event.to_string(), wanted);
            }
        }
        {
            let mut namespaces = pin!(api.namespaces());
            for wanted in ["Init", "InitApply(shop)", "InitDone", "Apply(bank)"] {
                let event = namespaces.next().await.expect("an event").expect("no error");
                assert_eq!(event.to_string(), wanted);
            }
        }
        let maker = api.maker("shop", "web-5d7c").await.expect("an answer").expect("one");
        let finding = watch::Finding {
            namespace: "shop".to_owned(),
            owner: watch::Owner::from(&maker),
            reason: tidelock_injector::Reason::UnknownUser,
            message: "it does not say which user".to_owned(),
            pods: ["web-5d7c-a".to_owned()].into(),
        };
        let event = watch::event(&finding, &finding.owner, "injector-1", Timestamp::UNIX_EPOCH);
        api.tell(event).await.expect("created");
        let leases = ElectionApi::new(client, "protection", "tide-tidelock-injector");
        assert!(leases.lease().await.expect("an answer").is_none());
        let mut candidate = election::Candidate::new("injector-1");
        let now = std::time::Instant::now();
        let election::Step::Create(lease) = candidate.step(None, now, Timestamp::UNIX_EPOCH) else {
            panic!("there is none")
        };
        leases.create_lease(lease.clone()).await.expect("created");
        let lease = Lease {
            metadata: serde_json::from_value(
                json!({"name": "tide-tidelock-injector", "namespace": "protection", "resourceVersion": "42"}),
            )
            .expect("metadata"),
            ..lease
        };
        let later = Timestamp::UNIX_EPOCH + std::time::Duration::from_secs(3);
        let election::Step::Replace(lease) = candidate.step(Some(lease), now, later) else {
            panic!("it is its own")
        };
        leases.replace_lease(lease).await.expect("replaced");
        recorded.check("watcher");
    }

    #[tokio::test]
    async fn what_a_check_sends() {
        let list = |item: Value, next: &str| {
            (
                200,
                json!({"kind": "List", "apiVersion": "v1", "metadata": {"continue": next}, "items": [item]}),
            )
        };
        let pod = |name: &str| json!({"metadata": {"name": name}});
        let namespace = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": {"name": "shop", "labels": {"a": "b"}}});
        let one = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "shop"}});
        let (client, recorded) = client(vec![
            list(namespace, ""),
            list(pod("orders-0"), "more"),
            list(pod("orders-1"), ""),
            (200, one),
            list(pod("orders-0"), ""),
        ]);
        let api = CheckApi::new(client);
        assert_eq!(api.labels(None).await.expect("an answer")["shop"]["a"], "b");
        assert_eq!(api.pods(None).await.expect("an answer").len(), 2);
        assert!(api.labels(Some("shop")).await.expect("an answer")["shop"].is_empty());
        assert_eq!(api.pods(Some("shop")).await.expect("an answer").len(), 1);
        recorded.check("check");
    }

    #[tokio::test]
    async fn what_a_change_of_the_authority_sends() {
        let (client, recorded) = client(vec![(200, json!({"metadata": {}}))]);
        let place = Place {
            namespace: "protection".to_owned(),
            secret: "tidelock-authority".to_owned(),
            webhooks: String::new(),
        };
        let read = json!({"metadata": {"name": "tidelock-authority", "namespace": "protection", "resourceVersion": "7"},
            "type": "Opaque", "data": {"ca.crt": "LS0t"}});
        let secret = serde_json::from_value(read).expect("a Secret");
        InjectorApi::new(client, place).replace_secret(secret).await.expect("replaced");
        recorded.check("rotation");
    }

    #[tokio::test]
    async fn who_comes_second_is_told_so() {
        let there = json!({"kind": "Status", "status": "Failure", "code": 409, "reason": "AlreadyExists"});
        let (client, _) = client(vec![(409, there)]);
        let place = Place { namespace: "a".to_owned(), secret: "b".to_owned(), webhooks: "c".to_owned() };
        let error = InjectorApi::new(client, place).create_secret(Secret::default()).await;
        assert!(matches!(error, Err(ApiError::Conflict(_))), "{error:?}");
    }
}
