//! The directory that all logs live in, and the bound on all of them together.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use super::directory::{self, Taken};
use super::lock;
use super::log::OutputLog;
use crate::logs::lines::MAX_LINE;
use crate::logs::retention;
use crate::model::UnitId;

/// The smallest segment, in bytes: smaller ones would be all headers and file names.
const MIN_SEGMENT: u64 = 4096;
/// The largest segment, in bytes: its index counts in 32 bits.
const MAX_SEGMENT: u64 = 1 << 30;

/// Bounds of section 7, in bytes on disk (16 bytes of header for each read of a pipe included).
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// Kept of one unit; at least 4096 and at most `total` are taken.
    pub per_unit: u64,
    /// Kept of all units; at least 4096 are taken.
    pub total: u64,
}

/// What the logs of a store have in common.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    /// The directory itself. Nothing else is locked while this is.
    taken: Mutex<Taken>,
    /// The directory was lost and made anew.
    pub(super) remade: AtomicBool,
    /// Told apart from stores of other daemons, so that a cursor of theirs is not taken for one of ours.
    pub(super) nonce: u64,
    pub(super) per_unit: u64,
    total: u64,
    /// The size of a segment, in bytes.
    pub(super) segment: u64,
    /// Between two entries of a segment's index, in bytes.
    pub(super) index_every: u64,
    /// What a reader reads at once, in bytes.
    pub(super) chunk: usize,
    /// Lines are cut at this length.
    pub(super) max_line: usize,
    /// Lines up to this length are held in memory; longer ones are read again piece by piece, in bytes.
    pub(super) short_line: usize,
    /// On disk now.
    pub(super) used: AtomicU64,
    /// Counts the units that ended.
    ended: AtomicU64,
}

impl Disk {
    fn new(dir: &Path, taken: Taken, limits: LogLimits) -> Disk {
        let total = limits.total.max(MIN_SEGMENT);
        let per_unit = limits.per_unit.clamp(MIN_SEGMENT, total);
        let segment = (per_unit / 8).clamp(MIN_SEGMENT, MAX_SEGMENT);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Disk {
            dir: dir.to_owned(),
            taken: Mutex::new(taken),
            remade: AtomicBool::new(false),
            // The low bits are all that changes between two starts.
            nonce: (u64::from(now.subsec_nanos()) ^ (now.as_secs() << 30)) & 0xFFFF_FFFF,
            per_unit,
            total,
            segment,
            // At most 32 entries a segment: an index of a full log takes 4 KiB.
            index_every: (segment / 32).max(256 * 1024),
            chunk: 64 * 1024,
            max_line: MAX_LINE,
            short_line: 16 * 1024,
            used: AtomicU64::new(0),
            ended: AtomicU64::new(0),
        }
    }

    pub(super) fn path(&self, unit: UnitId, segment: u64) -> PathBuf {
        self.dir.join(format!("{unit}.{segment}"))
    }

    /// Sees that the directory is the one that we have, before a file is made in it. One that was removed under us is made
    /// anew, as at the start.
    pub(super) fn ready(&self) -> io::Result<()> {
        let mut taken = lock(&self.taken);
        if taken.is_at(&self.dir) {
            return taken.keep_locked(&self.dir);
        }
        // The old lock is held until the new one is.
        *taken = directory::take(&self.dir)?;
        self.remade.store(true, Ordering::Relaxed);
        let dir = self.dir.display();
        log::warn!("the log directory {dir} was removed and is made anew: output that was in it may be lost");
        Ok(())
    }

    /// The number of the next unit that ends.
    pub(super) fn next_end(&self) -> u64 {
        self.ended.fetch_add(1, Ordering::Relaxed)
    }
}

/// All logs, below one directory.
pub struct LogStore {
    pub(super) disk: Disk,
    logs: Mutex<HashMap<UnitId, Weak<OutputLog>>>,
    /// Held while old segments are being dropped, so that two who need room do not both drop as much.
    reclaiming: Mutex<()>,
}

impl fmt::Debug for LogStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogStore").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl LogStore {
    /// Makes `dir` (0700), takes its lock, removes what an earlier daemon left there.
    ///
    /// # Errors
    /// `ResourceBusy` when another daemon has the directory, `PermissionDenied` when it or its lock is another user's, else
    /// what the file system says.
    pub fn open(dir: &Path, limits: LogLimits) -> io::Result<Arc<LogStore>> {
        Self::open_with(dir, limits, |_| {})
    }

    /// The same, with the sizes changed that are constants otherwise.
    pub(super) fn open_with(dir: &Path, limits: LogLimits, tune: impl FnOnce(&mut Disk)) -> io::Result<Arc<LogStore>> {
        let taken = directory::take(dir)?;
        directory::remove_leftovers(dir)?;
        let mut disk = Disk::new(dir, taken, limits);
        tune(&mut disk);
        Ok(Arc::new(LogStore { disk, logs: Mutex::default(), reclaiming: Mutex::default() }))
    }

    /// A log for a new unit. No file until the first byte.
    pub fn create(self: &Arc<Self>, unit: UnitId) -> Arc<OutputLog> {
        let log = Arc::new(OutputLog::new(Arc::clone(self), unit));
        lock(&self.logs).insert(unit, Arc::downgrade(&log));
        log
    }

    /// Bytes that all logs take on disk now.
    pub fn total_bytes(&self) -> u64 {
        self.disk.used.load(Ordering::Relaxed)
    }

    pub(super) fn forget(&self, unit: UnitId) {
        lock(&self.logs).remove(&unit);
    }

    /// Makes room for `need` more bytes. Called with no log locked.
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
        // The last reference to a log takes the registry's lock when it goes: none may go while we hold it.
        let logs: HashMap<_, _> = {
            let registry = lock(&self.logs);
            registry.iter().filter_map(|(unit, log)| Some((*unit, log.upgrade()?))).collect()
        };
        let holdings = logs.values().map(|log| log.holding()).collect();
        for (unit, count) in retention::to_drop(holdings, excess) {
            if let Some(log) = logs.get(&unit) {
                log.drop_oldest(count);
            }
        }
    }
}
