//! A plan as a JSON patch, in the fewest steps, so that the rest of the pod stays byte for byte what it was.

use json_patch::{AddOperation, Patch, PatchOperation, jsonptr::PointerBuf};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    decide::{Plan, Protected},
    names,
};

/// What the status annotation holds.
#[derive(Serialize)]
struct Status<'a> {
    state: &'static str,
    volumes: &'a [Protected],
    receiver: &'a str,
}

impl Plan {
    /// The patch that carries the plan out on this pod, or on a pod's template.
    pub fn patch(&self, pod: &Value) -> Patch {
        let mut steps = Steps { pod, patch: Vec::new() };
        steps.annotate(names::STATUS, &self.status());
        steps.annotate(names::INJECTED_BY, concat!("tidelock/", env!("CARGO_PKG_VERSION")));
        for volume in &self.volumes {
            steps.append(["spec", "volumes"], "-", volume);
        }
        steps.append(["spec", "initContainers"], "-", &self.sidecar);
        if let Some(restore) = &self.restore {
            steps.append(["spec", "initContainers"], "0", restore);
        }
        Patch(steps.patch)
    }

    /// What is added, in words, a line each.
    pub fn describe(&self) -> Vec<String> {
        let volume = |volume: &Protected| {
            format!("volume {} as {}, seen at {}", volume.volume, volume.name, volume.path)
        };
        let mut lines: Vec<_> = self.protected.iter().map(volume).collect();
        lines.push(format!("sidecar as user {}, to {}", self.uid, self.receiver));
        if self.restore.is_some() {
            lines.push("empty volumes are filled first".to_owned());
        }
        lines
    }

    fn status(&self) -> String {
        let status = Status { state: "injected", volumes: &self.protected, receiver: &self.receiver };
        serde_json::to_string(&status).expect("texts serialise")
    }
}

struct Steps<'a> {
    pod: &'a Value,
    patch: Vec<PatchOperation>,
}

impl Steps<'_> {
    fn annotate(&mut self, name: &str, text: &str) {
        self.require(["metadata"], json!({}));
        self.require(["metadata", "annotations"], json!({}));
        self.add(PointerBuf::from_tokens(["metadata", "annotations", name]), json!(text));
    }

    fn append(&mut self, list: [&str; 2], at: &str, item: &impl Serialize) {
        self.require(list, json!([]));
        let item = serde_json::to_value(item).expect("types of Kubernetes serialise");
        self.add(PointerBuf::from_tokens(list.into_iter().chain([at])), item);
    }

    /// Makes a place where there is none, or nothing but `null`, once.
    fn require<const N: usize>(&mut self, tokens: [&str; N], empty: Value) {
        let path = PointerBuf::from_tokens(tokens);
        let there = path.resolve(self.pod).is_ok_and(|value| !value.is_null());
        let made = self.patch.iter().any(|step| step.path() == path.as_ptr());
        if !there && !made {
            self.add(path, empty);
        }
    }

    fn add(&mut self, path: PointerBuf, value: Value) {
        self.patch.push(PatchOperation::Add(AddOperation { path, value }));
    }
}
