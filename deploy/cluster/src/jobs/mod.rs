//! Jobs that work on a workload's claims while none of its pods runs: they fill, keep and copy what the claims hold.
//!
//! A Job's pod is made of what the injector would add to the workload's pod for filling empty volumes, so it has the same
//! mounts, user and powers, and passes the same checks. What it does is in its arguments: one container a step, one after the
//! other, because the image has no shell. A StatefulSet has a Job for each of its pods, as each has claims of its own.

mod run;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, Pod};
use serde_json::{Value, json};
use thiserror::Error;
use tidelock_injector::{Config, Namespace, annotations, decide};
use tidelock_manifests::{Document, JOB, Workload};
use tidelock_proto::{PointId, VolumeName};

pub use run::{JobError, remove, run};

use crate::limits;

/// What Jobs are made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Worker {
    /// The image of this program.
    pub image: String,
    /// The receiver, `HOST:PORT`, as pods there reach it.
    pub receiver: String,
    /// The Secret, in the namespace of the Jobs, with an operator's identity.
    pub secret: String,
}

/// Why there is no Job.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BodyError {
    /// The record makes no sense.
    #[error("the record of the workload cannot be read: {0}")]
    Unreadable(String),
    /// Nobody could have protected such a pod.
    #[error("its claims cannot be worked on: {0}")]
    NotPossible(String),
}

/// What one pod of the workload has of its volumes.
#[derive(Debug, Clone)]
pub struct Body {
    /// The end of its name, `-0`; empty for a Deployment's.
    suffix: String,
    /// Its volumes, and where they are seen.
    volumes: Vec<(VolumeName, String)>,
    /// Names that are left out of them.
    excludes: Vec<String>,
    /// Its claims.
    pub claims: BTreeSet<String>,
    /// What the injector adds.
    container: Value,
    /// The pod's spec without containers.
    pod: Value,
}

/// What is done with volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work<'a> {
    /// Empty ones are filled with these points.
    Fill(&'a BTreeMap<VolumeName, PointId>),
    /// What an old primary of this epoch left in them is kept as branches.
    Keep {
        /// Its epoch.
        epoch: u64,
        /// The branch of each volume; one that is not here is not kept.
        branches: &'a BTreeMap<VolumeName, VolumeName>,
    },
    /// They are made equal to these points, or the newest; what differs is overwritten.
    Copy(&'a BTreeMap<VolumeName, PointId>),
}

impl Work<'_> {
    fn word(&self) -> &'static str {
        match self {
            Self::Fill(_) => tidelock_manifests::FILL,
            Self::Keep { .. } => "keep",
            Self::Copy(points) if points.is_empty() => "copy",
            Self::Copy(_) => "difference",
        }
    }
}

