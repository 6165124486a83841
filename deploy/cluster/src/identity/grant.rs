//! What a pod may be: a pure function of what the API says of its token and of itself.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    authentication::v1::TokenReviewStatus,
    core::v1::{Pod, PodSpec},
};
use serde::Deserialize;
use thiserror::Error;
use tidelock_injector::STATUS;
use tidelock_proto::{VolumeName, ids::VolumeNameError, pki::Request};

use super::{AUDIENCE, OBJECTS_VOLUME, Wanted};

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// In the name of a claim: the pod's own name.
const POD_VARIABLE: &str = "$(TIDELOCK_POD)";

/// The pod that a token was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Who {
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub account: String,
    /// Its name.
    pub pod: String,
    /// Its uid: another pod may have its name by now.
    pub uid: String,
}

/// Who may be what is no sidecar.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// The injector's namespace.
    pub namespace: String,
    /// The service account of receivers there, and the DNS names and addresses that they are dialled by.
    pub receiver: Option<(String, Vec<String>)>,
    /// The service account of what records objects there.
    pub recorder: Option<String>,
}

/// Why no certificate is given.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// The API does not know the token.
    #[error("the token is not valid: {0}")]
    Token(String),
    /// It is valid, and not for this.
    #[error("the token is not for the audience {AUDIENCE}")]
    Audience,
    /// It is not that of a pod.
    #[error("the token is not one that was made for a pod")]
    NotAPod,
    /// The pod is gone, or another one has its name.
    #[error("pod {0} is not there any more")]
    Gone(String),
    /// Its containers have ended.
    #[error("pod {0} has ended")]
    Ended(String),
    /// The pod has no sidecar.
    #[error("pod {0} has no annotation {STATUS} that can be read: it was not injected")]
    NotInjected(String),
    /// The annotation names a volume that is not the pod's.
    #[error("{0} is no claim that the pod mounts")]
    NotItsOwn(String),
    /// A volume's name cannot be one.
    #[error(transparent)]
    Name(#[from] VolumeNameError),
    /// The service account may not be that.
    #[error("service account {0} may not be that")]
    Role(String),
}

/// Reads whom a token was made for.
pub fn who(status: &TokenReviewStatus) -> Result<Who, Denied> {
    if status.authenticated != Some(true) {
        return Err(Denied::Token(status.error.clone().unwrap_or_else(|| "the API says no more".to_owned())));
    }
    // An API that does not know audiences leaves them out: then nobody has checked.
    if !status.audiences.iter().flatten().any(|audience| audience == AUDIENCE) {
        return Err(Denied::Audience);
    }
    let user = status.user.as_ref().ok_or(Denied::NotAPod)?;
    let account = user.username.as_deref().and_then(|name| name.strip_prefix("system:serviceaccount:"));
    let (namespace, account) = account.and_then(|name| name.split_once(':')).ok_or(Denied::NotAPod)?;
    let extra = |key: &str| match user.extra.as_ref().and_then(|extra| extra.get(key)).map(Vec::as_slice) {
        Some([one]) if !one.is_empty() => Ok(one.clone()),
        _ => Err(Denied::NotAPod),
    };
    Ok(Who {
        namespace: namespace.to_owned(),
        account: account.to_owned(),
        pod: extra(POD_NAME)?,
        uid: extra(POD_UID)?,
    })
}

