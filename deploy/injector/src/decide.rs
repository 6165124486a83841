//! The decision on one pod.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};
use serde::Serialize;
use std::collections::BTreeMap;

use crate::{
    annotations::{self, Consistency, Restore, Tracker, Wishes},
    claims,
    config::Config,
    container::{Recipe, free_port},
    label::{Asked, asked},
    names,
    reason::{Note, Reason},
};

/// Namespaces of the cluster itself.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// The pod's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels; only those that begin with `tidelock.dev/` matter.
    pub labels: BTreeMap<String, String>,
}

/// What to do with a pod.
#[derive(Debug)]
pub struct Outcome {
    /// What to add; `None` leaves the pod as it is.
    pub plan: Option<Plan>,
    /// Why it is left, or what is not as it was asked for.
    pub notes: Vec<Note>,
}

/// What is added to a pod.
#[derive(Debug)]
pub struct Plan {
    /// The sidecar: an init container with `restartPolicy: Always`.
    pub sidecar: Container,
    /// An init container that fills empty volumes.
    pub restore: Option<Container>,
    /// Volumes beside the pod's own.
    pub volumes: Vec<Volume>,
    /// What is protected.
    pub protected: Vec<Protected>,
    /// Where it is replicated to.
    pub receiver: String,
    /// As whom.
    pub uid: i64,
}

/// A protected volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Protected {
    /// The pod's name for it.
    pub volume: String,
    /// `TENANT/NAME`.
    pub name: String,
    /// Where the sidecar sees it.
    pub path: String,
}

/// Decides on a pod that is about to be created.
pub fn decide(pod: &Pod, namespace: &Namespace, config: &Config) -> Outcome {
    let mut notes = Vec::new();
    match plan(pod, namespace, config, &mut notes) {
        Ok(plan) => Outcome { plan: Some(plan), notes },
        Err(why) => {
            notes.insert(0, why);
            Outcome { plan: None, notes }
        }
    }
}

fn plan(pod: &Pod, namespace: &Namespace, config: &Config, notes: &mut Vec<Note>) -> Result<Plan, Note> {
    check_asked(pod, namespace)?;
    let Some(spec) = &pod.spec else {
        return Err(Note::skip(Reason::UnreadablePod, "the pod has no spec"));
    };
    check_place(pod, spec, &namespace.name, config)?;
    check_names(spec)?;
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let (mut wishes, more) = annotations::parse(annotations)
        .map_err(|error| Note::skip(Reason::BadAnnotation, error.to_string()))?;
    notes.extend(more);
    check_shared_processes(spec, &wishes)?;
    let exact_allowed = namespace.labels.get(names::ALLOW_EXACT_LABEL).is_some_and(|value| value == "true");
    if wishes.tracker == Tracker::Exact && !exact_allowed {
        wishes.tracker = Tracker::Auto;
        let message = format!(
            "tracker is auto instead of exact: namespace {} lacks the label {}=true",
            namespace.name,
            names::ALLOW_EXACT_LABEL
        );
        notes.push(Note::hint(Reason::ExactNotAllowed, message));
    }
    let Some(receiver) = wishes.receiver.as_ref().or(config.receiver.as_ref()) else {
        let message = "the injector has no receiver configured, and the pod has no tidelock.dev/receiver";
        return Err(Note::skip(Reason::NoReceiver, message));
    };
    let claims = claims::choose(spec, &namespace.name, wishes.volumes.as_deref(), notes)?;
    let recipe = Recipe { claims: &claims, wishes: &wishes, config, receiver, port: free_port(spec) };
    let protected = claims.all.iter().map(|claim| Protected {
        volume: claim.volume.clone(),
        name: claim.name.clone(),
        path: claim.path.clone(),
    });
    Ok(Plan {
        sidecar: recipe.sidecar(),
        restore: recipe.restore().filter(|_| wishes.restore != Restore::Never),
        volumes: recipe.volumes(),
        protected: protected.collect(),
        receiver: receiver.clone(),
        uid: claims.user.uid,
    })
}

