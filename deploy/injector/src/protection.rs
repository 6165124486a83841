//! Whether a pod that runs is protected: the decision, asked again of a pod that is there.
//!
//! It is the same function that decides on a pod before it is created, so what is reported of a pod and what its creator was
//! told cannot differ. What only shows afterwards are a pod that nobody asked about, because no injector answered or its
//! namespace was labelled later, and a sidecar that does not run.
//!
//! A namespace asks for all of its pods, and most of them have nothing to protect. That is worth no word, unless the pod asks itself.

use k8s_openapi::api::core::v1::{ContainerState, Pod};

use crate::{
    config::Config,
    decide::{Namespace, decide, has_sidecar},
    names::{INJECT_LABEL, SIDECAR},
    reason::{Note, Reason},
};

/// How a pod stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Protection {
    /// Nobody asked.
    NotAsked,
    /// Its namespace asks, and it mounts nothing that could be protected.
    Nothing,
    /// It has ended, or is about to.
    Over,
    /// It has a sidecar that does not run yet.
    Starting,
    /// It has a sidecar that runs.
    Protected,
    /// It asked, and is not protected.
    Unprotected(Note),
}

/// Judges a pod as it is now.
pub fn protection(pod: &Pod, namespace: &Namespace, config: &Config) -> Protection {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed")) {
        return Protection::Over;
    }
    if pod.spec.as_ref().is_some_and(has_sidecar) {
        return sidecar(pod);
    }
    let outcome = decide(pod, namespace, config);
    let own = pod.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(INJECT_LABEL));
    match outcome.notes.into_iter().find(|note| note.skipped) {
        None => Protection::Unprotected(Note::skip(
            Reason::Missed,
            "no injector answered when it was created, or it was not asked for then: restart it",
        )),
        Some(why) => match why.reason {
            Reason::NotAsked | Reason::OptedOut => Protection::NotAsked,
            Reason::NoWritablePvc if !own => Protection::Nothing,
            _ => Protection::Unprotected(why),
        },
    }
}

/// What the node says of the sidecar. One that was not begun yet is not late: its images are fetched, its volumes mounted.
fn sidecar(pod: &Pod) -> Protection {
    let statuses = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
    let own = statuses.into_iter().flatten().find(|status| status.name == SIDECAR);
    let Some(state) = own.and_then(|status| status.state.as_ref()) else { return Protection::Starting };
    let why = match state {
        ContainerState { running: Some(_), .. } => return Protection::Protected,
        ContainerState { terminated: Some(ended), .. } => format!("it ended with code {}", ended.exit_code),
        ContainerState { waiting: Some(waiting), .. } => match waiting.reason.as_deref() {
            None | Some("PodInitializing" | "ContainerCreating") => return Protection::Starting,
            Some(reason) => reason.to_owned(),
        },
        _ => return Protection::Starting,
    };
    Protection::Unprotected(Note::skip(Reason::SidecarNotRunning, format!("its sidecar does not run: {why}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn judge(pod: &Value, asks: bool) -> Protection {
        let labels = if asks {
            BTreeMap::from([(INJECT_LABEL.to_owned(), "true".to_owned())])
        } else {
            BTreeMap::new()
        };
        let config = Config {
            receiver: Some("standby:9900".to_owned()),
            excluded_namespaces: vec!["monitoring".to_owned()],
            ..Config::default()
        };
        let name = pod["metadata"]["namespace"].as_str().unwrap_or("shop").to_owned();
        let pod = serde_json::from_value(pod.clone()).expect("a pod");
        protection(&pod, &Namespace { name, labels }, &config)
    }

    fn reason(pod: &Value, asks: bool) -> Reason {
        match judge(pod, asks) {
            Protection::Unprotected(note) => note.reason,
            other => panic!("{other:?}: {pod}"),
        }
    }

    fn pod(label: Option<&str>) -> Value {
        let labels = label.map_or(json!({}), |word| json!({INJECT_LABEL: word}));
        json!({
            "metadata": {"name": "db-0", "labels": labels},
            "spec": {
                "securityContext": {"runAsUser": 999},
                "containers": [{"name": "db", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}}],
            },
        })
    }

    /// With a sidecar whose state is this.
    fn with_sidecar(label: Option<&str>, state: &Value) -> Value {
        let mut pod = pod(label);
        pod["spec"]["initContainers"] =
            json!([{"name": "tidelock", "restartPolicy": "Always", "args": ["sidecar"]}]);
        let status = json!({"name": "tidelock", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": state});
        pod["status"] = json!({"phase": "Pending", "initContainerStatuses": [status]});
        pod
    }

    #[test]
    fn who_asked_and_has_no_sidecar_is_not_protected() {
        for (label, asks, missed) in [
            (Some("true"), false, true),
            (Some("true"), true, true),
            (None, true, true),
            (None, false, false),
            (Some("false"), true, false),
            (Some("false"), false, false),
        ] {
            let judged = judge(&pod(label), asks);
            match missed {
                true => assert_eq!(reason(&pod(label), asks), Reason::Missed, "{label:?} {asks}"),
                false => assert_eq!(judged, Protection::NotAsked, "{label:?} {asks}"),
            }
        }
        assert_eq!(reason(&pod(Some("yes")), false), Reason::BadLabel);
        let mut excluded = pod(Some("true"));
        excluded["metadata"]["namespace"] = json!("monitoring");
        assert_eq!(reason(&excluded, true), Reason::ExcludedNamespace);
    }

    #[test]
    fn a_pod_without_volumes_is_worth_a_word_only_if_it_asks_itself() {
        let bare = |label| {
            let mut bare = pod(label);
            bare["spec"]["volumes"] = json!([]);
            bare
        };
        assert_eq!(judge(&bare(None), true), Protection::Nothing);
        assert_eq!(judge(&bare(None), false), Protection::NotAsked);
        assert_eq!(reason(&bare(Some("true")), true), Reason::NoWritablePvc);
        // One that has something, and cannot be protected, is.
        let mut root = pod(None);
        root["spec"]["securityContext"] = json!({});
        assert_eq!(reason(&root, true), Reason::UnknownUser);
    }

    #[test]
    fn a_sidecar_counts_when_it_runs() {
        let waiting = |why: &str| json!({"waiting": {"reason": why}});
        for (state, wanted) in [
            (json!({"running": {}}), Protection::Protected),
            (Value::Null, Protection::Starting),
            (json!({"waiting": {}}), Protection::Starting),
            (waiting("PodInitializing"), Protection::Starting),
            (waiting("ContainerCreating"), Protection::Starting),
        ] {
            // Whoever asked, and whoever took the label away since.
            for label in [None, Some("true"), Some("false")] {
                assert_eq!(judge(&with_sidecar(label, &state), false), wanted, "{state}");
            }
        }
        let ended = json!({"terminated": {"exitCode": 3}});
        for state in [waiting("ImagePullBackOff"), waiting("CrashLoopBackOff"), ended] {
            let pod = with_sidecar(Some("true"), &state);
            assert_eq!(reason(&pod, true), Reason::SidecarNotRunning, "{state}");
        }
        let mut unseen = with_sidecar(None, &Value::Null);
        unseen["status"] = json!({});
        assert_eq!(judge(&unseen, true), Protection::Starting);
    }

    #[test]
    fn what_ends_is_not_reported() {
        for phase in ["Succeeded", "Failed"] {
            let mut over = pod(Some("true"));
            over["status"] = json!({"phase": phase});
            assert_eq!(judge(&over, true), Protection::Over);
        }
        let mut leaving = pod(Some("true"));
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(judge(&leaving, true), Protection::Over);
    }
}
