//! Names and positions as types, so that one is never passed for another.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::limits;

/// A protected directory tree, written `<tenant>/<name>`.
///
/// Both parts are 1–63 bytes of `a-z 0-9 - . _`, beginning and ending with a letter or digit: what Kubernetes allows for
/// namespaces and claims, and safe as a directory name of the store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName {
    tenant: String,
    name: String,
}

/// Why a text is not a volume name.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum VolumeNameError {
    /// There is not exactly one `/`.
    #[error("volume {0:?} must be written TENANT/NAME")]
    Shape(String),
    /// One of the two parts breaks the rules.
    #[error(
        "{0:?} is not a valid tenant or volume name: use 1 to {max} of a-z 0-9 - . _, beginning and ending with a letter or digit",
        max = limits::VOLUME_NAME_MAX_BYTES
    )]
    Part(String),
}

impl VolumeName {
    /// Builds a name from its two parts.
    pub fn new(tenant: &str, name: &str) -> Result<Self, VolumeNameError> {
        check_part(tenant)?;
        check_part(name)?;
        Ok(Self { tenant: tenant.to_owned(), name: name.to_owned() })
    }

    /// The tenant, the unit of isolation.
    pub fn tenant(&self) -> &str {
        &self.tenant
    }

    /// The name within the tenant.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Checks a tenant or volume name on its own.
pub fn check_part(part: &str) -> Result<(), VolumeNameError> {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let valid = (1..=limits::VOLUME_NAME_MAX_BYTES).contains(&bytes.len())
        && bytes.iter().all(|byte| edge(byte) || b"-._".contains(byte))
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge);
    if valid { Ok(()) } else { Err(VolumeNameError::Part(part.to_owned())) }
}

impl FromStr for VolumeName {
    type Err = VolumeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((tenant, name)) if !name.contains('/') => Self::new(tenant, name),
            _ => Err(VolumeNameError::Shape(text.to_owned())),
        }
    }
}

impl TryFrom<String> for VolumeName {
    type Error = VolumeNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(volume: VolumeName) -> Self {
        volume.to_string()
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.name)
    }
}

impl fmt::Debug for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An inode of a volume: given by the sidecar, never reused within a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct FileId(pub u64);

impl FileId {
    /// The root directory of every volume.
    pub const ROOT: Self = Self(1);
}

/// The fencing generation of a volume's writer. Only a promotion raises it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of a volume that was never promoted.
    pub const FIRST: Self = Self(1);

    /// The epoch a promotion raises this one to.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a commit within its epoch, from 1, without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Seq(pub u64);

impl Seq {
    /// The number of the commit after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A recovery point's identity, ordered by epoch and then by number; written `epoch.seq`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PointId {
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The commit within it.
    pub seq: Seq,
}

impl PointId {
    /// Joins an epoch and a number.
    pub fn new(epoch: Epoch, seq: Seq) -> Self {
        Self { epoch, seq }
    }
}

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.seq)
    }
}

impl fmt::Debug for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not `epoch.seq`.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a recovery point: write EPOCH.SEQ, as `tidelock points` shows it")]
pub struct PointIdError(String);

impl FromStr for PointId {
    type Err = PointIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (epoch, seq) = text.split_once('.')?;
            Some(Self::new(Epoch(epoch.parse().ok()?), Seq(seq.parse().ok()?)))
        };
        parse().ok_or_else(|| PointIdError(text.to_owned()))
    }
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Reads an id from exactly 32 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(&self.0[..6]))
            }
        }
    };
}

hash_id! {
    /// The name of a chunk: BLAKE3 of its uncompressed content, keyed by the tenant (see [`crate::chunk`]).
    ChunkId
}

hash_id! {
    /// The digest of a whole tree (see [`crate::tree::digest`]).
    TreeDigest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_names_refuse_what_could_leave_the_store() {
        for bad in ["a", "a/b/c", "../b", "a/..", "A/b", "a/", "/b", "a/b\0", "a/.b", "a b/c"] {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?} was accepted");
        }
        assert!(format!("t/{}", "x".repeat(64)).parse::<VolumeName>().is_err());
        assert_eq!("t1/pg-data.0".parse::<VolumeName>().expect("valid").to_string(), "t1/pg-data.0");
    }

    #[test]
    fn points_are_ordered_by_epoch_then_number() {
        let parse = |text: &str| text.parse::<PointId>().expect("valid point");
        assert!(parse("1.900") < parse("2.1"));
        assert!("1".parse::<PointId>().is_err());
        assert!("1.x".parse::<PointId>().is_err());
    }
}
