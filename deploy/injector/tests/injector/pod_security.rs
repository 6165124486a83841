//! What Pod Security Admission checks at level *restricted* (and, with it, *baseline*), as the standard has it.

use serde_json::Value;

/// Everything in a pod that *restricted* forbids; empty if nothing is.
pub(crate) fn restricted(pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let spec = &pod["spec"];
    let shared = &spec["securityContext"];
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[field] == true {
            found.push(format!("spec.{field}"));
        }
    }
    let permitted = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    for volume in list(&spec["volumes"]) {
        let kinds = volume.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        let bad: Vec<_> = kinds.filter(|kind| *kind != "name" && !permitted.contains(kind)).collect();
        if !bad.is_empty() {
            found.push(format!("volume {}: {bad:?}", volume["name"]));
        }
    }
    if !shared["sysctls"].is_null() {
        found.push("sysctls".to_owned());
    }
    for container in list(&spec["initContainers"]).chain(list(&spec["containers"])) {
        found.extend(
            container_faults(container, shared)
                .into_iter()
                .map(|what| format!("{}: {what}", container["name"])),
        );
    }
    found
}

/// The same for one container.
pub(crate) fn container_faults(container: &Value, shared: &Value) -> Vec<String> {
    let own = &container["securityContext"];
    let either = |field: &str| if own[field].is_null() { &shared[field] } else { &own[field] };
    let mut found = Vec::new();
    let mut check = |good: bool, what: &str| {
        if !good {
            found.push(what.to_owned());
        }
    };
    check(own["privileged"] != true, "privileged");
    check(own["allowPrivilegeEscalation"] == false, "allowPrivilegeEscalation");
    check(*either("runAsNonRoot") == true, "runAsNonRoot");
    check(*either("runAsUser") != 0, "runAsUser is 0");
    let profile = &either("seccompProfile")["type"];
    check(*profile == "RuntimeDefault" || *profile == "Localhost", "seccompProfile");
    check(list(&own["capabilities"]["drop"]).any(|name| name == "ALL"), "capabilities are not dropped");
    check(list(&own["capabilities"]["add"]).all(|name| name == "NET_BIND_SERVICE"), "capabilities are added");
    check(own["procMount"].is_null() || own["procMount"] == "Default", "procMount");
    check(list(&container["ports"]).all(|port| port["hostPort"].as_i64().unwrap_or(0) == 0), "hostPort");
    let selinux = &either("seLinuxOptions")["type"];
    let types = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    check(types.contains(&selinux.as_str().unwrap_or("")), "seLinuxOptions.type");
    found
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
