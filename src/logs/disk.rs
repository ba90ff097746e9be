//! The parts that all logs of a store share: the directory, the limits, and the files of segments.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::LogLimits;
use super::directory::{self, LogDirectory};
use super::lock;
use crate::logs::lines::{MAX_HELD_LINE, MAX_LINE};
use crate::model::{Millis, UnitId};

/// Minimum size of a segment, in bytes. The overhead of smaller ones would be too high.
const MIN_SEGMENT: u64 = 4096;
/// Maximum size of a segment, in bytes, because its index has 32-bit offsets.
const MAX_SEGMENT: u64 = 1 << 30;

/// The directory of a store, its limits, and its disk usage.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    /// The directory and its lock file. Only threads that create files lock this, and they take no other lock
    /// meanwhile.
    directory: Mutex<LogDirectory>,
    /// Whether the directory was lost and created again.
    pub(super) remade: AtomicBool,
    /// Different for each store, so that cursors of another daemon do not match any log of this one.
    pub(super) nonce: u64,
    pub(super) per_unit: u64,
    pub(super) total: u64,
    /// The size of a segment, in bytes.
    pub(super) segment: u64,
    /// The distance between two entries of a segment's index, in bytes.
    pub(super) index_every: u64,
    /// Maximum number of bytes per read.
    pub(super) chunk: usize,
    /// Length in bytes of the pieces into which longer lines are split.
    pub(super) max_line: usize,
    /// Length in bytes above which lines are not held in memory but read again piece by piece.
    pub(super) max_held_line: usize,
    /// Total size of all segment files, in bytes.
    pub(super) used: AtomicU64,
    /// Number of ends of logs so far.
    ended: AtomicU64,
    /// Time of the last warning that the disk fails.
    warned: AtomicU64,
}

/// Minimum time between two warnings that the disk fails, in milliseconds. Each log that is written meets the failure.
const WARN_INTERVAL: Millis = 10_000;

impl Disk {
    /// Whether the failure of the disk may be logged as a warning now: once in [`WARN_INTERVAL`].
    pub(super) fn may_warn(&self, now: Millis) -> bool {
        let may = now.abs_diff(self.warned.load(Ordering::Relaxed)) >= WARN_INTERVAL;
        if may {
            self.warned.store(now, Ordering::Relaxed);
        }
        may
    }

    /// Creates `dir` (mode 0700), locks it, and removes the segments of an earlier daemon.
    ///
    /// # Errors
    /// Those of [`LogStore::open`](super::LogStore::open).
    pub(super) fn open(dir: &Path, limits: LogLimits) -> io::Result<Disk> {
        let directory = directory::open(dir)?;
        directory::remove_leftovers(dir)?;
        let total = limits.total.max(MIN_SEGMENT);
        let per_unit = limits.per_unit.clamp(MIN_SEGMENT, total);
        let segment = (per_unit / 8).clamp(MIN_SEGMENT, MAX_SEGMENT);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Disk {
            dir: dir.to_owned(),
            directory: Mutex::new(directory),
            remade: AtomicBool::new(false),
            // The low bits are those that differ between two starts.
            nonce: (u64::from(now.subsec_nanos()) ^ (now.as_secs() << 30)) & 0xFFFF_FFFF,
            per_unit,
            total,
            segment,
            // At most 32 entries per segment: the index of a full log takes 4 KiB.
            index_every: (segment / 32).max(256 * 1024),
            chunk: 64 * 1024,
            max_line: MAX_LINE,
            max_held_line: MAX_HELD_LINE,
            used: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            warned: AtomicU64::new(0),
        })
    }

    /// The file of a segment.
    pub(super) fn path(&self, unit: UnitId, number: u64) -> PathBuf {
        self.dir.join(format!("{unit}.{number}"))
    }

    /// Creates the file of a segment. An existing file with its name is removed: the directory belongs to this daemon
    /// alone, and segment numbers are never reused.
    ///
    /// # Errors
    /// If the directory was lost and cannot be created again, or another error of the file system.
    pub(super) fn create(&self, unit: UnitId, number: u64) -> io::Result<File> {
        self.restore_directory()?;
        let path = self.path(unit, number);
        let create = || OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        match create() {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => fs::remove_file(&path).and_then(|()| create()),
            created => created,
        }
    }

    /// Opens the file of a segment to append to it: its records end at `len`.
    ///
    /// # Errors
    /// An error of the file system.
    pub(super) fn reopen(&self, unit: UnitId, number: u64, len: u64) -> io::Result<File> {
        let mut file = OpenOptions::new().read(true).write(true).open(self.path(unit, number))?;
        file.seek(SeekFrom::Start(len))?;
        Ok(file)
    }

    /// Removes the file of a segment, if it exists.
    pub(super) fn remove(&self, unit: UnitId, number: u64) {
        if let Err(error) = fs::remove_file(self.path(unit, number))
            && error.kind() != ErrorKind::NotFound
        {
            log::debug!("segment {number} of the log of unit {unit} cannot be removed: {error}");
        }
    }

    /// Checks that the directory and its lock file still exist before a file is created in it. If it was removed,
    /// creates it again as at the start.
    fn restore_directory(&self) -> io::Result<()> {
        let mut current = lock(&self.directory);
        if current.is_at(&self.dir) {
            return current.keep_locked(&self.dir);
        }
        // The old lock is held until the new one is taken.
        *current = directory::open(&self.dir)?;
        self.remade.store(true, Ordering::Relaxed);
        let dir = self.dir.display();
        log::warn!("the log directory {dir} was removed and has been created again: output that was in it may be lost");
        Ok(())
    }

    /// The rank of the next end of a log among all ends.
    pub(super) fn next_end(&self) -> u64 {
        self.ended.fetch_add(1, Ordering::Relaxed)
    }
}
