//! Who is connected, what each connection is doing, and who gives way when all seats are taken.
//!
//! A connection thread says what it does by [`Seated::enter`]. The acceptor, finding every seat taken and a client in
//! the kernel's queue, shows one out that executes no request. Both moves are compare-and-swap on the same
//! phase, so that a request which has begun is never cut off.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tl_os::poll::Waker;

use crate::http::server::memory::Pool;

/// What a connection has to be left to send its head, or to take its answer, before it may be shown out: a new client's
/// head is often a moment behind its connection, and two newcomers must not push each other out for ever.
const GRACE: Duration = Duration::from_millis(100);

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::http) enum Phase {
    /// Between two requests.
    Idle,
    /// Sending the head of a request.
    Head,
    /// Sending a body that has to be there before anything is executed.
    Body,
    /// Slow to take a finished answer, or told to go.
    Flushing,
    /// Executing a request.
    Busy,
    /// Shown out. The last phase.
    Out,
}

/// One connection.
#[derive(Debug)]
pub(in crate::http) struct Seat {
    id: u64,
    stream: TcpStream,
    phase: AtomicU8,
    /// Microseconds from the opening of the house to the last change of phase.
    since: AtomicU64,
}

/// All connections.
#[derive(Debug)]
pub(in crate::http) struct House {
    seats: Mutex<HashMap<u64, Arc<Seat>>>,
    size: usize,
    /// Connections whose request may take as long as it likes.
    long: AtomicUsize,
    next: AtomicU64,
    opened: Instant,
    /// A client waits outside: whoever leaves or falls idle wakes the acceptor.
    crowded: AtomicBool,
    stopping: AtomicBool,
    /// Set when a client has taken something, cleared by whoever waits for that.
    progress: AtomicBool,
    /// Woken, with the seats' lock, when the last one is given back.
    emptied: Condvar,
    waker: Waker,
    /// For heads that do not fit into the first buffer, and for bodies that are read as a whole.
    heads: Pool,
    bodies: Pool,
    inputs: Pool,
    /// For listings of directories.
    listings: Pool,
    /// Something was freed since memory was given back last.
    freed: AtomicBool,
}

/// What the heads of all requests may take beyond their first buffers, in bytes: clients need no token for that.
const HEADS: usize = 8 << 20;

/// What all bodies may take that are read as a whole.
const BODIES: usize = 64 << 20;

/// What all inputs of runs may take that their commands have not read yet.
const INPUTS: usize = 64 << 20;

/// What all listings of directories may take: the largest one fits.
const LISTINGS: usize = 64 << 20;

/// A connection in its seat; dropping it gives the seat back.
#[derive(Debug)]
pub(in crate::http) struct Seated {
    house: Arc<House>,
    seat: Arc<Seat>,
    /// Counted among those whose request may take as long as it likes.
    is_long: bool,
}

/// What came of asking somebody to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Room {
    /// One is on its way out.
    Soon,
    /// One may be asked from this moment on.
    After(Instant),
    /// All are executing requests.
    None,
}

impl House {
    /// An empty house with so many seats.
    pub(in crate::http) fn new(size: usize) -> io::Result<House> {
        Ok(House {
            seats: Mutex::new(HashMap::new()),
            size: size.max(1),
            long: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            opened: Instant::now(),
            crowded: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            progress: AtomicBool::new(false),
            emptied: Condvar::new(),
            waker: Waker::new()?,
            heads: Pool::new(HEADS),
            bodies: Pool::new(BODIES),
            inputs: Pool::new(INPUTS),
            listings: Pool::new(LISTINGS),
            freed: AtomicBool::new(false),
        })
    }

    /// Gives `stream` a seat. Its head is expected from now on.
    pub(in crate::http) fn seat(self: &Arc<Self>, stream: TcpStream) -> Seated {
        let id = self.next.fetch_add(1, SeqCst);
        let phase = AtomicU8::new(Phase::Head as u8);
        let seat = Arc::new(Seat { id, stream, phase, since: AtomicU64::new(self.micros()) });
        self.lock().insert(id, Arc::clone(&seat));
        Seated { house: Arc::clone(self), seat, is_long: false }
    }

    /// How many connections may have a request that takes as long as it likes: the others are for short ones.
    pub(in crate::http) fn most_long(&self) -> usize {
        (self.size - (self.size / 8).max(1)).max(1)
    }

    /// Whether every seat is taken.
    pub(in crate::http) fn is_full(&self) -> bool {
        self.lock().len() >= self.size
    }

    /// Says whether a client waits outside.
    pub(in crate::http) fn set_crowded(&self, crowded: bool) {
        self.crowded.store(crowded, SeqCst);
    }

    /// Shows one connection out: the one that has been idle longest, else the one that has been sending its head, or not
    /// taking its answer, for longest.
    pub(in crate::http) fn make_room(&self) -> Room {
        let seats = self.lock();
        let mut idle = in_phase(&seats, &[Phase::Idle]);
        idle.sort_unstable_by_key(|(since, _)| *since);
        // Bytes that wait to be read are a request that has not been noticed yet.
        if idle.iter().any(|(_, seat)| !seat.has_bytes() && seat.show_out(Phase::Idle)) {
            return Room::Soon;
        }
        let mut slow = in_phase(&seats, &[Phase::Head, Phase::Body, Phase::Flushing]);
        slow.sort_unstable_by_key(|(since, _)| *since);
        let now = Instant::now();
        let mut later = Room::None;
        for (since, seat) in slow {
            let free_from = self.opened + Duration::from_micros(since) + GRACE;
            if free_from > now {
                return Room::After(free_from);
            }
            // What has come and was not read is no fault of the client's.
            let sends = !seat.has_bytes() && (seat.show_out(Phase::Head) || seat.show_out(Phase::Body));
            if sends || seat.show_out(Phase::Flushing) {
                return Room::Soon;
            }
            later = Room::After(now + GRACE);
        }
        later
    }

