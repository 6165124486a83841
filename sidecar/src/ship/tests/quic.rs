//! The driver over real QUIC on loopback, against the model of a receiver.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use tidelock_proto::{
    Epoch, FileId, Op, PointId, Seq, Tree, TreeDigest,
    identity::{Identity, TrustDomain},
    pki::{self, Request, Validity},
    transport::{self, Connection, FrameReader, FrameWriter},
    tree::{Kind, Meta},
    wire::messages::{Fenced, Open, ToReceiver, ToReceiverKind, ToSidecarKind},
};
use tokio::{
    runtime::Runtime,
    sync::{oneshot, watch},
};

use super::model::{EPOCH, Receiver, config, cut, packed};
use crate::{
    limits,
    ship::{AgreedTree, End, Frame, Outbox, SessionConfig, ShipConfig, ShipEvent, outbox, run},
    status::{State, Status},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// An authority and both identities.
struct Site {
    receiver: Identity,
    sidecar: Identity,
    _directory: TempDir,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hour = Validity::starting(SystemTime::now(), Duration::from_secs(3600));
        let authority = directory.path().join("ca");
        pki::init(&authority, hour).unwrap();
        let issue = |name: &str, request: &Request| {
            let out = directory.path().join(name);
            pki::issue(&authority, &TrustDomain::default(), request, hour, &out).unwrap();
            Identity::load(out).unwrap()
        };
        let hosts = vec!["127.0.0.1".to_owned()];
        let receiver = issue("receiver", &Request::Receiver { name: "dr".to_owned(), hosts });
        let sidecar = issue("sidecar", &Request::Sidecar { volumes: [config().volume].into() });
        Self { receiver, sidecar, _directory: directory }
    }
}

/// What the tests know of a receiver that serves in a runtime of its own.
#[derive(Clone)]
struct Shared {
    model: Arc<Mutex<Receiver>>,
    /// While true, nothing is read.
    stalled: watch::Receiver<bool>,
    commits: Arc<Mutex<Vec<Instant>>>,
    connections: Arc<Mutex<usize>>,
}

struct Stub {
    shared: Shared,
    stall: watch::Sender<bool>,
    runtime: Option<Runtime>,
    address: SocketAddr,
}

impl Stub {
    fn start(site: &Site) -> Self {
        let (stall, stalled) = watch::channel(false);
        let shared = Shared {
            model: Arc::new(Mutex::new(Receiver::new())),
            stalled,
            commits: Arc::default(),
            connections: Arc::default(),
        };
        let mut stub = Self { shared, stall, runtime: None, address: ([127, 0, 0, 1], 0).into() };
        stub.restart(site);
        stub
    }