/// What a certificate may say of the pod, as it is now.
pub fn grant(policy: &Policy, who: &Who, pod: Option<&Pod>, wanted: &Wanted) -> Result<Request, Denied> {
    let name = || format!("{}/{}", who.namespace, who.pod);
    let same = |pod: &&Pod| {
        let meta = &pod.metadata;
        meta.uid.as_deref() == Some(&who.uid)
            && meta.name.as_deref() == Some(&who.pod)
            && meta.namespace.as_deref() == Some(&who.namespace)
    };
    let pod = pod.filter(same).ok_or_else(|| Denied::Gone(name()))?;
    let spec = pod.spec.as_ref().ok_or_else(|| Denied::Gone(name()))?;
    if spec.service_account_name.as_deref().unwrap_or("default") != who.account {
        return Err(Denied::Gone(name()));
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Err(Denied::Ended(name()));
    }
    let own = who.namespace == policy.namespace;
    let refused = || Denied::Role(format!("{}/{}", who.namespace, who.account));
    match wanted {
        Wanted::Sidecar => {
            let volumes = volumes(pod, spec, who)?;
            Ok(Request::Sidecar { volumes })
        }
        Wanted::Restore => Ok(Request::Reader { volumes: volumes(pod, spec, who)? }),
        Wanted::Receiver => match &policy.receiver {
            Some((account, hosts)) if own && *account == who.account => {
                Ok(Request::Receiver { name: who.pod.clone(), hosts: hosts.clone() })
            }
            _ => Err(refused()),
        },
        Wanted::Recorder { tenant } => match &policy.recorder {
            Some(account) if own && *account == who.account => {
                let volume = VolumeName::new(tenant, OBJECTS_VOLUME)?;
                Ok(Request::Sidecar { volumes: BTreeSet::from([volume]) })
            }
            _ => Err(refused()),
        },
    }
}

