//! Objects that are kept and given back, for tests of what is around the calls. It decides nothing: it is no API server.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use serde_json::{Value, json};
use tidelock_manifests::Key;

use crate::api::{ApiError, ApplyCalls};

#[derive(Default)]
struct Inside {
    objects: BTreeMap<String, Value>,
    done: Vec<String>,
    refused: BTreeSet<String>,
    known: BTreeMap<String, BTreeSet<String>>,
    looks: usize,
}

/// Keeps what is applied. A workload is ready, a Job complete, and a removed namespace gone when it is looked at for the third time.
#[derive(Default)]
pub(crate) struct Shelf(Mutex<Inside>);

fn key(object: &Value) -> String {
    Key::of(object).expect("a key").to_string()
}

impl Shelf {
    fn inside<T>(&self, work: impl FnOnce(&mut Inside) -> T) -> T {
        work(&mut self.0.lock().expect("not poisoned"))
    }

    /// Something that is there from the beginning.
    pub(crate) fn put(&self, object: Value) {
        self.inside(|inside| inside.objects.insert(key(&object), object));
    }

    /// An object that is not taken.
    pub(crate) fn refuse(&self, object: &str) {
        self.inside(|inside| inside.refused.insert(object.to_owned()));
    }

    /// A kind that it has beside those that every cluster has.
    pub(crate) fn know(&self, version: &str, kind: &str) {
        self.inside(|inside| inside.known.entry(version.to_owned()).or_default().insert(kind.to_owned()));
    }

    /// What was asked to be changed, in order.
    pub(crate) fn done(&self) -> Vec<String> {
        self.inside(|inside| inside.done.clone())
    }
}

impl ApplyCalls for Shelf {
    async fn apply(&self, object: &Value) -> Result<(), ApiError> {
        self.inside(|inside| {
            let key = key(object);
            if inside.refused.contains(&key) {
                return Err(ApiError::Conflict("no".to_owned()));
            }
            inside.done.push(format!("apply {key}"));
            inside.objects.insert(key, object.clone());
            inside.looks = 0;
            Ok(())
        })
    }

    async fn kinds(&self, version: &str) -> Result<BTreeSet<String>, ApiError> {
        Ok(self.inside(|inside| inside.known.get(version).cloned().unwrap_or_default()))
    }

    async fn read(&self, kind: &str, _: &str, name: &str) -> Result<Option<Value>, ApiError> {
        self.inside(|inside| {
            inside.looks += 1;
            let late = inside.looks >= 3;
            let found = inside.objects.get(&format!("{}/{name}", kind.to_ascii_lowercase())).cloned();
            Ok(found.map(|mut object| {
                let replicas = if late { object["spec"]["replicas"].clone() } else { json!(0) };
                object["status"] = match kind {
                    "Job" if late => json!({"conditions": [{"type": "Complete", "status": "True"}]}),
                    "Job" => json!({}),
                    _ => json!({"observedGeneration": 1, "readyReplicas": replicas, "updatedReplicas": replicas}),
                };
                object
            }))
        })
    }

    async fn namespace(&self, name: &str) -> Result<Option<Value>, ApiError> {
        Ok(self.inside(|inside| inside.objects.get(&format!("namespace/{name}")).cloned()))
    }

    async fn create_namespace(&self, namespace: &Value) -> Result<(), ApiError> {
        let name = namespace["metadata"]["name"].as_str().expect("a name").to_owned();
        self.inside(|inside| {
            inside.done.push(format!("create namespace {name}"));
            inside.objects.insert(format!("namespace/{name}"), namespace.clone());
        });
        Ok(())
    }

    async fn pods(&self, _: &str, _: &str) -> Result<Vec<Value>, ApiError> {
        Ok(Vec::new())
    }

    async fn scale(&self, kind: &str, _: &str, name: &str, replicas: i64) -> Result<(), ApiError> {
        self.inside(|inside| {
            let key = format!("{}/{name}", kind.to_ascii_lowercase());
            inside.done.push(format!("scale {key} to {replicas}"));
            if let Some(object) = inside.objects.get_mut(&key) {
                object["spec"]["replicas"] = json!(replicas);
            }
        });
        Ok(())
    }

    async fn remove(&self, kind: &str, _: &str, name: &str) -> Result<(), ApiError> {
        self.inside(|inside| {
            let key = format!("{}/{name}", kind.to_ascii_lowercase());
            inside.done.push(format!("remove {key}"));
            inside.objects.remove(&key);
        });
        Ok(())
    }

    async fn remove_namespace(&self, name: &str) -> Result<(), ApiError> {
        self.inside(|inside| {
            inside.done.push(format!("remove namespace {name}"));
            inside.objects.clear();
        });
        Ok(())
    }
}
