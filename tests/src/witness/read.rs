//! Reading the counters, from a directory or from anything that can list and read.

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

use super::{CALLS, Chain, Counters, FILE, LOG_PREFIX, Way, directory};

/// A state of the volume that can be looked into. Names are relative to its root; errors are for people.
pub trait Source {
    /// Names in a directory, in any order.
    fn list(&self, dir: &str) -> Result<Vec<Vec<u8>>, String>;
    /// A file's whole content.
    fn read(&self, dir: &str, name: &[u8]) -> Result<Vec<u8>, String>;
}

/// A directory on disk.
pub struct Directory<'a>(pub &'a Path);

impl Source for Directory<'_> {
    fn list(&self, dir: &str) -> Result<Vec<Vec<u8>>, String> {
        let entries = fs::read_dir(self.0.join(dir)).map_err(|error| error.to_string())?;
        entries
            .map(|entry| Ok(entry.map_err(|error| error.to_string())?.file_name().as_bytes().to_vec()))
            .collect()
    }

    fn read(&self, dir: &str, name: &[u8]) -> Result<Vec<u8>, String> {
        let name = std::ffi::OsStr::from_bytes(name);
        fs::read(self.0.join(dir).join(name)).map_err(|error| error.to_string())
    }
}

/// Reads all counters of [`CALLS`]; an error says what is not as the writer can have left it.
pub fn counters(source: &dyn Source) -> Result<Counters, String> {
    counters_in(CALLS, &[source])
}

/// The same for any chain, along which several volumes may take turns.
pub fn counters_in(chain: Chain, sources: &[&dyn Source]) -> Result<Counters, String> {
    let read = |(place, way): (usize, &Way)| {
        let (source, dir) = (sources[place % sources.len()], directory(place));
        let read = match way {
            Way::Append => last_record(source, &dir),
            _ => source.read(&dir, FILE.as_bytes()).and_then(|bytes| value(&bytes, *way)),
        };
        read.map_err(|reason| format!("{dir}: {reason}"))
    };
    chain.iter().enumerate().map(read).collect()
}

fn value(bytes: &[u8], way: Way) -> Result<u64, String> {
    if bytes.len() != way.file_bytes() {
        return Err(format!("{} bytes instead of {}", bytes.len(), way.file_bytes()));
    }
    word(&bytes[..8])
}

/// The last record of the newest log that has one. Its records must be consecutive.
fn last_record(source: &dyn Source, dir: &str) -> Result<u64, String> {
    let mut logs = source.list(dir)?;
    logs.retain(|name| name.starts_with(LOG_PREFIX.as_bytes()));
    logs.sort();
    while let Some(log) = logs.pop() {
        let bytes = source.read(dir, &log)?;
        if bytes.is_empty() {
            continue;
        }
        let values = bytes.chunks(8).map(word).collect::<Result<Vec<_>, _>>()?;
        if values.windows(2).any(|pair| pair[1] != pair[0] + 1) {
            return Err(format!("{} has a gap", String::from_utf8_lossy(&log)));
        }
        return values.last().copied().ok_or_else(|| "an empty log".to_owned());
    }
    Err("no log with a record".to_owned())
}

fn word(bytes: &[u8]) -> Result<u64, String> {
    let eight = bytes.try_into().map_err(|_| format!("{} bytes instead of 8", bytes.len()))?;
    Ok(u64::from_le_bytes(eight))
}
