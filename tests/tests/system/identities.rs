//! Pods get identities of the injector, and replicate with them: the injector's own server, and real sidecar and receiver.
//!
//! What an API server would say stands in [`Cluster`], as one has said it: nothing here shows how an API behaves.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    authentication::v1::TokenReviewStatus,
    core::v1::{Pod, Secret},
};
use serde_json::{Value, json};
use tidelock_cluster::{
    api::{ApiError, AuthorityCalls, IdentityCalls},
    authority::{Care, Rotation},
    identity::Policy,
    managed::{self, Managed},
    probe,
    watch::Tally,
};
use tidelock_injector::server::{Extras, ServerConfig};
use tidelock_proto::pki::{Authority, CA_VALIDITY, LEAF_VALIDITY, Request, Validity, renew};
use tidelock_tests::{
    process::{self, Process},
    site::Site,
    wait::{self, SOON},
};
use tokio::sync::oneshot;

/// How long identities are good here.
const VALIDITY: Duration = Duration::from_secs(6);

/// How a certificate ends.
const END: &str = "-----END CERTIFICATE-----";

/// What the API knows.
#[derive(Default)]
pub(super) struct Cluster {
    secret: Mutex<Option<Secret>>,
    bundle: Mutex<Option<String>>,
    /// Pods by namespace and name; the token of each is `token-` and its name.
    pods: Mutex<BTreeMap<(String, String), Value>>,
}

#[derive(Clone)]
struct Calls(Arc<Cluster>);

impl AuthorityCalls for Calls {
    async fn secret(&self) -> Result<Option<Secret>, ApiError> {
        Ok(self.0.secret.lock().expect("not poisoned").clone())
    }

    async fn create_secret(&self, secret: Secret) -> Result<(), ApiError> {
        *self.0.secret.lock().expect("not poisoned") = Some(secret);
        Ok(())
    }

    async fn replace_secret(&self, mut secret: Secret) -> Result<(), ApiError> {
        let mut known = self.0.secret.lock().expect("not poisoned");
        let version = |secret: &Secret| secret.metadata.resource_version.clone();
        if known.as_ref().map(version) != Some(version(&secret)) {
            return Err(ApiError::Conflict("it was changed".to_owned()));
        }
        let next = version(&secret).and_then(|version| version.parse::<u64>().ok()).unwrap_or(0) + 1;
        secret.metadata.resource_version = Some(next.to_string());
        *known = Some(secret);
        Ok(())
    }

    async fn webhooks(&self) -> Result<MutatingWebhookConfiguration, ApiError> {
        let bundle = self.0.bundle.lock().expect("not poisoned").clone();
        let webhook = json!({"name": "one", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"caBundle": bundle}});
        Ok(serde_json::from_value(json!({"webhooks": [webhook]})).expect("webhooks"))
    }

    async fn set_bundle(&self, _: &[String], _: &str, bundle: &str) -> Result<(), ApiError> {
        *self.0.bundle.lock().expect("not poisoned") = Some(bundle.to_owned());
        Ok(())
    }
}

impl IdentityCalls for Calls {
    async fn review(&self, token: &str) -> Result<TokenReviewStatus, ApiError> {
        let pods = self.0.pods.lock().expect("not poisoned");
        let known = pods.iter().find(|((_, name), _)| token == format!("token-{name}"));
        let status = match known {
            None => json!({"authenticated": false, "error": "[invalid bearer token]"}),
            Some(((namespace, name), pod)) => {
                let account = pod["spec"]["serviceAccountName"].as_str().expect("an account");
                json!({"authenticated": true, "audiences": ["tidelock"], "user": {
                    "username": format!("system:serviceaccount:{namespace}:{account}"),
                    "extra": {
                        "authentication.kubernetes.io/pod-name": [name],
                        "authentication.kubernetes.io/pod-uid": [pod["metadata"]["uid"]],
                    },
                }})
            }
        };
        Ok(serde_json::from_value(status).expect("a status"))
    }

    async fn pod(&self, namespace: &str, name: &str) -> Result<Option<Pod>, ApiError> {
        let pods = self.0.pods.lock().expect("not poisoned");
        let pod = pods.get(&(namespace.to_owned(), name.to_owned()));
        Ok(pod.map(|pod| serde_json::from_value(pod.clone()).expect("a pod")))
    }
}

