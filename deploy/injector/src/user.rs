//! As whom the sidecar runs: as the container that writes the volume.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, SELinuxOptions, SecurityContext};

/// What runtimes give a container of root that asks for nothing else. Pod Security *baseline* permits adding these.
const RUNTIME_DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A container's user and powers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct User {
    pub(crate) uid: i64,
    pub(crate) gid: Option<i64>,
    /// Capabilities of the container, without `CAP_`; empty unless it is root's.
    pub(crate) capabilities: BTreeSet<String>,
    pub(crate) selinux: Option<Box<SELinuxOptions>>,
}

impl User {
    /// The user of a container, if the pod says it: without a number the image decides, which the pod does not show.
    pub(crate) fn of(container: &Container, pod: &PodSpec) -> Option<Self> {
        let own = container.security_context.as_ref();
        let shared = pod.security_context.as_ref();
        let uid = own.and_then(|own| own.run_as_user).or_else(|| shared?.run_as_user)?;
        let gid = own.and_then(|own| own.run_as_group).or_else(|| shared?.run_as_group);
        let capabilities = if uid == 0 { capabilities(own) } else { BTreeSet::new() };
        let selinux = own.and_then(|own| own.se_linux_options.clone()).map(Box::new);
        Some(Self { uid, gid, capabilities, selinux })
    }

    pub(crate) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Those of `wanted` that the container has itself.
    pub(crate) fn own_of(&self, wanted: &[&str]) -> Vec<String> {
        let has = |name: &&&str| self.capabilities.contains(**name);
        wanted.iter().filter(has).map(|name| (*name).to_owned()).collect()
    }
}

fn capabilities(context: Option<&SecurityContext>) -> BTreeSet<String> {
    let plain = |name: &String| name.trim_start_matches("CAP_").to_owned();
    let asked = context.and_then(|context| context.capabilities.as_ref());
    let list = |names: Option<&Vec<String>>| names.into_iter().flatten().map(plain).collect::<BTreeSet<_>>();
    let dropped = list(asked.and_then(|asked| asked.drop.as_ref()));
    let added = list(asked.and_then(|asked| asked.add.as_ref()));
    let privileged = context.and_then(|context| context.privileged) == Some(true);
    let all = || RUNTIME_DEFAULT.map(str::to_owned).into_iter();
    if privileged || added.contains("ALL") {
        return all().collect();
    }
    let kept = all().filter(|name| !dropped.contains("ALL") && !dropped.contains(name));
    kept.chain(added.clone()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn user(container: Value, pod: Value) -> Option<User> {
        let container = serde_json::from_value(json!({"name": "main", "securityContext": container}));
        let pod = serde_json::from_value(json!({"containers": [], "securityContext": pod}));
        User::of(&container.expect("a container"), &pod.expect("a pod"))
    }

    #[test]
    fn the_containers_word_beats_the_pods() {
        let both = user(json!({"runAsUser": 999}), json!({"runAsUser": 1, "runAsGroup": 5}));
        let both = both.expect("a user is named");
        assert_eq!((both.uid, both.gid), (999, Some(5)));
        assert_eq!(user(json!({"runAsNonRoot": true}), json!({"fsGroup": 5})), None);
    }

    #[test]
    fn no_capability_is_invented() {
        let of = |container| user(container, json!({})).expect("a user").own_of(&["DAC_OVERRIDE", "CHOWN"]);
        assert_eq!(of(json!({"runAsUser": 0})), ["DAC_OVERRIDE", "CHOWN"]);
        assert_eq!(
            of(json!({"runAsUser": 0, "capabilities": {"drop": ["ALL"], "add": ["CAP_CHOWN"]}})),
            ["CHOWN"]
        );
        assert_eq!(of(json!({"runAsUser": 0, "capabilities": {"drop": ["CHOWN"]}})), ["DAC_OVERRIDE"]);
        assert!(of(json!({"runAsUser": 7, "capabilities": {"add": ["CHOWN"]}})).is_empty());
    }
}
