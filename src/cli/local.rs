//! `tidelock mark` and `tidelock checkpoint`: what is asked of a sidecar on its own machine, over its HTTP port.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidelock_proto::VolumeName;

use super::{exit::Failure, output};

/// How much longer than asked for the answer may take.
const GRACE: Duration = Duration::from_secs(60);
/// The longest answer that is read, in bytes.
const ANSWER_MAX_BYTES: u64 = 64 * 1024;

/// Name a recovery point: the volumes as they are now
///
/// All volumes of the sidecar get a point of this name. Run it beside the sidecar: in its pod.
#[derive(Debug, clap::Args)]
pub(crate) struct Mark {
    /// The volume, as TENANT/NAME
    volume: VolumeName,
    /// The name
    #[arg(long, value_name = "NAME")]
    tag: String,
    /// Cut between the quiesce and the unquiesce hook of the sidecar
    #[arg(long)]
    app: bool,
    #[command(flatten)]
    asking: Asking,
}

/// Say whether everything written before now is durable on the receiver
///
/// Ends with 0 if it is, and with 1 if it is not (yet). Run it beside the sidecar: in its pod.
#[derive(Debug, clap::Args)]
pub(crate) struct Checkpoint {
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Args)]
struct Asking {
    /// Wait until it is durable
    #[arg(long)]
    wait: bool,
    /// How long to wait at most
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// The sidecar's HTTP address
    #[arg(long, value_name = "HOST:PORT", env = "TIDELOCK_SIDECAR", default_value = "127.0.0.1:9902")]
    sidecar: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    durable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    point: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    consistency: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(crate) fn mark(args: &Mark) -> Result<(), Failure> {
    let body = json!({
        "volume": args.volume.to_string(), "tag": args.tag, "app": args.app, "wait_ms": args.asking.wait_ms(),
    });
    let answer = args.asking.ask("/mark", &body)?;
    match (&answer.point, &answer.consistency) {
        (Some(point), Some(consistency)) => {
            let durable = if answer.durable { "durable" } else { "not durable yet" };
            args.asking.print(&answer, &format!("{}: point {point} ({consistency}), {durable}", args.tag))?;
            let done = answer.durable || !args.asking.wait;
            if done { Ok(()) } else { Err(anyhow!("point {point} is not durable yet").into()) }
        }
        _ => Err(anyhow!(
            "no quiet instant yet, or the volume is still being compared with what the receiver has (`tidelock status`); the next cut gets the name: see `tidelock points`"
        )
        .into()),
    }
}

pub(crate) fn checkpoint(args: &Checkpoint) -> Result<(), Failure> {
    let answer = args.asking.ask("/checkpoint", &json!({ "wait_ms": args.asking.wait_ms() }))?;
    if !answer.durable {
        return Err(anyhow!("what was written before now is not durable on the receiver yet").into());
    }
    let point = answer.point.as_deref().unwrap_or("-");
    if answer.consistency.as_deref() == Some("fuzzy") {
        if args.asking.json {
            output::json(&answer)?;
        }
        return Err(anyhow!(
            "point {point} is durable but fuzzy: not all that was written before need be in it; the sidecar's conditions say why \
             (`tidelock status`)"
        )
        .into());
    }
    args.asking.print(&answer, &format!("everything written before is durable, with point {point}"))
}

impl Asking {
    fn wait_ms(&self) -> u64 {
        if self.wait { u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX).max(1) } else { 0 }
    }

    fn print(&self, answer: &Answer, line: &str) -> Result<(), Failure> {
        if self.json {
            return Ok(output::json(answer)?);
        }
        output::print(line);
        Ok(())
    }

    /// Asks and reads the answer; an answer that is an error is one here.
    fn ask(&self, path: &str, body: &serde_json::Value) -> Result<Answer, Failure> {
        let text = self.exchange(path, &body.to_string()).with_context(|| {
            format!("cannot ask the sidecar at {}: run this where it runs, or give --sidecar", self.sidecar)
        })?;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let answer: Answer = serde_json::from_str(body).map_err(|_| {
            let line = head.lines().next().unwrap_or("nothing");
            anyhow!("what listens at {} is no sidecar of this release: it answered {line}", self.sidecar)
        })?;
        match &answer.error {
            Some(error) => Err(anyhow!("{error}").into()),
            None => Ok(answer),
        }
    }

    fn exchange(&self, path: &str, body: &str) -> std::io::Result<String> {
        let mut stream = TcpStream::connect(&self.sidecar)?;
        stream.set_read_timeout(Some(self.timeout + GRACE))?;
        let (host, len) = (&self.sidecar, body.len());
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.take(ANSWER_MAX_BYTES).read_to_string(&mut answer)?;
        Ok(answer)
    }
}
