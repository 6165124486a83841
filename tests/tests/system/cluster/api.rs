//! Objects that are kept and given back over HTTP, with the paths and verbs of a Kubernetes API.
//!
//! It judges nothing: no validation, no defaults, no rights. What it does shows that the programs work against something that keeps
//! objects, and never how an API server behaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
};
use serde_json::{Value, json};
use tidelock_manifests::KINDS;
use tokio::sync::oneshot;

/// Plural, namespace (empty for what has none) and name.
pub(crate) type Name = (String, String, String);

/// What is kept.
#[derive(Default)]
pub(crate) struct Shelf {
    objects: Mutex<BTreeMap<Name, Value>>,
    /// Kinds beyond those that every cluster has: API version, kind, plural.
    known: Mutex<Vec<(String, String, String)>>,
    /// What was sent to be created or applied.
    sent: Mutex<Vec<Value>>,
    /// Changes that were refused; nothing if none is.
    refused: Mutex<Option<BTreeSet<String>>>,
}

/// What a path asks for.
struct Asked {
    resource: String,
    namespace: String,
    name: Option<String>,
    scale: bool,
}

type Answer = (StatusCode, Json<Value>);

impl Shelf {
    /// Looks at, or changes, everything at once.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<Name, Value>) -> T) -> T {
        work(&mut self.objects.lock().expect("not poisoned"))
    }

    /// From now on each change is refused when it is asked for the first time, as an admission webhook refuses.
    pub(crate) fn refuse_each_once(&self) {
        *self.refused.lock().expect("not poisoned") = Some(BTreeSet::new());
    }

    /// How many were.
    pub(crate) fn refused(&self) -> usize {
        self.refused.lock().expect("not poisoned").as_ref().map_or(0, BTreeSet::len)
    }

    /// What was sent to be created or applied, each once.
    pub(crate) fn sent(&self) -> Vec<Value> {
        self.sent.lock().expect("not poisoned").clone()
    }

    fn take(&self, method: &Method, uri: &Uri, body: &Value) -> Option<Answer> {
        if method == Method::GET {
            return None;
        }
        if let Some(refused) = &mut *self.refused.lock().expect("not poisoned")
            && refused.insert(format!("{method} {}", uri.path()))
        {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Forbidden",
                "message": "admission webhook \"policy.example.org\" denied the request: not yet", "code": 403});
            return Some((StatusCode::FORBIDDEN, Json(status)));
        }
        let mut sent = self.sent.lock().expect("not poisoned");
        if body["kind"].is_string() && body["metadata"]["name"].is_string() && !sent.contains(body) {
            sent.push(body.clone());
        }
        None
    }

    /// Has a kind that not every cluster has.
    pub(crate) fn know(&self, version: &str, kind: &str, plural: &str) {
        let one = (version.to_owned(), kind.to_owned(), plural.to_owned());
        self.known.lock().expect("not poisoned").push(one);
    }

    /// What discovery says of an API version with a dot in its group; nothing if nobody brought it.
    fn discover(&self, version: &str) -> Option<Value> {
        let known = self.known.lock().expect("not poisoned");
        let own = known.iter().filter(|(one, ..)| one == version);
        let resources: Vec<Value> = own
            .map(|(_, kind, plural)| {
                json!({"name": plural, "singularName": "", "kind": kind, "namespaced": true, "verbs": ["list", "patch"]})
            })
            .collect();
        (!resources.is_empty()).then(|| json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}))
    }

    /// Puts an object there as its cluster's own people do.
    pub(crate) fn put(&self, object: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let kind = text(&object["kind"]);
        let known = KINDS.iter().find(|(_, one, _)| *one == kind).map(|(_, _, plural)| (*plural).to_owned());
        let resource = known.unwrap_or_else(|| format!("{}s", kind.to_ascii_lowercase()));
        let name = (resource, text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        self.with(|all| merge(all, name, object));
    }

    /// One object.
    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.with(|all| all.get(&(resource.to_owned(), namespace.to_owned(), name.to_owned())).cloned())
    }

    fn answer(&self, method: &Method, uri: &Uri, body: &Bytes) -> Answer {
        if let Some(version) = foreign(uri.path()) {
            let Some(found) = self.discover(&version) else { return status(StatusCode::NOT_FOUND) };
            if uri.path().ends_with(&version) {
                return (StatusCode::OK, Json(found));
            }
        }
        let Some(asked) = read(uri.path()) else { return status(StatusCode::NOT_FOUND) };
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        if let Some(refusal) = self.take(method, uri, &body) {
            return refusal;
        }
        self.with(|all| match (method.as_str(), asked.name.clone()) {
            ("GET", None) => list(all, &asked, uri.query().unwrap_or_default()),
            ("GET", Some(name)) => match all.get(&(asked.resource, asked.namespace, name)) {
                Some(found) => (StatusCode::OK, Json(found.clone())),
                None => status(StatusCode::NOT_FOUND),
            },
            ("POST", None) => {
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let key = (asked.resource, asked.namespace, name);
                if all.contains_key(&key) {
                    return status(StatusCode::CONFLICT);
                }
                (StatusCode::CREATED, Json(merge(all, key, &body)))
            }
            ("PATCH", Some(name)) if asked.scale => {
                let key = (asked.resource, asked.namespace, name.clone());
                if !all.contains_key(&key) {
                    return status(StatusCode::NOT_FOUND);
                }
                merge(all, key, &body);
                let scale = json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": {"name": name},
                    "spec": body["spec"]});
                (StatusCode::OK, Json(scale))
            }
            ("PATCH", Some(name)) => {
                (StatusCode::OK, Json(merge(all, (asked.resource, asked.namespace, name), &body)))
            }
            ("DELETE", Some(name)) => {
                if all.remove(&(asked.resource.clone(), asked.namespace, name.clone())).is_none() {
                    return status(StatusCode::NOT_FOUND);
                }
                if asked.resource == "namespaces" {
                    all.retain(|(_, namespace, _), _| *namespace != name);
                }
                status(StatusCode::OK)
            }
            _ => status(StatusCode::METHOD_NOT_ALLOWED),
        })
    }
}

