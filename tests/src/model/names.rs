//! Names from a small set, so that operations meet: plain, long, odd, and not UTF-8.

use std::{ffi::OsString, os::unix::ffi::OsStringExt};

use rand::Rng;

/// A name for a directory entry.
pub(super) fn random(rng: &mut impl Rng) -> OsString {
    let number: u32 = rng.random_range(0..24);
    let name = match number % 8 {
        0 => format!("a file with spaces {number}").into_bytes(),
        1 => [b"\xff\xfe not utf-8 ".as_slice(), number.to_string().as_bytes()].concat(),
        2 => format!("{}{number}", "long-".repeat(40)).into_bytes(),
        3 => format!("new\nline {number}").into_bytes(),
        _ => format!("n{number}").into_bytes(),
    };
    OsString::from_vec(name)
}
