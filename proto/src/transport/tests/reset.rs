//! A receiver that was killed and started again.

use super::*;

/// Serves one client and is gone without a word, as after SIGKILL.
async fn serve_and_vanish(identity: Identity, client: &Identity) -> (SocketAddr, Connection) {
    let gone = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let gone = gone.expect("runtime");
    let (server, address) = gone.spawn(async { listen(identity) }).await.expect("listens");
    let accepting = gone.spawn(async move {
        let connection = accept(&server).await.expect("accepted");
        (server, connection)
    });
    let host = format!("127.0.0.1:{}", address.port());
    let connection = connect(&host, client).await.expect("connected");
    let kept = accepting.await.expect("accepted");
    // First its tasks, to the last, so that nothing says goodbye when what they served is dropped.
    let ended = tokio::task::spawn_blocking(move || gone.shutdown_timeout(Duration::from_secs(60)));
    ended.await.expect("ended");
    drop(kept);
    (address, connection)
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_the_place_of_a_killed_receiver_says_so() {
    let site = Site::new();
    let receiver = site.receiver();
    let (address, connection) = serve_and_vanish(receiver.clone(), &site.sidecar()).await;
    let _next = bind_again(address, receiver);
    // The keep-alive is what gets the answer; without one, the idle timeout would end this as `TimedOut`.
    let error = connection.closed().await;
    assert!(matches!(error, TransportError::Reset), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_cannot_end_a_connection() {
    let site = Site::new();
    let (address, connection) = serve_and_vanish(site.receiver(), &site.sidecar()).await;
    let _next = bind_again(address, site.identity("other", &receiver_for(&["127.0.0.1"])));
    let error = connection.closed().await;
    assert!(matches!(error, TransportError::TimedOut), "{error:?}");
}

/// The former process's socket is closed a moment after its runtime.
fn bind_again(address: SocketAddr, identity: Identity) -> Server {
    loop {
        match server(address, identity.clone()) {
            Ok(server) => return server,
            Err(TransportError::Bind { .. }) => std::thread::yield_now(),
            Err(error) => panic!("{error:?}"),
        }
    }
}