    /// Ends without a word, if it runs, and starts again at the same address with what was durable.
    fn restart(&mut self, site: &Site) {
        drop(self.runtime.take());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(async {
            loop {
                match transport::server(self.address, site.receiver.clone()) {
                    Ok(server) => return server,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        });
        self.address = server.local_addr().unwrap();
        let shared = self.shared.clone();
        runtime.spawn(async move {
            while let Some(handshake) = server.accept().await {
                let connection = handshake.complete().await.unwrap();
                *shared.connections.lock() += 1;
                tokio::spawn(serve(connection, shared.clone()));
            }
        });
        self.runtime = Some(runtime);
    }
}

async fn serve(connection: Connection, mut shared: Shared) {
    let (mut writer, mut reader) = connection.accept().await.unwrap();
    let hello: Option<Open> = reader.next().await.unwrap();
    shared.model.lock().disconnect(false);
    shared.model.lock().handle(&Frame::Open(hello.unwrap()));
    while answer(&mut writer, &shared).await && take(&mut reader, &mut shared).await {}
    let _ = writer.finish().await;
    let _ = connection.closed().await;
}

async fn take(reader: &mut FrameReader, shared: &mut Shared) -> bool {
    let mut next: Option<ToReceiver> = reader.next().await.unwrap_or(None);
    // Asked last, so that nothing sent after the stall began is answered.
    shared.stalled.wait_for(|stalled| !stalled).await.unwrap();
    if next.is_none() {
        return false;
    }
    while let Some(message) = next {
        if matches!(message.kind, Some(ToReceiverKind::Commit(_))) {
            shared.commits.lock().push(Instant::now());
        }
        shared.model.lock().handle(&Frame::Message(message));
        next = reader.buffered().unwrap();
    }
    true
}

async fn answer(writer: &mut FrameWriter, shared: &Shared) -> bool {
    shared.model.lock().fsync();
    loop {
        let Some(message) = shared.model.lock().next() else { break };
        if writer.feed(&message).await.is_err() {
            return false;
        }
    }
    writer.flush().await.is_ok()
}

/// A sidecar without a volume: outbox, driver in a runtime of its own, status.
struct Sidecar {
    outbox: Outbox,
    status: Arc<Status>,
    heard: Vec<ShipEvent>,
    shutdown: Option<oneshot::Sender<()>>,
    driver: Option<JoinHandle<Option<End>>>,
    tree: Tree,
    seq: Seq,
    pages: u64,
}

impl Sidecar {
    fn start(site: &Site, stub: &Stub) -> Self {
        Self::start_with(site, stub, config())
    }

    fn start_with(site: &Site, stub: &Stub, config: SessionConfig) -> Self {
        let status = Arc::new(Status::new(config.volume.clone(), EPOCH));
        let (outbox, end) = outbox(config).unwrap();
        let ship = ShipConfig { receiver: stub.address.to_string(), identity: site.sidecar.clone() };
        let (shutdown, stop) = oneshot::channel();
        let of_driver = status.clone();
        let driver = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::spawn(async move { run(&ship, end, of_driver, async { drop(stop.await) }).await })
                    .await
                    .unwrap()
            })
        });
        Self {
            outbox,
            status,
            heard: Vec::new(),
            shutdown: Some(shutdown),
            driver: Some(driver),
            tree: Tree::new(),
            seq: Seq(0),
            pages: 0,
        }
    }

    /// Waits on the waker until an event satisfies the test.
    fn hear(&mut self, what: impl Fn(&ShipEvent) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.heard.iter().position(&what) {
                self.heard.drain(..=at);
                return;
            }
            assert!(Instant::now() < deadline, "heard only {:?}", self.heard);
            let waker = self.outbox.waker();
            let mut fds = [PollFd::new(&waker, PollFlags::IN)];
            let second = Timespec { tv_sec: 1, tv_nsec: 0 };
            poll(&mut fds, Some(&second)).unwrap();
            self.heard.extend(self.outbox.events());
        }
    }

    fn agree(&mut self) {
        self.hear(|event| matches!(event, ShipEvent::Agreed { tree: AgreedTree::Empty, .. }));
    }

    fn commit(&mut self) -> PointId {
        self.pages += 1;
        self.outbox.chunk(packed(self.pages, 4096), false);
        let op = match self.tree.get(FileId::ROOT) {
            None => Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() },
            Some(_) => {
                Op::SetMeta { id: FileId::ROOT, meta: Meta { uid: self.pages as u32, ..Meta::default() } }
            }
        };
        self.tree.apply(&op).unwrap();
        self.outbox.ops(vec![op]);
        self.tree.seal().unwrap();
        self.seq = self.seq.next();
        let point = PointId::new(EPOCH, self.seq);
        let digest: TreeDigest = self.tree.digest();
        self.outbox.commit(point, cut(digest), Vec::new());
        point
    }

    fn hear_acked(&mut self, wanted: PointId) {
        self.hear(|event| matches!(event, ShipEvent::Acked { point } if *point == wanted));
    }

    fn end(&mut self) -> Option<End> {
        self.driver.take().unwrap().join().unwrap()
    }
}

#[test]
fn commits_cross_the_network_and_the_last_one_finishes_it() {
    let site = Site::new();
    let stub = Stub::start(&site);
    let mut sidecar = Sidecar::start(&site, &stub);
    sidecar.agree();
    let points: Vec<_> = (0..20).map(|_| sidecar.commit()).collect();
    sidecar.outbox.finish();
    sidecar.hear_acked(points[19]);
    sidecar.hear(|event| matches!(event, ShipEvent::Finished));
    assert_eq!(sidecar.end(), Some(End::Finished));
    let model = stub.shared.model.lock();
    assert_eq!(model.history.iter().map(|(point, _)| *point).collect::<Vec<_>>(), points);
    assert!(sidecar.status.is_ready());
    assert_eq!(sidecar.status.state(), State::Finished);
    assert!(sidecar.status.counters.wire_bytes.get() > 20 * 4096);
}

#[test]
fn a_receiver_that_restarts_is_found_again_and_nothing_is_lost() {
    let site = Site::new();
    let mut stub = Stub::start(&site);
    let mut sidecar = Sidecar::start(&site, &stub);
    sidecar.agree();
    for _ in 0..4 {
        sidecar.commit();
    }
    stub.restart(&site);
    sidecar.hear(|event| matches!(event, ShipEvent::Disconnected { .. }));
    let during = sidecar.commit();
    sidecar.hear(|event| matches!(event, ShipEvent::Agreed { tree: AgreedTree::Resumed, .. }));
    sidecar.hear_acked(during);
    assert_eq!(stub.shared.model.lock().history.len(), 5);
}

