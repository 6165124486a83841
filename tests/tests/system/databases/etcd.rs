//! etcd: a log that is written ahead, and a memory-mapped B+ tree behind it.

use std::{net::TcpListener, path::Path, process::Command, time::Duration};

use serde_json::{Value, json};
use tidelock_tests::{
    http,
    ledger::Writer,
    mount::Format,
    process::{Process, run, tail},
    wait::{self, SOON},
};

use super::{Database, Story, WRITERS};

/// `w0`, `w1`, `w2` as etcd wants them written.
const KEYS: [&str; WRITERS] = ["dzA=", "dzE=", "dzI="];
/// `x0`, `x1`, `x2`.
const TWINS: [&str; WRITERS] = ["eDA=", "eDE=", "eDI="];

#[test]
fn random_points_hold_every_put_and_have_the_original_s_hash() {
    let story =
        Story { format: Format::Ext4, programs: &["etcd", "etcdctl"], whole: 20, slack: Duration::ZERO };
    story
        .tell(|data, run| Etcd::start(data, run).unwrap_or_else(|log| panic!("etcd does not start:\n{log}")));
}

struct Etcd {
    _server: Process,
    address: String,
}

impl Etcd {
    fn start(data: &Path, run: &Path) -> Result<Self, String> {
        let (address, peers) = (free_address(), free_address());
        let (client_url, peer_url) = (format!("http://{address}"), format!("http://{peers}"));
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(data).args(["--name", "one", "--snapshot-count", "500"]);
        command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
        command.args(["--initial-cluster", &format!("one={peer_url}")]);
        let mut server = Process::spawn("etcd", &mut command, &run.join("etcd.log"));
        // Its words are not ours.
        server.allow("");
        wait::until("etcd answers", SOON, || {
            if server.ended().is_some() {
                return Some(Err(tail(&server.log(), 30)));
            }
            count(&address, KEYS[0]).ok().map(|_| Ok(()))
        })?;
        Ok(Self { _server: server, address })
    }
}

impl Database for Etcd {
    fn writer(&self, number: usize) -> Box<dyn Writer> {
        Box::new(Putter { address: self.address.clone(), number })
    }

    fn check(&self, copy: &Path, run: &Path) -> Result<Vec<u64>, String> {
        let copy = Self::start(copy, run)?;
        let mut counters = Vec::new();
        for (writer, (key, twin)) in KEYS.iter().zip(TWINS).enumerate() {
            let ((a, revision), (b, _)) = (count(&copy.address, key)?, count(&copy.address, twin)?);
            if a != b {
                return Err(format!("half a transaction of writer {writer}: {a} and {b}"));
            }
            counters.push((a, revision));
        }
        let revision = counters[0].1;
        let counters: Vec<u64> = counters.into_iter().map(|(count, _)| count).collect();
        // A new store is at revision 1, and every transaction is one more.
        if revision != 1 + counters.iter().sum::<u64>() {
            return Err(format!("revision {revision} after {counters:?}"));
        }
        let (ours, theirs) = (hash(&self.address, revision)?, hash(&copy.address, revision)?);
        if ours != theirs {
            return Err(format!("hash {theirs} at revision {revision}, but the original has {ours}"));
        }
        Ok(counters)
    }
}

/// Two keys in every transaction. A key's version counts how often it was put.
struct Putter {
    address: String,
    number: usize,
}

impl Writer for Putter {
    fn commit(&mut self, value: u64) -> Result<(), String> {
        let filling = "A".repeat(200);
        let put = |key| json!({ "requestPut": { "key": key, "value": filling } });
        let both = json!({ "success": [put(KEYS[self.number]), put(TWINS[self.number])] });
        let said = ask(&self.address, "/v3/kv/txn", &both)?;
        (said["succeeded"] == true).then_some(()).ok_or_else(|| format!("{value}: {said}"))
    }
}

/// How often a key was put, and the store's revision.
fn count(address: &str, key: &str) -> Result<(u64, u64), String> {
    let said = ask(address, "/v3/kv/range", &json!({ "key": key }))?;
    let version = said["kvs"].get(0).map_or(Ok(0), |kv| number(&kv["version"]))?;
    Ok((version, number(&said["header"]["revision"])?))
}

/// The hash of all versions of all keys up to a revision.
fn hash(address: &str, revision: u64) -> Result<u64, String> {
    let mut etcdctl = Command::new("etcdctl");
    etcdctl.env("ETCDCTL_API", "3").args(["--endpoints", address, "--write-out=json", "endpoint", "hashkv"]);
    let said = run(etcdctl.args(["--rev", &revision.to_string()]));
    let hash = serde_json::from_str::<Value>(&said).ok().and_then(|said| said[0]["HashKV"]["hash"].as_u64());
    hash.ok_or(said)
}

fn ask(address: &str, path: &str, question: &Value) -> Result<Value, String> {
    let (code, said) = http::post(address, path, &question.to_string()).ok_or("etcd does not answer")?;
    if code != 200 {
        return Err(said);
    }
    serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))
}

fn number(value: &Value) -> Result<u64, String> {
    let text = value.as_str().ok_or_else(|| format!("{value} instead of a number"))?;
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    listener.local_addr().expect("it is bound").to_string()
}
