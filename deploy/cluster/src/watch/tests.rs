use std::sync::{Arc, Mutex};

use futures_util::{Stream, stream};
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        events::v1::Event as Told,
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{api::PartialObjectMeta, runtime::watcher::Event};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::*;
use crate::api::ApiError;

type Sent<T> = Mutex<Option<mpsc::UnboundedReceiver<Result<Event<T>, ApiError>>>>;

/// What an API would tell is told by the test.
struct Calls {
    pods: Sent<Pod>,
    namespaces: Sent<PartialObjectMeta<Namespace>>,
    told: Arc<Mutex<Vec<Told>>>,
}

fn listen<T: Send>(sent: &Sent<T>) -> impl Stream<Item = Result<Event<T>, ApiError>> + Send + use<T> {
    let receiver = sent.lock().expect("not poisoned").take().expect("it is watched once");
    stream::unfold(receiver, |mut receiver| async { Some((receiver.recv().await?, receiver)) })
}

impl WatchCalls for Calls {
    fn pods(&self) -> impl Stream<Item = Result<Event<Pod>, ApiError>> + Send {
        listen(&self.pods)
    }

    fn namespaces(&self) -> impl Stream<Item = Result<Event<PartialObjectMeta<Namespace>>, ApiError>> + Send {
        listen(&self.namespaces)
    }

    async fn maker(&self, _: &str, replica_set: &str) -> Result<Option<OwnerReference>, ApiError> {
        if replica_set == "gone" {
            return Err(ApiError::NoCluster("not now".to_owned()));
        }
        let owner =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "deployment"});
        Ok(Some(serde_json::from_value(owner).expect("an owner")))
    }

    async fn tell(&self, event: Told) -> Result<(), ApiError> {
        self.told.lock().expect("not poisoned").push(event);
        Ok(())
    }
}

struct World {
    pods: mpsc::UnboundedSender<Result<Event<Pod>, ApiError>>,
    namespaces: mpsc::UnboundedSender<Result<Event<PartialObjectMeta<Namespace>>, ApiError>>,
    told: Arc<Mutex<Vec<Told>>>,
    registry: Registry,
    watcher: JoinHandle<()>,
}

impl World {
    fn new() -> Self {
        let ((pods, from_pods), (namespaces, from_namespaces)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (tally, mut registry, told) = (Tally::default(), Registry::default(), Arc::default());
        tally.register(&mut registry);
        let calls = Calls {
            pods: Mutex::new(Some(from_pods)),
            namespaces: Mutex::new(Some(from_namespaces)),
            told: Arc::clone(&told),
        };
        let config = Config { receiver: Some("standby:9900".to_owned()), ..Config::default() };
        let pace = Pace { every: Duration::from_millis(2), after: Duration::from_millis(40) };
        let watcher = Watcher { calls, config, tally, replica: "injector-1".to_owned(), pace };
        let watcher = tokio::spawn(async move { watcher.run().await });
        Self { pods, namespaces, told, registry, watcher }
    }

    fn pod(&self, event: fn(Pod) -> Event<Pod>, pod: &Value) {
        let pod = serde_json::from_value(pod.clone()).expect("a pod");
        self.pods.send(Ok(event(pod))).expect("it listens");
    }

    fn namespace(&self, asks: &str) {
        let meta = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "shop", "labels": {"tidelock.dev/inject": asks}}});
        let namespace = serde_json::from_value(meta).expect("metadata");
        self.namespaces.send(Ok(Event::Apply(namespace))).expect("it listens");
    }

    async fn until(&self, metric: &str, value: Option<&str>) {
        let reached = async {
            while self.metric(metric).as_deref() != value {
                sleep(Duration::from_millis(2)).await;
            }
        };
        let shown = || format!("{metric} is {:?} and never {value:?}", self.metric(metric));
        timeout(Duration::from_secs(20), reached).await.unwrap_or_else(|_| panic!("{}", shown()));
    }

    fn metric(&self, name: &str) -> Option<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes every text");
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        found.map(|rest| rest.trim().to_owned())
    }

    /// Whom it was told to, and what.
    fn told(&self) -> Vec<(String, String)> {
        let mut told = self.told.lock().expect("not poisoned");
        let words = |event: Told| {
            let regarding = event.regarding.expect("an object");
            let text = |text: Option<String>| text.unwrap_or_default();
            (format!("{}/{}", text(regarding.kind), text(regarding.name)), text(event.note))
        };
        told.drain(..).map(words).collect()
    }
}

/// One that would be injected, unless it does not say its user.
fn pod(name: &str, kind: &str, owner: &str, user: &Value) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": name, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": owner, "controller": true}]},
        "spec": {
            "securityContext": user,
            "containers": [{"name": "db", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}],
        },
    })
}

