//! The kernel's own description of its tracepoints, from tracefs.
//!
//! A tracepoint's record has no stable layout: ids, field offsets and flag values are read from its `format` file, and
//! nothing is assumed about them.

use std::fs;
use std::path::{Path, PathBuf};

/// Where tracefs is mounted, if it is readable.
pub(super) fn locate() -> Option<PathBuf> {
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .map(PathBuf::from)
        .find(|root| fs::read_dir(root.join("events")).is_ok())
}

/// Reads the format of a tracepoint named `group/name`; `None` if the kernel has none, or describes it in a new way.
pub(super) fn format_of(tracefs: &Path, event: &str) -> Option<Format> {
    let text = fs::read_to_string(tracefs.join("events").join(event).join("format")).ok()?;
    Format::parse(&text)
}

/// One tracepoint's record.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Format {
    /// What `perf_event_attr.config` and a record's `common_type` hold.
    pub(super) id: u16,
    fields: Vec<(String, Field)>,
    flags: Vec<(String, u64)>,
}

/// Where an integer lies in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    offset: usize,
    size: usize,
    signed: bool,
}

impl Format {
    /// Parses a `format` file.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let id = text.lines().find_map(|line| line.strip_prefix("ID: "))?.trim().parse().ok()?;
        let fields: Vec<(String, Field)> = text.lines().filter_map(parse_field).collect();
        let flags =
            text.lines().find(|line| line.starts_with("print fmt:")).map(parse_flags).unwrap_or_default();
        (!fields.is_empty()).then_some(Self { id, fields, flags })
    }

    /// An integer field, by name.
    pub(super) fn field(&self, name: &str) -> Option<Field> {
        let (_, field) = self.fields.iter().find(|(known, _)| known == name)?;
        matches!(field.size, 1 | 2 | 4 | 8).then_some(*field)
    }

    /// Whether there is a field of this name, of any type.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(known, _)| known == name)
    }

    /// The value of a flag that the print format names.
    pub(super) fn flag(&self, name: &str) -> Option<u64> {
        self.flags.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

impl Field {
    /// The field's value in a record, sign-extended if it is signed; `None` if the record is too short.
    pub(super) fn read(self, record: &[u8]) -> Option<u64> {
        let bytes = record.get(self.offset..self.offset.checked_add(self.size)?)?;
        Some(match (bytes, self.signed) {
            (&[a], false) => u64::from(a),
            (&[a], true) => i64::from(a as i8) as u64,
            (&[a, b], false) => u64::from(u16::from_ne_bytes([a, b])),
            (&[a, b], true) => i64::from(i16::from_ne_bytes([a, b])) as u64,
            (&[a, b, c, d], false) => u64::from(u32::from_ne_bytes([a, b, c, d])),
            (&[a, b, c, d], true) => i64::from(i32::from_ne_bytes([a, b, c, d])) as u64,
            _ => u64::from_ne_bytes(bytes.try_into().ok()?),
        })
    }
}

/// `field:loff_t pos; offset:24; size:8; signed:1;`, with tabs between
fn parse_field(line: &str) -> Option<(String, Field)> {
    let mut parts = line.trim().split(';').map(str::trim);
    let declaration = parts.next()?.strip_prefix("field:")?;
    let name = declaration.rsplit([' ', '*']).next()?.split('[').next()?;
    let (mut offset, mut size, mut signed) = (None, None, false);
    for part in parts {
        match part.split_once(':') {
            Some(("offset", value)) => offset = value.parse().ok(),
            Some(("size", value)) => size = value.parse().ok(),
            Some(("signed", value)) => signed = value == "1",
            _ => {}
        }
    }
    Some((name.to_owned(), Field { offset: offset?, size: size?, signed }))
}

/// Every `{ VALUE, "NAME" }` of a print format, where VALUE is `(1 << n)`, `(1u << n)` or a hexadecimal number.
fn parse_flags(print: &str) -> Vec<(String, u64)> {
    let pairs = print.split('{').skip(1).filter_map(|part| part.split('}').next());
    pairs
        .filter_map(|pair| {
            let (value, name) = pair.rsplit_once(',')?;
            Some((name.trim().trim_matches('"').to_owned(), parse_flag(value)?))
        })
        .collect()
}

fn parse_flag(value: &str) -> Option<u64> {
    let value = value.trim().trim_end_matches(')').trim();
    if let Some((one, shift)) = value.rsplit_once("<<") {
        let one = one.trim().rsplit('(').next()?.trim_end_matches(char::is_alphabetic);
        return one.parse::<u64>().ok()?.checked_shl(shift.trim().parse().ok()?);
    }
    u64::from_str_radix(value.rsplit_once("0x")?.1, 16).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const ITER: &str = "name: iomap_iter
ID: 1136
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:dev_t dev;	offset:8;	size:4;	signed:0;
	field:char name[32];	offset:12;	size:32;	signed:0;
	field:loff_t pos;	offset:48;	size:8;	signed:1;
	field:const void * ops;	offset:56;	size:8;	signed:0;

print fmt: \"flags %s\", __print_flags(REC->flags, \"|\", { (1 << 0), \"WRITE\" }, { (1u << 4), \"DIRECT\" }, { ( int) (( __kernel_rwf_t)0x00000040), \"ATOMIC\" }), REC->flags
";

    #[test]
    fn reads_ids_fields_and_flags() {
        let format = Format::parse(ITER).unwrap();
        assert_eq!(format.id, 1136);
        assert_eq!(format.field("pos"), Some(Field { offset: 48, size: 8, signed: true }));
        assert!(format.has("name") && format.field("name").is_none());
        assert!(format.has("ops") && !format.has("nothing"));
        assert_eq!(
            (format.flag("WRITE"), format.flag("DIRECT"), format.flag("ATOMIC")),
            (Some(1), Some(16), Some(64))
        );
        assert_eq!(format.flag("NOTHING"), None);
    }

    #[test]
    fn a_short_record_has_no_fields() {
        let field = Field { offset: 4, size: 4, signed: true };
        assert_eq!(field.read(&[0; 7]), None);
        assert_eq!(field.read(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Some(u64::MAX));
        assert_eq!(Field { offset: usize::MAX, size: 8, signed: false }.read(&[0; 7]), None);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in "(ID: [0-9]{1,6}\n)?(\\PC|[{},;:<()\n]|field:|offset:|print fmt:|0x|<<){0,64}") {
            let _ = Format::parse(&text);
        }
    }
}
