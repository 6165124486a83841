//! Encryption at rest: what of a store can be read with the keys of its tenants, and by nobody else.
//!
//! ```text
//! sidecar ══TLS══▶ session ─▶ Store ─┬─ ids blinded ───────▶ index: keys of chunks
//!                                    ├─ values encrypted ──▶ index: everything else
//!                                    └─ records encrypted ─▶ log
//! ```
//! **The store's edge.** On the wire and in memory ids are what they always are: the tenant's sidecar made them, TLS protects them, and what a receiver says of them ("I have this one")
//! it says to that tenant alone. They change where bytes leave memory: a record is encrypted when it is appended and opened when it is read, an id is blinded when the index is asked.
//! Nothing above [`crate::store`] knows of it.
//!
//! **Blinded ids.** A plain id is keyed with the tenant's *name*, so whoever has the disk could ask it for content that he guesses. A blinded id is keyed with the tenant's key.
//!
//! **Whole tenants.** A tenant is encrypted from its first record on, or never: a store that has plain data of it refuses its key, because one could not tell any more what is
//! protected. Every encrypted record names its tenant and, by eight bytes, its key. So a wrong key is found at the first record, before anything is written; and without the key the tenant
//! is *locked*: nothing of it is offered, taken or removed, no space is given back, and all other tenants go on.
//!
//! The price: 48 bytes and the tenant's name for each record, one pass of the cipher on the thread that writes, and no space given back while a key is missing.
//! What is not hidden: names of tenants and (in the index) of volumes, how many points and chunks there are, their numbers, lengths and order.

mod cipher;
mod keys;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;
use thiserror::Error;
use tidelock_proto::ChunkId;

pub(crate) use cipher::{Cipher, Context, KeyId, OVERHEAD_BYTES, overhead_bytes};
pub use keys::{KeyFileError, TenantKeys, generate};

use crate::log::{DamageKind, entry::Fact, outline::OUTLINED, scan::Found};

/// A tenant's data and the key that was given do not go together.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum KeyError {
    /// It is encrypted, and there is no key.
    #[error(
        "tenant {0} is encrypted and its key was not given: give it with --tenant-key {0}=FILE or --tenant-keys DIR; other tenants are not touched"
    )]
    Missing(String),
    /// It is encrypted with another key.
    #[error(
        "the key given for tenant {0} is not the one that its data is encrypted with; nothing was written"
    )]
    Wrong(String),
    /// It is not encrypted.
    #[error(
        "tenant {0} has data here that is not encrypted, and a key was given for it: encryption begins with a tenant's first volume; leave its key away, or begin anew in another store or under another tenant"
    )]
    Plain(String),
}

/// Why a record cannot be looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unopened {
    /// Its key is not here, or another one.
    Key(KeyError, KeyId),
    /// It is not what was written.
    Damaged(DamageKind),
}

/// The keys that were given, and which tenants of the store are encrypted.
pub(crate) struct Vault {
    store: [u8; 16],
    keys: TenantKeys,
    /// Made from the keys when they are asked for.
    ciphers: RwLock<HashMap<String, Option<Arc<Cipher>>>>,
    /// Tenants with encrypted records, and by which key.
    encrypted: RwLock<BTreeMap<String, KeyId>>,
}

impl Vault {
    /// For the store with this identity.
    pub(crate) fn new(store: [u8; 16], keys: TenantKeys) -> Self {
        Self { store, keys, ciphers: RwLock::default(), encrypted: RwLock::default() }
    }

    /// Whether no tenant is encrypted, so that everything is as it is.
    pub(crate) fn is_idle(&self) -> bool {
        self.encrypted.read().is_empty()
    }

    /// The tenant's cipher, if its key was given.
    pub(crate) fn cipher(&self, tenant: &str) -> Option<Arc<Cipher>> {
        if self.keys.is_empty() {
            return None;
        }
        if let Some(known) = self.ciphers.read().get(tenant) {
            return known.clone();
        }
        let cipher = self.keys.get(tenant).map(|key| Arc::new(Cipher::new(key, tenant)));
        self.ciphers.write().insert(tenant.to_owned(), cipher.clone());
        cipher
    }

