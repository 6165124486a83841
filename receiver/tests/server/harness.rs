//! A whole receiver on loopback, and peers driven by hand. The only code of these tests that knows how either is set up.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use prost::Message;
use tempfile::TempDir;
use tidelock_proto::{
    ChunkId, ChunkKey, Epoch, FileId, Op, PointId, Seq, Tree, TreeDigest,
    chunk::Codec,
    identity::{Identity, TrustDomain},
    pki::{self, Request, Validity},
    point::{Consistency, Cut},
    transport::{self, Connection, FrameReader, FrameWriter, TransportError},
    tree::{ChunkRef, Kind, Meta, Name, Piece},
    wire::{
        self, PROTOCOL_VERSION,
        messages::{
            self, Ack, Hello, Open, OpenKind, OperatorReply, OperatorRequest, ReplyKind, RequestKind,
            ToReceiver, ToReceiverKind, ToSidecar, ToSidecarKind, Welcome,
        },
    },
};
use tidelock_receiver::{Config, RunError};
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

/// Nothing here takes this long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Certificates, and a place for stores.
pub(crate) struct Site {
    dir: TempDir,
}

impl Site {
    pub(crate) fn new() -> Self {
        let site = Self { dir: tempfile::tempdir().expect("temporary directory") };
        pki::init(&site.path("ca"), an_hour()).expect("authority");
        let hosts = vec!["127.0.0.1".to_owned()];
        site.issue("receiver", &Request::Receiver { name: "dr".to_owned(), hosts });
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn issue(&self, name: &str, request: &Request) -> Identity {
        let out = self.path(name);
        if !out.exists() {
            pki::issue(&self.path("ca"), &TrustDomain::default(), request, an_hour(), &out).expect("issued");
        }
        Identity::load(out).expect("identity")
    }

    pub(crate) fn sidecar(&self, volume: &str) -> Identity {
        let volumes = [volume.parse().expect("name")].into();
        self.issue(&format!("sidecar-{}", volume.replace('/', "-")), &Request::Sidecar { volumes })
    }

    pub(crate) fn reader(&self, volume: &str) -> Identity {
        let volumes = [volume.parse().expect("name")].into();
        self.issue(&format!("reader-{}", volume.replace('/', "-")), &Request::Reader { volumes })
    }

    pub(crate) fn operator(&self, tenant: Option<&str>) -> Identity {
        let name = format!("operator-{}", tenant.unwrap_or("all"));
        self.issue(&name, &Request::Operator { tenant: tenant.map(str::to_owned) })
    }

    pub(crate) fn config(&self) -> Config {
        Config {
            store: self.path("store"),
            keys: Default::default(),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            identity: self.path("receiver"),
            image: None,
            http: (Ipv4Addr::LOCALHOST, 0).into(),
            cap: None,
            keep: Default::default(),
            archive: None,
            port_file: Some(self.path("ports")),
        }
    }

    /// Starts a receiver on this site's store.
    pub(crate) async fn start(&self) -> Receiver {
        Receiver::start(self.config()).await
    }
}

fn an_hour() -> Validity {
    Validity::starting(SystemTime::now(), Duration::from_secs(3600))
}

/// Waits for something that must happen.
pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it did not happen in time")
}

/// A running receiver, on a runtime of its own.
pub(crate) struct Receiver {
    pub(crate) address: SocketAddr,
    pub(crate) http: SocketAddr,
    runtime: Option<Runtime>,
    stop: Option<oneshot::Sender<()>>,
    ended: Option<JoinHandle<Result<(), RunError>>>,
}

impl Receiver {
    async fn start(config: Config) -> Self {
        let ports = config.port_file.clone().expect("tests want a port file");
        // Left by an earlier run.
        let _ = std::fs::remove_file(&ports);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let ended = runtime.spawn(tidelock_receiver::run(config, shutdown));
        let [address, http] = soon(read_ports(&ports)).await;
        Self { address, http, runtime: Some(runtime), stop: Some(stop), ended: Some(ended) }
    }

    /// As SIGTERM does.
    pub(crate) fn begin_stop(&mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
    }

    pub(crate) async fn stop(mut self) -> Result<(), RunError> {
        if self.stop.is_some() {
            self.begin_stop();
        }
        soon(self.ended.take().expect("running")).await.expect("no panic")
    }

