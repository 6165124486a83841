//! Who gets in, who does not, and what each side is told.

use super::*;
use crate::{identity::Role, transport::Whose};

/// Dials with a hand-made TLS client; the error it ends with.
async fn dial_raw(address: SocketAddr, tls: rustls::ClientConfig) -> TransportError {
    let quic = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3");
    let endpoint = quinn::Endpoint::client((std::net::Ipv4Addr::LOCALHOST, 0).into()).expect("endpoint");
    let config = quinn::ClientConfig::new(std::sync::Arc::new(quic));
    let error = match endpoint.connect_with(config, address, "127.0.0.1").expect("dials").await {
        Ok(connection) => connection.closed().await,
        Err(error) => error,
    };
    TransportError::from_quic(error, None)
}

fn raw_client(ca: &Path) -> rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert> {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls_pki_types::CertificateDer::from_pem_file(ca.join("ca.crt")).expect("authority");
    roots.add(ca).expect("authority");
    rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let site = Site::new();
    let (server, _) = listen(site.receiver());
    for host in ["127.0.0.1", "localhost"] {
        let (client, served) = meet(&server, host, &site.sidecar()).await;
        let (client, served) = (client.expect("connected"), served.expect("accepted"));
        assert_eq!(client.peer().role, Role::Receiver);
        assert!(served.peer().may_write(&"acme/pg".parse().expect("name")));
        assert!(!served.peer().may_write(&"acme/other".parse().expect("name")));
    }
    let operator = site.identity("operator", &Request::Operator { tenant: Some("acme".to_owned()) });
    let (client, served) = meet(&server, "127.0.0.1", &operator).await;
    assert!(client.is_ok());
    assert_eq!(served.expect("accepted").peer().role, Role::Operator { tenant: Some("acme".to_owned()) });
}

/// Issues with a validity that is over now, and loads it as of a moment when it was not.
fn expired(site: &Site, name: &str, request: &Request) -> Identity {
    let minutes = |n: u64| SystemTime::now() - Duration::from_secs(n * 60);
    // Reloading happens only when the files change, so the identity stays in use.
    dated(site, name, request, Validity { not_before: minutes(3), not_after: minutes(1) }, minutes(2))
}

fn dated(site: &Site, name: &str, request: &Request, validity: Validity, loaded_at: SystemTime) -> Identity {
    let out = site.path(name);
    pki::issue(&site.path("ca"), &TrustDomain::default(), request, validity, &out).expect("issued");
    Identity::load_at(out, loaded_at).expect("identity")
}

#[tokio::test]
async fn an_expired_sidecar_is_refused() {
    let site = Site::new();
    let (server, _) = listen(site.receiver());
    let (client, served) = meet(&server, "127.0.0.1", &expired(&site, "old", &sidecar())).await;
    assert!(matches!(client, Err(TransportError::CertificateExpired { whose: Whose::Ours })), "{client:?}");
    assert!(matches!(served, Err(TransportError::CertificateExpired { whose: Whose::Peers })), "{served:?}");
}

#[tokio::test]
async fn an_expired_receiver_is_refused() {
    let site = Site::new();
    let (server, _) = listen(expired(&site, "old", &receiver_for(&["127.0.0.1"])));
    let (client, served) = meet(&server, "127.0.0.1", &site.sidecar()).await;
    assert!(matches!(client, Err(TransportError::CertificateExpired { whose: Whose::Peers })), "{client:?}");
    assert!(matches!(served, Err(TransportError::CertificateExpired { whose: Whose::Ours })), "{served:?}");
}

#[tokio::test]
async fn a_sidecar_from_the_future_is_refused() {
    let site = Site::new();
    let (server, _) = listen(site.receiver());
    let soon = |minutes: u64| SystemTime::now() + Duration::from_secs(minutes * 60);
    let validity = Validity { not_before: soon(10), not_after: soon(30) };
    let (client, served) =
        meet(&server, "127.0.0.1", &dated(&site, "early", &sidecar(), validity, soon(20))).await;
    assert!(matches!(client, Err(TransportError::CertificateExpired { whose: Whose::Ours })), "{client:?}");
    assert!(
        matches!(served, Err(TransportError::CertificateNotYetValid { whose: Whose::Peers })),
        "{served:?}"
    );
}

