//! Which names are meant, as `--exclude` of a sidecar means them: a pattern without a slash is a name, wherever it is; one
//! with a slash is a path from the volume's root (a leading slash alone means "in the root"). `*` and `?` stop at
//! slashes, `**` does not. Names are bytes.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::limits;

/// A pattern that cannot be understood.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{pattern:?} is no pattern: {reason}")]
pub struct PatternError {
    pattern: String,
    reason: String,
}

/// Some patterns; a path matches if one of them does.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    texts: Vec<String>,
    names: GlobSet,
    in_root: GlobSet,
    paths: GlobSet,
}

impl Patterns {
    /// Reads patterns. None matches nothing.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let (mut names, mut in_root, mut paths) =
            (GlobSetBuilder::new(), GlobSetBuilder::new(), GlobSetBuilder::new());
        let mut texts = Vec::new();
        for pattern in patterns {
            let fail = |reason: String| PatternError { pattern: pattern.to_owned(), reason };
            if pattern.is_empty() || pattern.len() > limits::PATTERN_MAX_BYTES {
                return Err(fail(format!("1 to {} bytes are allowed", limits::PATTERN_MAX_BYTES)));
            }
            let from_root = pattern.strip_prefix('/').unwrap_or(pattern);
            let glob = GlobBuilder::new(from_root).literal_separator(true).build();
            let glob = glob.map_err(|error| fail(error.kind().to_string()))?;
            match (pattern.starts_with('/'), from_root.contains('/')) {
                (_, true) => paths.add(glob),
                (true, false) => in_root.add(glob),
                (false, false) => names.add(glob),
            };
            texts.push(pattern.to_owned());
        }
        let build = |builder: GlobSetBuilder| {
            let fail = |error: globset::Error| PatternError {
                pattern: texts.join(" "),
                reason: error.kind().to_string(),
            };
            builder.build().map_err(fail)
        };
        let (names, in_root, paths) = (build(names)?, build(in_root)?, build(paths)?);
        Ok(Self { texts, names, in_root, paths })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// As they were written.
    pub fn texts(&self) -> &[String] {
        &self.texts
    }

    /// Whether one of them means this path from the root, without a leading slash.
    pub fn matches(&self, path: &[u8]) -> bool {
        let slash = path.iter().rposition(|byte| *byte == b'/');
        let name = slash.map_or(path, |slash| &path[slash + 1..]);
        self.names.is_match(as_path(name))
            || (slash.is_none() && self.in_root.is_match(as_path(name)))
            || self.paths.is_match(as_path(path))
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_a_name_a_name_in_the_root_or_a_path() {
        let matches =
            |pattern: &str, path: &[u8]| Patterns::new([pattern]).expect("a good pattern").matches(path);
        for (pattern, yes, no) in [
            ("*.tmp", &b"a/b/x.tmp"[..], &b"a/x.tmp/b"[..]),
            ("/pid", b"pid", b"a/pid"),
            ("a/*/tmp", b"a/b/tmp", b"a/b/c/tmp"),
            ("/a/**/tmp", b"a/b/c/tmp", b"b/a/tmp"),
            ("x*", b"d/x\xff", b"d/\xffx"),
        ] {
            assert!(matches(pattern, yes), "{pattern} {yes:?}");
            assert!(!matches(pattern, no), "{pattern} {no:?}");
        }
        assert!(!Patterns::default().matches(b"a"));
        assert!(Patterns::new(["[a"]).is_err() && Patterns::new([""]).is_err());
    }
}
