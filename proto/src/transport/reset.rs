//! Telling clients of a killed receiver at once that it is another one now: QUIC's stateless reset (RFC 9000, 10.3).
//!
//! A receiver that was killed says no goodbye. What comes next for its connections gets an answer from the process that
//! took its place, a token that only a holder of the same secret can know, and the client dials again without waiting for
//! its idle timeout. The secret comes from the private key of the receiver's identity, so it needs no file of its own; the
//! price is that a receiver restarted after its key was rotated cannot speak for the one before, and the timeout has to.

use std::{fmt, sync::Arc, time::Duration};

use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, crypto::HmacKey};
use rand::RngCore;

/// As long as quinn's own: unguessable, and a small part of a packet.
const ID_BYTES: usize = 8;
const TAG_BYTES: usize = 32;

/// What the tokens of a receiver are made from.
#[derive(Clone)]
pub(crate) struct ResetSecret([u8; 32]);

impl ResetSecret {
    /// The secret of whoever holds this private key (DER).
    pub(crate) fn of_key(der: &[u8]) -> Self {
        Self(blake3::derive_key("tidelock stateless reset v1", der))
    }

    /// An endpoint of this receiver.
    pub(super) fn endpoint(&self) -> EndpointConfig {
        let mut config = EndpointConfig::new(Arc::new(self.clone()));
        config.cid_generator(|| Box::new(AnyId));
        config
    }
}

impl fmt::Debug for ResetSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResetSecret")
    }
}

impl HmacKey for ResetSecret {
    fn sign(&self, data: &[u8], signature: &mut [u8]) {
        signature.copy_from_slice(blake3::keyed_hash(&self.0, data).as_bytes());
    }

    fn signature_len(&self) -> usize {
        TAG_BYTES
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), quinn::crypto::CryptoError> {
        // Compared in constant time.
        if blake3::keyed_hash(&self.0, data) == *signature { Ok(()) } else { Err(quinn::crypto::CryptoError) }
    }
}

/// Random ids, all of which are taken for possible ones: quinn's default generator would drop the packets of a former
/// process unanswered.
struct AnyId;

impl ConnectionIdGenerator for AnyId {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; ID_BYTES];
        rand::rng().fill_bytes(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