    /// Ends it without any of its own ending: every task is dropped where it stands.
    pub(crate) async fn kill(mut self) {
        let runtime = self.runtime.take().expect("running");
        let killed = tokio::task::spawn_blocking(|| runtime.shutdown_timeout(PATIENCE));
        soon(killed).await.expect("no panic");
    }

    pub(crate) async fn connect(&self, identity: &Identity) -> Result<Connection, TransportError> {
        soon(transport::connect(&self.address.to_string(), identity)).await
    }

    /// Opens a stream as a sidecar; nothing is heard yet.
    pub(crate) async fn sidecar(&self, identity: &Identity, hello: Hello) -> Stream {
        Stream::open(self.connect(identity).await.expect("connected"), hello).await
    }

    /// All replies to a request.
    pub(crate) async fn ask(&self, identity: &Identity, kind: RequestKind) -> Vec<ReplyKind> {
        let connection = self.connect(identity).await.expect("connected");
        ask_on(&connection, kind).await
    }

    /// The body of a page, and whether its status is 200.
    pub(crate) async fn get(&self, path: &str) -> (bool, String) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.http).await.expect("connected");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut text = String::new();
        soon(stream.read_to_string(&mut text)).await.expect("an answer");
        (text.starts_with("HTTP/1.1 200"), text)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn read_ports(path: &Path) -> [SocketAddr; 2] {
    loop {
        if let Ok(text) = std::fs::read_to_string(path) {
            let ports: Vec<SocketAddr> = text.lines().map(|line| line.parse().expect("an address")).collect();
            return ports.try_into().expect("two lines");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn ask_on(connection: &Connection, kind: RequestKind) -> Vec<ReplyKind> {
    let (mut writer, mut reader) = connection.open().await.expect("stream");
    let request = OperatorRequest { version: PROTOCOL_VERSION, patient: false, kind: Some(kind) };
    writer.send(&Open { kind: Some(OpenKind::Request(request)) }).await.expect("sent");
    let mut replies = Vec::new();
    while let Some(reply) = soon(reader.next::<OperatorReply>()).await.expect("a reply") {
        replies.push(reply.kind.expect("a kind"));
    }
    replies
}

pub(crate) fn hello(volume: &str, epoch: u64, instance: u64) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        volume: volume.to_owned(),
        epoch,
        instance,
        build: "test".to_owned(),
        tracker: "exact".to_owned(),
        raise_epoch: false,
        import: false,
    }
}

/// One stream of a sidecar.
pub(crate) struct Stream {
    pub(crate) connection: Connection,
    pub(crate) writer: FrameWriter,
    pub(crate) reader: FrameReader,
}

impl Stream {
    pub(crate) async fn open(connection: Connection, hello: Hello) -> Self {
        let (mut writer, reader) = connection.open().await.expect("stream");
        writer.send(&Open { kind: Some(OpenKind::Hello(hello)) }).await.expect("sent");
        Self { connection, writer, reader }
    }

    pub(crate) async fn say(&mut self, kind: ToReceiverKind) {
        self.writer.send(&ToReceiver { kind: Some(kind) }).await.expect("sent");
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) async fn hear(&mut self) -> Option<ToSidecarKind> {
        let frame = soon(self.reader.next::<ToSidecar>()).await.expect("a frame");
        frame.map(|frame| frame.kind.expect("a kind"))
    }

    pub(crate) async fn welcome(&mut self) -> Welcome {
        match self.hear().await {
            Some(ToSidecarKind::Welcome(welcome)) => welcome,
            other => panic!("not welcome: {other:?}"),
        }
    }

    /// Waits until this point is acknowledged.
    pub(crate) async fn acked(&mut self, point: PointId) -> Ack {
        loop {
            match self.hear().await {
                Some(ToSidecarKind::Ack(ack)) if ack.point == Some(wire::point_id_to_wire(point)) => {
                    return ack;
                }
                Some(ToSidecarKind::Ack(_)) => {}
                other => panic!("no acknowledgement of {point}: {other:?}"),
            }
        }
    }

    /// The reason why the stream ended, past acknowledgements, and whether to retry.
    pub(crate) async fn denied(&mut self) -> (String, bool) {
        loop {
            match self.hear().await {
                Some(ToSidecarKind::Denied(denied)) => {
                    assert_eq!(self.hear().await, None, "something follows Denied");
                    return (denied.reason, denied.retry);
                }
                Some(ToSidecarKind::Ack(_)) => {}
                other => panic!("not denied: {other:?}"),
            }
        }
    }

    pub(crate) async fn fenced(&mut self) -> u64 {
        loop {
            match self.hear().await {
                Some(ToSidecarKind::Fenced(fenced)) => {
                    assert_eq!(self.hear().await, None, "something follows Fenced");
                    return fenced.epoch;
                }
                Some(ToSidecarKind::Ack(_)) => {}
                other => panic!("not fenced: {other:?}"),
            }
        }
    }
}

/// The tree a sidecar keeps, and the frames that bring a receiver to it.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) tree: Tree,
    pub(crate) id: PointId,
    key: ChunkKey,
}