#[derive(Deserialize)]
struct Status {
    volumes: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

/// The volumes that the annotation names, each of them a claim that the pod mounts. Who may write the annotation may create
/// pods with any claim of the namespace, so it gives nobody more than that.
fn volumes(pod: &Pod, spec: &PodSpec, who: &Who) -> Result<BTreeSet<VolumeName>, Denied> {
    let none = || Denied::NotInjected(format!("{}/{}", who.namespace, who.pod));
    let text = pod.metadata.annotations.as_ref().and_then(|all| all.get(STATUS)).ok_or_else(none)?;
    let status: Status = serde_json::from_str(text).map_err(|_| none())?;
    let claims = spec.volumes.iter().flatten().filter_map(|volume| volume.persistent_volume_claim.as_ref());
    let claims: BTreeSet<&str> = claims.map(|claim| claim.claim_name.as_str()).collect();
    let mut volumes = BTreeSet::new();
    for named in status.volumes {
        let name: VolumeName = named.name.replace(POD_VARIABLE, &who.pod).parse()?;
        if name.tenant() != who.namespace || !claims.contains(name.name()) {
            return Err(Denied::NotItsOwn(name.to_string()));
        }
        volumes.insert(name);
    }
    if volumes.is_empty() { Err(none()) } else { Ok(volumes) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// As a 1.36 API server says it of a token that was projected into a pod.
    fn review() -> Value {
        json!({
            "authenticated": true,
            "audiences": ["tidelock"],
            "user": {
                "username": "system:serviceaccount:shop:db",
                "uid": "7b1c",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/credential-id": ["JTI=1"],
                    "authentication.kubernetes.io/node-name": ["node-1"],
                    "authentication.kubernetes.io/pod-name": ["orders-0"],
                    "authentication.kubernetes.io/pod-uid": ["uid-1"],
                },
            },
        })
    }

    fn ask(review: &Value) -> Result<Who, Denied> {
        who(&serde_json::from_value(review.clone()).expect("a status"))
    }

    fn pod() -> Value {
        let status =
            json!({"state": "injected", "volumes": [{"volume": "data", "name": "shop/data-orders-0"}]});
        json!({
            "metadata": {"name": "orders-0", "namespace": "shop", "uid": "uid-1",
                "annotations": {STATUS: status.to_string()}},
            "spec": {"containers": [], "serviceAccountName": "db",
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-orders-0"}}]},
            "status": {"phase": "Pending"},
        })
    }

    fn decide(pod: &Value, wanted: &Wanted) -> Result<Request, Denied> {
        let policy = Policy {
            namespace: "tidelock".to_owned(),
            receiver: Some(("receiver".to_owned(), vec!["receiver.tidelock.svc".to_owned()])),
            recorder: Some("recorder".to_owned()),
        };
        let pod: Pod = serde_json::from_value(pod.clone()).expect("a pod");
        let who = Who {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            account: pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
            pod: "orders-0".to_owned(),
            uid: "uid-1".to_owned(),
        };
        grant(&policy, &who, Some(&pod), wanted)
    }

    fn set(value: &Value, pointer: &str, new: Value) -> Value {
        let mut value = value.clone();
        *value.pointer_mut(pointer).expect("it is there") = new;
        value
    }

    #[test]
    fn a_projected_token_names_its_pod() {
        let found = ask(&review()).expect("a pod");
        assert_eq!((found.namespace.as_str(), found.account.as_str()), ("shop", "db"));
        assert_eq!((found.pod.as_str(), found.uid.as_str()), ("orders-0", "uid-1"));
    }

    #[test]
    fn any_other_token_is_refused() {
        let extra = "/user/extra/authentication.kubernetes.io~1";
        for (changed, why) in [
            (
                set(&review(), "/authenticated", json!(false)),
                Denied::Token("the API says no more".to_owned()),
            ),
            (set(&review(), "/audiences", json!(["https://kubernetes.default.svc"])), Denied::Audience),
            (set(&review(), "/audiences", Value::Null), Denied::Audience),
            (set(&review(), "/user/username", json!("system:node:tidelock")), Denied::NotAPod),
            (set(&review(), "/user", Value::Null), Denied::NotAPod),
            (set(&review(), &format!("{extra}pod-name"), json!([])), Denied::NotAPod),
            (set(&review(), &format!("{extra}pod-uid"), json!(["a", "b"])), Denied::NotAPod),
        ] {
            assert_eq!(ask(&changed), Err(why), "{changed}");
        }
    }

    #[test]
    fn a_sidecar_gets_the_claims_that_its_pod_mounts() {
        let granted = decide(&pod(), &Wanted::Sidecar).expect("granted");
        let volume: VolumeName = "shop/data-orders-0".parse().expect("a name");
        assert_eq!(granted, Request::Sidecar { volumes: BTreeSet::from([volume]) });
    }

    #[test]
    fn a_claim_that_is_named_after_the_pod_is_found() {
        let status = json!({"volumes": [{"name": "shop/data-$(TIDELOCK_POD)"}]}).to_string();
        let changed = set(&pod(), "/metadata/annotations/tidelock.dev~1status", json!(status));
        assert_eq!(decide(&changed, &Wanted::Sidecar), decide(&pod(), &Wanted::Sidecar));
    }

    #[test]
    fn nobody_gets_what_is_another_pods() {
        let annotation = "/metadata/annotations/tidelock.dev~1status";
        let naming = |name: &str| json!(json!({"volumes": [{"name": name}]}).to_string());
        for changed in [
            set(&pod(), "/metadata/uid", json!("uid-2")),
            set(&pod(), "/metadata/name", json!("orders-1")),
            set(&pod(), "/status/phase", json!("Succeeded")),
            set(&pod(), "/status/phase", json!("Failed")),
            set(&pod(), annotation, naming("bank/data-orders-0")),
            set(&pod(), annotation, naming("shop/other")),
            set(&pod(), annotation, naming("shop/kubernetes_objects")),
            set(&pod(), annotation, naming("shop/../x")),
            set(&pod(), annotation, json!("nonsense")),
            set(&pod(), annotation, json!(json!({"volumes": []}).to_string())),
            set(&pod(), "/metadata/annotations", json!({})),
            set(&pod(), "/spec/volumes", json!([])),
        ] {
            let decided = decide(&changed, &Wanted::Sidecar);
            assert!(decided.is_err(), "{changed}: {decided:?}");
        }
    }

    #[test]
    fn only_the_named_accounts_of_the_own_namespace_are_more() {
        let of = |namespace: &str, account: &str| {
            set(
                &set(&pod(), "/metadata/namespace", json!(namespace)),
                "/spec/serviceAccountName",
                json!(account),
            )
        };
        let recorder = Wanted::Recorder { tenant: "shop".to_owned() };
        assert!(decide(&of("tidelock", "receiver"), &Wanted::Receiver).is_ok());
        assert!(decide(&of("tidelock", "recorder"), &recorder).is_ok());
        for (namespace, account) in [("shop", "receiver"), ("shop", "recorder"), ("tidelock", "default")] {
            assert!(decide(&of(namespace, account), &Wanted::Receiver).is_err());
            assert!(decide(&of(namespace, account), &recorder).is_err());
        }
        assert!(decide(&of("tidelock", "receiver"), &recorder).is_err());
        let bad = Wanted::Recorder { tenant: "../shop".to_owned() };
        assert!(decide(&of("tidelock", "recorder"), &bad).is_err());
    }
}
