//! The chart and the image: what is rendered is what an API server takes, what makes no sense is refused, and the programs
//! take the arguments they are given.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tidelock_tests::{
    needs::{Need, met},
    process,
    site::binary,
};

#[path = "../../../deploy/injector/tests/injector/pod_security.rs"]
mod pod_security;

const HELM: Need = Need::Program("helm");
const VALIDATE: Need = Need::Program("kubernetes-validate");
const OPERATOR: [&str; 4] = [
    "--api-versions",
    "monitoring.coreos.com/v1/PodMonitor",
    "--api-versions",
    "monitoring.coreos.com/v1/PrometheusRule",
];

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name)
}

fn helm(arguments: &[&str]) -> Output {
    let mut command = Command::new("helm");
    command.args(arguments).arg(deploy("chart/tidelock")).args(["--namespace", "protection"]);
    process::output(&mut command)
}

fn examples() -> Vec<PathBuf> {
    let entries = fs::read_dir(deploy("chart/tidelock/examples")).expect("there");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    assert!(paths.len() >= 4);
    paths
}

/// The documents that come out, and their text.
fn render(values: &Path, more: &[&str]) -> (Vec<Value>, String) {
    let mut arguments = vec!["template", "tide", "--values", values.to_str().expect("UTF-8")];
    arguments.extend(more);
    let out = helm(&arguments);
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let dir = TempDir::new().expect("temporary directory");
    fs::write(dir.path().join("all.yaml"), &text).expect("writable");
    let script =
        "import json,sys,yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let json = process::run(Command::new("python3").args(["-c", script]).arg(dir.path().join("all.yaml")));
    (serde_json::from_str(&json).expect("JSON"), text)
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

#[test]
fn what_is_rendered_is_valid_and_restricted_and_has_no_rights() {
    if !met(&[HELM, VALIDATE]) {
        return;
    }
    for values in examples() {
        let lint = helm(&["lint", "--strict", "--values", values.to_str().expect("UTF-8")]);
        assert!(lint.status.success(), "{}: {lint:?}", values.display());
        let (documents, text) = render(&values, &[]);
        let dir = TempDir::new().expect("temporary directory");
        let file = dir.path().join("all.yaml");
        fs::write(&file, text).expect("writable");
        for version in ["1.29", "1.37"] {
            let mut validate = Command::new("kubernetes-validate");
            validate.args(["-k", version, "--strict", "--quiet"]).arg(&file);
            let out = process::output(&mut validate);
            assert!(out.status.success(), "{}: {out:?}", values.display());
        }
        let workloads = [of_kind(&documents, "Deployment"), of_kind(&documents, "StatefulSet")].concat();
        assert!(!workloads.is_empty(), "{}", values.display());
        for workload in workloads {
            let pod = &workload["spec"]["template"];
            assert_eq!(
                pod_security::restricted(pod),
                Vec::<String>::new(),
                "{}",
                workload["metadata"]["name"]
            );
            assert_eq!(pod["spec"]["automountServiceAccountToken"], false);
        }
        // No program calls the API, so nobody may.
        for document in &documents {
            let kind = document["kind"].as_str().expect("a kind");
            assert!(!kind.contains("Role"), "{kind} in {}", values.display());
        }
        let (with, _) = render(&values, &OPERATOR);
        assert_eq!(of_kind(&with, "PrometheusRule").len(), 1);
        assert!(!of_kind(&with, "PodMonitor").is_empty());
    }
}

#[test]
fn values_that_make_no_sense_are_refused() {
    if !met(&[HELM]) {
        return;
    }
    for bad in [
        "receiver.enabled=true",
        "receiver.prot=1",
        "receiver.port=80",
        "receiver.storeCap=lots",
        "receiver.archive.url=ftp://x",
        "receiver.service.type=ExternalName",
        "receiver.resources.limits.memory=lots",
        "injector.failurePolicy=Maybe",
        "injector.replicas=0",
        "injector.receiver=standby",
        "injector.certificate.source=certManager",
        "injector.certificate.source=secret",
        "injector.sidecar.identitySecret=",
        "monitoring.targetLagSeconds=0",
        "image.pullPolicy=Sometimes",
    ] {
        let out = helm(&["template", "tide", "--set", bad]);
        assert!(!out.status.success(), "{bad} was taken");
        let said = String::from_utf8_lossy(&out.stderr);
        let field = bad.split(['=']).next().and_then(|path| path.split('.').nth(1)).expect("a field");
        assert!(said.contains(field) || said.contains("identitySecret"), "{bad}: {said}");
    }
}

#[test]
fn programs_take_the_arguments_they_are_given() {
    if !met(&[HELM]) {
        return;
    }
    for values in examples() {
        let (documents, _) = render(&values, &[]);
        for workload in [of_kind(&documents, "Deployment"), of_kind(&documents, "StatefulSet")].concat() {
            let arguments = &workload["spec"]["template"]["spec"]["containers"][0]["args"];
            let arguments =
                arguments.as_array().expect("arguments").iter().map(|one| one.as_str().expect("a text"));
            let out = process::output(Command::new(binary()).args(arguments).env_remove("TIDELOCK_LOG"));
            let said = String::from_utf8_lossy(&out.stderr);
            // They are understood, and what they name is not here.
            assert!(
                said.starts_with("tidelock: ") && said.contains("/var/run/tidelock/"),
                "{}: {said}",
                values.display()
            );
            assert_eq!(out.status.code(), Some(64));
        }
    }
}

/// Whether a selector takes these labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let matches = selector["matchLabels"].as_object();
    let all = matches.into_iter().flatten().all(|(key, value)| &labels[key] == value);
    let fits = |expression: &Value| {
        let value = &labels[expression["key"].as_str().expect("a key")];
        let within = expression["values"].as_array().expect("values").contains(value);
        match expression["operator"].as_str() {
            Some("In") => within,
            Some("NotIn") => !within,
            other => panic!("operator {other:?}"),
        }
    };
    all && selector["matchExpressions"].as_array().into_iter().flatten().all(fits)
}

