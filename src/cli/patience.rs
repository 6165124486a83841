//! Waiting for an identity that somebody is about to issue.
//!
//! In a pod the sidecar starts before the application, and a sidecar that ends at once keeps the application from starting.
//! A Secret that does not exist yet is a matter of replication, not of the application: so the sidecar lives, says that it
//! waits, and protects nothing until the files are there.

use std::{future::Future, io, net::SocketAddr, path::Path, pin::Pin, time::Duration};

use tidelock_proto::identity::{Identity, IdentityFileError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{interval, timeout},
};
use tracing::{info, warn};

/// From one look to the next.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a request may take, and how much of it is read.
const REQUEST_TIME: Duration = Duration::from_secs(1);
const REQUEST_BYTES: usize = 1024;

/// Waits until no file of the identity is missing or out of date; `false` if the process was asked to stop first.
pub(crate) async fn identity(
    directory: &Path,
    http: SocketAddr,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> io::Result<bool> {
    let missing = || match Identity::load(directory) {
        // One that ended while nobody ran is renewed by whoever issued it.
        Err(IdentityFileError::Missing(path) | IdentityFileError::Expired { path, .. }) => Some(path),
        // Whatever else may be wrong with it is told by whoever needs it.
        _ => None,
    };
    let Some(path) = missing() else { return Ok(true) };
    warn!(missing = %path.display(), "waiting for the identity: nothing is protected until it is there");
    let listener = TcpListener::bind(http).await?;
    let mut tick = interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = stop.as_mut() => return Ok(false),
            Ok((stream, _)) = listener.accept() => {
                let _ = timeout(REQUEST_TIME, answer(stream)).await;
            }
            _ = tick.tick() => if missing().is_none() {
                info!("the identity is there");
                return Ok(true);
            },
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; REQUEST_BYTES];
    let len = stream.read(&mut request).await?;
    let status =
        if request[..len].starts_with(b"GET /healthz ") { "200 OK" } else { "503 Service Unavailable" };
    let body = "waiting for the identity\n";
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).await?;
    stream.shutdown().await
}
