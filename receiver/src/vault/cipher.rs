//! One tenant's cipher: how a record becomes unreadable, and how an id is blinded.
//!
//! ```text
//! encrypted body   0 tenant length u8 │ tenant │ key id, 8 bytes │ nonce, 24 bytes │ encrypted body … │ tag, 16 bytes
//! ```
//! ChaCha20-Poly1305 (RFC 8439) of `ring`, with a key for each record: `BLAKE3-keyed(record key, nonce)`, as XChaCha20 does it with HChaCha20. The cipher's own nonce
//! is zero, because no such key is used twice.
//!
//! **Nonces never repeat.** They are 192 random bits from the kernel, so no counter has to survive anything: not a crash that tears records off whose numbers are used again, not a disk that is
//! set back to a snapshot, not a compaction that writes records again (each copy is encrypted anew), not two stores with one key. After 2^48 records the chance that any two were equal is 2^-97.
//!
//! **A record is where it was written.** Its kind, its number and the store's identity are authenticated with it: whoever can write to the disk cannot put one record in the place of another. He can
//! cut the log off at its end, which looks as if it had ended earlier.
//!
//! Every use has a key of its own, derived with its context from the tenant's key *and* name: two tenants with the same key by mistake share nothing.

use bytes::Bytes;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use tidelock_proto::ChunkId;

/// Which key something is encrypted with.
pub(crate) type KeyId = [u8; 8];

const NONCE_BYTES: usize = 24;
const TAG_BYTES: usize = 16;
/// How much longer a encrypted body is, at most: with the longest name of a tenant.
pub(crate) const OVERHEAD_BYTES: usize = 1 + 63 + 8 + NONCE_BYTES + TAG_BYTES;

/// By how much a body of this tenant grows.
pub(crate) fn overhead_bytes(tenant: &str) -> usize {
    1 + tenant.len() + 8 + NONCE_BYTES + TAG_BYTES
}

/// The keys of one tenant.
pub(crate) struct Cipher {
    tenant: String,
    id: KeyId,
    records: [u8; 32],
    index: [u8; 32],
    names: [u8; 32],
    ids: [u8; 32],
}

/// Where a record is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    /// The store's identity.
    pub(crate) store: [u8; 16],
    /// The record's number.
    pub(crate) number: u64,
    /// The tag of its kind.
    pub(crate) kind: u8,
}

impl Context {
    fn bytes(&self) -> Vec<u8> {
        [&self.store[..], &self.number.to_le_bytes(), &[self.kind]].concat()
    }
}

impl Cipher {
    pub(crate) fn new(key: &[u8; 32], tenant: &str) -> Self {
        let derive = |context: &str| {
            let mut hasher = blake3::Hasher::new_derive_key(context);
            *hasher.update(key).update(tenant.as_bytes()).finalize().as_bytes()
        };
        let check = derive("tidelock encryption at rest v1: key check");
        Self {
            tenant: tenant.to_owned(),
            id: *check.first_chunk().expect("a hash has 32 bytes"),
            records: derive("tidelock encryption at rest v1: records"),
            index: derive("tidelock encryption at rest v1: index"),
            names: derive("tidelock encryption at rest v1: names"),
            ids: derive("tidelock encryption at rest v1: chunk ids"),
        }
    }

    pub(crate) fn id(&self) -> KeyId {
        self.id
    }

    /// A chunk's id as the index has it.
    pub(crate) fn blind(&self, id: &ChunkId) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.ids, &id.0).as_bytes())
    }

    /// A name that is the same whenever it is asked for, and says nothing.
    pub(crate) fn blind_name(&self, name: &[u8]) -> [u8; 16] {
        *blake3::keyed_hash(&self.names, name).as_bytes().first_chunk().expect("a hash has 32 bytes")
    }

    /// Encrypts a record's body, which is given in parts.
    pub(crate) fn encrypt(&self, context: Context, body: &[&[u8]]) -> Vec<u8> {
        let len: usize = body.iter().map(|part| part.len()).sum();
        let mut encrypted = Vec::with_capacity(len + OVERHEAD_BYTES);
        encrypted.push(u8::try_from(self.tenant.len()).expect("a tenant's name has at most 63 bytes"));
        encrypted.extend_from_slice(self.tenant.as_bytes());
        encrypted.extend_from_slice(&self.id);
        encrypt_behind(&self.records, &context.bytes(), encrypted, body)
    }

    /// Decrypts a record's body; `None` if it is not what was encrypted.
    pub(crate) fn decrypt(&self, context: Context, body: Bytes) -> Option<Bytes> {
        let head = 1 + self.tenant.len() + 8;
        (body.len() >= head).then(|| decrypt_behind(&self.records, &context.bytes(), body.slice(head..)))?
    }

    /// Encrypts a value of the index.
    pub(crate) fn encrypt_value(&self, key: &[u8], value: &[u8]) -> Vec<u8> {
        let room = Vec::with_capacity(value.len() + NONCE_BYTES + TAG_BYTES);
        encrypt_behind(&self.index, key, room, &[value])
    }

    /// Decrypts a value of the index; `None` if it is not what was encrypted.
    pub(crate) fn decrypt_value(&self, key: &[u8], value: Vec<u8>) -> Option<Vec<u8>> {
        decrypt_behind(&self.index, key, value.into()).map(Vec::from)
    }
}