fn check_asked(pod: &Pod, namespace: &Namespace) -> Result<(), Note> {
    let word = pod.metadata.labels.as_ref().and_then(|labels| labels.get(names::INJECT_LABEL));
    let of_namespace = namespace.labels.get(names::INJECT_LABEL);
    match asked(word.map(String::as_str), of_namespace.map(String::as_str)) {
        Asked::Yes => Ok(()),
        Asked::No => Err(Note::skip(
            Reason::NotAsked,
            "neither pod nor namespace has the label tidelock.dev/inject=true",
        )),
        Asked::OptedOut => Err(Note::skip(Reason::OptedOut, "the pod's label tidelock.dev/inject is false")),
        Asked::Unclear => {
            let message = format!("the pod's label {} is neither true nor false", names::INJECT_LABEL);
            Err(Note::skip(Reason::BadLabel, message))
        }
    }
}

fn check_place(pod: &Pod, spec: &PodSpec, namespace: &str, config: &Config) -> Result<(), Note> {
    let mirror = |keys: &BTreeMap<String, String>| keys.contains_key("kubernetes.io/config.mirror");
    let refused = if SYSTEM_NAMESPACES.contains(&namespace) {
        (Reason::KubeSystem, "pods of the cluster itself are left alone")
    } else if config.own_namespace.as_deref() == Some(namespace) {
        (Reason::OwnNamespace, "pods of the injector's own namespace are left alone")
    } else if config.excluded_namespaces.iter().any(|excluded| excluded == namespace) {
        (Reason::ExcludedNamespace, "the injector's operator has left this namespace out")
    } else if pod.metadata.annotations.as_ref().is_some_and(mirror) {
        (Reason::StaticPod, "nobody can change the mirror of a static pod")
    } else if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        (Reason::Windows, "there is no sidecar for Windows")
    } else if spec.host_network == Some(true) {
        (Reason::HostNetwork, "in the node's network the sidecar's port could be taken by another pod")
    } else {
        return Ok(());
    };
    Err(Note::skip(refused.0, refused.1))
}

/// Whether a pod has a sidecar of ours.
pub(crate) fn has_sidecar(spec: &PodSpec) -> bool {
    let is_ours = |container: &Container| {
        container.name == names::SIDECAR
            && container.restart_policy.as_deref() == Some("Always")
            && container.args.as_ref().and_then(|args| args.first()).is_some_and(|arg| arg == "sidecar")
    };
    spec.init_containers.iter().flatten().any(is_ours)
}

fn check_names(spec: &PodSpec) -> Result<(), Note> {
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    if has_sidecar(spec) {
        return Err(Note::skip(Reason::AlreadyInjected, "the pod has a sidecar"));
    }
    let reserved = [names::SIDECAR, names::RESTORE];
    if let Some(taken) = containers().find(|container| reserved.contains(&container.name.as_str())) {
        let message = format!("container {} has a name that the sidecar needs", taken.name);
        return Err(Note::skip(Reason::NameTaken, message));
    }
    let reserved =
        [names::IDENTITY_VOLUME, names::RESTORE_IDENTITY_VOLUME, names::TOKEN_VOLUME, names::TRACEFS_VOLUME];
    if let Some(taken) = spec.volumes.iter().flatten().find(|volume| reserved.contains(&volume.name.as_str()))
    {
        let message = format!("volume {} has a name that the sidecar needs", taken.name);
        return Err(Note::skip(Reason::NameTaken, message));
    }
    Ok(())
}

fn check_shared_processes(spec: &PodSpec, wishes: &Wishes) -> Result<(), Note> {
    if spec.share_process_namespace == Some(true) {
        return Ok(());
    }
    let what = match (wishes.consistency, wishes.stop_on_fence) {
        (Consistency::Pause, _) => "consistency: pause",
        (_, true) => "on-fence: stop",
        _ => return Ok(()),
    };
    let message = format!("tidelock.dev/{what} needs shareProcessNamespace: true in the pod");
    Err(Note::skip(Reason::BadAnnotation, message))
}
