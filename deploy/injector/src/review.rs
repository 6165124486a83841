//! The decision as an admission webhook: `AdmissionReview` in, `AdmissionReview` out (admission.k8s.io/v1).
//!
//! The answer always admits. A pod is left out of protection, never out of the cluster.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use crate::{
    config::Config,
    decide::{Namespace, Outcome, decide},
    limits,
    reason::{Note, Reason},
};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// A request that cannot be answered.
#[derive(Debug, Error)]
pub enum ReviewError {
    /// The body is no JSON of the right form.
    #[error("the body is no AdmissionReview: {0}")]
    Json(#[from] serde_json::Error),
    /// Another version or kind.
    #[error("{api_version} {kind} instead of {API_VERSION} {KIND}")]
    Version {
        /// `apiVersion`
        api_version: String,
        /// `kind`
        kind: String,
    },
}

/// The answer to a review.
#[derive(Debug)]
pub struct Answer {
    /// The body to send.
    pub body: Vec<u8>,
    /// The pod is changed.
    pub injected: bool,
    /// What was noted.
    pub notes: Vec<Note>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Request,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: GroupVersionKind,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    namespace: String,
    operation: String,
    #[serde(default)]
    object: Value,
}

#[derive(Deserialize)]
struct GroupVersionKind {
    group: String,
    version: String,
    kind: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    audit_annotations: BTreeMap<&'static str, String>,
}

/// Answers a review of a pod in a namespace with these labels.
pub fn review(
    body: &[u8],
    labels: &BTreeMap<String, String>,
    config: &Config,
) -> Result<Answer, ReviewError> {
    let review: Review = serde_json::from_slice(body)?;
    if review.api_version != API_VERSION || review.kind != KIND {
        return Err(ReviewError::Version { api_version: review.api_version, kind: review.kind });
    }
    let request = review.request;
    let outcome = outcome(&request, labels, config);
    let patch = outcome.plan.as_ref().map(|plan| plan.patch(&request.object));
    let patch = patch.map(|patch| STANDARD.encode(serde_json::to_vec(&patch).expect("a patch serialises")));
    let injected = patch.is_some();
    let response = Response {
        uid: request.uid,
        allowed: true,
        patch_type: injected.then_some("JSONPatch"),
        patch,
        warnings: warnings(&outcome.notes),
        audit_annotations: BTreeMap::from([("outcome", word(&outcome).to_owned())]),
    };
    let body = json!({"apiVersion": API_VERSION, "kind": KIND, "response": response});
    let body = serde_json::to_vec(&body).expect("an answer serialises");
    Ok(Answer { body, injected, notes: outcome.notes })
}

fn outcome(request: &Request, labels: &BTreeMap<String, String>, config: &Config) -> Outcome {
    let leave = |reason, message: String| Outcome { plan: None, notes: vec![Note::skip(reason, message)] };
    let kind = &request.kind;
    let is_pod = kind.group.is_empty() && kind.version == "v1" && kind.kind == "Pod";
    if !is_pod || request.operation != "CREATE" || !request.sub_resource.is_empty() {
        return leave(Reason::NotAPod, "only the creation of pods is looked at".to_owned());
    }
    match Pod::deserialize(&request.object) {
        Ok(pod) => {
            let namespace = Namespace { name: request.namespace.clone(), labels: labels.clone() };
            decide(&pod, &namespace, config)
        }
        Err(error) => leave(Reason::UnreadablePod, error.to_string()),
    }
}

/// The outcome for the audit log: `injected`, or the reason why not.
fn word(outcome: &Outcome) -> &'static str {
    let skipped = || outcome.notes.iter().find(|note| note.skipped).map(|note| note.reason.code());
    if outcome.plan.is_some() { "injected" } else { skipped().unwrap_or("unknown") }
}

/// Nobody who did not ask hears of it.
fn warnings(notes: &[Note]) -> Vec<String> {
    let told = notes.iter().filter(|note| !matches!(note.reason, Reason::NotAsked | Reason::NotAPod));
    told.take(limits::WARNINGS_MAX).map(Note::warning).collect()
}