/// The tenant and the key that a encrypted body names.
pub(super) fn names(body: &[u8]) -> Option<(&str, KeyId)> {
    let (len, rest) = body.split_first()?;
    let (tenant, rest) = rest.split_at_checked(usize::from(*len))?;
    Some((std::str::from_utf8(tenant).ok()?, *rest.first_chunk()?))
}

/// The key of one encrypted thing.
fn once(key: &[u8; 32], nonce: &[u8; NONCE_BYTES]) -> LessSafeKey {
    let key = blake3::keyed_hash(key, nonce);
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key.as_bytes()).expect("a key has 32 bytes"))
}

fn zero() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

/// Puts a nonce and the encrypted parts behind what is there.
fn encrypt_behind(key: &[u8; 32], context: &[u8], mut out: Vec<u8>, parts: &[&[u8]]) -> Vec<u8> {
    let mut nonce = [0; NONCE_BYTES];
    SystemRandom::new().fill(&mut nonce).expect("the system has randomness");
    out.extend_from_slice(&nonce);
    let start = out.len();
    parts.iter().for_each(|part| out.extend_from_slice(part));
    let encrypted =
        once(key, &nonce).seal_in_place_separate_tag(zero(), Aad::from(context), &mut out[start..]);
    out.extend_from_slice(encrypted.expect("a record is short").as_ref());
    out
}

/// Decrypts a nonce and what is encrypted behind it.
fn decrypt_behind(key: &[u8; 32], context: &[u8], encrypted: Bytes) -> Option<Bytes> {
    let nonce: [u8; NONCE_BYTES] = *encrypted.first_chunk()?;
    let mut encrypted = Vec::from(encrypted.slice(NONCE_BYTES..));
    let len = once(key, &nonce).open_in_place(zero(), Aad::from(context), &mut encrypted).ok()?.len();
    encrypted.truncate(len);
    Some(encrypted.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Context = Context { store: [3; 16], number: 7, kind: 1 };

    #[test]
    fn what_is_encrypted_opens_where_it_was_written_and_nowhere_else() {
        let cipher = Cipher::new(&[1; 32], "t");
        let encrypted = Bytes::from(cipher.encrypt(AT, &[b"a chunk ", b"of content"]));
        assert_eq!(cipher.decrypt(AT, encrypted.clone()).as_deref(), Some(&b"a chunk of content"[..]));
        assert_eq!(names(&encrypted), Some(("t", cipher.id())));
        let elsewhere =
            [Context { number: 8, ..AT }, Context { kind: 2, ..AT }, Context { store: [4; 16], ..AT }];
        for other in elsewhere {
            assert_eq!(cipher.decrypt(other, encrypted.clone()), None);
        }
        for key in [Cipher::new(&[2; 32], "t"), Cipher::new(&[1; 32], "u")] {
            assert!(key.decrypt(AT, encrypted.clone()).is_none() && key.id() != cipher.id());
        }
        for at in 10..encrypted.len() {
            let mut bad = encrypted.to_vec();
            bad[at] ^= 1;
            assert_eq!(cipher.decrypt(AT, bad.into()), None, "byte {at}");
        }
        for len in 0..encrypted.len() {
            assert_eq!(cipher.decrypt(AT, encrypted.slice(..len)), None, "{len} bytes");
        }
    }

    #[test]
    fn the_same_twice_looks_different_and_ids_of_two_tenants_too() {
        let (t, u) = (Cipher::new(&[1; 32], "t"), Cipher::new(&[1; 32], "u"));
        assert_ne!(t.encrypt(AT, &[b"page"]), t.encrypt(AT, &[b"page"]));
        let id = ChunkId([9; 32]);
        assert!(t.blind(&id) != u.blind(&id) && t.blind(&id) != id && t.blind(&id) == t.blind(&id));
        let value = t.encrypt_value(b"key", b"value");
        assert_eq!(t.decrypt_value(b"key", value.clone()).as_deref(), Some(&b"value"[..]));
        assert!(t.decrypt_value(b"kez", value.clone()).is_none() && u.decrypt_value(b"key", value).is_none());
    }
}
