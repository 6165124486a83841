//! One HTTPS request to the injector, which shows a certificate of an authority that is known beforehand.

use std::{io, sync::Arc};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::ClientError;
use crate::limits;

/// Believes these authorities (PEM) and nobody else.
pub(crate) fn tls(authorities: &str) -> Result<TlsConnector, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let certificate = certificate.map_err(|_| ClientError::Authorities)?;
        roots.add(certificate).map_err(|_| ClientError::Authorities)?;
    }
    if roots.is_empty() {
        return Err(ClientError::Authorities);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring offers TLS 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Posts JSON, with a token if there is one; the answer's status and body.
pub(crate) async fn post(
    tls: &TlsConnector,
    url: &Url,
    token: Option<&str>,
    body: Vec<u8>,
) -> Result<(StatusCode, Bytes), ClientError> {
    let host = url.host_str().ok_or(ClientError::Url)?;
    let port = url.port_or_known_default().ok_or(ClientError::Url)?;
    let name =
        ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|_| ClientError::Url)?;
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
    let stream = tls.connect(name, stream).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // It ends with the sender, or by itself.
    let connection = tokio::spawn(connection);
    let mut request =
        Request::post(url.path()).header(header::HOST, host).header(header::CONTENT_TYPE, "application/json");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::from(body))).map_err(|_| ClientError::Token)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), limits::ANSWER_MAX_BYTES).collect().await;
    let body = body.map_err(io::Error::other)?.to_bytes();
    connection.abort();
    Ok((status, body))
}
