//! A real S3 server on loopback: SeaweedFS, which honours conditional puts and checks signatures.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    http,
    process::Process,
    procfs,
    wait::{self, SOON},
};

/// The bucket that is there.
pub const BUCKET: &str = "tidelock";
const KEY: &str = "key";
const SECRET: &str = "secret-of-the-tests";
const ROLES: [&str; 4] = ["master", "volume", "filer", "s3"];

/// An S3 server and its data.
pub struct S3 {
    dir: PathBuf,
    ports: Vec<u16>,
    process: Option<Process>,
    starts: u32,
}

impl S3 {
    /// Starts one with its data in the new directory `dir`.
    pub fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("the directory can be made");
        let config = format!(
            r#"{{"identities":[{{"name":"tests","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],"actions":["Admin","Read","Write","List"]}}]}}"#
        );
        fs::write(dir.join("s3.json"), config).expect("written");
        let mut server =
            Self { dir: dir.to_owned(), ports: free_ports(2 * ROLES.len()), process: None, starts: 0 };
        server.again();
        let filer = server.address(2);
        wait::until_true("the bucket is made", SOON, || {
            post_nothing(&filer, &format!("/buckets/{BUCKET}/")).is_some_and(|code| code == 201)
        });
        server
    }

    /// Starts it again after [`S3::kill`].
    pub fn again(&mut self) {
        let mut command = Command::new("weed");
        command.arg("server").arg(format!("-dir={}", self.dir.display()));
        command.args([
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=20",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]);
        command.arg(format!("-s3.config={}", self.dir.join("s3.json").display()));
        for (index, role) in ROLES.iter().enumerate() {
            command.arg(format!("-{role}.port={}", self.ports[2 * index]));
            command.arg(format!("-{role}.port.grpc={}", self.ports[2 * index + 1]));
        }
        self.starts += 1;
        let log = self.dir.with_extension(format!("log{}", self.starts));
        // Its log has a format of its own, in which no line is a complaint for us.
        self.process = Some(Process::spawn("weed", &mut command, &log));
        let s3 = self.address(3);
        wait::until_true("the S3 server answers", Duration::from_secs(60), || http::get(&s3, "/").is_some());
    }

    /// It is gone, and its data stays.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// It takes connections and answers nothing, until it goes on.
    pub fn hang(&self, hangs: bool) {
        let signal = if hangs { libc::SIGSTOP } else { libc::SIGCONT };
        procfs::signal(self.process.as_ref().expect("it runs").pid(), signal);
    }

    /// What a client needs in its environment.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_ENDPOINT", format!("http://{}", self.address(3))),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ]
    }

    fn address(&self, role: usize) -> String {
        format!("127.0.0.1:{}", self.ports[2 * role])
    }
}

/// Ports that nobody uses now; all are held until all are known.
pub fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0").expect("there is a free port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("bound").port()).collect()
}

/// A POST without a body or a type for it.
fn post_nothing(address: &str, path: &str) -> Option<u16> {
    http::ask(address, &format!("POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n"))
        .map(|(code, _)| code)
}