    /// Lets nobody in any more, and shows out all that execute no request.
    pub(in crate::http) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.waker.wake();
        for seat in self.lock().values() {
            let _ = seat.show_out(Phase::Idle) || seat.show_out(Phase::Head);
        }
    }

    /// Waits until everybody has left; for `patience` at most while nobody takes anything, and for `longest` in any
    /// case. Whether they have.
    pub(in crate::http) fn await_empty(&self, patience: Duration, longest: Duration) -> bool {
        let begun = Instant::now();
        loop {
            self.progress.store(false, SeqCst);
            let left = patience.min(longest.saturating_sub(begun.elapsed()));
            let waited = self.emptied.wait_timeout_while(self.lock(), left, |seats| !seats.is_empty());
            let empty = waited.unwrap_or_else(PoisonError::into_inner).0.is_empty();
            if empty || left < patience || !self.progress.load(SeqCst) {
                return empty;
            }
        }
    }

    /// Whether [`House::stop`] was called.
    pub(in crate::http) fn stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Wakes the acceptor.
    pub(in crate::http) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Whether anything was freed since this was asked last.
    pub(in crate::http) fn take_freed(&self) -> bool {
        self.freed.swap(false, SeqCst)
    }

    /// What a connection has used is free: the acceptor is told of the first.
    fn has_freed(&self) {
        if !self.freed.swap(true, SeqCst) {
            self.waker.wake();
        }
    }

    /// How many seats are taken.
    #[cfg(test)]
    pub(in crate::http) fn taken(&self) -> usize {
        self.lock().len()
    }

    /// How many are idle.
    #[cfg(test)]
    pub(in crate::http) fn idle(&self) -> usize {
        in_phase(&self.lock(), &[Phase::Idle]).len()
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Seat>>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_phase<'s>(seats: &'s HashMap<u64, Arc<Seat>>, phases: &[Phase]) -> Vec<(u64, &'s Arc<Seat>)> {
    let is_in = |seat: &&Arc<Seat>| phases.iter().any(|phase| seat.phase.load(SeqCst) == *phase as u8);
    seats.values().filter(is_in).map(|seat| (seat.since.load(SeqCst), seat)).collect()
}

impl Seat {
    /// Ends the connection, if it is in this phase still. Its thread sees the end of the stream.
    fn show_out(&self, from: Phase) -> bool {
        let shown = self.phase.compare_exchange(from as u8, Phase::Out as u8, SeqCst, SeqCst).is_ok();
        if shown {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        shown
    }

    fn has_bytes(&self) -> bool {
        self.stream.peek(&mut [0]).is_ok_and(|read| read > 0)
    }
}

impl Seated {
    /// Counts the connection among those whose request may take as long as it likes; false when there are as many as
    /// there may be. A thread that hangs in the kernel is counted for as long as it hangs, whether its client has gone or
    /// not.
    pub(in crate::http) fn begin_long(&mut self) -> bool {
        let most = self.house.most_long();
        let one_more = |long| (long < most).then_some(long + 1);
        self.is_long = self.is_long || self.house.long.fetch_update(SeqCst, SeqCst, one_more).is_ok();
        self.is_long
    }

    /// Its request is over.
    pub(in crate::http) fn end_long(&mut self) {
        if std::mem::take(&mut self.is_long) {
            self.house.long.fetch_sub(1, SeqCst);
        }
    }

    /// See [`House::most_long`].
    pub(in crate::http) fn most_long(&self) -> usize {
        self.house.most_long()
    }

    /// The client has taken something.
    pub(in crate::http) fn has_taken(&self) {
        self.house.progress.store(true, Relaxed);
    }

    /// Says what the connection does from now on. False when it was shown out: it ends without another byte.
    pub(in crate::http) fn enter(&self, phase: Phase) -> bool {
        self.seat.since.store(self.house.micros(), SeqCst);
        // Only the connection's own thread and `show_out` write the phase, and the latter is for good.
        let entered = self
            .seat
            .phase
            .fetch_update(SeqCst, SeqCst, |now| (now != Phase::Out as u8).then_some(phase as u8))
            .is_ok();
        if phase == Phase::Idle {
            self.house.has_freed();
        }
        if phase != Phase::Busy && self.house.crowded.load(SeqCst) {
            self.house.waker.wake();
        }
        entered && (phase != Phase::Idle || !self.house.stopping())
    }

    /// The connection.
    pub(in crate::http) fn stream(&self) -> &TcpStream {
        &self.seat.stream
    }

    /// For the head of a request.
    pub(in crate::http) fn heads(&self) -> &Pool {
        &self.house.heads
    }

    /// For the body of a request.
    pub(in crate::http) fn bodies(&self) -> &Pool {
        &self.house.bodies
    }

    /// For inputs of runs.
    pub(in crate::http) fn inputs(&self) -> &Pool {
        &self.house.inputs
    }

    /// For the listing of a directory.
    pub(in crate::http) fn listings(&self) -> &Pool {
        &self.house.listings
    }

    /// Whether the server is being stopped.
    pub(in crate::http) fn stopping(&self) -> bool {
        self.house.stopping()
    }
}

impl AsFd for Seated {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.seat.stream.as_fd()
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        self.end_long();
        let mut seats = self.house.lock();
        seats.remove(&self.seat.id);
        if seats.is_empty() {
            self.house.emptied.notify_all();
        }
        drop(seats);
        self.house.has_freed();
        if self.house.crowded.load(SeqCst) {
            self.house.waker.wake();
        }
    }
}
