//! The log of one unit: writing to it, its end, and waking its followers.
//!
//! Only one thread writes a log, and only that thread waits for writes to the disk. The state that readers and the
//! supervisor see has a separate lock, which is never held across a system call that can block.

use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Instant;

use super::disk::Disk;
use super::record::{HEADER, Kept, LogPosition, Snapshot};
use super::segments::{Located, Source};
use super::state::{Contents, End, LogState};
use super::store::{LogStore, Removal};
use super::wakers::{Armed, Wakers};
use super::writer::{LogContext, Writer};
use super::{EndWatch, lock};
use crate::model::{Millis, RunEnd, Stream, UnitId};
use crate::pending::parker::Parker;
use crate::pending::wake;

/// The log of one unit. Its files are removed when the last reference to it is dropped.
pub struct OutputLog {
    store: Arc<LogStore>,
    state: Arc<LogState>,
    /// Held while the log is written. Only the log writer thread takes it.
    writer: Mutex<Writer>,
    /// Number of existing [`Writing`]s.
    to_write: AtomicUsize,
    /// None while there are none, as for most logs.
    wakers: Mutex<Option<Box<Wakers>>>,
    /// Number of followers with a raised flag, or more. At 0 an append does not search for any.
    armed: AtomicUsize,
}

/// A log with a pending write: one that was sent to the log writer thread and has not been performed.
#[derive(Debug)]
pub struct Writing(Arc<OutputLog>);

impl Writing {
    /// Counts one more pending write of `log`.
    pub fn new(log: &Arc<OutputLog>) -> Writing {
        log.to_write.fetch_add(1, Ordering::SeqCst);
        Writing(Arc::clone(log))
    }

    /// The log.
    pub fn log(&self) -> &OutputLog {
        &self.0
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.to_write.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The position up to which a reader reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// Up to the current end of the log or, once the log has ended, up to that end.
    Live,
    /// Up to this position.
    At(LogPosition),
}

impl fmt::Debug for OutputLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputLog").field("unit", &self.state.unit).finish_non_exhaustive()
    }
}

impl OutputLog {
    /// Appends `bytes`, which were read from `stream` at `now`. Never fails: while the disk cannot be written, the log
    /// counts as truncated, and its last 64 KiB are kept in memory. Blocks while the disk does.
    pub fn append(&self, now: Millis, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // A record must fit into one segment.
        for piece in bytes.chunks((self.store.disk.segment as usize).saturating_sub(HEADER).max(1)) {
            self.store.make_room((HEADER + piece.len()) as u64);
            lock(&self.writer).append(self.context(), now, stream, piece);
        }
        self.wake_armed();
    }

    /// Ends the unfinished lines of both streams, because the leader has ended or another run begins. Blocks while the
    /// disk does.
    pub fn cut(&self, now: Millis) {
        self.store.make_room(HEADER as u64);
        lock(&self.writer).cut(self.context(), now);
        self.wake_armed();
    }

    /// Whether [`OutputLog::close_file`] has anything to do.
    pub fn is_open(&self) -> bool {
        self.to_write.load(Ordering::SeqCst) > 0
            || self.state.with(|log| log.segments.active().is_some() || !log.segments.is_on_disk())
    }

    /// Whether no write is pending, and neither a cut nor the end of the log would write a record.
    pub fn is_at_rest(&self) -> bool {
        self.to_write.load(Ordering::SeqCst) == 0 && self.state.with(|log| log.segments.is_at_rest())
    }

    /// Number of revoked ends of the log.
    pub fn epoch(&self) -> u64 {
        self.state.with(|log| log.epoch)
    }

    /// Revokes the end of the log, even one that a pending [`OutputLog::finish`] has not set yet, because another run
    /// follows. Followers continue.
    pub fn revoke_end(&self) {
        self.state.with(|log| {
            log.epoch += 1;
            log.end = None;
        });
        self.wake_armed();
    }

    /// Ends unfinished lines, and then the log: followers end here (`eof`), and retention treats the log as ended. The
    /// log does not end if an end was revoked since `epoch`. Blocks while the disk does.
    pub fn finish(&self, epoch: u64, end: RunEnd) {
        self.store.make_room(HEADER as u64);
        {
            let mut writer = lock(&self.writer);
            writer.cut(self.context(), end.ended_at);
            writer.retry(self.context());
            // Only a run with a pipe may use a descriptor for its log. Later output opens the file again.
            writer.close(self.context());
        }
        self.end(epoch, end, |_| true);
    }

