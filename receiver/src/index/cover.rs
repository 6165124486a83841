//! How entries of an encrypted tenant rest in the library: nothing in a value, and no tag in a key, can be read without the tenant's key.
//!
//! ```text
//! chunks      as they are: their ids are blinded before they come here, their values are places
//! tags        't' volume 0 epoch u64 seq u64 name of 16 bytes = the tag, encrypted
//! others      the key as it is = the value, encrypted
//! ```
//! What waits in memory is plain. Entries of a tenant whose key is not here are not there for whoever asks: so its volumes are not offered, and nothing is known of them.

use std::sync::Arc;

use super::{KvError, Pair, Put, Table, key};
use crate::vault::{Cipher, Vault};

/// Between what is in memory and what is in the library.
pub(super) struct Cover(pub(super) Arc<Vault>);

impl Cover {
    /// Whether everything is as it is.
    pub(super) fn is_idle(&self) -> bool {
        self.0.is_idle()
    }

    fn cipher(&self, table: Table, key: &[u8]) -> Option<Arc<Cipher>> {
        if self.is_idle() || table == Table::Chunks {
            return None;
        }
        let tenant = key::tenant(key)?;
        self.0.cipher(tenant).filter(|_| self.0.is_encrypted(tenant))
    }

    /// Whether its tenant is encrypted and the key is not here.
    fn is_locked(&self, table: Table, key: &[u8]) -> bool {
        let locked = |tenant| self.0.is_encrypted(tenant) && self.0.cipher(tenant).is_none();
        !self.is_idle() && table != Table::Chunks && key::tenant(key).is_some_and(locked)
    }

    /// The key that the library has for a key.
    pub(super) fn key(&self, table: Table, key: &[u8]) -> Vec<u8> {
        match self.cipher(table, key) {
            Some(cipher) if key::is_named(key) => blind(&cipher, key),
            _ => key.to_vec(),
        }
    }

    /// An entry as it goes into the library.
    pub(super) fn outward(&self, put: Put) -> Put {
        let Some(cipher) = self.cipher(put.table, &put.key) else { return put };
        let Put { table, key, value } = put;
        if !key::is_named(&key) {
            let value = value.map(|value| cipher.encrypt_value(&key, &value));
            return Put { table, key, value };
        }
        let (name, blinded) = (key::name(&key), blind(&cipher, &key));
        // The name, its length before it, and what else there is.
        let value = value.map(|value| {
            let len = u16::try_from(name.len()).expect("a name is short");
            cipher.encrypt_value(&blinded, &[&len.to_le_bytes()[..], name, &value].concat())
        });
        Put { table, key: blinded, value }
    }

    /// An entry as it comes out of the library; `None` if its tenant is locked.
    pub(super) fn inward(&self, table: Table, (key, value): Pair) -> Result<Option<Pair>, KvError> {
        let Some(cipher) = self.cipher(table, &key) else {
            return Ok((!self.is_locked(table, &key)).then_some((key, value)));
        };
        let value = cipher.decrypt_value(&key, value).ok_or(KvError::Cipher)?;
        if !key::is_named(&key) {
            return Ok(Some((key, value)));
        }
        let (len, rest) = value.split_first_chunk().ok_or(KvError::Cipher)?;
        let len = usize::from(u16::from_le_bytes(*len));
        let (name, value) = rest.split_at_checked(len).ok_or(KvError::Cipher)?;
        Ok(Some((key::renamed(&key, name), value.to_vec())))
    }
}

fn blind(cipher: &Cipher, key: &[u8]) -> Vec<u8> {
    key::renamed(key, &cipher.blind_name(key))
}