/// The pods of a recorded workload, which is `workload` in the plan.
pub fn bodies(document: &Document, workload: &Value, worker: &Worker) -> Result<Vec<Body>, BodyError> {
    let claims = workload["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten();
    let claims: Vec<&str> = claims.filter_map(|claim| claim["metadata"]["name"].as_str()).collect();
    let suffixes = match document.kind {
        Workload::StatefulSet if !claims.is_empty() => ordinals(document, &claims),
        _ => BTreeSet::from([String::new()]),
    };
    suffixes.into_iter().map(|suffix| body(document, workload, worker, &claims, suffix)).collect()
}

/// The ends of the names of a StatefulSet's pods, as its claims say them.
fn ordinals(document: &Document, templates: &[&str]) -> BTreeSet<String> {
    let name = &document.name;
    let prefixes: Vec<String> = templates.iter().map(|template| format!("{template}-{name}")).collect();
    let of = |claim: &str| {
        prefixes.iter().find_map(|prefix| claim.strip_prefix(prefix.as_str()).map(str::to_owned))
    };
    document.volumes.iter().filter_map(|one| of(&one.claim)).filter(|end| end.starts_with('-')).collect()
}

fn body(
    document: &Document,
    workload: &Value,
    worker: &Worker,
    templates: &[&str],
    suffix: String,
) -> Result<Body, BodyError> {
    let template = &workload["spec"]["template"];
    let mut spec = template["spec"].clone();
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    for name in templates {
        volumes.retain(|volume| volume["name"] != *name);
        let claim = format!("{name}-{}{suffix}", document.name);
        volumes.push(json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}));
    }
    spec["volumes"] = volumes.into();
    // Which volumes, and what of them, is the pod's own word; all else is not the sidecar's here.
    let said: BTreeMap<String, String> = template["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| ["tidelock.dev/volumes", "tidelock.dev/exclude"].contains(&key.as_str()))
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let (wishes, _) = annotations::parse(&said).map_err(|error| BodyError::NotPossible(error.to_string()))?;
    let mut meta = json!({"labels": {"tidelock.dev/inject": "true"}, "annotations": said});
    meta["annotations"]["tidelock.dev/restore"] = "if-empty".into();
    let unreadable = |error: serde_json::Error| BodyError::Unreadable(error.to_string());
    let pod: Pod =
        serde_json::from_value(json!({"metadata": meta, "spec": spec.clone()})).map_err(unreadable)?;
    let config = Config {
        image: worker.image.clone(),
        receiver: Some(worker.receiver.clone()),
        restore_secret: worker.secret.clone(),
        ..Config::default()
    };
    let namespace = Namespace { name: document.namespace.clone(), labels: BTreeMap::new() };
    let outcome = decide(&pod, &namespace, &config);
    let why = || {
        let notes = outcome.notes.iter().map(|note| note.message.clone());
        BodyError::NotPossible(notes.collect::<Vec<_>>().join("; "))
    };
    let plan = outcome.plan.as_ref().ok_or_else(why)?;
    let container = plan.restore.clone().ok_or_else(why)?;
    let named =
        |name: &str| name.parse::<VolumeName>().map_err(|error| BodyError::Unreadable(error.to_string()));
    let volumes: Vec<_> = plan
        .protected
        .iter()
        .map(|one| Ok((named(&one.name)?, one.path.clone())))
        .collect::<Result<_, BodyError>>()?;
    Ok(Body {
        suffix,
        volumes,
        excludes: wishes.exclude,
        claims: claims_of(&container, &pod),
        pod: pod_of(&spec, &container, &serde_json::to_value(&plan.volumes).map_err(unreadable)?),
        container: serde_json::to_value(container).map_err(unreadable)?,
    })
}

fn claims_of(container: &Container, pod: &Pod) -> BTreeSet<String> {
    let mounted: BTreeSet<&str> =
        container.volume_mounts.iter().flatten().map(|mount| mount.name.as_str()).collect();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = volumes.filter(|volume| mounted.contains(volume.name.as_str()));
    claims.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone())).collect()
}

/// What a Job's pod has of the workload's: where it may run, as whom, and the volumes that the container mounts.
fn pod_of(spec: &Value, container: &Container, added: &Value) -> Value {
    let mut pod = json!({
        "restartPolicy": "Never",
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
    });
    for key in ["securityContext", "nodeSelector", "tolerations", "imagePullSecrets"] {
        if !spec[key].is_null() {
            pod[key] = spec[key].clone();
        }
    }
    let mounted: BTreeSet<&str> =
        container.volume_mounts.iter().flatten().map(|mount| mount.name.as_str()).collect();
    let all = [spec["volumes"].as_array(), added.as_array()].into_iter().flatten().flatten();
    let volumes = all.filter(|volume| volume["name"].as_str().is_some_and(|name| mounted.contains(name)));
    pod["volumes"] = volumes.cloned().collect();
    pod
}

