//! Identities that an injector gives: what the pod gets for that, and that its key is nowhere else.

use serde_json::{Value, json};
use tidelock_injector::{Config, IdentityFrom, review};

use crate::{
    pod_security::restricted,
    world::{arguments, config, container, labels, patched, pod, pod_with, request, sidecar},
};

const PEM: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";

fn injected(pod: &Value) -> Value {
    let from = IdentityFrom { url: "https://injector.tidelock.svc".to_owned(), authorities: PEM.to_owned() };
    let config = Config { identity_from: Some(from), ..config() };
    let ask =
        |pod: &Value| review(&serde_json::to_vec(&request(pod)).unwrap(), &labels(&[]), &config).unwrap();
    let once = patched(pod, &ask(pod));
    assert_eq!(patched(&once, &ask(&once)), once, "a second pass changes nothing");
    once
}

fn volume<'a>(pod: &'a Value, name: &str) -> &'a Value {
    pod["spec"]["volumes"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap()
}

#[test]
fn a_pod_gets_a_token_for_this_alone_and_keeps_its_key_in_memory() {
    let pod = injected(&pod());
    let identity = json!({"name": "tidelock-identity", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}});
    assert_eq!(*volume(&pod, "tidelock-identity"), identity);
    let token = json!({"audience": "tidelock", "expirationSeconds": 3600, "path": "token"});
    let sources = json!([{"serviceAccountToken": token}]);
    assert_eq!(volume(&pod, "tidelock-token")["projected"]["sources"], sources);
    let sidecar = sidecar(&pod);
    let given = arguments(sidecar);
    assert!(given.contains(&"--identity-from=https://injector.tidelock.svc"), "{given:?}");
    assert!(given.contains(&"--identity=/var/run/tidelock/identity"), "{given:?}");
    assert_eq!(sidecar["env"][0], json!({"name": "TIDELOCK_IDENTITY_AUTHORITY", "value": PEM}));
    // Neither is in a container of the application.
    assert!(!pod["spec"]["containers"].to_string().contains("tidelock-"));
    assert_eq!(restricted(&pod), Vec::<String>::new());
}

#[test]
fn a_pod_that_names_a_secret_gets_that() {
    let pod = injected(&pod_with(&[("identity-secret", "mine")]));
    assert_eq!(volume(&pod, "tidelock-identity")["secret"]["secretName"], "mine");
    assert!(arguments(sidecar(&pod)).contains(&"--wait-for-identity"));
    assert!(!pod.to_string().contains("tidelock-token"));
}

#[test]
fn what_fills_empty_volumes_gets_an_identity_of_its_own_by_the_same_token() {
    let pod = injected(&pod_with(&[("restore", "if-empty")]));
    let restore = container(&pod, "tidelock-restore").unwrap();
    assert!(arguments(restore).contains(&"--identity-from=https://injector.tidelock.svc"));
    assert_eq!(restore["env"][0]["name"], "TIDELOCK_IDENTITY_AUTHORITY");
    let mounted = |one: &Value| -> Vec<String> {
        let mounts = one["volumeMounts"].as_array().unwrap().iter();
        mounts
            .map(|mount| mount["name"].as_str().unwrap().to_owned())
            .filter(|name| name.starts_with("tidelock-"))
            .collect()
    };
    assert_eq!(mounted(restore), ["tidelock-restore-identity", "tidelock-token"]);
    assert_eq!(mounted(sidecar(&pod)), ["tidelock-identity", "tidelock-token"]);
    assert_eq!(volume(&pod, "tidelock-restore-identity")["emptyDir"]["medium"], "Memory");
    assert_eq!(restricted(&pod), Vec::<String>::new());
    // Who names a Secret gets that, and another tenant's points are nobody's for a token.
    for more in [("restore-secret", "mine"), ("restore-tenant", "bank")] {
        let pod = injected(&pod_with(&[("restore", "if-empty"), more]));
        assert!(volume(&pod, "tidelock-restore-identity")["secret"].is_object(), "{more:?}");
        assert!(
            !arguments(container(&pod, "tidelock-restore").unwrap())
                .iter()
                .any(|one| one.contains("identity-from"))
        );
    }
}

#[test]
fn points_of_another_tenant_are_asked_for_under_its_name() {
    let pod = injected(&pod_with(&[("restore", "if-empty"), ("restore-tenant", "bank")]));
    let restore = container(&pod, "tidelock-restore").unwrap();
    assert_eq!(arguments(restore)[1], "bank/data-db-0");
    // What is protected from now on is the pod's own.
    assert!(arguments(sidecar(&pod)).contains(&"--volume=shop/data-db-0=/var/lib/postgresql/data"));
}
