//! The directory that all logs live in, and the bound on all of them together.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::lock;
use super::log::OutputLog;
use crate::lines::MAX_LINE;
use crate::model::UnitId;
use crate::retention;

const LOCK_FILE: &str = "lock";
/// The smallest segment, in bytes: smaller ones would be all headers and file names.
const MIN_SEGMENT: u64 = 4096;
/// The largest segment, in bytes: its index counts in 32 bits.
const MAX_SEGMENT: u64 = 1 << 30;

/// Bounds of section 7, in bytes on disk (16 bytes of header for each read of a pipe included).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Kept of one unit; at least 4096 and at most `total` are taken.
    pub per_unit: u64,
    /// Kept of all units; at least 4096 are taken.
    pub total: u64,
}

/// What the logs of a store have in common.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
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
    fn new(dir: &Path, limits: Limits) -> Disk {
        let total = limits.total.max(MIN_SEGMENT);
        let per_unit = limits.per_unit.clamp(MIN_SEGMENT, total);
        let segment = (per_unit / 8).clamp(MIN_SEGMENT, MAX_SEGMENT);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Disk {
            dir: dir.to_owned(),
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
    /// Released by the kernel when it is closed, however we end.
    _lock: Flock<File>,
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
    /// `ResourceBusy` when another daemon has the directory, else what the file system says.
    pub fn open(dir: &Path, limits: Limits) -> io::Result<Arc<LogStore>> {
        Self::open_with(dir, limits, |_| {})
    }

    /// The same, with the sizes changed that are constants otherwise.
    pub(super) fn open_with(dir: &Path, limits: Limits, tune: impl FnOnce(&mut Disk)) -> io::Result<Arc<LogStore>> {
        make_dir(dir).map_err(|error| told(dir, &error))?;
        let lock = lock_dir(dir)?;
        remove_leftovers(dir)?;
        let mut disk = Disk::new(dir, limits);
        tune(&mut disk);
        Ok(Arc::new(LogStore { disk, logs: Mutex::default(), reclaiming: Mutex::default(), _lock: lock }))
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

/// Makes the directory, for its owner only. One that was there before must be empty, or have been ours: nobody else's is
/// to be closed to others, least of all `/tmp`.
fn make_dir(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let foreign = |name: &OsStr| name != "lost+found" && name != LOCK_FILE;
    if !dir.join(LOCK_FILE).exists() && fs::read_dir(dir)?.flatten().any(|entry| foreign(&entry.file_name())) {
        return Err(io::Error::new(
            io::ErrorKind::DirectoryNotEmpty,
            "it has other files in it; name one for logs only",
        ));
    }
    if fs::metadata(dir)?.permissions().mode() & 0o7777 != 0o700 {
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

fn told(dir: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("log directory {}: {error}", dir.display()))
}

fn lock_dir(dir: &Path) -> io::Result<Flock<File>> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(|error| told(dir, &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => {
            let sentence = format!("log directory {} is in use by another daemon", dir.display());
            io::Error::new(io::ErrorKind::ResourceBusy, sentence)
        }
        _ => told(dir, &errno.into()),
    })
}

/// Removes the segments of an earlier daemon, and nothing that is not named like one.
fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_segment) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path()).map_err(|error| told(dir, &error))?;
        }
    }
    Ok(())
}

fn is_segment(name: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    name.split_once('.').is_some_and(|(unit, number)| digits(unit) && digits(number))
}
