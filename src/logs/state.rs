//! What of a log is shared between its writer, its readers, and the store: under one lock, which is held for memory work only.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::Disk;
use super::lock;
use super::record::LogPosition;
use super::segments::{Removed, Segments};
use crate::logs::retention::Holding;
use crate::model::{RunEnd, UnitId};

/// The shared part of one log.
#[derive(Debug)]
pub(super) struct LogState {
    pub(super) unit: UnitId,
    /// Output was dropped, or could not be written to the disk.
    pub(super) truncated: AtomicBool,
    contents: Mutex<Contents>,
}

/// What the lock protects.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) segments: Segments,
    pub(super) end: Option<End>,
    /// How many ends have been revoked.
    pub(super) epoch: u64,
}

/// The end of the last run.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    /// Where followers end.
    pub(super) position: LogPosition,
    pub(super) run: RunEnd,
    /// Its rank among all ends, for retention.
    pub(super) order: u64,
}

impl LogState {
    pub(super) fn new(unit: UnitId) -> LogState {
        LogState { unit, truncated: AtomicBool::new(false), contents: Mutex::default() }
    }

    /// Does memory work under the lock. What `work` takes out of the log is dropped by the caller, without the lock: closing a
    /// file can block.
    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Contents) -> T) -> T {
        work(&mut lock(&self.contents))
    }

    /// Drops the oldest file; false when there is none.
    pub(super) fn drop_oldest(&self, disk: &Disk) -> bool {
        let removed = self.with(|log| log.segments.oldest_file().and_then(|number| log.segments.remove(number)));
        removed.map(|removed| self.discard(disk, removed)).is_some()
    }

    /// Removes the file of a segment that was taken out of the log.
    pub(super) fn discard(&self, disk: &Disk, Removed { file, len, active }: Removed) {
        self.truncated.store(true, Ordering::Relaxed);
        drop(active);
        if let Some(number) = file {
            disk.used.fetch_sub(len, Ordering::Relaxed);
            disk.remove(self.unit, number);
        }
    }

    /// The file of this segment is gone, or does not hold what was written: the segment is dropped.
    pub(super) fn damaged(&self, disk: &Disk, number: u64) {
        let Some(removed) = self.with(|log| log.segments.remove(number)) else { return };
        // The loss of the directory was reported once, for all that was in it.
        let level = if disk.remade.load(Ordering::Relaxed) { log::Level::Debug } else { log::Level::Warn };
        log::log!(level, "segment {number} of the log of unit {} was damaged", self.unit);
        self.discard(disk, removed);
    }

    /// What retention decides by.
    pub(super) fn holding(&self) -> Holding {
        self.with(|log| Holding {
            unit: self.unit,
            ended: log.end.map(|end| end.order),
            segments: log.segments.file_sizes(),
        })
    }
}