impl Source {
    pub(crate) fn new(tenant: &str, epoch: u64) -> Self {
        let id = PointId::new(Epoch(epoch), Seq(0));
        Self { tree: Tree::new(), id, key: ChunkKey::of_tenant(tenant) }
    }

    pub(crate) fn chunk(&self, content: &[u8]) -> (ChunkId, ToReceiverKind) {
        let id = self.key.id(content);
        let payload = Bytes::copy_from_slice(content);
        (id, ToReceiverKind::Chunk(wire::chunk_to_wire(id, Codec::Raw, content.len() as u32, payload)))
    }

    pub(crate) fn ops(&mut self, ops: &[Op]) -> ToReceiverKind {
        for op in ops {
            self.tree.apply(op).expect("applies");
        }
        ToReceiverKind::Ops(messages::Ops { ops: ops.iter().map(wire::encode_op).collect() })
    }

    pub(crate) fn commit(&mut self) -> ToReceiverKind {
        self.tree.seal().expect("a tree");
        self.id.seq = self.id.seq.next();
        commit(self.id, self.tree.digest())
    }

    /// A new file with this content, as a whole commit.
    pub(crate) fn add_file(&mut self, name: &str, content: &[u8]) -> Vec<ToReceiverKind> {
        let mut ops = Vec::new();
        if self.tree.get(FileId::ROOT).is_none() {
            ops.push(Op::Create { id: FileId::ROOT, kind: Kind::Directory, meta: Meta::default() });
        }
        let id = FileId(self.tree.next_id().0.max(2));
        let name = Name::new(name.as_bytes()).expect("name");
        let (chunk, frame) = self.chunk(content);
        let piece = Piece { len: content.len() as u64, chunk: Some(ChunkRef { id: chunk, at: 0 }) };
        ops.push(Op::Create { id, kind: Kind::File, meta: Meta::default() });
        ops.push(Op::Link { dir: FileId::ROOT, name, id });
        ops.push(Op::Write { id, offset: 0, pieces: vec![piece] });
        vec![frame, self.ops(&ops), self.commit()]
    }

    /// Sends a commit and waits until it is acknowledged.
    pub(crate) async fn replicate(&mut self, stream: &mut Stream, name: &str, content: &[u8]) -> PointId {
        for frame in self.add_file(name, content) {
            stream.say(frame).await;
        }
        stream.acked(self.id).await;
        self.id
    }
}

pub(crate) fn commit(id: PointId, digest: TreeDigest) -> ToReceiverKind {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let cut = Cut {
        time_ns: now.as_nanos() as u64,
        consistency: Consistency::Crash,
        tracker: "exact".to_owned(),
        conditions: Vec::new(),
        rounds: 1,
        how: tidelock_proto::point::How::Optimistic,
        group: Vec::new(),
        digest,
    };
    let (id, cut) = (wire::point_id_to_wire(id), wire::cut_to_wire(&cut));
    ToReceiverKind::Commit(messages::Commit { id: Some(id), cut: Some(cut), tags: Vec::new() })
}

/// Bytes of a frame, with its length, for peers that write what they like.
pub(crate) fn raw_frame(message: &impl Message) -> Vec<u8> {
    let body = message.encode_to_vec();
    [&(body.len() as u32).to_le_bytes()[..], &body].concat()
}