impl Cluster {
    pub(super) fn add(&self, namespace: &str, name: &str, account: &str, claim: Option<&str>) {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-of-{name}")},
            "spec": {"containers": [], "serviceAccountName": account},
        });
        if let Some(claim) = claim {
            let status = json!({"state": "injected", "volumes": [{"name": format!("{namespace}/{claim}")}]});
            pod["metadata"]["annotations"] = json!({"tidelock.dev/status": status.to_string()});
            pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
        }
        self.pods.lock().expect("not poisoned").insert((namespace.to_owned(), name.to_owned()), pod);
    }

    fn authority(&self) -> Authority {
        let secret = self.secret.lock().expect("not poisoned").clone().expect("it was made");
        let data = secret.data.expect("data");
        let text = |name: &str| String::from_utf8(data[name].0.clone()).expect("PEM");
        // The first of them signs.
        let all = text("ca.crt");
        let (first, _) = all.split_once(END).expect("a certificate");
        Authority::from_pem(&format!("{first}{END}\n"), &text("ca.key")).expect("an authority")
    }

    /// Whom the API server believes of the webhooks, PEM.
    pub(super) fn believed(&self) -> Option<String> {
        let bundle = self.bundle.lock().expect("not poisoned").clone()?;
        Some(String::from_utf8(STANDARD.decode(bundle).expect("base64")).expect("PEM"))
    }

    /// An identity of the tenant's operator, by whoever signs now.
    pub(super) fn operator(&self, site: &Site) {
        let (authority, believed) = (self.authority(), self.believed().expect("set"));
        let request = Request::Operator { tenant: Some("shop".to_owned()) };
        let validity = Validity::starting(SystemTime::now(), LEAF_VALIDITY);
        let (operator, key) = authority.issue(&Default::default(), &request, validity).expect("issued");
        renew(&site.path("op"), &operator, &key, &believed).expect("written");
    }
}

/// The injector, as long as this is there.
pub(super) struct Injector {
    pub(super) url: String,
    pub(super) http: String,
    _stop: oneshot::Sender<()>,
}

impl Injector {
    pub(super) fn start(site: &Site, cluster: &Arc<Cluster>) -> Self {
        Self::start_with(site, cluster, Care::default())
    }

    fn start_with(site: &Site, cluster: &Arc<Cluster>, care: Care) -> Self {
        let ports = site.path("injector.ports");
        let receiver = Some(("receiver".to_owned(), vec!["127.0.0.1".to_owned()]));
        let managed = Managed {
            hosts: vec!["127.0.0.1".to_owned()],
            policy: Policy {
                namespace: "tidelock".to_owned(),
                receiver,
                recorder: Some("recorder".to_owned()),
            },
            domain: "tidelock".parse().expect("a domain"),
            validity: VALIDITY,
            care,
        };
        let config = ServerConfig {
            listen: "127.0.0.1:0".parse().expect("an address"),
            certificate: site.path("certificate"),
            http: "127.0.0.1:0".parse().expect("an address"),
            port_file: Some(ports.clone()),
            injection: tidelock_injector::Config::default(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (calls, mut extras) = (Calls(cluster.clone()), Extras::default());
        // What looks after pods counts here, too; nobody does that now.
        Tally::default().register(&mut extras.registry);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let shutdown = async { drop(stopped.await) };
            let ended =
                runtime.expect("a runtime").block_on(managed::run(calls, managed, config, extras, shutdown));
            ended.expect("it ends when it is told to");
        });
        let text = wait::until("the injector listens", SOON, || fs::read_to_string(&ports).ok());
        let (listen, http) = text.trim_end().split_once('\n').expect("two addresses");
        Self { url: format!("https://{listen}"), http: http.to_owned(), _stop: stop }
    }
}

/// A pod's program that gets its identity: its process and where that is.
pub(super) fn start(site: &Site, injector: &Injector, pod: &str, arguments: &[&str]) -> (Process, PathBuf) {
    start_by(site, injector, pod, arguments, &site.path("certificate/ca.crt"))
}