#[test]
fn fenced_is_final() {
    let site = Site::new();
    let stub = Stub::start(&site);
    let mut sidecar = Sidecar::start(&site, &stub);
    sidecar.agree();
    stub.shared.model.lock().send(ToSidecarKind::Fenced(Fenced { epoch: 9 }));
    sidecar.commit();
    sidecar.hear(|event| matches!(event, ShipEvent::Fenced { epoch: Epoch(9) }));
    assert_eq!(sidecar.end(), Some(End::Fenced(Epoch(9))));
    assert_eq!(sidecar.status.state(), State::Fenced);
    assert_eq!(*stub.shared.connections.lock(), 1);
}

#[test]
fn a_receiver_that_stalls_fills_the_window_and_nothing_else() {
    let site = Site::new();
    let stub = Stub::start(&site);
    let mut sidecar = Sidecar::start(&site, &stub);
    sidecar.agree();
    stub.stall.send(true).unwrap();
    let mut last = sidecar.commit();
    while !sidecar.outbox.window_full() {
        last = sidecar.commit();
    }
    assert!(sidecar.seq.0 <= config().commits_max as u64);
    stub.stall.send(false).unwrap();
    sidecar.hear(|event| matches!(event, ShipEvent::WindowOpen));
    sidecar.commit();
    assert!(last < PointId::new(EPOCH, sidecar.seq));
    sidecar.hear_acked(PointId::new(EPOCH, sidecar.seq));
}

#[test]
fn shutdown_ends_it_at_once_even_without_a_receiver() {
    let site = Site::new();
    let mut stub = Stub::start(&site);
    drop(stub.runtime.take());
    let mut sidecar = Sidecar::start(&site, &stub);
    let began = Instant::now();
    sidecar.shutdown.take().unwrap().send(()).unwrap();
    assert_eq!(sidecar.end(), None);
    assert!(began.elapsed() < Duration::from_secs(3));
    assert_eq!(sidecar.status.state(), State::Connecting);
}

/// Prints figures: `cargo test --release -p tidelock-sidecar ship::tests::quic::latency -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures, asserts nothing"]
fn latency() {
    let site = Site::new();
    let stub = Stub::start(&site);
    let mut sidecar = Sidecar::start(&site, &stub);
    sidecar.agree();
    let (mut given, mut acked, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..2000 {
        std::thread::sleep(limits::BACKOFF_MIN / 50);
        given.push(Instant::now());
        let point = sidecar.commit();
        calls.push(given[given.len() - 1].elapsed());
        sidecar.hear_acked(point);
        acked.push(given[given.len() - 1].elapsed());
    }
    let commits = stub.shared.commits.lock();
    let received = commits.iter().zip(&given).map(|(received, given)| *received - *given).collect();
    for (what, mut times) in [("call", calls), ("received", received), ("acked and heard", acked)] {
        times.sort();
        let at = |percent: usize| times[times.len() * percent / 100];
        println!("{what}: p50 {:?}, p90 {:?}, p99 {:?}", at(50), at(90), at(99));
    }
}

/// Prints figures, as `latency` does.
#[test]
#[ignore = "prints figures, asserts nothing"]
fn throughput() {
    let site = Site::new();
    let stub = Stub::start(&site);
    let wide = SessionConfig { window_bytes: limits::WINDOW_BYTES, ..config() };
    for ask in [false, true] {
        let mut sidecar = Sidecar::start_with(&site, &stub, wide.clone());
        sidecar.hear(|event| matches!(event, ShipEvent::Agreed { .. }));
        let chunks: Vec<_> = (0..4096).map(|n| packed(n + 1_000_000 * u64::from(ask), 64 << 10)).collect();
        let began = Instant::now();
        for chunk in chunks {
            sidecar.outbox.chunk(chunk, ask);
            if sidecar.outbox.window_full() {
                sidecar.hear(|event| matches!(event, ShipEvent::WindowOpen));
            }
        }
        let took = began.elapsed();
        println!("ask {ask}: 256 MiB in {took:?}, {:.0} MiB/s", 256.0 / took.as_secs_f64());
        sidecar.shutdown.take().unwrap().send(()).unwrap();
        assert_eq!(sidecar.end(), None);
    }
}
