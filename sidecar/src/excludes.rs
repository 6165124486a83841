//! Names of a volume that are left out: neither captured, nor watched, nor looked at below.
//!
//! A pattern without a slash matches that name wherever it is; one with a slash matches a path from the volume's root (a
//! leading slash alone means "in the root"). `*` and `?` stop at slashes, `**` does not.
//!
//! What is left out by default can break nothing that is restored without it. Everything else is the operator's word: a
//! database that lacks one of its files is no copy of it.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt, path::Path};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Left out of every volume: where a file system check puts what it found, which belongs to the file system.
pub const DEFAULT_EXCLUDES: [&str; 1] = ["/lost+found"];

/// A pattern that cannot be understood, or cannot be meant.
#[derive(Debug, thiserror::Error)]
pub enum ExcludeError {
    /// No glob.
    #[error("--exclude {pattern:?}: {source}")]
    Glob {
        /// The pattern.
        pattern: String,
        /// Why not.
        source: globset::Error,
    },
    /// Nothing has such a path.
    #[error(
        "--exclude {0:?} matches nothing: write a name, or a path from the volume's root without `.`, `..` and a slash at its end"
    )]
    Nothing(String),
    /// Every name matches.
    #[error("--exclude {0:?} leaves out everything")]
    Everything(String),
}

/// The patterns of one volume.
#[derive(Debug, Clone, Default)]
pub struct Excludes {
    anywhere: GlobSet,
    in_root: GlobSet,
    by_path: GlobSet,
}

impl Excludes {
    /// The defaults and these.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, ExcludeError> {
        let (mut anywhere, mut in_root, mut by_path) =
            (GlobSetBuilder::new(), GlobSetBuilder::new(), GlobSetBuilder::new());
        for pattern in DEFAULT_EXCLUDES.into_iter().chain(patterns) {
            let failed = |source| ExcludeError::Glob { pattern: pattern.to_owned(), source };
            let from_root = pattern.strip_prefix('/').unwrap_or(pattern);
            if from_root.split('/').any(|part| matches!(part, "" | "." | "..")) {
                return Err(ExcludeError::Nothing(pattern.to_owned()));
            }
            let stars = from_root.split('/').all(|part| matches!(part, "*" | "**"));
            if stars && (from_root == "*" || from_root.contains("**")) {
                return Err(ExcludeError::Everything(pattern.to_owned()));
            }
            let glob = GlobBuilder::new(from_root).literal_separator(true).build().map_err(failed)?;
            match (pattern.starts_with('/'), from_root.contains('/')) {
                (_, true) => by_path.add(glob),
                (true, false) => in_root.add(glob),
                (false, false) => anywhere.add(glob),
            };
        }
        let build = |builder: GlobSetBuilder| {
            builder.build().map_err(|source| ExcludeError::Glob { pattern: String::new(), source })
        };
        Ok(Self { anywhere: build(anywhere)?, in_root: build(in_root)?, by_path: build(by_path)? })
    }

    /// Whether the meaning of a name depends on where its directory is.
    pub(crate) fn depend_on_path(&self) -> bool {
        !self.by_path.is_empty()
    }

    /// Whether an entry is left out. `directory` is the path of its directory from the root, asked for only if needed.
    pub(crate) fn contain(
        &self,
        in_root: bool,
        name: &[u8],
        directory: impl FnOnce() -> Option<Vec<u8>>,
    ) -> bool {
        fn as_path(bytes: &[u8]) -> &Path {
            Path::new(OsStr::from_bytes(bytes))
        }
        if self.anywhere.is_match(as_path(name)) || (in_root && self.in_root.is_match(as_path(name))) {
            return true;
        }
        self.depend_on_path()
            && directory().is_some_and(|mut path| {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                self.by_path.is_match(as_path(&path))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(patterns: &[&str], path: &str) -> bool {
        let excludes = Excludes::new(patterns.iter().copied()).expect("good patterns");
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        excludes.contain(dir.is_empty(), name.as_bytes(), || Some(dir.into()))
    }

    #[test]
    fn a_pattern_means_a_name_a_name_in_the_root_or_a_path() {
        for (pattern, yes, no) in [
            ("*.tmp", "a/b/x.tmp", "a/x.tmp/b"),
            ("/pid", "pid", "a/pid"),
            ("a/*/tmp", "a/b/tmp", "a/b/c/tmp"),
            ("/a/**/tmp", "a/b/c/tmp", "b/a/tmp"),
        ] {
            assert!(contains(&[pattern], yes), "{pattern} {yes}");
            assert!(!contains(&[pattern], no), "{pattern} {no}");
        }
        assert!(contains(&[], "lost+found") && !contains(&[], "a/lost+found"));
        assert!(Excludes::new(["[a"]).is_err());
        for nothing in ["", "/", "tmp/", "./k", "a//b", "../a"] {
            assert!(matches!(Excludes::new([nothing]), Err(ExcludeError::Nothing(_))), "{nothing}");
        }
        for everything in ["*", "**", "/*", "/**", "**/*"] {
            assert!(matches!(Excludes::new([everything]), Err(ExcludeError::Everything(_))), "{everything}");
        }
        assert!(Excludes::new(["*/*", "a*", "**/x"]).is_ok());
    }

    #[test]
    fn names_are_bytes() {
        let excludes = Excludes::new(["x*"]).expect("a good pattern");
        assert!(excludes.contain(true, b"x\xff", || None));
    }
}
