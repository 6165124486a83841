//! Which of a pod's volumes are protected, and where the sidecar sees them.
//!
//! A claim counts if a container mounts it for writing: one that the application cannot change needs no protection. It is
//! seen at the application's own path, and through the same `subPath`, so that paths mean the same to both. Where that
//! cannot be, because of two parts of one claim, a path that depends on variables, one path for two claims, or one
//! mount inside another, the whole claim is mounted in a place of its own.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume, VolumeMount};
use tidelock_proto::VolumeName;

use crate::{
    limits,
    names::{POD_VARIABLE, VOLUMES_DIR},
    reason::{Note, Reason},
    user::User,
};

/// A volume to protect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The pod's name for it.
    pub(crate) volume: String,
    /// `TENANT/NAME`, perhaps with a variable in it.
    pub(crate) name: String,
    /// Where the sidecar mounts it.
    pub(crate) path: String,
    /// The part of the claim, if not all of it.
    pub(crate) sub_path: Option<String>,
}

/// All that is protected, and who writes it.
#[derive(Debug)]
pub(crate) struct Claims {
    /// Not empty.
    pub(crate) all: Vec<Claim>,
    pub(crate) user: User,
}

/// Chooses the volumes; an error is why there is none.
pub(crate) fn choose(
    pod: &PodSpec,
    namespace: &str,
    wanted: Option<&[String]>,
    notes: &mut Vec<Note>,
) -> Result<Claims, Note> {
    let mut found = Vec::new();
    let mut refused = Vec::new();
    for volume in candidates(pod, wanted, &mut refused) {
        match look(pod, volume, namespace) {
            Ok(writer) => found.push(writer),
            // Only what was asked for by name is worth a word, unless nothing is left.
            Err(note) => refused.push(note),
        }
    }
    let Some(first) = found.first() else {
        let none =
            || Note::skip(Reason::NoWritablePvc, "no container mounts a PersistentVolumeClaim for writing");
        let telling =
            refused.into_iter().find(|note| wanted.is_some() || note.reason != Reason::NoWritablePvc);
        return Err(telling.unwrap_or_else(none));
    };
    if wanted.is_some() {
        notes.extend(refused.into_iter().map(|note| Note { skipped: false, ..note }));
    }
    if found.len() > limits::VOLUMES_MAX {
        let message =
            format!("{} volumes, at most {} can be protected: name them", found.len(), limits::VOLUMES_MAX);
        return Err(Note::skip(Reason::TooManyVolumes, message));
    }
    let Some(user) = User::of(first.container, pod) else {
        let message = format!(
            "set securityContext.runAsUser of the pod or of container {}: the sidecar has to run as the user that \
             writes volume {}",
            first.container.name, first.volume.name
        );
        return Err(Note::skip(Reason::UnknownUser, message));
    };
    let mut all = Vec::new();
    for writer in &found {
        if User::of(writer.container, pod).is_none_or(|other| other.uid != user.uid) {
            let (volume, container) = (&writer.volume.name, &writer.container.name);
            let message =
                format!("volume {volume} is not protected: container {container} runs as another user");
            notes.push(Note::hint(Reason::OtherUser, message));
            continue;
        }
        all.push(writer.claim(&all));
    }
    Ok(Claims { all, user })
}

fn candidates<'a>(pod: &'a PodSpec, wanted: Option<&[String]>, refused: &mut Vec<Note>) -> Vec<&'a Volume> {
    let volumes = pod.volumes.as_deref().unwrap_or_default();
    let Some(wanted) = wanted else { return volumes.iter().collect() };
    let mut chosen: Vec<&Volume> = Vec::new();
    for name in wanted {
        match volumes.iter().find(|volume| volume.name == *name) {
            Some(volume) if chosen.iter().any(|known| known.name == volume.name) => {}
            Some(volume) => chosen.push(volume),
            None => refused.push(Note::skip(Reason::NoSuchVolume, format!("the pod has no volume {name}"))),
        }
    }
    chosen
}

/// A claim and the container that writes it.
struct Writer<'a> {
    volume: &'a Volume,
    name: String,
    container: &'a Container,
    mounts: Vec<&'a VolumeMount>,
}

