//! Paths in a volume. Names are bytes, so a path has three forms: the bytes, a text for people in which every other byte
//! is escaped, and JSON.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Serialize, Serializer, ser::SerializeStruct};
use thiserror::Error;

/// A path from the volume's root; the root itself is empty.
///
/// Shown, control characters, backslashes and what is not UTF-8 are escaped (`\n`, `\\`, `\xff`), so that the shell's
/// `$'…'` gives the bytes back. As JSON it is `{"path": "…"}`; if it is not UTF-8, `path` shows it with replacement characters
/// and `path_base64` has the bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VolumePath(Vec<u8>);

/// Not a path in a volume.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
#[error("{0} is no path in a volume: write it from the volume's root, without ..")]
pub struct PathError(VolumePath);

impl VolumePath {
    /// Reads what somebody typed: leading, trailing and double slashes and `.` mean nothing.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        let names = bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
        let names: Vec<&[u8]> = names.collect();
        if names.contains(&&b".."[..]) || bytes.contains(&0) {
            return Err(PathError(Self(bytes.to_vec())));
        }
        Ok(Self(names.join(&b'/')))
    }

    /// A path as a tree tells it.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// The bytes, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Its names, from the root on.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|name| !name.is_empty())
    }
}

impl fmt::Display for VolumePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("/");
        }
        for part in self.0.utf8_chunks() {
            for character in part.valid().chars() {
                match character {
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\\' => f.write_str("\\\\")?,
                    other if other.is_control() => {
                        let mut buffer = [0; 4];
                        escape(f, other.encode_utf8(&mut buffer).as_bytes())?;
                    }
                    other => write!(f, "{other}")?,
                }
            }
            escape(f, part.invalid())?;
        }
        Ok(())
    }
}

fn escape(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

impl Serialize for VolumePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = String::from_utf8_lossy(&self.0);
        let exact = matches!(text, std::borrow::Cow::Borrowed(_));
        let mut fields = serializer.serialize_struct("VolumePath", 1 + usize::from(!exact))?;
        fields.serialize_field("path", &text)?;
        if !exact {
            fields.serialize_field("path_base64", &STANDARD.encode(&self.0))?;
        }
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_so_that_its_bytes_can_be_told() {
        for (bytes, shown, json) in [
            (&b"/a//./b c/"[..], "a/b c", r#"{"path":"a/b c"}"#),
            (
                b"x\xffy\n\\\x1b",
                "x\\xffy\\n\\\\\\x1b",
                r#"{"path":"x�y\n\\\u001b","path_base64":"eP95Clwb"}"#,
            ),
            ("grün\u{85}".as_bytes(), "grün\\xc2\\x85", "{\"path\":\"grün\u{85}\"}"),
            (b"/", "/", r#"{"path":""}"#),
        ] {
            let path = VolumePath::parse(bytes).expect("a path");
            assert_eq!(path.to_string(), shown);
            assert_eq!(serde_json::to_string(&path).expect("serialises"), json);
        }
        assert!(VolumePath::parse(b"a/../b").is_err());
    }
}
