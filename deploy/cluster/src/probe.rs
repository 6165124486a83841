//! Whether injector and receiver do their work, asked from outside as those ask who depend on them.
//!
//! The injector is asked what an API server asks, for a pod that does not exist. The receiver is dialled by a stranger: that it
//! shows the right certificate and then refuses is all that anybody without an identity can see, and all of it is wanted.

use std::{io, time::SystemTime};

use serde_json::{Value, json};
use thiserror::Error;
use tidelock_injector::INJECT_LABEL;
use tidelock_proto::{
    identity::{Identity, IdentityFileError},
    pki::{Authority, PkiError, Request, Validity, renew},
    transport::{TransportError, Whose, connect},
};
use tokio::time::timeout;
use url::Url;

use crate::{
    identity::{ClientError, http},
    limits,
};

/// The path of a namespace that asks for its pods.
const REVIEW_PATH: &str = "/mutate/namespace";

/// Why something does not work.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The injector cannot be asked.
    #[error("the injector: {0}")]
    Injector(#[from] ClientError),
    /// It answers something else than it should.
    #[error("the injector answered {status}, and not with a sidecar: {said}")]
    NoSidecar {
        /// The status of its answer.
        status: u16,
        /// What it said.
        said: String,
    },
    /// The receiver cannot be reached, or shows the wrong certificate.
    #[error("the receiver: {0}")]
    Receiver(#[from] TransportError),
    /// It takes anybody.
    #[error("the receiver let a stranger in")]
    Open,
    /// A stranger cannot be made.
    #[error("no identity can be made to dial with: {0}")]
    Pki(#[from] PkiError),
    /// It cannot be read again.
    #[error("no identity can be made to dial with: {0}")]
    Identity(#[from] IdentityFileError),
    /// There is no room for it.
    #[error("no directory for an identity to dial with: {0}")]
    Directory(#[from] io::Error),
}

/// Asks the injector for a sidecar; its certificate has to be of these authorities, PEM.
pub async fn injector(url: &Url, authorities: &str) -> Result<(), ProbeError> {
    let tls = http::tls(authorities)?;
    let mut url = url.clone();
    url.set_path(REVIEW_PATH);
    let body = serde_json::to_vec(&review()).expect("JSON serialises");
    let asked = timeout(limits::ATTEMPT_TIMEOUT, http::post(&tls, &url, None, body)).await;
    let (status, body) = asked.unwrap_or(Err(ClientError::Slow))?;
    let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
    let response = &answer["response"];
    if response["allowed"] == true && response["patchType"] == "JSONPatch" {
        return Ok(());
    }
    let said =
        String::from_utf8_lossy(&body).chars().filter(|letter| !letter.is_control()).take(500).collect();
    Err(ProbeError::NoSidecar { status: status.as_u16(), said })
}

/// A pod of which nothing is left to chance.
fn review() -> Value {
    let restricted = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "probe", "labels": {INJECT_LABEL: "true"},
            "annotations": {"tidelock.dev/receiver": "probe.invalid:9900"}},
        "spec": {
            "securityContext": {"runAsUser": 65532, "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "probe", "image": "probe", "securityContext": restricted,
                "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "probe"}}],
        },
    });
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {"uid": "probe", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "probe",
            "operation": "CREATE", "dryRun": true, "object": pod},
    })
}

/// Dials the receiver as a stranger; its certificate has to be of these authorities, PEM, and for its address unless `any_name`.
pub async fn receiver(address: &str, authorities: &str, any_name: bool) -> Result<(), ProbeError> {
    let directory = tempfile::tempdir()?;
    let identity = stranger(directory.path(), authorities)?;
    match connect(address, &identity).await {
        Ok(_) => Err(ProbeError::Open),
        // By then it has shown its own, and that was believed.
        Err(TransportError::UnknownAuthority { whose: Whose::Ours }) => Ok(()),
        Err(TransportError::NameMismatch { .. }) if any_name => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// An identity of an authority that nobody believes.
fn stranger(directory: &std::path::Path, authorities: &str) -> Result<Identity, ProbeError> {
    let validity = Validity::starting(SystemTime::now(), limits::STRANGER_VALIDITY);
    let request = Request::Operator { tenant: None };
    let (certificate, key) = Authority::generate(validity)?.issue(&Default::default(), &request, validity)?;
    let directory = directory.join("identity");
    renew(&directory, &certificate, &key, authorities)?;
    Ok(Identity::load(directory)?)
}
