//! What a tracepoint means, and how its records are read.

use std::path::Path;

use super::super::{Unavailable, without::left_out};
use super::device::Device;
use super::interpret::Fact;
use super::tracefs::{self, Field, Format};

/// A tracepoint of interest: a line of the tables in [`ext4`](super::ext4) and [`xfs`](super::xfs).
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    /// `group/name`.
    pub(super) event: &'static str,
    /// What its records say.
    pub(super) meaning: Meaning,
    /// Which records the kernel delivers.
    pub(super) filter: Filter,
    /// What this kernel may lack without making the source incomplete.
    pub(super) need: Need,
    /// Whether a record wakes a waiting cutter. Not needed where an inotify event follows anyway: a wakeup costs the
    /// application an interrupt to itself.
    pub(super) wakes: bool,
}

/// Which records pass the kernel's filter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Filter {
    /// Those whose field of this name holds the superblock's device number.
    Device(&'static str),
    /// The same, and whose `flags` hold (`true`) or lack (`false`) each of these flags.
    DeviceAndFlags(&'static str, &'static [(&'static str, bool)]),
    /// Those on this backing device, except for pages of the block device itself.
    BackingDevice,
}

/// Whether the source can do without a tracepoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// It cannot.
    Required,
    /// It can: what the tracepoint reports does not exist on kernels without it, or is a known gap there.
    Optional,
    /// One of the tracepoints marked thus is enough: kernels renamed it.
    OneOf,
}

/// What a record says; the strings are names of its fields.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meaning {
    /// The bytes `offset`..`offset + length` change. Dirties pages in the same thread.
    Bytes { inode: &'static str, offset: &'static str, length: &'static str },
    /// The same, in filesystem blocks.
    Blocks { inode: &'static str, offset: &'static str, length: &'static str },
    /// All bytes from `offset` on change.
    From { inode: &'static str, offset: &'static str },
    /// All bytes change.
    Whole { inode: &'static str },
    /// The size may grow. Dirties pages in the same thread.
    Size { inode: &'static str },
    /// The file is cut short, to `size` if the record says so. Dirties pages in the same thread.
    Cut { inode: &'static str, size: Option<&'static str> },
    /// A direct write begins.
    DirectBegin { inode: &'static str },
    /// A direct read or write of the `length` bytes before `end` is complete.
    DirectEnd { inode: &'static str, end: &'static str, length: &'static str },
    /// The clean folio that begins at page `page` becomes dirty.
    Dirty { inode: &'static str, page: &'static str },
    /// Somebody maps the inode, or stores through a mapping of it.
    Mapping { inode: &'static str },
    /// The inode leaves memory: nobody maps it any more.
    Evicted { inode: &'static str },
}

/// A [`Spec`] resolved for this kernel and device.
#[derive(Debug)]
pub(super) struct Tracepoint {
    pub(super) id: u16,
    pub(super) filter: String,
    pub(super) wakes: bool,
    decoder: Decoder,
}

#[derive(Debug)]
struct Decoder {
    kind: Meaning,
    thread: Field,
    inode: Field,
    first: Option<Field>,
    second: Option<Field>,
    block_bytes: u64,
}

/// Resolves a table. Several lines may name the same event.
pub(super) fn resolve(
    tracefs: &Path,
    specs: &[Spec],
    device: &Device,
) -> Result<Vec<Tracepoint>, Unavailable> {
    let mut tracepoints = Vec::with_capacity(specs.len());
    let mut alternatives: Option<(&'static str, bool)> = None;
    for spec in specs {
        let resolved = tracefs::format_of(tracefs, spec.event)
            .and_then(|format| Tracepoint::resolve(spec, &format, device));
        if spec.need == Need::OneOf {
            let found = alternatives.is_some_and(|(_, found)| found);
            alternatives = Some((spec.event, found || resolved.is_some()));
        }
        match resolved {
            Some(_) if left_out(spec.event) => {}
            Some(tracepoint) => tracepoints.push(tracepoint),
            None if spec.need == Need::Required => {
                return Err(Unavailable::MissingTracepoint { event: spec.event });
            }
            None => {}
        }
    }
    match alternatives {
        Some((event, false)) => Err(Unavailable::MissingTracepoint { event }),
        _ => Ok(tracepoints),
    }
}

impl Tracepoint {
    fn resolve(spec: &Spec, format: &Format, device: &Device) -> Option<Self> {
        let (inode, first, second) = match spec.meaning {
            Meaning::Bytes { inode, offset, length } | Meaning::Blocks { inode, offset, length } => {
                (inode, Some(offset), Some(length))
            }
            Meaning::DirectEnd { inode, end, length } => (inode, Some(end), Some(length)),
            Meaning::Cut { inode, size } => (inode, size, None),
            Meaning::From { inode, offset: first } | Meaning::Dirty { inode, page: first } => {
                (inode, Some(first), None)
            }
            Meaning::Whole { inode }
            | Meaning::Size { inode }
            | Meaning::DirectBegin { inode }
            | Meaning::Mapping { inode }
            | Meaning::Evicted { inode } => (inode, None, None),
        };
        let field = |name: Option<&str>| match name {
            Some(name) => format.field(name).map(Some),
            None => Some(None),
        };
        let decoder = Decoder {
            kind: spec.meaning,
            thread: format.field("common_pid")?,
            inode: format.field(inode)?,
            first: field(first)?,
            second: field(second)?,
            block_bytes: device.block_bytes,
        };
        let filter = filter_text(spec.filter, format, device)?;
        Some(Self { id: format.id, filter, wakes: spec.wakes, decoder })
    }

    /// Whether records of this tracepoint show that an inode is mapped.
    pub(super) fn shows_mappings(&self) -> bool {
        matches!(self.decoder.kind, Meaning::Mapping { .. })
    }

    /// What a record of this tracepoint says; `None` if it is too short.
    pub(super) fn decode(&self, record: &[u8]) -> Option<Fact> {
        let decoder = &self.decoder;
        let thread = decoder.thread.read(record)? as u32;
        let inode = decoder.inode.read(record)?;
        let read = |field: Option<Field>| field.map_or(Some(0), |field| field.read(record));
        let (first, second) = (read(decoder.first)?, read(decoder.second)?);
        let bytes =
            |start: u64, length: u64| Fact::Bytes { thread, inode, start, end: start.saturating_add(length) };
        Some(match decoder.kind {
            Meaning::Bytes { .. } => bytes(first, second),
            Meaning::Blocks { .. } => {
                bytes(first.saturating_mul(decoder.block_bytes), second.saturating_mul(decoder.block_bytes))
            }
            Meaning::From { .. } => bytes(first, u64::MAX),
            Meaning::Whole { .. } => bytes(0, u64::MAX),
            Meaning::Size { .. } => Fact::Size { thread, inode },
            // Unnamed, it may be anything.
            Meaning::Cut { .. } => Fact::Cut { thread, inode, size: first },
            Meaning::DirectBegin { .. } => Fact::DirectBegin { inode },
            // A failed call may have written something, and where it ended is not known.
            Meaning::DirectEnd { .. } => match i64::try_from(second) {
                Ok(1..) => Fact::DirectEnd { inode, start: first.saturating_sub(second), end: first },
                _ => Fact::DirectEnd { inode, start: 0, end: u64::MAX },
            },
            Meaning::Dirty { .. } => Fact::Dirty { thread, inode, page: first },
            Meaning::Mapping { .. } => Fact::Mapping { inode },
            Meaning::Evicted { .. } => Fact::Evicted { inode },
        })
    }
}

fn filter_text(filter: Filter, format: &Format, device: &Device) -> Option<String> {
    match filter {
        Filter::Device(field) => format.has(field).then(|| format!("{field}=={}", device.number)),
        Filter::DeviceAndFlags(field, flags) => {
            let mut text = filter_text(Filter::Device(field), format, device)?;
            for (flag, wanted) in flags {
                let value = format.flag(flag)?;
                let term =
                    if *wanted { format!(" && flags & {value}") } else { format!(" && !(flags & {value})") };
                text.push_str(&term);
            }
            Some(text)
        }
        Filter::BackingDevice => (format.has("name") && format.has("ino"))
            .then(|| format!("name==\"{}\" && ino!={}", device.backing, device.metadata_inode)),
    }
}