#[test]
fn selectors_send_each_pod_to_the_path_that_knows_its_namespace() {
    if !met(&[HELM]) {
        return;
    }
    let (documents, _) = render(&deploy("chart/tidelock/examples/primary.yaml"), &[]);
    let webhooks = of_kind(&documents, "MutatingWebhookConfiguration")[0]["webhooks"].clone();
    let webhooks = webhooks.as_array().expect("webhooks");
    for webhook in webhooks {
        assert_eq!((&webhook["sideEffects"], &webhook["failurePolicy"]), (&json!("None"), &json!("Ignore")));
        assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
    }
    let paths = |namespace: &Value, pod: &Value| -> Vec<&str> {
        let asked = |webhook: &&Value| {
            selects(&webhook["namespaceSelector"], namespace) && selects(&webhook["objectSelector"], pod)
        };
        let path = |webhook: &'_ Value| {
            webhook["clientConfig"]["service"]["path"].as_str().expect("a path").to_owned()
        };
        webhooks.iter().filter(asked).map(path).map(|path| &*path.leak()).collect()
    };
    let words = [Value::Null, json!("true"), json!("false"), json!("yes")];
    for pod in &words {
        for namespace in &words {
            for exact in &words {
                let labels = json!({
                    "kubernetes.io/metadata.name": "shop",
                    "tidelock.dev/inject": namespace,
                    "tidelock.dev/allow-exact": exact,
                });
                let by = match (pod.as_str(), namespace.as_str()) {
                    (_, Some("true")) => Some("namespace"),
                    (Some("true"), _) => Some("pod"),
                    _ => None,
                };
                let suffix = if exact == "true" { "/exact" } else { "" };
                let wanted: Vec<_> = by.iter().map(|by| format!("/mutate/{by}{suffix}")).collect();
                assert_eq!(paths(&labels, &json!({"tidelock.dev/inject": pod})), wanted, "{pod} {labels}");
            }
        }
    }
    for excluded in ["kube-system", "kube-public", "kube-node-lease", "protection", "monitoring"] {
        let labels = json!({"kubernetes.io/metadata.name": excluded, "tidelock.dev/inject": "true"});
        assert_eq!(paths(&labels, &json!({"tidelock.dev/inject": "true"})), Vec::<&str>::new(), "{excluded}");
    }
}

/// A program of a few lines; a static one runs without anything beside it.
fn program(dir: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let source = dir.join("hello.rs");
    fs::write(&source, "fn main() { println!(\"here\"); }").expect("writable");
    let path = dir.join(name);
    process::run(Command::new("rustc").args(flags).arg("-o").arg(&path).arg(&source));
    path
}

#[test]
fn an_image_is_what_a_node_imports_and_the_same_each_time() {
    let dir = TempDir::new().expect("temporary directory");
    let (dir, at) = (dir.path(), |name: &str| dir.path().join(name));
    let image = |binary: &Path, out: &Path| {
        let mut command = Command::new(deploy("image"));
        command
            .arg("--binary")
            .arg(binary)
            .arg(out)
            .env("TIDELOCK_IMAGE", "registry.example.org:5000/tidelock:9");
        process::output(&mut command)
    };
    let refused = image(&program(dir, "dynamic", &["-C", "prefer-dynamic=no"]), &at("no.tar"));
    assert!(!refused.status.success() && !at("no.tar").exists(), "{refused:?}");

    let binary = program(dir, "static", &["-C", "target-feature=+crt-static"]);
    for name in ["one.tar", "two.tar"] {
        let made = image(&binary, &at(name));
        assert!(made.status.success(), "{made:?}");
    }
    assert_eq!(fs::read(at("one.tar")).expect("made"), fs::read(at("two.tar")).expect("made"));
    fs::create_dir(at("oci")).expect("writable");
    process::run(Command::new("tar").arg("-xf").arg(at("one.tar")).arg("-C").arg(at("oci")));
    let read = |path: &str| fs::read(at("oci").join(path)).expect("in the image");
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"]
            .as_str()
            .and_then(|digest| digest.strip_prefix("sha256:"))
            .expect("a digest");
        let path = format!("blobs/sha256/{digest}");
        let sum = process::run(Command::new("sha256sum").arg(at("oci").join(&path)));
        assert!(sum.starts_with(digest), "{sum}");
        assert_eq!(descriptor["size"], read(&path).len());
        (path.clone(), read(&path))
    };
    let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).expect("JSON");
    let index = parse(&read("index.json"));
    let manifest = &index["manifests"][0];
    assert_eq!(manifest["annotations"]["io.containerd.image.name"], "registry.example.org:5000/tidelock:9");
    let manifest = parse(&blob(manifest).1);
    let config = parse(&blob(&manifest["config"]).1);
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["config"]["Entrypoint"], json!(["/tidelock"]));
    let (layer, _) = blob(&manifest["layers"][0]);
    fs::create_dir(at("root")).expect("writable");
    process::run(Command::new("tar").arg("-xzf").arg(at("oci").join(layer)).arg("-C").arg(at("root")));
    assert_eq!(fs::read(at("root/tidelock")).expect("there"), fs::read(&binary).expect("there"));
    assert!(fs::metadata(at("root/etc/ssl/certs/ca-certificates.crt")).expect("there").len() > 10_000);
}
