//! Changed files are used by the next connection of a running process, on both sides.

use std::os::unix::fs::symlink;

use super::*;

/// The serial numbers each side sees: the receiver's, the sidecar's.
async fn serials(server: &Server, client: &Identity) -> Result<(String, String), TransportError> {
    let (client, served) = meet(server, "127.0.0.1", client).await;
    Ok((serial_of_peer(&client?), serial_of_peer(&served?)))
}

fn serial_of_peer(connection: &Connection) -> String {
    let chain = connection.peer_certificates();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("certificate");
    hex::encode(leaf.raw_serial())
}

#[tokio::test]
async fn reissued_certificates_are_used_without_a_restart() {
    let site = Site::new();
    let (receiver, sidecar_identity) = (site.receiver(), site.sidecar());
    let (server, _) = listen(receiver.clone());
    let old = serials(&server, &sidecar_identity).await.expect("connected");
    assert_eq!(old, (receiver.serial(), sidecar_identity.serial()));

    issue(&site.path("ca"), &receiver_for(&["127.0.0.1"]), &site.path("receiver"));
    issue(&site.path("ca"), &sidecar(), &site.path("sidecar"));
    let new = serials(&server, &sidecar_identity).await.expect("connected");
    assert_ne!(old.0, new.0);
    assert_ne!(old.1, new.1);
    assert_eq!(new, (receiver.serial(), sidecar_identity.serial()));
}

#[tokio::test]
async fn a_new_authority_is_used_without_a_restart() {
    let site = Site::new();
    let (receiver, sidecar_identity) = (site.receiver(), site.sidecar());
    let (server, _) = listen(receiver);
    serials(&server, &sidecar_identity).await.expect("connected");

    let next = site.authority("next");
    issue(&next, &receiver_for(&["127.0.0.1"]), &site.path("receiver"));
    let error =
        serials(&server, &sidecar_identity).await.expect_err("the sidecar knows only the old authority");
    assert!(matches!(error, TransportError::UnknownAuthority { .. }), "{error}");
    issue(&next, &sidecar(), &site.path("sidecar"));
    serials(&server, &sidecar_identity).await.expect("connected");
}

/// As the kubelet mounts secrets: the files are links through `..data`, which is swapped in one rename.
#[tokio::test]
async fn a_swapped_mount_is_noticed_and_a_broken_one_ignored() {
    let site = Site::new();
    let mount = site.path("mount");
    std::fs::create_dir(&mount).expect("directory");
    let swap = |version: &str| {
        symlink(version, mount.join("..tmp")).expect("link");
        std::fs::rename(mount.join("..tmp"), mount.join("..data")).expect("swapped");
    };
    let ca = site.path("ca");
    issue(&ca, &sidecar(), &mount.join("..v1"));
    swap("..v1");
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(format!("..data/{name}"), mount.join(name)).expect("link");
    }
    let identity = Identity::load(&mount).expect("identity");
    let first = identity.serial();
    assert!(!identity.reload(), "nothing changed");

    issue(&ca, &sidecar(), &mount.join("..v2"));
    swap("..v2");
    assert!(identity.reload());
    let second = identity.serial();
    assert_ne!(first, second);

    issue(&ca, &sidecar(), &mount.join("..v3"));
    std::fs::copy(mount.join("..v2/tls.key"), mount.join("..v3/tls.key")).expect("copied");
    swap("..v3");
    assert!(!identity.reload(), "a key of another certificate was taken");
    issue(&ca, &Request::Operator { tenant: None }, &mount.join("..v4"));
    swap("..v4");
    assert!(!identity.reload(), "another role was taken");
    swap("..v5");
    assert!(!identity.reload(), "an empty mount was taken");
    assert_eq!(identity.serial(), second);
    let (server, _) = listen(site.receiver());
    serials(&server, &identity).await.expect("the last good identity still works");

    issue(&ca, &sidecar(), &mount.join("..v5"));
    assert!(identity.reload());
}