impl Body {
    /// The Job that does this in a namespace; nothing if there is nothing to do.
    pub fn job(&self, workload: &str, namespace: &str, work: &Work<'_>, receiver: &str) -> Option<Value> {
        let arguments: Vec<Vec<String>> = match work {
            Work::Fill(points) => vec![self.fill(points)],
            Work::Keep { epoch, branches } => {
                let kept = self.volumes.iter().filter_map(|one| Some((one, branches.get(&one.0)?)));
                kept.map(|((volume, path), branch)| self.keep(volume, path, *epoch, branch)).collect()
            }
            Work::Copy(points) => {
                self.volumes.iter().map(|(volume, path)| copy(volume, path, points.get(volume))).collect()
            }
        };
        let word = work.word();
        let mut containers: Vec<Value> = arguments
            .into_iter()
            .enumerate()
            .map(|(index, mut arguments)| {
                arguments.extend([
                    format!("--receiver={receiver}"),
                    "--identity=/var/run/tidelock/identity".to_owned(),
                ]);
                let mut container = self.container.clone();
                container["name"] = format!("{word}-{index}").into();
                container["args"] = arguments.into();
                container
            })
            .collect();
        let last = containers.pop()?;
        let mut pod = self.pod.clone();
        pod["containers"] = json!([last]);
        if !containers.is_empty() {
            pod["initContainers"] = containers.into();
        }
        let labels = json!({JOB: word, "tidelock.dev/inject": "false"});
        Some(json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": self.name(workload, word), "namespace": namespace, "labels": {JOB: word}},
            "spec": {
                "backoffLimit": limits::JOB_RETRIES,
                "ttlSecondsAfterFinished": limits::JOB_KEPT_FOR.as_secs(),
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        }))
    }

    /// A Job's pods have its name with six more characters, and labels have at most 63.
    fn name(&self, workload: &str, word: &str) -> String {
        let end = format!("-{word}{}", self.suffix);
        let mut begin = format!("tidelock-{}", workload.replace('.', "-"));
        begin.truncate(limits::JOB_NAME_MAX_BYTES - end.len());
        begin.trim_end_matches('-').to_owned() + &end
    }

    fn fill(&self, points: &BTreeMap<VolumeName, PointId>) -> Vec<String> {
        let mut arguments = vec!["restore".to_owned()];
        for (index, (volume, path)) in self.volumes.iter().enumerate() {
            match index {
                0 => arguments.extend([volume.to_string(), format!("--to={path}")]),
                _ => arguments.push(format!("--also={volume}={path}")),
            }
        }
        let at = self.volumes.iter().find_map(|(volume, _)| points.get(volume));
        arguments.push("--if-empty".to_owned());
        arguments.push(format!("--at={}", at.map_or("latest".to_owned(), PointId::to_string)));
        arguments
    }

    fn keep(&self, volume: &VolumeName, path: &str, epoch: u64, branch: &VolumeName) -> Vec<String> {
        let mut arguments = vec!["seed".to_owned(), volume.to_string(), format!("--from={path}")];
        arguments.extend([format!("--epoch={epoch}"), format!("--branch={branch}")]);
        arguments.extend(self.excludes.iter().map(|glob| format!("--exclude={}", glob.replace("$(", "$$("))));
        arguments
    }
}

