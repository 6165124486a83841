//! Reading the counters, from a directory or from anything that can list and read.

use std::{fs, os::unix::ffi::OsStrExt, path::Path};

use super::{Counters, FILE, LENGTH, LOG_PREFIX, Way, directory, way};

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

/// Reads all counters; an error says what is not as the writer can have left it.
pub fn counters(source: &dyn Source) -> Result<Counters, String> {
    counters_in(&[source])
}

/// The same where several volumes take turns along the chain.
pub fn counters_in(sources: &[&dyn Source]) -> Result<Counters, String> {
    let mut values = [0; LENGTH];
    for (place, value) in values.iter_mut().enumerate() {
        let source = sources[place % sources.len()];
        let dir = directory(place);
        let read = if way(place) == Way::Append {
            last_record(source, &dir)
        } else {
            source.read(&dir, FILE.as_bytes()).and_then(|bytes| word(&bytes))
        };
        *value = read.map_err(|reason| format!("{dir}: {reason}"))?;
    }
    Ok(values)
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