/// The API version of a path, if it is of a group that not every cluster has.
fn foreign(path: &str) -> Option<String> {
    let (group, rest) = path.strip_prefix("/apis/")?.split_once('/')?;
    let version = rest.split('/').next()?;
    let own = !group.contains('.') || ["networking.k8s.io", "rbac.authorization.k8s.io"].contains(&group);
    (!own).then(|| format!("{group}/{version}"))
}

/// `/api/v1/…` or `/apis/GROUP/VERSION/…`, then `[namespaces/NAMESPACE/]RESOURCE[/NAME[/scale]]`.
fn read(path: &str) -> Option<Asked> {
    let all: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let rest = match *all.first()? {
        "api" => all.get(2..)?,
        "apis" => all.get(3..)?,
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => ((*namespace).to_owned(), rest),
        rest => (String::new(), rest),
    };
    let (resource, name, scale) = match rest {
        [resource] => (*resource, None, false),
        [resource, name] => (*resource, Some((*name).to_owned()), false),
        [resource, name, "scale"] => (*resource, Some((*name).to_owned()), true),
        _ => return None,
    };
    Some(Asked { resource: resource.to_owned(), namespace, name, scale })
}

fn status(code: StatusCode) -> Answer {
    let word = if code.is_success() { "Success" } else { "Failure" };
    let reason = code.canonical_reason().unwrap_or_default().replace(' ', "");
    (
        code,
        Json(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": word,
        "message": reason, "reason": if code == StatusCode::CONFLICT { "AlreadyExists" } else { &reason },
        "code": code.as_u16()})),
    )
}

fn list(all: &BTreeMap<Name, Value>, asked: &Asked, query: &str) -> Answer {
    let selector = query.split('&').find_map(|one| one.strip_prefix("labelSelector=")).unwrap_or_default();
    let selector = selector.replace("%3D", "=").replace("%2C", ",").replace("%2F", "/");
    let fits = |object: &Value| {
        let mut terms = selector.split(',').filter_map(|term| term.split_once('='));
        terms.all(|(key, value)| object["metadata"]["labels"][key] == value)
    };
    let own =
        |name: &Name| name.0 == asked.resource && (asked.namespace.is_empty() || name.1 == asked.namespace);
    let items: Vec<Value> =
        all.iter().filter(|(name, object)| own(name) && fits(object)).map(|(_, one)| one.clone()).collect();
    let list =
        json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    (StatusCode::OK, Json(list))
}

/// Adds to what is there. The spec's changes are counted, as controllers want them.
fn merge(all: &mut BTreeMap<Name, Value>, name: Name, object: &Value) -> Value {
    let found = all.entry(name.clone()).or_insert_with(|| json!({}));
    let spec = found["spec"].clone();
    lay_over(found, object);
    if found["spec"] != spec || found["metadata"]["generation"].is_null() {
        let generation = found["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        found["metadata"]["generation"] = generation.into();
    }
    found["metadata"]["uid"] = format!("uid-{}-{}", name.0, name.2).into();
    found.clone()
}

fn lay_over(under: &mut Value, over: &Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                lay_over(under.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over.clone(),
    }
}

/// Serves it until this is dropped.
pub(crate) struct Api {
    /// Where.
    pub(crate) address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Api {
    /// On an address of its own.
    pub(crate) fn serve(shelf: Arc<Shelf>) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("an address");
        let address = listener.local_addr().expect("bound");
        listener.set_nonblocking(true).expect("it is a socket");
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
                let answer = |State(shelf): State<Arc<Shelf>>, method: Method, uri: Uri, body: Bytes| async move {
                    shelf.answer(&method, &uri, &body)
                };
                let router = Router::new().fallback(answer).with_state(shelf);
                let stopped = async { drop(stopped.await) };
                tokio::select! {
                    served = axum::serve(listener, router) => served.expect("it serves"),
                    () = stopped => {}
                }
            });
        });
        Self { address, _stop: stop }
    }
}