#[tokio::test]
async fn another_authority_is_refused_by_the_side_that_sees_it() {
    let site = Site::new();
    let (server, _) = listen(site.receiver());
    let (foreign, out) = (site.authority("foreign"), site.path("stranger"));
    issue(&foreign, &sidecar(), &out);
    let stranger = Identity::load(&out).expect("identity");
    let (client, served) = meet(&server, "127.0.0.1", &stranger).await;
    assert!(matches!(client, Err(TransportError::UnknownAuthority { whose: Whose::Peers })), "{client:?}");
    assert!(matches!(served, Err(TransportError::UnknownAuthority { whose: Whose::Ours })), "{served:?}");

    // A stranger who trusts our receiver is stopped by the receiver.
    std::fs::copy(site.path("ca/ca.crt"), out.join("ca.crt")).expect("copied");
    let (client, served) = meet(&server, "127.0.0.1", &stranger).await;
    assert!(matches!(client, Err(TransportError::UnknownAuthority { whose: Whose::Ours })), "{client:?}");
    assert!(matches!(served, Err(TransportError::UnknownAuthority { whose: Whose::Peers })), "{served:?}");
}

/// With equal names only the signature tells two authorities apart.
#[tokio::test]
async fn another_authority_of_the_same_name_is_refused() {
    let site = Site::new();
    let (server, address) = listen(site.receiver());
    let (key, twin) = twin_authority(&site.path("ca/ca.crt"));
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI("spiffe://x/operator".try_into().expect("URI"))];
    let leaf_key = rcgen::KeyPair::generate().expect("key");
    let leaf = params.signed_by(&leaf_key, &rcgen::Issuer::from_params(&twin, key)).expect("signed");
    let (client, served) = tokio::join!(
        dial_raw(address, raw_with(&site, vec![leaf.der().clone()], &leaf_key)),
        accept(&server)
    );
    assert!(matches!(client, TransportError::UnknownAuthority { whose: Whose::Ours }), "{client:?}");
    assert!(matches!(served, Err(TransportError::UnknownAuthority { whose: Whose::Peers })), "{served:?}");
}

fn twin_authority(pem: &Path) -> (rcgen::KeyPair, rcgen::CertificateParams) {
    use rustls_pki_types::pem::PemObject;
    let der = rustls_pki_types::CertificateDer::from_pem_file(pem).expect("authority");
    let (_, original) = x509_parser::parse_x509_certificate(&der).expect("certificate");
    let name = original.subject().iter_common_name().next().expect("name").as_str().expect("text").to_owned();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    (rcgen::KeyPair::generate().expect("key"), params)
}

fn raw_with(
    site: &Site,
    chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    key: &rcgen::KeyPair,
) -> rustls::ClientConfig {
    let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("key");
    let mut tls = raw_client(&site.path("ca")).with_client_auth_cert(chain, key).expect("client certificate");
    tls.alpn_protocols = vec![super::super::ALPN.to_vec()];
    tls
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let site = Site::new();
    let (server, address) = listen(site.receiver());
    let mut tls = raw_client(&site.path("ca")).with_no_client_auth();
    tls.alpn_protocols = vec![super::super::ALPN.to_vec()];
    let (client, served) = tokio::join!(dial_raw(address, tls), accept(&server));
    assert!(matches!(client, TransportError::NoClientCertificate { whose: Whose::Ours }), "{client:?}");
    assert!(matches!(served, Err(TransportError::NoClientCertificate { whose: Whose::Peers })), "{served:?}");
}

#[tokio::test]
async fn a_client_of_another_protocol_is_refused() {
    let site = Site::new();
    let (server, address) = listen(site.receiver());
    let mut tls = raw_client(&site.path("ca")).with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let (client, served) = tokio::join!(dial_raw(address, tls), accept(&server));
    assert!(matches!(client, TransportError::Protocol), "{client:?}");
    assert!(matches!(served, Err(TransportError::Protocol)), "{served:?}");
}

#[tokio::test]
async fn a_receiver_must_be_named_by_its_certificate() {
    let site = Site::new();
    let (server, _) = listen(site.identity("receiver", &receiver_for(&["dr.example", "10.0.0.7"])));
    let (client, served) = meet(&server, "localhost", &site.sidecar()).await;
    let error = client.expect_err("the name is wrong").to_string();
    assert_eq!(error, "the receiver's certificate does not name localhost (it names dr.example, 10.0.0.7)");
    assert!(matches!(served, Err(TransportError::BadCertificate)), "{served:?}");
}