    /// Ends the log like [`OutputLog::finish`] if that needs no write. Otherwise does nothing and returns false.
    pub fn finish_at_rest(&self, end: RunEnd) -> bool {
        let epoch = self.epoch();
        self.to_write.load(Ordering::SeqCst) == 0 && self.end(epoch, end, |log| log.segments.is_at_rest())
    }

    /// Ends the log if `may` permits it and no end was revoked since `epoch`. Returns whether it did.
    fn end(&self, epoch: u64, run: RunEnd, may: impl FnOnce(&Contents) -> bool) -> bool {
        let order = self.store.disk.next_end();
        let ended = self.state.with(|log| {
            let ends = log.epoch == epoch && may(log);
            if ends {
                log.end = Some(End { position: log.segments.snapshot().end, run, order });
            }
            ends
        });
        if ended {
            // Woken without the lock: a waker may drop the follower that it belongs to.
            let (followers, ends) = {
                let wakers = lock(&self.wakers);
                wakers.as_ref().map(|wakers| (wakers.followers.clone(), wakers.ends.clone())).unwrap_or_default()
            };
            followers.iter().for_each(|(_, armed)| armed.wake());
            ends.iter().for_each(|(_, waker)| wake(waker));
        }
        ended
    }

    /// Prepares the log for another run after [`OutputLog::revoke_end`]: ends lines that a background child has left
    /// unfinished since the end. Blocks while the disk does.
    pub fn reopen(&self) {
        {
            let mut writer = lock(&self.writer);
            let time = writer.last_time();
            writer.cut(self.context(), time);
            writer.close(self.context());
        }
        self.wake_armed();
    }

    /// Closes the file after the last pipe of the log was closed. A later append opens it again. Blocks while the disk
    /// does.
    pub fn close_file(&self) {
        let mut writer = lock(&self.writer);
        writer.retry(self.context());
        writer.close(self.context());
    }

    /// The end of the last run, unless it was revoked.
    pub fn ended(&self) -> Option<RunEnd> {
        self.state.with(|log| log.end.map(|end| end.run))
    }

    /// Wakes `waker` when the log ends; at once if it has ended.
    pub fn watch_end(self: &Arc<Self>, waker: impl Into<Waker>) -> EndWatch {
        let waker = waker.into();
        let id = {
            let mut wakers = lock(&self.wakers);
            let wakers = wakers.get_or_insert_default();
            let id = wakers.next_id();
            wakers.ends.push((id, waker.clone()));
            id
        };
        if self.ended().is_some() {
            wake(&waker);
        }
        EndWatch { log: Arc::clone(self), id }
    }

    /// Waits for the end of the log, at most until `deadline`. Returns None if the log has not ended by then.
    pub fn wait_end(self: &Arc<Self>, deadline: Option<Instant>) -> Option<RunEnd> {
        let parker = Arc::new(Parker::default());
        let _watch = self.watch_end(Arc::clone(&parker));
        loop {
            if let Some(end) = self.ended() {
                return Some(end);
            }
            if !parker.park(deadline) {
                return self.ended();
            }
        }
    }

    pub(super) fn unwatch_end(&self, id: u64) {
        self.remove_waker(|wakers| wakers.ends.retain(|(other, _)| *other != id));
    }

    fn remove_waker(&self, remove: impl FnOnce(&mut Wakers)) {
        let mut wakers = lock(&self.wakers);
        let Some(some) = &mut *wakers else { return };
        remove(some);
        if some.followers.is_empty() && some.ends.is_empty() {
            *wakers = None;
        }
    }

    /// Whether output was dropped, or could not be written to the disk.
    pub fn truncated(&self) -> bool {
        self.state.truncated.load(Ordering::Relaxed)
    }

    fn context(&self) -> LogContext<'_> {
        LogContext { disk: &self.store.disk, state: &self.state }
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> &LogStore {
        &self.store
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.state.with(|log| log.segments.memory())
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.store.disk
    }

    /// The number that identifies this log in its cursors.
    pub(super) fn tag(&self) -> u64 {
        (self.store.disk.nonce << 32) ^ self.state.unit.0
    }

    // For readers.

    pub(super) fn snapshot(&self) -> Snapshot {
        self.state.with(|log| log.segments.snapshot())
    }