/// The same, of a pod that believes these authorities of the injector.
fn start_by(
    site: &Site,
    injector: &Injector,
    pod: &str,
    arguments: &[&str],
    believed: &Path,
) -> (Process, PathBuf) {
    let identity = site.path(&format!("{pod}.identity"));
    let token = site.path(&format!("{pod}.token"));
    fs::write(&token, format!("token-{pod}\n")).expect("writable");
    let mut command = site.tidelock(arguments.iter().copied());
    command.args(["--http", "127.0.0.1:0", "--identity-from", &injector.url]);
    command.arg("--identity-authority").arg(believed);
    command.arg("--identity").arg(&identity).arg("--identity-token").arg(&token);
    command.arg("--port-file").arg(site.path(&format!("{pod}.ports")));
    let log = site.path(&format!("{pod}-{}.log", fs::read_dir(site.path("")).expect("there").count()));
    let mut process = Process::spawn(pod, &mut command, &log);
    process.allow("waiting for the identity").allow("changed identity files not used");
    (process, identity)
}

pub(super) fn address(site: &Site, process: &mut Process) -> String {
    let text = wait::until("the receiver listens", SOON, || {
        process.must_run();
        fs::read_to_string(site.path("receiver-0.ports")).ok()
    });
    text.lines().next().expect("an address").to_owned()
}

fn points(site: &Site, receiver: &str) -> usize {
    let mut command =
        site.tidelock(["points", "shop/data-orders-0", "--all", "--json", "--receiver", receiver]);
    let out = process::output(command.arg("--identity").arg(site.path("op")));
    let listed: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    listed.get("points").unwrap_or(&listed).as_array().map_or(0, Vec::len)
}

fn certificate(identity: &Path) -> Option<Vec<u8>> {
    fs::read(identity.join("tls.crt")).ok()
}

#[test]
fn pods_replicate_with_identities_of_the_injector_and_renew_them() {
    let (site, cluster) = (Site::new(), Arc::new(Cluster::default()));
    cluster.add("tidelock", "receiver-0", "receiver", None);
    cluster.add("shop", "orders-0", "default", Some("data-orders-0"));
    let injector = Injector::start(&site, &cluster);
    let validity = Validity::starting(SystemTime::now(), LEAF_VALIDITY);
    let authority = cluster.authority();
    let operator = authority.issue(&Default::default(), &Request::Operator { tenant: None }, validity);
    let (operator, key) = operator.expect("issued");
    renew(&site.path("op"), &operator, &key, authority.certificate_pem()).expect("written");

    let store = site.path("store");
    let store = store.to_str().expect("UTF-8");
    let (mut receiver, identity) =
        start(&site, &injector, "receiver-0", &["receiver", "--store", store, "--listen", "127.0.0.1:0"]);
    let listen = address(&site, &mut receiver);
    let volume = site.new_dir("volume");
    fs::write(volume.join("file"), "one").expect("writable");
    let named = format!("shop/data-orders-0={}", volume.display());
    let (mut sidecar, own) =
        start(&site, &injector, "orders-0", &["sidecar", "--volume", &named, "--receiver", &listen]);
    wait::until_true("a point", 2 * SOON, || points(&site, &listen) > 0);
    let first = [certificate(&identity), certificate(&own)];
    assert!(first.iter().all(Option::is_some));

    // Each is renewed before it ends, with a new key, and a new connection shows it.
    let key = fs::read(own.join("tls.key")).expect("there");
    let begun = Instant::now();
    wait::until_true("both are renewed", 2 * SOON, || {
        certificate(&identity) != first[0] && certificate(&own) != first[1]
    });
    assert_ne!(fs::read(own.join("tls.key")).expect("there"), key);
    wait::until_true("the first have ended", SOON, || begun.elapsed() > VALIDITY);
    receiver.stop();
    sidecar.allow("connection").allow("receiver").allow("link");
    let (mut receiver, _) =
        start(&site, &injector, "receiver-0", &["receiver", "--store", store, "--listen", &listen]);
    wait::until_true("the receiver is back", 2 * SOON, || points(&site, &listen) > 0);
    let before = points(&site, &listen);
    fs::write(volume.join("file"), "two").expect("writable");
    wait::until_true("a point with the new identities", 2 * SOON, || points(&site, &listen) > before);

    // Its empty volume is filled by the same token, and what fills reads this pod's points alone.
    let filled = site.new_dir("filled");
    let restore = |token: &str, identity: &str| {
        let mut command =
            site.tidelock(["restore", "shop/data-orders-0", "--if-empty", "--receiver", &listen]);
        command.args(["--identity-from", &injector.url, "--identity-authority"]);
        command.arg(site.path("certificate/ca.crt")).arg("--identity-token").arg(site.path(token));
        process::output(command.arg("--identity").arg(site.path(identity)).arg("--to").arg(&filled))
    };
    let done = restore("orders-0.token", "filler");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read_to_string(filled.join("file")).expect("filled"), "two");
    receiver.allow("operator refused");
    // Identities are short here, and the machine may be busy.
    wait::until_true("what fills may only read", SOON, || {
        fs::remove_file(filled.join("file")).expect("there");
        assert!(restore("orders-0.token", "filler").status.success());
        let mut hold = site.tidelock(["hold", "shop/data-orders-0", "--receiver", &listen]);
        let refused = process::output(hold.arg("--identity").arg(site.path("filler")));
        String::from_utf8_lossy(&refused.stderr).contains("reader of shop/data-orders-0 may not")
    });
    // A volume that holds something asks nobody.
    assert!(restore("none.token", "nobody").status.success() && !site.path("nobody").exists());

    // A pod that is deleted gets nothing more, and goes on to the end of what it has.
    sidecar.allow("no identity was obtained");
    cluster.pods.lock().expect("not poisoned").remove(&("shop".to_owned(), "orders-0".to_owned()));
    wait::until_true("it is refused", 2 * SOON, || sidecar.log().contains("the injector refused (401)"));
    sidecar.must_run();
    sidecar.stop();
    receiver.stop();
}