fn copy(volume: &VolumeName, path: &str, point: Option<&PointId>) -> Vec<String> {
    let at = point.map_or("latest".to_owned(), PointId::to_string);
    vec![
        "restore".to_owned(),
        volume.to_string(),
        format!("--to={path}"),
        "--overwrite".to_owned(),
        format!("--at={at}"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn recorded() -> (Document, Value) {
        let object = |version: &str, kind: &str, name: &str, rest: Value| {
            let mut object =
                json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}});
            object.as_object_mut().expect("a map").extend(rest.as_object().expect("a map").clone());
            object
        };
        let mounts = json!([{"name": "data", "mountPath": "/data"}, {"name": "wal", "mountPath": "/wal", "subPath": "x"},
            {"name": "settings", "mountPath": "/etc/db"}]);
        let pod = json!({
            "nodeSelector": {"disk": "fast"},
            "securityContext": {"runAsUser": 999, "fsGroup": 999},
            "containers": [{"name": "db", "image": "db:1", "volumeMounts": mounts}],
            "volumes": [{"name": "settings", "configMap": {"name": "db"}}],
        });
        let annotations =
            json!({"tidelock.dev/exclude": "*.tmp", "tidelock.dev/on-fence": "stop", "other": "x"});
        let set = json!({"spec": {"template": {"metadata": {"annotations": annotations}, "spec": pod},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}}, {"metadata": {"name": "wal"}}]}});
        let claim = |name: &str| object("v1", "PersistentVolumeClaim", name, json!({"spec": {}}));
        let all = [
            object("apps/v1", "StatefulSet", "orders", set),
            claim("data-orders-0"),
            claim("wal-orders-0"),
            claim("data-orders-1"),
            claim("wal-orders-1"),
        ];
        let workload = "sts/orders".parse().expect("a workload");
        (
            Document::record(&all, "shop", &workload, &tidelock_manifests::Scope::default())
                .expect("it is there"),
            all[0].clone(),
        )
    }

    fn worker() -> Worker {
        Worker {
            image: "tidelock:1".to_owned(),
            receiver: "r:9900".to_owned(),
            secret: "tidelock-operator".to_owned(),
        }
    }

    fn steps(job: &Value) -> Vec<String> {
        let pod = &job["spec"]["template"]["spec"];
        let all =
            [pod["initContainers"].as_array(), pod["containers"].as_array()].into_iter().flatten().flatten();
        let text = |one: &Value| {
            let words = one["args"].as_array().expect("arguments").iter().filter_map(Value::as_str);
            words.collect::<Vec<_>>().join(" ")
        };
        all.map(text).collect()
    }

    #[test]
    fn each_pod_of_a_workload_has_a_job_with_its_claims() {
        let (document, set) = recorded();
        let bodies = bodies(&document, &set, &worker()).expect("possible");
        let claims: Vec<Vec<&str>> =
            bodies.iter().map(|body| body.claims.iter().map(String::as_str).collect()).collect();
        assert_eq!(claims, [["data-orders-0", "wal-orders-0"], ["data-orders-1", "wal-orders-1"]]);
        let points = BTreeMap::new();
        let job = bodies[1].job("orders", "shop", &Work::Copy(&points), "r:9900").expect("work");
        assert_eq!(job["metadata"]["name"], "tidelock-orders-copy-1");
        let pod = &job["spec"]["template"]["spec"];
        let names: Vec<&Value> =
            pod["volumes"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
        assert_eq!(names, ["data", "wal", "tidelock-restore-identity"]);
        assert_eq!(
            (&pod["nodeSelector"]["disk"], &pod["securityContext"]["fsGroup"]),
            (&json!("fast"), &json!(999))
        );
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!((&security["runAsUser"], &security["runAsNonRoot"]), (&json!(999), &json!(true)));
        let mounts = pod["containers"][0]["volumeMounts"].as_array().expect("mounts");
        assert!(
            mounts.iter().any(|mount| mount["name"] == "wal"
                && mount["subPath"] == "x"
                && mount["readOnly"].is_null())
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["tidelock.dev/inject"], "false");
    }

    #[test]
    fn a_step_is_a_container() {
        let (document, set) = recorded();
        let bodies = bodies(&document, &set, &worker()).expect("possible");
        let (data, wal): (VolumeName, VolumeName) =
            ("shop/data-orders-0".parse().expect("a name"), "shop/wal-orders-0".parse().expect("a name"));
        let point: PointId = "2.7".parse().expect("a point");
        let points = BTreeMap::from([(data.clone(), point), (wal.clone(), point)]);
        let branches = BTreeMap::from([(data, "shop/data-orders-0-epoch-1".parse().expect("a name"))]);
        let end = "--receiver=r:9900 --identity=/var/run/tidelock/identity";
        let said = |work: &Work<'_>| steps(&bodies[0].job("orders", "shop", work, "r:9900").expect("work"));
        assert_eq!(
            said(&Work::Fill(&points)),
            [format!(
                "restore shop/data-orders-0 --to=/data --also=shop/wal-orders-0=/wal --if-empty --at=2.7 {end}"
            )]
        );
        assert_eq!(
            said(&Work::Keep { epoch: 1, branches: &branches }),
            [format!(
                "seed shop/data-orders-0 --from=/data --epoch=1 --branch=shop/data-orders-0-epoch-1 --exclude=*.tmp {end}"
            )]
        );
        assert_eq!(
            said(&Work::Copy(&points)),
            [
                format!("restore shop/data-orders-0 --to=/data --overwrite --at=2.7 {end}"),
                format!("restore shop/wal-orders-0 --to=/wal --overwrite --at=2.7 {end}"),
            ]
        );
        let nothing = Work::Keep { epoch: 1, branches: &BTreeMap::new() };
        assert!(bodies[0].job("orders", "shop", &nothing, "r:9900").is_none());
    }

    #[test]
    fn long_names_are_cut_before_what_tells_them_apart() {
        let (document, set) = recorded();
        let bodies = bodies(&document, &set, &worker()).expect("possible");
        let name = bodies[1].name(&"orders.".repeat(20), "difference");
        assert!(name.len() <= limits::JOB_NAME_MAX_BYTES && name.ends_with("-difference-1"), "{name}");
    }

    #[test]
    fn what_nobody_could_protect_cannot_be_worked_on() {
        let (document, mut set) = recorded();
        set["spec"]["template"]["spec"]["securityContext"] = json!({});
        let refused = bodies(&document, &set, &worker()).expect_err("as whom?");
        assert!(refused.to_string().contains("runAsUser"), "{refused}");
    }
}
