//! The chart and the image: what is rendered is what an API server takes, what makes no sense is refused, and the programs
//! take the arguments they are given.

use std::{
    collections::BTreeSet,
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
pub(super) mod pod_security;

pub(super) const HELM: Need = Need::Program("helm");
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
    (parse(&dir.path().join("all.yaml")), text)
}

fn parse(yaml: &Path) -> Vec<Value> {
    let script =
        "import json,sys,yaml; print(json.dumps([d for d in yaml.safe_load_all(open(sys.argv[1])) if d]))";
    let json = process::run(Command::new("python3").args(["-c", script]).arg(yaml));
    serde_json::from_str(&json).expect("JSON")
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

#[test]
fn what_is_rendered_is_valid_and_restricted_and_may_what_it_calls_and_no_more() {
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
        let test = of_kind(&documents, "Pod")[0];
        assert_eq!(pod_security::restricted(test), Vec::<String>::new());
        assert_eq!(test["metadata"]["annotations"]["helm.sh/hook"], "test");
        assert_rights(&documents, &values);
        for less in ["injector.watch=false", "injector.certificate.rotate=false"] {
            assert_rights(&render(&values, &["--set", less]).0, &values);
        }
        let (with, _) = render(&values, &OPERATOR);
        assert_eq!(of_kind(&with, "PrometheusRule").len(), 1);
        assert!(!of_kind(&with, "PodMonitor").is_empty());
    }
}

/// The metrics that alerts and the dashboard ask for.
pub(super) fn metrics_asked_for() -> BTreeSet<String> {
    let (documents, text) = render(&deploy("chart/tidelock/examples/primary.yaml"), &OPERATOR);
    let dashboard = of_kind(&documents, "ConfigMap")[0]["data"]["tidelock.json"].as_str().expect("a text");
    let dashboard: Value = serde_json::from_str(dashboard).expect("JSON");
    assert!(dashboard["panels"].as_array().expect("panels").len() >= 9);
    let other = "_abcdefghijklmnopqrstuvwxyz";
    let words = text.split(|letter| !other.contains(letter));
    words.filter(|word| word.starts_with("tidelock_")).map(str::to_owned).collect()
}

/// What is written about programs and the chart.
pub(super) fn documentation() -> String {
    let page = |name| fs::read_to_string(deploy("../docs").join(name)).expect("there");
    ["operations.md", "kubernetes.md"].map(page).concat()
}

#[test]
fn every_claim_of_the_examples_is_protected() {
    if !met(&[VALIDATE]) {
        return;
    }
    let mut seen = 0;
    for file in
        ["postgresql.yaml", "redis.yaml", "two-volumes.yaml"].map(|name| deploy("examples").join(name))
    {
        let mut command = Command::new(binary());
        command.args(["inject", "--receiver", "standby.example.org:9900", "-f"]).arg(&file);
        let out = process::output(&mut command);
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
        let dir = TempDir::new().expect("temporary directory");
        let injected = dir.path().join("all.yaml");
        fs::write(&injected, &out.stdout).expect("writable");
        for (file, version) in [(&file, "1.29"), (&injected, "1.29"), (&injected, "1.37")] {
            let mut validate = Command::new("kubernetes-validate");
            let out = process::output(validate.args(["-k", version, "--strict", "--quiet"]).arg(file));
            assert!(out.status.success(), "{}: {out:?}", file.display());
        }
        let documents = parse(&injected);
        let set = of_kind(&documents, "StatefulSet")[0];
        let template = &set["spec"]["template"];
        assert_eq!(pod_security::restricted(template), Vec::<String>::new());
        let claims = set["spec"]["volumeClaimTemplates"].as_array().expect("claims").len();
        let sidecar = &template["spec"]["initContainers"][0]["args"];
        let volumes = words(sidecar).iter().filter(|word| word.starts_with("--volume=")).count();
        assert_eq!(volumes, claims, "{}", file.display());
        seen += volumes;
    }
    assert_eq!(seen, 4);
}

/// A right: verb, group, resource, the only name it holds for, and whether it holds in the release's namespace alone.
type Right = (String, String, String, Option<String>, bool);

fn word(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}

fn words(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(word).collect()
}

/// What the chart gives.
fn rights(documents: &[Value], program: &str) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for (kind, here) in [("Role", true), ("ClusterRole", false)] {
        let own = |one: &&Value| word(&one["metadata"]["name"]).contains(program);
        let roles: Vec<_> = of_kind(documents, kind).into_iter().filter(own).collect();
        // Each is given to the program's account, and to nobody else.
        let bindings: Vec<_> =
            of_kind(documents, &format!("{kind}Binding")).into_iter().filter(own).collect();
        assert_eq!(bindings.len(), roles.len());
        for binding in bindings {
            assert!(roles.iter().any(|role| role["metadata"]["name"] == binding["roleRef"]["name"]));
            assert_eq!(words_of_subjects(binding), [format!("protection/tide-tidelock-{program}")]);
        }
        for rule in roles.iter().flat_map(|role| role["rules"].as_array().expect("rules")) {
            let names = words(&rule["resourceNames"]);
            let names = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
            for group in words(&rule["apiGroups"]) {
                for resource in words(&rule["resources"]) {
                    for verb in words(&rule["verbs"]) {
                        for name in &names {
                            let right = (verb.clone(), group.clone(), resource.clone(), name.clone(), here);
                            rights.insert(right);
                        }
                    }
                }
            }
        }
    }
    rights
}