/// Asks the injector as an API server does, again and again; how often it answered.
fn ask_on(injector: &Injector, cluster: &Cluster, stop: &AtomicBool, answered: &AtomicU64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let url = injector.url.parse().expect("a URL");
    while !stop.load(Ordering::Relaxed) {
        let Some(believed) = cluster.believed() else { continue };
        runtime.block_on(probe::injector(&url, &believed)).expect("no connection is refused");
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn authorities_follow_one_another_and_no_connection_is_refused() {
    let (site, cluster) = (Site::new(), Arc::new(Cluster::default()));
    cluster.add("shop", "orders-0", "default", Some("data-orders-0"));
    cluster.add("tidelock", "receiver-0", "receiver", None);
    // Each is about to end from its beginning; identities are renewed after two thirds of their time.
    let rotation = Rotation { before_end: 2 * CA_VALIDITY, overlap: VALIDITY + VALIDITY / 6 };
    let care = Care { rotation: Some(rotation), look_every: Duration::from_millis(100) };
    let injector = Injector::start_with(&site, &cluster, care);
    // A pod is created with whom the injector has named then, and with nobody else.
    let begun = site.path("begun.crt");
    fs::copy(site.path("certificate/ca.crt"), &begun).expect("copied");
    let store = site.path("store");
    let store = store.to_str().expect("UTF-8");
    let arguments = ["receiver", "--store", store, "--listen", "127.0.0.1:0"];
    let (mut receiver, of_receiver) = start_by(&site, &injector, "receiver-0", &arguments, &begun);
    let listen = address(&site, &mut receiver);
    let volume = site.new_dir("volume");
    let named = format!("shop/data-orders-0={}", volume.display());
    let arguments = ["sidecar", "--volume", &named, "--receiver", &listen];
    let (mut sidecar, of_sidecar) = start_by(&site, &injector, "orders-0", &arguments, &begun);
    let (stop, answered) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let (injector, cluster) = (&injector, &*cluster);
        let asking = scope.spawn(|| ask_on(injector, cluster, &stop, &answered));
        let _end = SetOnDrop(&stop);
        let mut signed = vec![cluster.authority()];
        for round in 0..3 {
            let known =
                |now: &Authority| signed.iter().any(|one| one.certificate_pem() == now.certificate_pem());
            let next = wait::until("another authority signs", 2 * SOON, || {
                assert!(!asking.is_finished(), "a connection was refused");
                Some(cluster.authority()).filter(|now| !known(now))
            });
            let by = [&of_receiver, &of_sidecar].map(|identity| certificate(identity));
            wait::until_true("identities are renewed", 2 * SOON, || {
                by.iter().zip([&of_receiver, &of_sidecar]).all(|(before, now)| certificate(now) != *before)
            });
            signed.push(next);
            if round == 1 {
                // It knows the injector again, whose first authority signs no more.
                sidecar.stop();
                sidecar = start_by(&site, injector, "orders-0", &arguments, &begun).0;
            }
            cluster.operator(&site);
            let before = points(&site, &listen);
            fs::write(volume.join("file"), format!("{round}")).expect("writable");
            wait::until_true("a point", 2 * SOON, || points(&site, &listen) > before);
        }
    });
    assert!(answered.load(Ordering::Relaxed) > 100);
    sidecar.stop();
    receiver.stop();
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_pod_gets_no_other_pods_volume() {
    let (site, cluster) = (Site::new(), Arc::new(Cluster::default()));
    cluster.add("shop", "orders-0", "default", Some("data-orders-0"));
    cluster.add("shop", "web-0", "default", None);
    let injector = Injector::start(&site, &cluster);
    let volume = site.new_dir("volume");
    let named = format!("shop/data-orders-0={}", volume.display());
    let arguments = ["sidecar", "--volume", &named, "--receiver", "127.0.0.1:9"];
    let (mut web, identity) = start(&site, &injector, "web-0", &arguments);
    web.allow("no identity was obtained");
    wait::until_true("it is refused", 2 * SOON, || web.log().contains("the injector refused (403)"));
    assert!(!identity.exists());
    // Its neighbour gets its own, and the name of another volume does not help it.
    let other = format!("shop/other={}", volume.display());
    let arguments = ["sidecar", "--volume", &other, "--receiver", "127.0.0.1:9"];
    let (mut orders, _) = start(&site, &injector, "orders-0", &arguments);
    assert_eq!(orders.wait(2 * SOON).code(), Some(64));
    assert!(orders.log().contains("shop/other"), "{}", orders.log());
    web.stop();
}

#[test]
fn a_probe_tells_whether_injector_and_receiver_do_their_work() {
    let (site, cluster) = (Site::new(), Arc::new(Cluster::default()));
    cluster.add("tidelock", "receiver-0", "receiver", None);
    let injector = Injector::start(&site, &cluster);
    let store = site.path("store");
    let store = store.to_str().expect("UTF-8");
    let (mut receiver, _) =
        start(&site, &injector, "receiver-0", &["receiver", "--store", store, "--listen", "127.0.0.1:0"]);
    receiver.allow("peer refused");
    let listen = address(&site, &mut receiver);
    let (own, other) = (site.path("certificate/ca.crt"), site.path("other.crt"));
    let stranger = Authority::generate(Validity::starting(SystemTime::now(), LEAF_VALIDITY)).expect("made");
    fs::write(&other, stranger.certificate_pem()).expect("writable");
    let probe = |what: &str, at: &str, authority: &Path, more: &[&str]| {
        let mut command = site.tidelock(["probe", &format!("--{what}"), at, "--wait"]);
        command.arg(if more.contains(&"fails") { "0s" } else { "20s" });
        command.arg(format!("--{what}-authority")).arg(authority);
        command.args(more.iter().filter(|word| **word != "fails"));
        let out = process::output(&mut command);
        (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let (code, said) = probe("injector", &injector.url, &own, &[]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = probe("receiver", &listen, &own, &[]);
    assert_eq!(code, Some(0), "{said}");
    // The name in the certificate is its address's.
    let by_name = listen.replace("127.0.0.1", "localhost");
    let (code, said) = probe("receiver", &by_name, &own, &["fails"]);
    assert!(code == Some(1) && said.contains("localhost"), "{said}");
    let (code, said) = probe("receiver", &by_name, &own, &["--receiver-any-name"]);
    assert_eq!(code, Some(0), "{said}");
    for (what, at) in [("injector", &injector.url), ("receiver", &listen)] {
        let (code, said) = probe(what, at, &other, &["fails"]);
        assert!(code == Some(1) && said.contains(what), "{said}");
    }
    receiver.stop();
    let (code, said) = probe("receiver", &listen, &own, &["fails"]);
    assert_eq!(code, Some(1), "{said}");
}