#[tokio::test]
async fn a_receiver_is_no_client() {
    let site = Site::new();
    let (server, _) = listen(site.receiver());
    let (client, served) = meet(&server, "127.0.0.1", &site.receiver()).await;
    let expected = "refused by the peer: you are a receiver, and a sidecar or an operator was expected here";
    assert_eq!(client.expect_err("refused").to_string(), expected);
    assert!(matches!(served, Err(TransportError::WrongRole { .. })), "{served:?}");
}

#[tokio::test]
async fn a_sidecar_is_no_receiver() {
    let site = Site::new();
    let listening = server((std::net::Ipv4Addr::LOCALHOST, 0).into(), site.sidecar());
    assert!(matches!(listening, Err(TransportError::NotAReceiver(_))));

    // An impostor that skips this check is found out by the client: by its key usage, and without one by its role.
    for usage in [vec![], vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth]] {
        let unrestricted = usage.is_empty();
        let impostor = impostor(&site, usage);
        let address = format!("127.0.0.1:{}", impostor.local_addr().expect("address").port());
        let serving = tokio::spawn(async move {
            let incoming = impostor.accept().await.expect("a client");
            match incoming.accept().expect("accepted").await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        });
        let client = connect(&address, &site.sidecar()).await;
        let served = TransportError::from_quic(serving.await.expect("served"), None);
        if unrestricted {
            assert!(matches!(client, Err(TransportError::WrongRole { .. })), "{client:?}");
            assert!(matches!(served, TransportError::Refused { .. }), "{served:?}");
        } else {
            assert!(matches!(client, Err(TransportError::WrongUsage { whose: Whose::Peers })), "{client:?}");
            assert!(matches!(served, TransportError::WrongUsage { whose: Whose::Ours }), "{served:?}");
        }
    }
}

/// A server on loopback whose certificate has the right host and a sidecar's id.
fn impostor(site: &Site, usage: Vec<rcgen::ExtendedKeyUsagePurpose>) -> quinn::Endpoint {
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("host");
    params
        .subject_alt_names
        .push(rcgen::SanType::URI("spiffe://x/tenant/acme/volume/pg".try_into().expect("URI")));
    params.extended_key_usages = usage;
    let out = site.path("impostor");
    sign(site, params, &out);
    let credentials = Identity::load(&out).expect("identity").credentials();
    let tls = crate::transport::tls::server(&credentials, Default::default());
    quinn::Endpoint::server(quinn::ServerConfig::with_crypto(tls), (std::net::Ipv4Addr::LOCALHOST, 0).into())
        .expect("endpoint")
}

/// Signs a hand-made certificate with the site's authority.
fn sign(site: &Site, params: rcgen::CertificateParams, out: &Path) {
    let read = |name: &str| std::fs::read_to_string(site.path("ca").join(name)).expect("authority");
    let ca_key = rcgen::KeyPair::from_pem(&read("ca.key")).expect("key");
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("ca.crt"), ca_key).expect("issuer");
    let key = rcgen::KeyPair::generate().expect("key");
    let certificate = params.signed_by(&key, &issuer).expect("signed");
    std::fs::create_dir_all(out).expect("directory");
    std::fs::write(out.join("ca.crt"), read("ca.crt")).expect("written");
    std::fs::write(out.join("tls.key"), key.serialize_pem()).expect("written");
    std::fs::write(out.join("tls.crt"), certificate.pem()).expect("written");
}

#[tokio::test]
async fn a_client_that_is_nobody_is_refused_with_the_reason() {
    let site = Site::new();
    let (server, address) = listen(site.receiver());
    sign(&site, rcgen::CertificateParams::default(), &site.path("nobody"));
    use rustls_pki_types::pem::PemObject;
    let chain =
        rustls_pki_types::CertificateDer::from_pem_file(site.path("nobody/tls.crt")).expect("certificate");
    let key = std::fs::read_to_string(site.path("nobody/tls.key")).expect("key");
    let tls = raw_with(&site, vec![chain], &rcgen::KeyPair::from_pem(&key).expect("key"));
    let (client, served) = tokio::join!(dial_raw(address, tls), accept(&server));
    assert!(
        matches!(&client, TransportError::Refused { reason } if reason.contains("no SPIFFE id")),
        "{client:?}"
    );
    assert!(matches!(served, Err(TransportError::Identity(_))), "{served:?}");
}

#[tokio::test]
async fn a_silent_address_is_unreachable() {
    let site = Site::new();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let address = silent.local_addr().expect("address").to_string();
    let error = connect(&address, &site.sidecar()).await.expect_err("nobody answers");
    assert!(error.to_string().starts_with(&format!("no answer from {address}")), "{error}");
}