    /// The cipher to write this tenant's records with; `None` if they are plain.
    pub(crate) fn cipher_to_write(&self, tenant: &str) -> Result<Option<Arc<Cipher>>, KeyError> {
        let cipher = self.cipher(tenant);
        if cipher.is_none() && self.is_encrypted(tenant) {
            return Err(KeyError::Missing(tenant.to_owned()));
        }
        Ok(cipher)
    }

    /// Whether the tenant has encrypted records.
    pub(crate) fn is_encrypted(&self, tenant: &str) -> bool {
        self.encrypted.read().contains_key(tenant)
    }

    /// A tenant has encrypted records; whether that is new, or which key they need instead of the one given.
    pub(crate) fn learn(&self, tenant: &str, id: KeyId) -> Result<bool, KeyError> {
        if self.cipher(tenant).is_some_and(|cipher| cipher.id() != id) {
            return Err(KeyError::Wrong(tenant.to_owned()));
        }
        if self.encrypted.read().get(tenant) == Some(&id) {
            return Ok(false);
        }
        Ok(self.encrypted.write().insert(tenant.to_owned(), id).is_none())
    }

    /// Tenants that are encrypted and whose keys are not here.
    pub(crate) fn locked(&self) -> Vec<String> {
        let encrypted: Vec<String> = self.encrypted.read().keys().cloned().collect();
        encrypted.into_iter().filter(|tenant| self.cipher(tenant).is_none()).collect()
    }

    /// Whether the tenant is one of [`Vault::locked`], as an error.
    pub(crate) fn check(&self, tenant: &str) -> Result<(), KeyError> {
        self.cipher_to_write(tenant).map(drop)
    }

    /// A chunk's id as the index has it.
    pub(crate) fn blind(&self, tenant: &str, id: &ChunkId) -> ChunkId {
        self.cipher(tenant).map_or(*id, |cipher| cipher.blind(id))
    }

    /// The body of a record, as it was before it was encrypted.
    pub(crate) fn open(&self, kind: u8, number: u64, body: Bytes) -> Result<Bytes, Unopened> {
        let damaged = Unopened::Damaged(DamageKind::Cipher(number));
        let Some((tenant, id)) = cipher::names(&body) else { return Err(damaged) };
        let Some(cipher) = self.cipher(tenant) else {
            return Err(Unopened::Key(KeyError::Missing(tenant.to_owned()), id));
        };
        if cipher.id() != id {
            return Err(Unopened::Key(KeyError::Wrong(tenant.to_owned()), id));
        }
        cipher.decrypt(Context { store: self.store, number, kind }, body).ok_or(damaged)
    }

    /// The body of a record that was read.
    pub(crate) fn body(&self, found: &Found) -> Result<Bytes, Unopened> {
        if found.encrypted {
            let outlined = if found.outlined { OUTLINED } else { 0 };
            self.open(found.kind | outlined, found.number, found.body.clone())
        } else {
            Ok(found.body.clone())
        }
    }

    /// A part of an encrypted record's body, encrypted again for another use of it.
    pub(crate) fn seal_again(&self, found: &Found, used: u8, part: &[u8]) -> Result<Bytes, Unopened> {
        let damaged = Unopened::Damaged(DamageKind::Cipher(found.number));
        let Some((tenant, id)) = cipher::names(&found.body) else { return Err(damaged) };
        let missing = || Unopened::Key(KeyError::Missing(tenant.to_owned()), id);
        let cipher = self.cipher(tenant).ok_or_else(missing)?;
        let context = Context { store: self.store, number: found.number, kind: found.kind | used };
        Ok(cipher.encrypt(context, &[part]).into())
    }

    /// What a record that was read says, with blinded ids, and its body.
    pub(crate) fn fact(&self, found: &Found) -> Result<(Fact, Bytes), Unopened> {
        let body = self.body(found)?;
        let nonsense = || Unopened::Damaged(DamageKind::Nonsense(found.number));
        let fact = Fact::decode(found.kind, body.clone()).ok_or_else(nonsense)?;
        let fact = match fact {
            Fact::Chunk { tenant, id, len } => Fact::Chunk { id: self.blind(&tenant, &id), tenant, len },
            fact => fact,
        };
        Ok((fact, body))
    }
}
