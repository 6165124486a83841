//! The few things that are asked of an object store, and the proof that it does them.
//!
//! Names here are relative to the archive's prefix.

use std::sync::Arc;

use bytes::Bytes;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, path::Path};
use tokio::task::JoinSet;

use super::{
    entry::Entry,
    error::ArchiveError,
    manifest::{CHAIN, DATA, Head, entry_name, entry_number},
};
use crate::limits;

/// An object store at a prefix.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    #[cfg(test)]
    pub(super) fuse: Arc<super::tests::Fuse>,
}

/// An object there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) len: u64,
}

impl Bucket {
    pub(super) fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            #[cfg(test)]
            fuse: Arc::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn fuse_left(&self) -> i64 {
        self.fuse.left()
    }

    /// Writes an object, whatever is there.
    pub(super) async fn put(&self, name: &str, bytes: Bytes) -> Result<(), ArchiveError> {
        #[cfg(test)]
        self.fuse.before(name)?;
        let put = self.store.put(&Path::from(name), PutPayload::from_bytes(bytes)).await;
        #[cfg(test)]
        self.fuse.after(name)?;
        put.map(drop).map_err(ArchiveError::request("write", name))
    }

    /// Writes an object unless there is one; whether it did.
    pub(super) async fn create(&self, name: &str, bytes: Bytes) -> Result<bool, ArchiveError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        #[cfg(test)]
        self.fuse.before(name)?;
        let put = self.store.put_opts(&Path::from(name), PutPayload::from_bytes(bytes), options).await;
        #[cfg(test)]
        self.fuse.after(name)?;
        match put {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(ArchiveError::request("create", name)(error)),
        }
    }

    /// An object's bytes, if it is there.
    pub(super) async fn get(&self, name: &str) -> Result<Option<Bytes>, ArchiveError> {
        let read = async { self.store.get(&Path::from(name)).await?.bytes().await };
        #[cfg(test)]
        self.fuse.read(name, 0)?;
        match read.await {
            Ok(bytes) => {
                #[cfg(test)]
                self.fuse.read(name, bytes.len() as u64)?;
                Ok(Some(bytes))
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(ArchiveError::request("read", name)(error)),
        }
    }

    /// A range of an object's bytes, if the object is there.
    pub(super) async fn get_range(
        &self,
        name: &str,
        range: std::ops::Range<u64>,
    ) -> Result<Option<Bytes>, ArchiveError> {
        #[cfg(test)]
        self.fuse.read(name, range.end - range.start)?;
        match self.store.get_range(&Path::from(name), range).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(ArchiveError::request("read", name)(error)),
        }
    }

    /// An object's length, if it is there.
    pub(super) async fn len(&self, name: &str) -> Result<Option<u64>, ArchiveError> {
        match self.store.head(&Path::from(name)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(ArchiveError::request("look at", name)(error)),
        }
    }

    /// Everything in a folder, in the order of names.
    pub(super) async fn list(&self, folder: &str) -> Result<Vec<Listed>, ArchiveError> {
        let listed = self.store.list_with_delimiter(Some(&Path::from(folder))).await;
        let listed = listed.map_err(ArchiveError::request("list", folder))?;
        let object =
            |meta: object_store::ObjectMeta| Listed { name: meta.location.to_string(), len: meta.size };
        let mut objects: Vec<Listed> = listed.objects.into_iter().map(object).collect();
        objects.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    /// Removes objects, some at a time; those that are gone already do not matter.
    pub(super) async fn remove(&self, names: impl IntoIterator<Item = String>) -> Result<u64, ArchiveError> {
        let (mut names, mut running, mut removed) = (names.into_iter(), JoinSet::new(), 0);
        loop {
            while running.len() < limits::ARCHIVE_PARALLEL
                && let Some(name) = names.next()
            {
                #[cfg(test)]
                self.fuse.before(&name)?;
                let store = self.store.clone();
                running.spawn(async move {
                    match store.delete(&Path::from(name.as_str())).await {
                        Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                        Err(error) => Err(ArchiveError::request("remove", &name)(error)),
                    }
                });
            }
            match running.join_next().await {
                None => return Ok(removed),
                Some(Ok(done)) => done?,
                Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
            }
            removed += 1;
        }
    }

    /// What the chain says; nothing if there is none.
    pub(super) async fn head(&self) -> Result<Option<Head>, ArchiveError> {
        for attempt in 0.. {
            match self.try_head().await {
                // The beginning of what was listed was removed because a new manifest had come.
                Err(ArchiveError::Missing(_)) if attempt < limits::ARCHIVE_MOVED_ATTEMPTS => {}
                other => return other,
            }
        }
        unreachable!("the last attempt returns")
    }

    async fn try_head(&self) -> Result<Option<Head>, ArchiveError> {
        let listed = self.list(CHAIN).await?;
        let mut numbers: Vec<u64> = listed.iter().filter_map(|found| entry_number(&found.name)).collect();
        numbers.sort_unstable();
        // The chain is begun before anything else is written, and never removed as a whole: whoever began it anew would remove all the rest.
        if numbers.is_empty() {
            let objects = self.list(DATA).await?.len();
            return if objects == 0 { Ok(None) } else { Err(ArchiveError::NoChain { objects }) };
        }
        // Back to the newest manifest, and from there on.
        let mut entries = Vec::new();
        while let Some(number) = numbers.pop() {
            let name = entry_name(number);
            let bytes = self.get(&name).await?.ok_or_else(|| ArchiveError::Missing(name.clone()))?;
            let entry = Entry::decode(&name, &bytes)?;
            if entry.number != number {
                return Err(ArchiveError::Damaged { name, what: "is another one's" });
            }
            let whole = entry.is_manifest();
            entries.push(entry);
            if whole {
                break;
            }
        }
        let mut head = None;
        for entry in entries.into_iter().rev() {
            let name = entry_name(entry.number);
            let follows = entry.onto(head);
            head =
                Some(follows.ok_or(ArchiveError::Damaged { name, what: "does not follow the one before" })?);
        }
        Ok(head)
    }

    /// Adds an entry to the chain; the one that is there instead, if there is one.
    pub(super) async fn append(&self, entry: &Entry) -> Result<Result<(), Entry>, ArchiveError> {
        let (name, bytes) = (entry_name(entry.number), entry.encode());
        if self.create(&name, bytes.clone()).await? {
            return Ok(Ok(()));
        }
        // It may be our own: an answer that was lost on its way.
        let found = self.get(&name).await?.ok_or_else(|| ArchiveError::Missing(name.clone()))?;
        if found == bytes { Ok(Ok(())) } else { Ok(Err(Entry::decode(&name, &found)?)) }
    }

    /// Whether conditional puts are honoured: the chain rests on it. One after the other, and all at once, exactly one may win.
    pub(super) async fn prove(&self) -> Result<(), ArchiveError> {
        let name = |round: u32| format!("probe/{:016x}-{round}", rand::random::<u64>());
        let (one, race) = (name(1), name(2));
        let first = self.create(&one, Bytes::from_static(b"1")).await?;
        let second = self.create(&one, Bytes::from_static(b"2")).await?;
        let mut racers = JoinSet::new();
        for racer in 0..limits::ARCHIVE_RACERS {
            let (bucket, name) = (self.clone(), race.clone());
            racers.spawn(async move { bucket.create(&name, vec![racer].into()).await });
        }
        let mut winners = 0;
        while let Some(raced) = racers.join_next().await {
            winners += u32::from(raced.unwrap_or(Ok(false))?);
        }
        let kept = self.get(&one).await?;
        self.remove([one, race]).await?;
        // Losers may all have lost to a conflict; two winners must never be.
        let honoured = first && !second && winners <= 1 && kept.as_deref() == Some(b"1");
        if honoured { Ok(()) } else { Err(ArchiveError::Unconditional) }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn an_object_is_created_once() {
        let bucket = Bucket::new(Arc::new(InMemory::new()));
        assert!(bucket.create("data/a", "1".into()).await.expect("created"));
        assert!(!bucket.create("data/a", "2".into()).await.expect("answered"));
        assert_eq!(bucket.get("data/a").await.expect("read").as_deref(), Some(&b"1"[..]));
        bucket.put("data/b", "22".into()).await.expect("written");
        let listed = bucket.list("data").await.expect("listed");
        assert_eq!(listed[1], Listed { name: "data/b".to_owned(), len: 2 });
        let gone = ["data/a", "data/b", "data/c"].map(str::to_owned);
        bucket.remove(gone).await.expect("removed");
        assert!(bucket.list("data").await.expect("listed").is_empty());
        bucket.prove().await.expect("preconditions hold");
        assert!(bucket.list("probe").await.expect("listed").is_empty(), "nothing is left behind");
    }
}