fn words_of_subjects(binding: &Value) -> Vec<String> {
    let subjects = binding["subjects"].as_array().expect("subjects");
    let name = |subject: &Value| format!("{}/{}", word(&subject["namespace"]), word(&subject["name"]));
    subjects.iter().map(name).collect()
}

/// Each program may what the calls need that its arguments ask for.
fn assert_rights(documents: &[Value], values: &Path) {
    let arguments = text_of_arguments(documents);
    for (program, calls) in [
        (
            "injector",
            &[
                ("--authority-secret", "injector"),
                ("--rotate-authority", "rotation"),
                ("--watch-lease", "watcher"),
            ][..],
        ),
        ("recorder", &[("\"recorder\",", "recorder"), ("--custom-resource", "recorder-custom")]),
    ] {
        let asked = calls.iter().filter(|(sign, _)| arguments.contains(sign));
        let needed: BTreeSet<Right> = asked.flat_map(|(_, calls)| needed(calls)).collect();
        assert_eq!(rights(documents, program), needed, "{program} of {}", values.display());
    }
}

/// What the calls of a program need, as tests of the program have recorded them.
fn needed(calls: &str) -> BTreeSet<Right> {
    let path = deploy(&format!("cluster/tests/calls/{calls}.json"));
    let calls: Value = serde_json::from_slice(&fs::read(path).expect("recorded")).expect("JSON");
    let right = |call: &Value| {
        let call = &call["call"];
        // Names that are the program's own are known beforehand; those of others' pods, of what makes them, and of namespaces are not.
        let others = ["pods", "replicasets", "namespaces"];
        let own = call["name"].as_str().filter(|_| !others.iter().any(|one| call["resource"] == *one));
        let here = call["namespace"] == "protection";
        (word(&call["verb"]), word(&call["group"]), word(&call["resource"]), own.map(str::to_owned), here)
    };
    calls.as_array().expect("a list").iter().map(right).collect()
}

fn text_of_arguments(documents: &[Value]) -> String {
    let deployments = of_kind(documents, "Deployment");
    deployments.iter().map(|one| one["spec"]["template"]["spec"]["containers"].to_string()).collect()
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
        "injector.watch=sometimes",
        "injector.receiver=standby",
        "injector.certificate.source=certManager",
        "injector.certificate.authoritySecret=",
        "recorder.enabled=true",
        "recorder.every=often",
        "recorder.customResources[0].kind=Certificate",
        "recorder.customResources[0].field=/spec",
        "injector.certificate.source=secret",
        "injector.sidecar.identitySecret=",
        "monitoring.targetLagSeconds=0",
        "image.pullPolicy=Sometimes",
    ] {
        let out = helm(&["template", "tide", "--set", bad]);
        assert!(!out.status.success(), "{bad} was taken");
        let said = String::from_utf8_lossy(&out.stderr);
        let field = bad.split(['=', '[']).next().and_then(|path| path.split('.').nth(1)).expect("a field");
        assert!(
            said.contains(field) || said.contains("identitySecret") || said.contains("injector"),
            "{bad}: {said}"
        );
    }
}

#[test]
fn programs_take_the_arguments_they_are_given() {
    if !met(&[HELM]) {
        return;
    }
    for values in examples() {
        let (documents, _) = render(&values, &[]);
        let workloads = [of_kind(&documents, "Deployment"), of_kind(&documents, "StatefulSet")].concat();
        let templates = workloads.into_iter().map(|workload| &workload["spec"]["template"]);
        for pod in templates.chain(of_kind(&documents, "Pod")) {
            let arguments = &pod["spec"]["containers"][0]["args"];
            let arguments =
                arguments.as_array().expect("arguments").iter().map(|one| one.as_str().expect("a text"));
            let mut command = Command::new(binary());
            command.args(arguments).env_remove("TIDELOCK_LOG").env("TIDELOCK_NAMESPACE", "protection");
            command.env("TIDELOCK_REPLICA", "injector-1");
            let out = process::output(&mut command);
            let said = String::from_utf8_lossy(&out.stderr);
            // They are understood, and what they name is not here.
            assert!(
                said.starts_with("tidelock: ")
                    && ["/var/run/tidelock/", "no way to a Kubernetes API", "authority is no certificate"]
                        .iter()
                        .any(|missing| said.contains(missing)),
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
