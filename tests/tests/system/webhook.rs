//! The webhook as a real server: certificates that change under load, and requests that nobody should send.

use std::{
    fs, io,
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use serde_json::Value;
use tidelock_tests::{
    http,
    https::{Authority, Https},
    process::Process,
    site::Site,
    wait::{self, SOON},
};

const PATH: &str = "/mutate/namespace";

/// A running injector.
pub(super) struct Injector {
    process: Process,
    pub(super) listen: String,
    pub(super) http: String,
}

impl Injector {
    pub(super) fn start(site: &Site) -> Self {
        let ports = site.path("injector.ports");
        let mut command = site.tidelock(["injector", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        command.args(["--receiver", "standby.example.org:9900", "--port-file"]).arg(&ports);
        command.arg("--certificate").arg(site.path("certificate"));
        let mut process = Process::spawn("injector", &mut command, &site.path("injector.log"));
        let text = wait::until("the injector listens", SOON, || {
            process.must_run();
            fs::read_to_string(&ports).ok()
        });
        let mut lines = text.lines().map(str::to_owned);
        let mut next = || lines.next().expect("two addresses");
        Self { listen: next(), http: next(), process }
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = http::get(&self.http, "/metrics").expect("it serves metrics");
        http::sample(&text, name).unwrap_or(0.0)
    }
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(super) fn recorded() -> Vec<u8> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/injector/tests/data");
    fs::read(data.join("admissionreview-create-statefulset-pod.json")).expect("recorded")
}

fn assert_injected(answer: &io::Result<(u16, Vec<u8>)>) {
    let (status, body) = answer.as_ref().expect("an answer");
    let body: Value = serde_json::from_slice(body).expect("JSON");
    assert_eq!((*status, &body["response"]["patchType"]), (200, &"JSONPatch".into()), "{body}");
}

#[test]
fn a_certificate_changes_under_load_and_no_request_is_dropped() {
    let (site, authority, review) = (Site::new(), Authority::new(), recorded());
    authority.issue(&site.path("certificate"));
    let mut injector = Injector::start(&site);
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    let ask = |https: &mut Https| {
        assert_injected(&https.post(PATH, &review));
        asked.fetch_add(1, Ordering::Relaxed);
    };
    let shown = || authority.connect(&injector.listen).expect("a handshake").certificate();
    thread::scope(|scope| {
        for reconnect in [false, false, true, true] {
            let (stop, ask, authority, listen) = (&stop, &ask, &authority, &injector.listen);
            scope.spawn(move || {
                let mut https = authority.connect(listen).expect("a handshake");
                while !stop.load(Ordering::Relaxed) {
                    if reconnect {
                        https = authority.connect(listen).expect("a handshake");
                    }
                    ask(&mut https);
                }
            });
        }
        // Whatever happens here, the others end.
        let _end = SetOnDrop(&stop);
        let mut seen = vec![shown()];
        for _ in 0..10 {
            authority.issue(&site.path("certificate"));
            let new = wait::until("the new certificate is shown", SOON, || {
                Some(shown()).filter(|certificate| !seen.contains(certificate))
            });
            seen.push(new);
            // Under load, however fast the change was.
            let by_now = asked.load(Ordering::Relaxed);
            wait::until_true("requests with this one", SOON, || asked.load(Ordering::Relaxed) >= by_now + 12);
        }
    });
    // A broken one is told of, as is one that is not there whole yet, and the old one stays.
    injector.process.allow("the new certificate cannot be used");
    fs::write(site.path("certificate/tls.crt"), "nothing").expect("writable");
    let before = shown();
    assert_eq!(shown(), before);
    injector.process.stop();
}

#[test]
fn garbage_and_what_is_too_long_or_too_slow_cost_only_their_sender() {
    let (site, authority, review) = (Site::new(), Authority::new(), recorded());
    authority.issue(&site.path("certificate"));
    let mut injector = Injector::start(&site);
    let connect = || authority.connect(&injector.listen).expect("a handshake");
    let mut good = connect();

    // Hundreds that send a byte and then nothing, in the middle of everything that can be begun.
    let tcp: Vec<_> = (0..100).map(|_| TcpStream::connect(&injector.listen).expect("room")).collect();
    let slow: Vec<_> = (0..100)
        .map(|_| {
            let mut https = connect();
            https.begin(PATH, 8 << 20).and_then(|()| https.send(b"{")).expect("sent");
            https
        })
        .collect();
    for bad in ["", "{}", "[", "\u{0}", "{\"kind\":\"AdmissionReview\"}"] {
        assert_eq!(connect().post(PATH, bad.as_bytes()).expect("an answer").0, 400, "{bad}");
        assert_injected(&good.post(PATH, &review));
    }
    assert_eq!(connect().post("/mutate", &review).expect("an answer").0, 404);
    let mut raw = connect();
    raw.send(b"NONSENSE\r\n\r\n\0\0\0").expect("sent");
    assert_eq!(raw.answer().expect("an answer").0, 400);

    // Too long: refused while it is sent, whether it says so or not.
    let mut long = connect();
    long.begin(PATH, 1 << 30).expect("sent");
    let chunk = vec![b' '; 1 << 20];
    let sent = (0..64).take_while(|_| long.send(&chunk).is_ok()).count();
    assert!(sent < 64, "64 MiB were taken");
    assert_injected(&good.post(PATH, &review));

    // The slow ones are let go in time, and their places with them.
    for mut https in slow {
        assert!(https.answer().map_or(true, |(status, _)| status == 408));
    }
    drop(tcp);
    assert_injected(&connect().post(PATH, &review));
    assert!(injector.metric("tidelock_injector_refused_total") >= 100.0);
    injector.process.stop();
}

#[test]
fn what_was_asked_is_answered_before_the_end() {
    let (site, authority, review) = (Site::new(), Authority::new(), recorded());
    authority.issue(&site.path("certificate"));
    let mut injector = Injector::start(&site);
    let mut half = authority.connect(&injector.listen).expect("a handshake");
    half.begin(PATH, review.len()).and_then(|()| half.send(&review[..100])).expect("sent");
    injector.process.signal(libc::SIGTERM);
    let unready = || http::get(&injector.http, "/readyz").is_none_or(|(code, _)| code == 503);
    wait::until_true("it says that it stops", SOON, unready);
    // Somebody who has not heard of it yet.
    assert_injected(&authority.connect(&injector.listen).expect("still open").post(PATH, &review));
    half.send(&review[100..]).expect("sent");
    assert_injected(&half.answer());
    assert!(injector.process.wait(SOON).success());
}
