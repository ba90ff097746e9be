//! All logs in one directory, and the limit on their total size.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::disk::Disk;
use super::state::{LogState, OnTruncation};
use super::{LogLimits, lock};
use crate::logs::retention;
use crate::model::UnitId;
use crate::shrink::shrink_map;

/// Passes the files of a dropped log to the thread that removes them.
type RemoveFiles = Box<dyn Fn(Removal) + Send + Sync>;

/// The files of a log after its last reference was dropped.
#[derive(Debug)]
pub struct Removal {
    store: Arc<LogStore>,
    unit: UnitId,
    numbers: Vec<u64>,
    /// The file that was being written and is still open.
    active: Option<Arc<File>>,
}

impl Removal {
    pub(super) fn new(store: Arc<LogStore>, unit: UnitId, numbers: Vec<u64>, active: Option<Arc<File>>) -> Removal {
        Removal { store, unit, numbers, active }
    }

    /// Removes the files. Blocks while the file system does.
    pub fn perform(self) {
        drop(self.active);
        for number in self.numbers {
            self.store.disk.remove(self.unit, number);
        }
    }
}

/// All logs in one directory.
pub struct LogStore {
    pub(super) disk: Disk,
    /// The state of each log that is still referenced.
    logs: Mutex<HashMap<UnitId, Weak<LogState>>>,
    /// Held while old segments are being dropped, so that two threads do not both free the space for one of them.
    reclaiming: Mutex<()>,
    remove_files: OnceLock<RemoveFiles>,
    pub(super) on_truncation: Arc<OnTruncation>,
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl LogStore {
    /// Creates `dir` (mode 0700), locks it, and removes the segments of an earlier daemon.
    ///
    /// # Errors
    /// `ResourceBusy` if another daemon uses the directory, `PermissionDenied` if it or its lock file belongs to
    /// another user, or an error of the file system.
    pub fn open(dir: &Path, limits: LogLimits) -> io::Result<Arc<LogStore>> {
        Self::open_with(dir, limits, |_| {})
    }

    /// Like [`LogStore::open`], with sizes changed by `tune` that are otherwise constants.
    pub(super) fn open_with(dir: &Path, limits: LogLimits, tune: impl FnOnce(&mut Disk)) -> io::Result<Arc<LogStore>> {
        let mut disk = Disk::open(dir, limits)?;
        tune(&mut disk);
        Ok(Arc::new(LogStore {
            disk,
            logs: Mutex::default(),
            reclaiming: Mutex::default(),
            remove_files: OnceLock::new(),
            on_truncation: Arc::default(),
        }))
    }

    /// Sets a function that receives the files of dropped logs and removes them on another thread. Without it, the
    /// thread that drops the last reference to a log removes its files.
    pub fn set_remove_files(&self, remove: impl Fn(Removal) + Send + Sync + 'static) {
        let _ = self.remove_files.set(Box::new(remove));
    }

    /// Sets a function that is called, once for each log, when output of it is dropped or cannot be kept for the first
    /// time. It must not block.
    pub fn set_on_truncation(&self, notify: impl Fn(UnitId) + Send + Sync + 'static) {
        self.on_truncation.set(notify);
    }

    /// Total size of all logs on disk, in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.disk.used.load(Ordering::Relaxed)
    }

    pub(super) fn register(&self, log: &Arc<LogState>) {
        lock(&self.logs).insert(log.unit, Arc::downgrade(log));
    }

    pub(super) fn forget(&self, unit: UnitId) {
        let mut logs = lock(&self.logs);
        logs.remove(&unit);
        shrink_map(&mut logs);
    }

    pub(super) fn remove_files(&self, removal: Removal) {
        match self.remove_files.get() {
            Some(remove) => remove(removal),
            None => removal.perform(),
        }
    }

    /// Drops old segments if `need` more bytes would exceed the limit. Must be called with no log locked.
    pub(super) fn make_room(&self, need: u64) {
        if self.total_bytes() + need > self.disk.total {
            self.reclaim(need);
        }
    }

    fn reclaim(&self, need: u64) {
        let _turn = lock(&self.reclaiming);
        let excess = (self.total_bytes() + need).saturating_sub(self.disk.total);
        if excess == 0 {
            return;
        }
        let logs: HashMap<UnitId, Arc<LogState>> = {
            let registry = lock(&self.logs);
            registry.iter().filter_map(|(unit, log)| Some((*unit, log.upgrade()?))).collect()
        };
        let holdings = logs.values().map(|log| log.holding()).collect();
        for (unit, count) in retention::to_drop(holdings, excess) {
            if let Some(log) = logs.get(&unit) {
                for _ in 0..count {
                    log.drop_oldest(&self.disk);
                }
            }
        }
    }
}
