//! One unit's log, as the output thread and the supervisor know it: appending, ending, and who is to be woken.

use std::fmt;
use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;
use std::time::Instant;

use super::record::{HEADER, Kept, Place};
use super::store::{Disk, LogStore};
use super::{EndWatch, lock};
use crate::logs::retention::Holding;
use crate::logs::segments::{Chain, Home, Located, Snapshot, Source};
use crate::model::{Millis, RunEnd, Stream, UnitId};
use crate::pending::parker::Parker;

/// One unit's log. Its files go when the last reference goes (retention dropped the unit).
pub struct OutputLog {
    store: Arc<LogStore>,
    unit: UnitId,
    truncated: AtomicBool,
    state: Mutex<State>,
    wakers: Mutex<Wakers>,
    /// How many followers may have their flag up: an append looks at nothing else when it is 0.
    armed: AtomicUsize,
}

#[derive(Default)]
struct State {
    chain: Chain,
    end: Option<End>,
    /// Counts the calls of [`OutputLog::revoke_end`].
    epoch: u64,
}

/// A `finish` that stands.
#[derive(Clone, Copy)]
struct End {
    place: Place,
    run: RunEnd,
    /// Its rank among all ends, for retention.
    order: u64,
}

#[derive(Default)]
struct Wakers {
    next: u64,
    followers: Vec<(u64, Arc<Armed>)>,
    ends: Vec<(u64, Waker)>,
}

/// How a follower is woken, with the flag that it raises when it found nothing.
pub(super) struct Armed {
    flag: AtomicBool,
    waker: Waker,
    pub(super) parker: Parker,
}

impl Armed {
    /// Wakes the follower's waker, and a thread that waits in [`Follower::next`](super::Follower::next).
    pub(super) fn wake(&self) {
        self.parker.unpark();
        self.waker.wake_by_ref();
    }
}

/// How far a reader may read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bound {
    /// Up to the end of the log, whatever it is then, or of the run that ended.
    Live,
    /// Up to this place.
    At(Place),
}

impl fmt::Debug for OutputLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputLog").field("unit", &self.unit).finish_non_exhaustive()
    }
}

impl OutputLog {
    pub(super) fn new(store: Arc<LogStore>, unit: UnitId) -> OutputLog {
        OutputLog {
            store,
            unit,
            truncated: AtomicBool::new(false),
            state: Mutex::default(),
            wakers: Mutex::default(),
            armed: AtomicUsize::new(0),
        }
    }

    /// Appends what was read from `stream` at `now`. Never fails, and never blocks on a full disk: then the log is
    /// truncated, and its last 64 KiB are kept in memory.
    pub fn append(&self, now: Millis, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        // A record lies in one segment.
        for piece in bytes.chunks((self.store.disk.segment as usize).saturating_sub(HEADER).max(1)) {
            self.store.make_room((HEADER + piece.len()) as u64);
            lock(&self.state).chain.append(self.home(), now, stream, piece);
        }
        self.wake_armed();
    }

    /// The leader has ended or is restarted: unfinished lines of both streams are cut here for good.
    pub fn cut(&self, now: Millis) {
        self.store.make_room(HEADER as u64);
        lock(&self.state).chain.cut(self.home(), now);
        self.wake_armed();
    }

    /// Cut, and followers end here (`eof`). Also makes the log one of the ended ones for retention.
    #[cfg(test)]
    pub fn finish(&self, end: RunEnd) {
        self.finish_epoch(self.epoch(), end);
    }

    /// Which run after a [`OutputLog::finish_epoch`] it is.
    pub fn epoch(&self) -> u64 {
        lock(&self.state).epoch
    }

    /// Takes back an end, also one that was sent before and has not come yet: followers go on.
    pub fn revoke_end(&self) {
        let mut state = lock(&self.state);
        state.epoch += 1;
        state.end = None;
    }

