//! The log of one unit: what is written to it, where it ends, and which followers are to be woken.
//!
//! One thread writes a log, and only that thread waits for the disk. The state that readers and the supervisor see is under a lock
//! of its own, which is never held across a system call that can block.

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
use super::writer::{LogContext, Writer};
use super::{EndWatch, lock};
use crate::model::{Millis, RunEnd, Stream, UnitId};
use crate::pending::parker::Parker;
use crate::pending::wake;

/// The log of one unit. Its files are removed when the last reference to it goes.
pub struct OutputLog {
    store: Arc<LogStore>,
    state: Arc<LogState>,
    /// Held while the log is written: by the thread that writes logs, and by nobody else.
    writer: Mutex<Writer>,
    /// How many [`Writing`]s there are.
    to_write: AtomicUsize,
    wakers: Mutex<Wakers>,
    /// The number of followers with a raised flag, or more: at 0 an append looks for none.
    armed: AtomicUsize,
}

/// A log with something to write that has been handed to the thread that writes logs, and has not been written.
#[derive(Debug)]
pub struct Writing(Arc<OutputLog>);

impl Writing {
    /// Counts one more.
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

#[derive(Default)]
struct Wakers {
    next: u64,
    followers: Vec<(u64, Arc<Armed>)>,
    ends: Vec<(u64, Waker)>,
}

/// How a follower is woken, and the flag that the follower raises when it has found nothing.
pub(super) struct Armed {
    flag: AtomicBool,
    waker: Waker,
    pub(super) parker: Parker,
}

impl Armed {
    /// Wakes the follower's waker, and a thread that waits in [`Follower::next`](super::Follower::next).
    pub(super) fn wake(&self) {
        self.parker.unpark();
        wake(&self.waker);
    }
}

/// How far a reader reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// Up to the end of the log, which moves, or the end of the run that has ended.
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
    /// Appends `bytes`, which were read from `stream` at `now`. Never fails: while the disk refuses them, the log counts as
    /// truncated, and its last 64 KiB are kept in memory. Blocks as long as the disk does.
    pub fn append(&self, now: Millis, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // A record lies in one segment.
        for piece in bytes.chunks((self.store.disk.segment as usize).saturating_sub(HEADER).max(1)) {
            self.store.make_room((HEADER + piece.len()) as u64);
            lock(&self.writer).append(self.context(), now, stream, piece);
        }
        self.wake_armed();
    }

    /// The leader has ended, or another run begins: the unfinished lines of both streams end here. Blocks as long as the disk
    /// does.
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

    /// Whether nothing is to be written: nothing that was handed over, nor a record by a cut or an end of the log.
    pub fn is_at_rest(&self) -> bool {
        self.to_write.load(Ordering::SeqCst) == 0 && self.state.with(|log| log.segments.is_at_rest())
    }

    /// How many ends of the log have been revoked.
    pub fn epoch(&self) -> u64 {
        self.state.with(|log| log.epoch)
    }

    /// Takes back the end of the log, also one that [`OutputLog::finish`] is still to set: another run follows, and followers go
    /// on.
    pub fn revoke_end(&self) {
        self.state.with(|log| {
            log.epoch += 1;
            log.end = None;
        });
        self.wake_armed();
    }

    /// Ends unfinished lines and the log: followers end here (`eof`), and retention takes the log for an ended one. Ends nothing
    /// where the end was revoked since `epoch`. Blocks as long as the disk does.
    pub fn finish(&self, epoch: u64, end: RunEnd) {
        self.store.make_room(HEADER as u64);
        {
            let mut writer = lock(&self.writer);
            writer.cut(self.context(), end.ended_at);
            writer.retry(self.context());
            // Output that comes later takes a descriptor again: only a run with a pipe may hold one.
            writer.close(self.context());
        }
        self.end(epoch, end, |_| true);
    }

    /// The same where nothing has to be written for it; false where something has.
    pub fn finish_at_rest(&self, end: RunEnd) -> bool {
        let epoch = self.epoch();
        self.to_write.load(Ordering::SeqCst) == 0 && self.end(epoch, end, |log| log.segments.is_at_rest())
    }

    /// Sets the end, if `may`.
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
                (wakers.followers.clone(), wakers.ends.clone())
            };
            followers.iter().for_each(|(_, armed)| armed.wake());
            ends.iter().for_each(|(_, waker)| wake(waker));
        }
        ended
    }

    /// Another run follows the end: cuts what a child in the background has left unfinished since then. After
    /// [`OutputLog::revoke_end`]. Blocks as long as the disk does.
    pub fn reopen(&self) {
        {
            let mut writer = lock(&self.writer);
            let time = writer.last_time();
            writer.cut(self.context(), time);
            writer.close(self.context());
        }
        self.wake_armed();
    }

    /// No pipe writes to this log any more: gives back its descriptor. A later append takes one again. Blocks as long as the
    /// disk does.
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
            wakers.next += 1;
            let id = wakers.next;
            wakers.ends.push((id, waker.clone()));
            id
        };
        if self.ended().is_some() {
            wake(&waker);
        }
        EndWatch { log: Arc::clone(self), id }
    }

    /// Waits for the end of the log, until `deadline` or for ever.
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
        lock(&self.wakers).ends.retain(|(other, _)| *other != id);
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

    /// The number that cursors of this log have.
    pub(super) fn tag(&self) -> u64 {
        (self.store.disk.nonce << 32) ^ self.state.unit.0
    }

    // For readers.

    pub(super) fn snapshot(&self) -> Snapshot {
        self.state.with(|log| log.segments.snapshot())
    }

    /// The position at which a follower that begins now would find nothing more.
    pub(super) fn live_snapshot(&self) -> Snapshot {
        // Nothing is unfinished where a run has ended.
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

    pub(super) fn damaged(&self, number: u64) {
        self.state.damaged(&self.store.disk, number);
    }

    // Followers.

    pub(super) fn register(&self, waker: Waker) -> (u64, Arc<Armed>) {
        let armed = Arc::new(Armed { flag: AtomicBool::new(false), waker, parker: Parker::default() });
        let mut wakers = lock(&self.wakers);
        wakers.next += 1;
        let id = wakers.next;
        wakers.followers.push((id, Arc::clone(&armed)));
        (id, armed)
    }

    pub(super) fn unregister(&self, id: u64, armed: &Armed) {
        lock(&self.wakers).followers.retain(|(other, _)| *other != id);
        self.disarm(armed);
    }

    /// Asks for a wake at the next append. The follower must look once more after this call: an append before it does not wake it.
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
            wakers.followers.iter().map(|(_, armed)| armed).filter(wants).cloned().collect()
        };
        self.armed.fetch_sub(wanting.len(), Ordering::SeqCst);
        wanting.iter().for_each(|armed| armed.wake());
    }
}

impl LogStore {
    /// A log for a new unit. It has no file before the first byte.
    pub fn create(self: &Arc<Self>, unit: UnitId) -> Arc<OutputLog> {
        let state = Arc::new(LogState::new(unit));
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
