//! A cluster for programs that bring workloads somewhere: an API that keeps objects, and a node that runs what they say.
//!
//! What the pods run is real: the injector's decision, the restore, the sidecar, PostgreSQL, and the Jobs. What an API server
//! and a kubelet do with objects is only what stands in [`api`] and [`node`].

mod api;
mod node;
mod valid;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tidelock_tests::{http, pg::Pg, process, site::Site, wait};

pub(crate) use api::{Api, Shelf};
use node::Node;
pub(crate) use valid::kinds_that_are_valid;

/// A cluster, with one node.
pub(crate) struct Cluster {
    /// Its objects.
    pub(crate) shelf: Arc<Shelf>,
    directory: PathBuf,
    receiver: String,
    up: Option<(Api, Option<Node>)>,
}

impl Cluster {
    /// An empty one, whose injector knows this receiver. It is not up yet.
    pub(crate) fn new(site: &Site, name: &str, receiver: &str) -> Self {
        let directory = site.new_dir(name);
        Self { shelf: Arc::default(), directory, receiver: receiver.to_owned(), up: None }
    }

    /// Starts API and node, with the objects and claims that are there.
    pub(crate) fn start(&mut self) {
        let api = Api::serve(self.shelf.clone());
        let node = Node::start(self.shelf.clone(), self.directory.clone(), self.receiver.clone());
        self.up = Some((api, Some(node)));
    }

    /// Starts the API alone: objects are taken, and no pod comes of them.
    pub(crate) fn start_without_nodes(&mut self) {
        self.up = Some((Api::serve(self.shelf.clone()), None));
    }

    /// Nothing of it answers any more; its claims stay.
    pub(crate) fn lose(&mut self) {
        self.up = None;
    }

    /// What a kubeconfig says of it.
    fn address(&self) -> String {
        let api = self.up.as_ref().map(|(api, _)| format!("http://{}", api.address));
        // One that is lost has an address, too.
        api.unwrap_or_else(|| "http://127.0.0.1:9".to_owned())
    }

    /// Where a claim's files are.
    pub(crate) fn claim(&self, namespace: &str, name: &str) -> PathBuf {
        node::claim(&self.directory, namespace, name)
    }

    /// The database of a pod.
    pub(crate) fn pg(&self, namespace: &str, pod: &str, claim: &str) -> Pg {
        Pg::at(&self.claim(namespace, claim), &node::run_directory(&self.directory, namespace, pod))
    }

    /// Waits until a pod's sidecar says that all that was done before is durable.
    pub(crate) fn caught_up(&self, namespace: &str, pod: &str) {
        let ports = node::run_directory(&self.directory, namespace, pod).join("sidecar.ports");
        wait::until_true("a durable point that covers this moment", 2 * wait::SOON, || {
            let text = fs::read_to_string(&ports).unwrap_or_default();
            let answer = text
                .lines()
                .next()
                .and_then(|address| http::post(address, "/checkpoint", r#"{"wait_ms": 1000}"#));
            answer.is_some_and(|(code, _)| code == 200)
        });
    }

    /// A Secret with the files of an identity directory.
    pub(crate) fn put_identity(&self, namespace: &str, name: &str, directory: &Path) {
        let encoded = |file: &str| {
            let bytes = fs::read(directory.join(file)).expect("an identity");
            (file.to_owned(), Value::from(STANDARD.encode(bytes)))
        };
        let data: serde_json::Map<_, _> = ["tls.crt", "tls.key", "ca.crt"].into_iter().map(encoded).collect();
        self.shelf.put(&json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data,
            "metadata": {"name": name, "namespace": namespace}}));
    }
}

/// A kubeconfig with a context for each of these clusters.
pub(crate) fn kubeconfig(path: &Path, clusters: &[(&str, &Cluster)]) {
    let one =
        |(name, cluster): &(&str, &Cluster)| json!({"name": name, "cluster": {"server": cluster.address()}});
    let context = |(name, _): &(&str, &Cluster)| json!({"name": name, "context": {"cluster": name, "user": "somebody"}});
    let config = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": clusters.iter().map(one).collect::<Vec<_>>(),
        "contexts": clusters.iter().map(context).collect::<Vec<_>>(),
        "users": [{"name": "somebody", "user": {}}],
    });
    fs::write(path, config.to_string()).expect("writable");
}

/// The documents of a YAML file.
pub(crate) fn documents(yaml: &Path) -> Vec<Value> {
    let script =
        "import json,sys,yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let text = process::run(Command::new("python3").args(["-c", script]).arg(yaml));
    serde_json::from_str(&text).expect("JSON")
}