    /// The snapshot at the position where a new follower would find nothing more.
    pub(super) fn live_snapshot(&self) -> Snapshot {
        // No line is unfinished at the end of a run.
        let at_end = |end: End| Snapshot { end: end.position, ..Snapshot::default() };
        self.state.with(|log| log.end.map_or(log.segments.snapshot(), at_end))
    }

    pub(super) fn oldest(&self) -> LogPosition {
        self.state.with(|log| log.segments.oldest())
    }

    pub(super) fn kept(&self, limit: LogPosition) -> Kept {
        self.state.with(|log| log.segments.kept(limit))
    }

    pub(super) fn floor(&self, at: u64) -> Option<LogPosition> {
        self.state.with(|log| log.segments.floor(at))
    }

    pub(super) fn locate(&self, at: u64, bound: Bound, most: usize) -> Located {
        self.state.with(|log| {
            let limit = match bound {
                Bound::Live => log.end.map_or(log.segments.snapshot().end, |end| end.position),
                Bound::At(position) => position,
            };
            log.segments.locate(at, limit, most as u64)
        })
    }

    /// The end, if `at` has reached it.
    pub(super) fn ended_at(&self, at: u64) -> Option<RunEnd> {
        self.state.with(|log| log.end.filter(|end| at >= end.position.at).map(|end| end.run))
    }

    pub(super) fn open_segment(&self, number: u64, source: &Source) -> std::io::Result<Arc<File>> {
        match source {
            Source::Active(file) => Ok(Arc::clone(file)),
            _ => File::open(self.store.disk.path(self.state.unit, number)).map(Arc::new),
        }
    }

    pub(super) fn drop_damaged(&self, number: u64) {
        self.state.drop_damaged(&self.store.disk, number);
    }

    // Followers.

    pub(super) fn register(&self, waker: Waker) -> (u64, Arc<Armed>) {
        let armed = Arc::new(Armed { flag: AtomicBool::new(false), waker, parker: Parker::default() });
        let mut wakers = lock(&self.wakers);
        let wakers = wakers.get_or_insert_default();
        let id = wakers.next_id();
        wakers.followers.push((id, Arc::clone(&armed)));
        (id, armed)
    }

    pub(super) fn unregister(&self, id: u64, armed: &Armed) {
        self.remove_waker(|wakers| wakers.followers.retain(|(other, _)| *other != id));
        self.disarm(armed);
    }

    /// Requests a wake-up at the next append. The follower must look for an item once more after this call, because an
    /// earlier append does not wake it.
    pub(super) fn arm(&self, armed: &Armed) {
        // Counted before the flag is raised, so that the count is never below the number of raised flags.
        self.armed.fetch_add(1, Ordering::SeqCst);
        if armed.flag.swap(true, Ordering::SeqCst) {
            self.armed.fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(super) fn disarm(&self, armed: &Armed) {
        if armed.flag.swap(false, Ordering::SeqCst) {
            self.armed.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn wake_armed(&self) {
        if self.armed.load(Ordering::SeqCst) == 0 {
            return;
        }
        // Woken without the lock: a waker may drop the follower that it belongs to.
        let wanting: Vec<Arc<Armed>> = {
            let wakers = lock(&self.wakers);
            let wants = |armed: &&Arc<Armed>| armed.flag.swap(false, Ordering::SeqCst);
            let followers = wakers.iter().flat_map(|wakers| &wakers.followers);
            followers.map(|(_, armed)| armed).filter(wants).cloned().collect()
        };
        self.armed.fetch_sub(wanting.len(), Ordering::SeqCst);
        wanting.iter().for_each(|armed| armed.wake());
    }
}

impl LogStore {
    /// Creates a log for a new unit. It has no file before the first byte is written.
    pub fn create(self: &Arc<Self>, unit: UnitId) -> Arc<OutputLog> {
        let state = Arc::new(LogState::new(unit, Arc::clone(&self.on_truncation)));
        self.register(&state);
        Arc::new(OutputLog {
            store: Arc::clone(self),
            state,
            writer: Mutex::default(),
            to_write: AtomicUsize::new(0),
            wakers: Mutex::default(),
            armed: AtomicUsize::new(0),
        })
    }
}

impl Drop for OutputLog {
    fn drop(&mut self) {
        self.store.forget(self.state.unit);
        let (files, active, used) = self.state.with(|log| log.segments.clear());
        if files.is_empty() && active.is_none() {
            return;
        }
        self.store.disk.used.fetch_sub(used, Ordering::Relaxed);
        self.store.remove_files(Removal::new(Arc::clone(&self.store), self.state.unit, files, active));
    }
}
