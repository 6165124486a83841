//! Redis with its append-only file, rewritten now and then while the load runs.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tidelock_tests::{
    ledger::Writer,
    mount::Format,
    process::{Process, output},
    wait::{self, SOON},
};

use super::{Database, Story, WRITERS};

const PROGRAMS: &[&str] = &["redis-server", "redis-check-aof"];

#[test]
fn random_points_with_fsync_always_hold_every_commit() {
    let story = Story { format: Format::Ext4, programs: PROGRAMS, whole: 20, slack: Duration::ZERO };
    story.tell(|data, run| Redis::start(data, run, "always"));
}

/// While a background fsync lasts, Redis puts off its write by up to two seconds, and answers all the same.
#[test]
fn random_points_with_fsync_every_second_hold_what_redis_promises() {
    let story = Story { format: Format::Xfs, programs: PROGRAMS, whole: 20, slack: Duration::from_secs(2) };
    story.tell(|data, run| Redis::start(data, run, "everysec"));
}

struct Redis {
    server: Process,
    socket: PathBuf,
    fsync: &'static str,
}

impl Redis {
    fn start(data: &Path, run: &Path, fsync: &'static str) -> Self {
        Self::try_start(data, run, fsync).unwrap_or_else(|log| panic!("Redis does not start:\n{log}"))
    }

    fn try_start(data: &Path, run: &Path, fsync: &'static str) -> Result<Self, String> {
        let socket = run.join("redis.sock");
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "yes", "--appendfsync", fsync]);
        command.args(["--auto-aof-rewrite-percentage", "50", "--auto-aof-rewrite-min-size", "64kb"]);
        command.arg("--dir").arg(data).arg("--unixsocket").arg(&socket);
        let mut server = Process::spawn("redis-server", &mut command, &run.join("redis.log"));
        // Its words are not ours.
        server.allow("");
        wait::until("Redis has loaded its file", SOON, || {
            if server.ended().is_some() {
                return Some(Err(server.log()));
            }
            let said = Client::connect(&socket).ok()?.ask("PING\r\n", 1).ok()?;
            (said == ["+PONG"]).then_some(Ok(()))
        })?;
        Ok(Self { server, socket, fsync })
    }
}

impl Database for Redis {
    fn writer(&self, number: usize) -> Box<dyn Writer> {
        Box::new(Counter { client: Client::connect(&self.socket).expect("Redis takes connections"), number })
    }

    fn check(&self, copy: &Path, run: &Path) -> Result<Vec<u64>, String> {
        let mut server = Self::try_start(copy, run, self.fsync)?;
        let mut client = Client::connect(&server.socket)?;
        let mut number = |key: String| -> Result<u64, String> {
            // Adding nothing asks for a number, and for 0 where there is none.
            let said = client.ask(&format!("INCRBY {key} 0\r\n"), 1)?;
            said[0].trim_start_matches(':').parse().map_err(|_| format!("{key} is {said:?}"))
        };
        let mut counters = Vec::new();
        for writer in 0..WRITERS {
            let (a, b) = (number(format!("a{writer}"))?, number(format!("b{writer}"))?);
            if a != b {
                return Err(format!("half a transaction of writer {writer}: {a} and {b}"));
            }
            counters.push(a);
        }
        server.server.stop();
        // After the start, which has cut off the write that was under way as after any crash.
        let manifest = copy.join("appendonlydir/appendonly.aof.manifest");
        let out = output(Command::new("redis-check-aof").arg(manifest));
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        if out.status.success() { Ok(counters) } else { Err(said) }
    }
}

struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(socket: &Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(SOON)).map_err(|error| error.to_string())?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends commands and returns so many lines of the answer. An error of Redis is an error.
    fn ask(&mut self, commands: &str, lines: usize) -> Result<Vec<String>, String> {
        self.0.get_mut().write_all(commands.as_bytes()).map_err(|error| error.to_string())?;
        let mut said = Vec::new();
        for _ in 0..lines {
            let mut line = String::new();
            self.0.read_line(&mut line).map_err(|error| error.to_string())?;
            if line.is_empty() || line.starts_with('-') {
                return Err(format!("Redis says {line:?}"));
            }
            said.push(line.trim_end().to_owned());
        }
        Ok(said)
    }
}

/// Two keys in every transaction, which must never differ; a third gives the file something to hold.
struct Counter {
    client: Client,
    number: usize,
}

impl Writer for Counter {
    fn commit(&mut self, value: u64) -> Result<(), String> {
        let (n, filling) = (self.number, "x".repeat(200));
        let mut commands = String::from("MULTI\r\n");
        write!(commands, "INCR a{n}\r\nSET f{n}.{} {filling}\r\nINCR b{n}\r\nEXEC\r\n", value % 500)
            .expect("a string takes all");
        let said = self.client.ask(&commands, 8)?;
        let wanted = format!(":{value}");
        (said[5] == wanted && said[7] == wanted).then_some(()).ok_or_else(|| format!("{value}: {said:?}"))
    }
}