#[tokio::test]
async fn pods_that_asked_and_are_not_protected_are_counted_and_their_owners_told_once() {
    let world = World::new();
    let user = json!({"runAsUser": 999});
    let missed = "unprotected_pods{namespace=\"shop\",reason=\"missed\"}";
    let unknown = "unprotected_pods{namespace=\"shop\",reason=\"unknown-user\"}";
    let protected = "protected_pods{namespace=\"shop\"}";
    world.pods.send(Ok(Event::Init)).expect("it listens");
    for n in 0..3 {
        world.pod(Event::InitApply, &pod(&format!("orders-{n}"), "StatefulSet", "orders", &user));
    }
    world.pod(Event::InitApply, &pod("web-5d7c-a", "ReplicaSet", "web-5d7c", &json!({})));
    world.pods.send(Ok(Event::InitDone)).expect("it listens");
    // Nobody knows yet who asked.
    assert_eq!(world.metric("watches").as_deref(), Some("0"));
    world.namespaces.send(Ok(Event::Init)).expect("it listens");
    world.namespaces.send(Ok(Event::InitDone)).expect("it listens");
    world.until("watches", Some("1")).await;
    assert_eq!((world.metric(missed), world.told()), (None, vec![]));
    // A namespace that is labelled asks for the pods that run already; and an error ends nothing.
    world.pods.send(Err(ApiError::NoCluster("for a moment".to_owned()))).expect("it listens");
    world.namespace("true");
    world.until(missed, Some("3")).await;
    assert_eq!(world.metric(unknown).as_deref(), Some("1"));
    world.until("events_total{outcome=\"sent\"}", Some("2")).await;
    let told = world.told();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0].0, "Deployment/web");
    assert!(told[0].1.starts_with("pod web-5d7c-a asked") && told[0].1.contains("runAsUser"), "{told:?}");
    assert_eq!(told[1].0, "StatefulSet/orders");
    assert!(told[1].1.starts_with("3 pods, such as orders-0, asked"), "{told:?}");
    // One pod is restarted with a sidecar, one ends, one goes; a further one of the same owner is no news.
    let mut injected = pod("orders-0", "StatefulSet", "orders", &user);
    injected["spec"]["initContainers"] =
        json!([{"name": "tidelock", "restartPolicy": "Always", "args": ["sidecar"]}]);
    injected["status"] = json!({"initContainerStatuses": [{"name": "tidelock", "image": "", "imageID": "",
        "ready": true, "restartCount": 0, "state": {"running": {}}}]});
    world.pod(Event::Apply, &pod("orders-3", "StatefulSet", "orders", &user));
    world.pod(Event::Apply, &injected);
    world.pod(Event::Delete, &pod("orders-1", "StatefulSet", "orders", &user));
    let mut ended = pod("web-5d7c-a", "ReplicaSet", "web-5d7c", &json!({}));
    ended["status"] = json!({"phase": "Failed"});
    world.pod(Event::Apply, &ended);
    world.until(unknown, None).await;
    assert_eq!(world.metric(missed).as_deref(), Some("2"));
    assert_eq!(world.metric(protected).as_deref(), Some("1"));
    // What is listed anew replaces what was known, and not before it is whole.
    world.pods.send(Ok(Event::Init)).expect("it listens");
    world.pod(Event::InitApply, &injected);
    // Seen once it is counted, and then what was sent before it is.
    world.pod(Event::Apply, &pod("other-0", "StatefulSet", "other", &json!({})));
    world.until(unknown, Some("1")).await;
    assert_eq!(world.metric(missed).as_deref(), Some("2"));
    world.pod(Event::Delete, &pod("other-0", "StatefulSet", "other", &json!({})));
    world.pods.send(Ok(Event::InitDone)).expect("it listens");
    world.until(missed, None).await;
    let told = world.told.lock().expect("not poisoned").len() + 3;
    world.pod(Event::Apply, &pod("last-0", "StatefulSet", "last", &json!({})));
    world.until("events_total{outcome=\"sent\"}", Some(&told.to_string())).await;
    // Its sidecar is there, whoever takes the label away.
    world.namespace("false");
    world.until(unknown, None).await;
    assert_eq!(world.metric(protected).as_deref(), Some("1"));
    let told: Vec<String> = world.told().into_iter().map(|(owner, _)| owner).collect();
    assert!(!told.contains(&"StatefulSet/orders".to_owned()), "it was told before: {told:?}");
    world.watcher.abort();
}

#[tokio::test]
async fn the_replica_set_hears_of_it_if_nobody_knows_its_deployment() {
    let world = World::new();
    world.namespaces.send(Ok(Event::Init)).expect("it listens");
    world.namespaces.send(Ok(Event::InitDone)).expect("it listens");
    world.namespace("true");
    world.pods.send(Ok(Event::Init)).expect("it listens");
    world.pods.send(Ok(Event::InitDone)).expect("it listens");
    world.pod(Event::Apply, &pod("a", "ReplicaSet", "gone", &json!({})));
    world.until("events_total{outcome=\"sent\"}", Some("1")).await;
    assert_eq!(world.told()[0].0, "ReplicaSet/gone");
    world.watcher.abort();
}
