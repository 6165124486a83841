//! As much of LMDB's interface as a bank needs, over the C library itself.

use std::{
    ffi::{CStr, CString},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::{null, null_mut},
};

use lmdb_master_sys as ffi;

/// An open environment in writemap mode, and its one table.
pub(super) struct Env {
    env: *mut ffi::MDB_env,
    table: ffi::MDB_dbi,
}

// SAFETY: LMDB's environments may be used by several threads at once; only transactions are bound to theirs.
unsafe impl Send for Env {}
// SAFETY: as above.
unsafe impl Sync for Env {}

impl Env {
    /// Opens or makes the files in the directory, and maps `map_bytes` of them.
    pub(super) fn open(dir: &Path, map_bytes: usize) -> Result<Self, String> {
        let path = CString::new(dir.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
        let mut this = Self { env: null_mut(), table: 0 };
        // SAFETY: the handle and the path outlive the calls; a failed open is closed by drop, as LMDB wants it.
        unsafe {
            done(ffi::mdb_env_create(&raw mut this.env))?;
            done(ffi::mdb_env_set_mapsize(this.env, map_bytes))?;
            done(ffi::mdb_env_open(this.env, path.as_ptr(), ffi::MDB_WRITEMAP, 0o644))?;
        }
        let mut table = 0;
        this.write(|all| {
            // SAFETY: a live transaction; no name means the one table that is always there.
            done(unsafe { ffi::mdb_dbi_open(all.txn, null(), 0, &raw mut table) })
        })?;
        this.table = table;
        Ok(this)
    }

    /// Does something in a transaction and commits it; an error aborts it.
    pub(super) fn write<T>(&self, work: impl FnOnce(&Txn) -> Result<T, String>) -> Result<T, String> {
        let txn = self.begin(0)?;
        let found = work(&txn)?;
        let handle = txn.txn;
        std::mem::forget(txn);
        // SAFETY: a live transaction, which the commit ends whether or not it succeeds.
        done(unsafe { ffi::mdb_txn_commit(handle) })?;
        Ok(found)
    }

    /// A transaction that only reads.
    pub(super) fn read(&self) -> Result<Txn, String> {
        self.begin(ffi::MDB_RDONLY)
    }

    fn begin(&self, flags: u32) -> Result<Txn, String> {
        let mut txn = null_mut();
        // SAFETY: the environment is open.
        done(unsafe { ffi::mdb_txn_begin(self.env, null_mut(), flags, &raw mut txn) })?;
        Ok(Txn { txn, table: self.table })
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        // SAFETY: nothing uses the environment any more: transactions end before it is dropped.
        unsafe { ffi::mdb_env_close(self.env) };
    }
}

/// A key and its value.
pub(super) type Entry = (Vec<u8>, Vec<u8>);

/// A transaction, aborted unless it is committed. It must not outlive its environment or change threads.
pub(super) struct Txn {
    txn: *mut ffi::MDB_txn,
    table: ffi::MDB_dbi,
}

impl Txn {
    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> Result<Vec<u8>, String> {
        let (mut key, mut value) = (val(key), val(&[]));
        // SAFETY: key and transaction live; the value is copied before anything else happens in the transaction.
        unsafe {
            done(ffi::mdb_get(self.txn, self.table, &raw mut key, &raw mut value))?;
            Ok(bytes(&value))
        }
    }

    /// Sets the value of a key.
    pub(super) fn put(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let (mut key, mut value) = (val(key), val(value));
        // SAFETY: key, value and transaction live; LMDB copies both.
        done(unsafe { ffi::mdb_put(self.txn, self.table, &raw mut key, &raw mut value, 0) })
    }

    /// Removes a key that is there.
    pub(super) fn delete(&self, key: &[u8]) -> Result<(), String> {
        let mut key = val(key);
        // SAFETY: key and transaction live.
        done(unsafe { ffi::mdb_del(self.txn, self.table, &raw mut key, null_mut()) })
    }

    /// How many entries the table says it has.
    pub(super) fn length(&self) -> Result<usize, String> {
        // SAFETY: plain numbers, all of which may be zero.
        let mut stat: ffi::MDB_stat = unsafe { std::mem::zeroed() };
        // SAFETY: a live transaction.
        done(unsafe { ffi::mdb_stat(self.txn, self.table, &raw mut stat) })?;
        Ok(stat.ms_entries)
    }

    /// All entries in the order of their keys, found by walking the whole tree.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, String> {
        let mut cursor = null_mut();
        // SAFETY: a live transaction.
        done(unsafe { ffi::mdb_cursor_open(self.txn, self.table, &raw mut cursor) })?;
        let (mut key, mut value) = (val(&[]), val(&[]));
        let mut entries = Vec::new();
        let ended = loop {
            // SAFETY: cursor and transaction live; both values are copied before the cursor moves on.
            let code = unsafe { ffi::mdb_cursor_get(cursor, &raw mut key, &raw mut value, ffi::MDB_NEXT) };
            if code != 0 {
                break code;
            }
            // SAFETY: as above.
            entries.push(unsafe { (bytes(&key), bytes(&value)) });
        };
        // SAFETY: the cursor is open and its transaction lives.
        unsafe { ffi::mdb_cursor_close(cursor) };
        if ended == ffi::MDB_NOTFOUND { Ok(entries) } else { Err(done(ended).err().unwrap_or_default()) }
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        // SAFETY: a live transaction; a committed one does not come here.
        unsafe { ffi::mdb_txn_abort(self.txn) };
    }
}

fn val(bytes: &[u8]) -> ffi::MDB_val {
    ffi::MDB_val { mv_size: bytes.len(), mv_data: bytes.as_ptr().cast_mut().cast() }
}

/// # Safety
/// The value must be one that LMDB has just returned.
unsafe fn bytes(value: &ffi::MDB_val) -> Vec<u8> {
    // SAFETY: LMDB points into its map, and the caller has done nothing since.
    unsafe { std::slice::from_raw_parts(value.mv_data.cast::<u8>(), value.mv_size) }.to_vec()
}

fn done(code: i32) -> Result<(), String> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: LMDB returns a string for every code.
    Err(unsafe { CStr::from_ptr(ffi::mdb_strerror(code)) }.to_string_lossy().into_owned())
}
