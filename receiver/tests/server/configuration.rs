//! Bad configuration stops with one line that says what to do.

use tidelock_receiver::{Config, RunError};

use crate::harness::*;

async fn refused(config: Config) -> (String, bool) {
    let error: RunError = soon(tidelock_receiver::run(config, std::future::pending())).await.unwrap_err();
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text}");
    (text, error.is_configuration())
}

#[tokio::test]
async fn each_mistake_is_named_with_its_option() {
    let site = Site::new();
    let receiver = site.start().await;
    let config = || Config { store: site.path("second"), port_file: None, ..site.config() };

    let (text, configuration) = refused(Config { store: site.path("store"), ..config() }).await;
    assert!(
        configuration && text.starts_with("--store: ") && text.contains("in use by a receiver"),
        "{text}"
    );

    let (text, configuration) = refused(Config { listen: receiver.address, ..config() }).await;
    assert!(configuration && text.starts_with("--listen 127.0.0.1:") && text.contains("in use"), "{text}");

    let (text, configuration) = refused(Config { http: receiver.http, ..config() }).await;
    assert!(configuration && text.starts_with("--http 127.0.0.1:") && text.contains("in use"), "{text}");

    let elsewhere = "192.0.2.1:4433".parse().unwrap();
    let (text, configuration) = refused(Config { listen: elsewhere, ..config() }).await;
    assert!(configuration && text.contains("this machine has no such address"), "{text}");

    let (text, configuration) = refused(Config { identity: site.path("nowhere"), ..config() }).await;
    assert!(configuration && text.starts_with("--identity: ") && text.contains("no such file"), "{text}");

    let _ = site.sidecar("acme/pg");
    let (text, configuration) = refused(Config { identity: site.path("sidecar-acme-pg"), ..config() }).await;
    assert!(configuration && text.contains("needs the certificate of a receiver"), "{text}");

    std::fs::write(site.path("file"), "").unwrap();
    let (text, configuration) = refused(Config { store: site.path("file"), ..config() }).await;
    assert!(configuration && text.starts_with("--store: "), "{text}");

    let (text, configuration) =
        refused(Config { port_file: Some(site.path("no/dir/ports")), ..config() }).await;
    assert!(configuration && text.starts_with("--port-file "), "{text}");
    receiver.stop().await.unwrap();
}