    /// The same, unless the end was revoked after `epoch`.
    pub fn finish_epoch(&self, epoch: u64, end: RunEnd) {
        self.store.make_room(HEADER as u64);
        {
            let mut state = lock(&self.state);
            state.chain.cut(self.home(), end.ended_at);
            state.chain.retry(self.home());
            // Whoever still writes takes it again: only a run with a pipe may hold a descriptor.
            state.chain.close_file(self.home());
            let (place, order) = (state.chain.snapshot().end, self.store.disk.next_end());
            if state.epoch != epoch {
                return;
            }
            state.end = Some(End { place, run: end, order });
        }
        let wakers = lock(&self.wakers);
        wakers.followers.iter().for_each(|(_, armed)| armed.wake());
        wakers.ends.iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    /// Starting again after `finish` (managed): followers go on. What a child in the background left unfinished since
    /// then is cut here.
    pub fn reopen(&self) {
        {
            let mut state = lock(&self.state);
            let time = state.chain.last_time();
            state.chain.cut(self.home(), time);
            state.chain.close_file(self.home());
            state.end = None;
        }
        self.wake_armed();
    }

    /// No pipe writes to this log any more: give back the descriptor. A later append takes one again.
    pub fn close_file(&self) {
        let mut state = lock(&self.state);
        state.chain.retry(self.home());
        state.chain.close_file(self.home());
    }

    /// The `finish` that stands, unless reopened.
    pub fn ended(&self) -> Option<RunEnd> {
        lock(&self.state).end.map(|end| end.run)
    }

    /// Wakes `waker` when `finish` is called (at once if it was). For `wait`.
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
            waker.wake();
        }
        EndWatch { log: Arc::clone(self), id }
    }

    /// Waits for `finish`: until `deadline`, or for good.
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

    /// Whether anything was dropped, or could not be brought to the disk.
    pub fn truncated(&self) -> bool {
        self.truncated.load(Ordering::Relaxed)
    }

    fn home(&self) -> Home<'_> {
        Home { disk: &self.store.disk, unit: self.unit, truncated: &self.truncated }
    }

    #[cfg(test)]
    pub(super) fn store(&self) -> &LogStore {
        &self.store
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        lock(&self.state).chain.memory()
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.store.disk
    }

    /// What cursors of this log begin with.
    pub(super) fn tag(&self) -> u64 {
        (self.store.disk.nonce << 32) ^ self.unit.0
    }

    pub(super) fn holding(&self) -> Holding {
        let state = lock(&self.state);
        Holding { unit: self.unit, ended: state.end.map(|end| end.order), segments: state.chain.file_sizes() }
    }

    pub(super) fn drop_oldest(&self, segments: usize) {
        let mut state = lock(&self.state);
        for _ in 0..segments {
            state.chain.drop_oldest(self.home());
        }
    }

    // For readers.

    pub(super) fn snapshot(&self) -> Snapshot {
        lock(&self.state).chain.snapshot()
    }

    /// Where a follower that begins now would find nothing more.
    pub(super) fn live_snapshot(&self) -> Snapshot {
        let state = lock(&self.state);
        // Nothing is unfinished where a run has ended.
        state.end.map_or(state.chain.snapshot(), |end| Snapshot { end: end.place, ..Snapshot::default() })
    }

    pub(super) fn oldest(&self) -> Place {
        lock(&self.state).chain.oldest()
    }

    pub(super) fn kept(&self, limit: Place) -> Kept {
        lock(&self.state).chain.kept(limit)
    }

    pub(super) fn floor(&self, at: u64) -> Option<Place> {
        lock(&self.state).chain.floor(at)
    }

    pub(super) fn locate(&self, at: u64, bound: Bound, most: usize) -> Located {
        let state = lock(&self.state);
        let limit = match bound {
            Bound::Live => state.end.map_or(state.chain.snapshot().end, |end| end.place),
            Bound::At(place) => place,
        };
        state.chain.locate(at, limit, most as u64)
    }

    /// The end, if `at` has reached it.
    pub(super) fn ended_at(&self, at: u64) -> Option<RunEnd> {
        lock(&self.state).end.filter(|end| at >= end.place.at).map(|end| end.run)
    }

    pub(super) fn open_segment(&self, number: u64, source: &Source) -> std::io::Result<Arc<File>> {
        match source {
            Source::Active(file) => Ok(Arc::clone(file)),
            _ => File::open(self.store.disk.path(self.unit, number)).map(Arc::new),
        }
    }

    pub(super) fn damaged(&self, number: u64) {
        lock(&self.state).chain.damaged(self.home(), number);
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

    /// Asks for a wake at the next append. Look once more after it: what came before it wakes nobody.
    pub(super) fn arm(&self, armed: &Armed) {
        // Counted before the flag is up, so that the count is never below the number of flags.
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
        for (_, armed) in &lock(&self.wakers).followers {
            if armed.flag.swap(false, Ordering::SeqCst) {
                self.armed.fetch_sub(1, Ordering::SeqCst);
                armed.wake();
            }
        }
    }
}

impl Drop for OutputLog {
    fn drop(&mut self) {
        self.store.forget(self.unit);
        lock(&self.state).chain.clear(self.home());
    }
}