fn look<'a>(pod: &'a PodSpec, volume: &'a Volume, namespace: &str) -> Result<Writer<'a>, Note> {
    let name = &volume.name;
    let Some(claim) = &volume.persistent_volume_claim else {
        return Err(match volume.host_path {
            Some(_) => {
                Note::skip(Reason::HostPath, format!("volume {name} is a directory of the node, no claim"))
            }
            None => Note::skip(Reason::NoWritablePvc, format!("volume {name} is no PersistentVolumeClaim")),
        });
    };
    let containers = || long_running(pod);
    let is_block = |container: &Container| {
        container.volume_devices.iter().flatten().any(|device| device.name == volume.name)
    };
    if containers().any(is_block) {
        return Err(Note::skip(
            Reason::BlockVolume,
            format!("volume {name} is a block device: it has no files"),
        ));
    }
    let writes = |mount: &&VolumeMount| mount.name == volume.name && mount.read_only != Some(true);
    let writer =
        containers().find(|container| container.volume_mounts.iter().flatten().any(|mount| writes(&mount)));
    let Some(container) = writer.filter(|_| claim.read_only != Some(true)) else {
        return Err(Note::skip(
            Reason::NoWritablePvc,
            format!("no container mounts volume {name} for writing"),
        ));
    };
    let name = volume_name(namespace, &claim.claim_name)?;
    let mounts = containers().flat_map(|container| container.volume_mounts.iter().flatten()).filter(writes);
    Ok(Writer { volume, name, container, mounts: mounts.collect() })
}

/// Containers that run as long as the pod does.
fn long_running(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    let stays = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    pod.containers.iter().chain(pod.init_containers.iter().flatten().filter(stays))
}

/// `TENANT/NAME`: namespace and claim.
fn volume_name(namespace: &str, claim: &str) -> Result<String, Note> {
    // The pod's name, which takes the variable's place, is made of the same letters.
    let plain = claim.replace(&format!("$({POD_VARIABLE})"), "0");
    match VolumeName::new(namespace, &plain) {
        Ok(_) => Ok(format!("{namespace}/{claim}")),
        Err(error) => Err(Note::skip(Reason::BadName, format!("claim {claim}: {error}"))),
    }
}

impl Writer<'_> {
    fn claim(&self, before: &[Claim]) -> Claim {
        let volume = self.volume.name.clone();
        let name = self.name.clone();
        let own = || (format!("{VOLUMES_DIR}/{volume}"), None);
        let free = |path: &str| !before.iter().any(|other| overlap(&other.path, path));
        let (path, sub_path) = match self.view() {
            Some(view) if free(&view.0) => view,
            _ => own(),
        };
        Claim { volume: volume.clone(), name, path, sub_path }
    }

    /// The application's view of the claim, if there is one that stands for all.
    fn view(&self) -> Option<(String, Option<String>)> {
        let sub_path = |mount: &VolumeMount| mount.sub_path.clone().filter(|path| !path.is_empty());
        let whole = |mount: &&&VolumeMount| sub_path(mount).is_none() && mount.sub_path_expr.is_none();
        if let Some(mount) = self.mounts.iter().find(whole) {
            return usable(&mount.mount_path).then(|| (mount.mount_path.clone(), None));
        }
        let first = self.mounts.first()?;
        let same = |mount: &&VolumeMount| sub_path(mount) == sub_path(first) && mount.sub_path_expr.is_none();
        (usable(&first.mount_path) && self.mounts.iter().all(same))
            .then(|| (first.mount_path.clone(), sub_path(first)))
    }
}

/// Nothing of the sidecar's own is in the way of a mount there.
fn usable(path: &str) -> bool {
    let own = ["/var/run/tidelock", "/sys", "/proc", "/dev", "/tidelock"];
    path.starts_with('/') && path != "/" && !own.iter().any(|own| overlap(own, path))
}

