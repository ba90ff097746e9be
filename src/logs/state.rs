//! The state of a log that its writer, its readers and the store share, under one lock that is never held during I/O.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use super::disk::Disk;
use super::lock;
use super::record::LogPosition;
use super::segments::{Removed, Segments};
use crate::logs::retention::Holding;
use crate::metrics::METRICS;
use crate::model::{RunEnd, UnitId};

/// The shared part of one log.
#[derive(Debug)]
pub(super) struct LogState {
    pub(super) unit: UnitId,
    /// Output was dropped, or could not be written to the disk.
    pub(super) truncated: AtomicBool,
    on_truncation: Arc<OnTruncation>,
    contents: Mutex<Contents>,
}

/// A function that is called at the first truncation of each log.
#[derive(Default)]
pub(super) struct OnTruncation(OnceLock<Box<dyn Fn(UnitId) + Send + Sync>>);

impl OnTruncation {
    pub(super) fn set(&self, notify: impl Fn(UnitId) + Send + Sync + 'static) {
        let _ = self.0.set(Box::new(notify));
    }

    fn call(&self, unit: UnitId) {
        if let Some(notify) = self.0.get() {
            notify(unit);
        }
    }
}

impl fmt::Debug for OnTruncation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnTruncation").finish_non_exhaustive()
    }
}

/// The state that the lock protects.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) segments: Segments,
    pub(super) end: Option<End>,
    /// Number of revoked ends.
    pub(super) epoch: u64,
}

/// The end of the last run.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// The position at which followers end.
    pub(super) position: LogPosition,
    pub(super) run: RunEnd,
    /// Its rank among all ends, for retention.
    pub(super) order: u64,
}

impl LogState {
    pub(super) fn new(unit: UnitId, on_truncation: Arc<OnTruncation>) -> LogState {
        LogState { unit, truncated: AtomicBool::new(false), on_truncation, contents: Mutex::default() }
    }

    /// Records that a part of the output was dropped.
    pub(super) fn note_truncation(&self) {
        if !self.truncated.swap(true, Ordering::Relaxed) {
            self.on_truncation.call(self.unit);
        }
        METRICS.truncations.increment();
    }

    /// Runs `work`, which must not block, under the lock. What `work` removes from the log must be dropped by the
    /// caller after that, because closing a file can block.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Contents) -> T) -> T {
        work(&mut lock(&self.contents))
    }

    /// Drops the oldest file. Returns false if there is none.
    pub(super) fn drop_oldest(&self, disk: &Disk) -> bool {
        let removed = self.with(|log| log.segments.oldest_file().and_then(|number| log.segments.remove(number)));
        removed.map(|removed| self.discard(disk, removed)).is_some()
    }

    /// Removes the file of a segment that was removed from the log.
    pub(super) fn discard(&self, disk: &Disk, Removed { file, len, active }: Removed) {
        self.note_truncation();
        drop(active);
        if let Some(number) = file {
            disk.used.fetch_sub(len, Ordering::Relaxed);
            disk.remove(self.unit, number);
        }
    }

    /// Drops a segment whose file was removed or does not contain what was written.
    pub(super) fn drop_damaged(&self, disk: &Disk, number: u64) {
        let Some(removed) = self.with(|log| log.segments.remove(number)) else { return };
        // The loss of the directory has been logged once, for all segments in it.
        let level = if disk.remade.load(Ordering::Relaxed) { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "segment {number} of the log of unit {} was damaged", self.unit);
        self.discard(disk, removed);
    }

    /// The input of retention for this log.
    pub(super) fn holding(&self) -> Holding {
        self.with(|log| Holding {
            unit: self.unit,
            ended: log.end.map(|end| end.order),
            segments: log.segments.file_sizes(),
        })
    }
}
