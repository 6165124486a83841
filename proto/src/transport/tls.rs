//! TLS configurations for one handshake, with verifiers that remember why they refused.
//!
//! QUIC reduces a refusal to an alert number. The verdict is kept beside the handshake so that the refusing side can
//! say exactly what was wrong.

use std::sync::{Arc, OnceLock};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::ring,
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::SingleCertAndKey,
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::ALPN;
use crate::identity::Credentials;

/// Why the peer's certificate was refused, once it has been.
pub(super) type Verdict = Arc<OnceLock<CertificateError>>;

/// The client's side of one handshake.
pub(super) fn client(credentials: &Credentials, verdict: Verdict) -> quinn::ClientConfig {
    let verifier = Remembering { inner: credentials.server_verifier.clone(), verdict };
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("ring offers TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    let quic = QuicClientConfig::try_from(config).expect("ring has the cipher of QUIC's first packet");
    quinn::ClientConfig::new(Arc::new(quic))
}

/// The server's side of one handshake.
pub(super) fn server(credentials: &Credentials, verdict: Verdict) -> Arc<dyn quinn::crypto::ServerConfig> {
    let verifier = Remembering { inner: credentials.client_verifier.clone(), verdict };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .expect("ring offers TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(credentials.certified.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Arc::new(QuicServerConfig::try_from(config).expect("ring has the cipher of QUIC's first packet"))
}

/// A verifier that records its refusal.
#[derive(Debug)]
struct Remembering<V: ?Sized> {
    verdict: Verdict,
    inner: Arc<V>,
}

impl<V: ?Sized> Remembering<V> {
    /// A chain whose signature does not fit is one of another authority with the same name.
    fn remember(&self, error: Error) -> Error {
        let error = match error {
            Error::InvalidCertificate(CertificateError::BadSignature) => {
                Error::InvalidCertificate(CertificateError::UnknownIssuer)
            }
            error => error,
        };
        if let Error::InvalidCertificate(reason) = &error {
            // A handshake judges one certificate; only the first verdict counts.
            let _ = self.verdict.set(reason.clone());
        }
        error
    }
}

impl ServerCertVerifier for Remembering<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        host: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner
            .verify_server_cert(leaf, intermediates, host, ocsp, now)
            .map_err(|error| self.remember(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Remembering<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Names of authorities are no business of strangers.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.inner.verify_client_cert(leaf, intermediates, now).map_err(|error| self.remember(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