/// One is the other, or within it.
fn overlap(one: &str, other: &str) -> bool {
    let (one, other) = (Path::new(one), Path::new(other));
    one.starts_with(other) || other.starts_with(one)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(mounts: Value, volumes: Value) -> PodSpec {
        let context = json!({"runAsUser": 999});
        let main = json!({"name": "main", "securityContext": context, "volumeMounts": mounts});
        serde_json::from_value(json!({"containers": [main], "volumes": volumes})).expect("a pod")
    }

    fn claim(name: &str) -> Value {
        json!({"name": name, "persistentVolumeClaim": {"claimName": format!("{name}-db-0")}})
    }

    fn views(pod: &PodSpec) -> Vec<(String, String, Option<String>)> {
        let claims = choose(pod, "shop", None, &mut Vec::new()).expect("something to protect");
        claims.all.into_iter().map(|claim| (claim.name, claim.path, claim.sub_path)).collect()
    }

    #[test]
    fn paths_are_the_applications_where_they_can_be() {
        let mounts = json!([
            {"name": "data", "mountPath": "/data"},
            {"name": "wal", "mountPath": "/data/wal"},
            {"name": "part", "mountPath": "/part", "subPath": "pg"},
            {"name": "two", "mountPath": "/two/a", "subPath": "a"},
            {"name": "two", "mountPath": "/two/b", "subPath": "b"},
            {"name": "read", "mountPath": "/read", "readOnly": true},
        ]);
        let names = ["data", "wal", "part", "two", "read"];
        let pod = pod(mounts, names.map(claim).to_vec().into());
        let seen = |name: &str, path: &str, sub: Option<&str>| {
            (format!("shop/{name}-db-0"), path.to_owned(), sub.map(str::to_owned))
        };
        let wanted = vec![
            seen("data", "/data", None),
            seen("wal", "/var/run/tidelock/volumes/wal", None),
            seen("part", "/part", Some("pg")),
            seen("two", "/var/run/tidelock/volumes/two", None),
        ];
        assert_eq!(views(&pod), wanted);
    }

    #[test]
    fn what_cannot_be_protected_says_why() {
        let host = json!({"name": "host", "hostPath": {"path": "/srv"}});
        let mount = |name: &str| json!([{"name": name, "mountPath": "/x"}]);
        let reason = |pod: &PodSpec, wanted: Option<&[String]>| {
            choose(pod, "shop", wanted, &mut Vec::new()).expect_err("nothing to protect").reason
        };
        assert_eq!(reason(&pod(mount("host"), json!([host])), None), Reason::HostPath);
        assert_eq!(reason(&pod(json!([]), json!([claim("a")])), None), Reason::NoWritablePvc);
        assert_eq!(
            reason(&pod(mount("a"), json!([claim("a")])), Some(&["b".to_owned()])),
            Reason::NoSuchVolume
        );
        let long = json!({"name": "a", "persistentVolumeClaim": {"claimName": "x".repeat(64)}});
        assert_eq!(reason(&pod(mount("a"), json!([long])), None), Reason::BadName);
        let mut block = pod(json!([]), json!([claim("a")]));
        block.containers[0].volume_devices =
            serde_json::from_value(json!([{"name": "a", "devicePath": "/dev/xvda"}])).expect("a device");
        assert_eq!(reason(&block, None), Reason::BlockVolume);
        let mut nobody = pod(mount("a"), json!([claim("a")]));
        nobody.containers[0].security_context = None;
        assert_eq!(reason(&nobody, None), Reason::UnknownUser);
    }

    #[test]
    fn another_users_volume_is_left_out_and_named() {
        let mut pod = pod(json!([{"name": "a", "mountPath": "/a"}]), json!([claim("a"), claim("b")]));
        let mut other = pod.containers[0].clone();
        other.security_context = serde_json::from_value(json!({"runAsUser": 5})).expect("a context");
        other.volume_mounts =
            serde_json::from_value(json!([{"name": "b", "mountPath": "/b"}])).expect("mounts");
        pod.containers.push(other);
        let mut notes = Vec::new();
        let claims = choose(&pod, "shop", None, &mut notes).expect("one is left");
        assert_eq!(claims.all.len(), 1);
        assert_eq!(notes[0].reason, Reason::OtherUser);
    }
}
