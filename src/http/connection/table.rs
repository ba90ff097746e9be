//! The table of all connections: what each is doing, and which is evicted when the table is full.
//!
//! A connection's thread reports its phase with [`ConnectionGuard::enter`]. When the table is full and a client waits
//! in the kernel's queue, the acceptor evicts a connection that executes no request. Both change the phase by
//! compare-and-swap, so a request that has begun is never cut off.

use std::collections::HashMap;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tl_os::poll::Waker;

use crate::http::connection::entry::{Connection, EVICTION_GRACE, Phase, is_silent};
use crate::http::connection::memory::MemoryPool;

/// Bytes that the heads of all requests may use beyond their first buffers. Sending a head requires no token.
const HEADS: usize = 8 << 20;

/// Bytes that all bodies that are read as a whole may use.
const BODIES: usize = 64 << 20;

/// All connections of a server.
#[derive(Debug)]
pub(crate) struct ConnectionTable {
    connections: Mutex<HashMap<u64, Arc<Connection>>>,
    capacity: usize,
    /// Number of connections that execute a long request, or start a program.
    long_requests: AtomicUsize,
    next_id: AtomicU64,
    /// Number of connections that were refused: there was no descriptor, thread or memory for them.
    refused: AtomicU64,
    created: Instant,
    /// A client waits in the kernel's queue: a connection that ends or becomes idle wakes the acceptor.
    client_waiting: AtomicBool,
    /// The table is full and clients wait: each connection gives way after its response.
    crowded: AtomicBool,
    stopping: AtomicBool,
    /// Set when a client takes bytes, cleared by [`ConnectionTable::await_empty`].
    progress: AtomicBool,
    /// Notified, with the lock of `connections`, when the last connection is removed.
    emptied: Condvar,
    waker: Waker,
    /// Woken when the server is stopped, and never cleared: any number of threads can wait for it.
    stopped: Waker,
    heads: MemoryPool,
    bodies: MemoryPool,
    /// A connection has freed memory since [`ConnectionTable::take_freed`] was called last.
    freed: AtomicBool,
}

/// A connection's hold on its entry. Dropping it removes the entry.
#[derive(Debug)]
pub(crate) struct ConnectionGuard {
    table: Arc<ConnectionTable>,
    connection: Arc<Connection>,
    /// Counted in `long_requests`.
    is_long: bool,
}

/// Result of an attempt to evict a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// A connection was told to end, and will.
    Begun,
    /// No connection may be evicted before this time.
    NotBefore(Instant),
    /// Every connection executes a request.
    AllBusy,
}

impl ConnectionTable {
    /// An empty table for `capacity` connections, at least one.
    pub(crate) fn new(capacity: usize) -> io::Result<ConnectionTable> {
        Ok(ConnectionTable {
            connections: Mutex::new(HashMap::new()),
            capacity: capacity.max(1),
            long_requests: AtomicUsize::new(0),
            next_id: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            created: Instant::now(),
            client_waiting: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            progress: AtomicBool::new(false),
            emptied: Condvar::new(),
            waker: Waker::new()?,
            stopped: Waker::new()?,
            heads: MemoryPool::new(HEADS),
            bodies: MemoryPool::new(BODIES),
            freed: AtomicBool::new(false),
        })
    }

    /// Adds a connection, in [`Phase::Head`].
    pub(crate) fn add(self: &Arc<Self>, stream: TcpStream) -> ConnectionGuard {
        let id = self.next_id.fetch_add(1, SeqCst);
        let phase = AtomicU8::new(Phase::Head as u8);
        let (since, starved) = (AtomicU64::new(self.micros()), AtomicBool::new(false));
        let connection = Arc::new(Connection { id, stream, phase, since, starved });
        self.lock().insert(id, Arc::clone(&connection));
        ConnectionGuard { table: Arc::clone(self), connection, is_long: false }
    }

    /// How many connections may execute a long request at once. The rest is reserved for short requests.
    pub(crate) fn max_long_requests(&self) -> usize {
        (self.capacity - (self.capacity / 8).max(1)).max(1)
    }

    /// How many connections may execute a long request or start a program at once. A start waits for `/etc` and for an
    /// exec, so starts get half of what long requests leave, and the other half remains for shorter requests.
    pub(crate) fn max_starts(&self) -> usize {
        let max_long = self.max_long_requests();
        max_long + (self.capacity - max_long) / 2
    }

    /// Whether no further connection may be added.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().len() >= self.capacity
    }

    /// Sets whether a client waits in the kernel's queue.
    pub(crate) fn set_client_waiting(&self, waiting: bool) {
        self.client_waiting.store(waiting, SeqCst);
    }

    /// Sets whether connections give way after their responses: the table is full and clients wait. Otherwise clients
    /// that send each request before they have the response to the last one would keep all connections.
    pub(crate) fn set_crowded(&self, crowded: bool) {
        self.crowded.store(crowded, SeqCst);
    }

    /// Whether connections give way after their responses.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(SeqCst)
    }

    /// Evicts one connection: the one that has been idle longest, else the one that has been sending its request, or
    /// has not been taking its response, for longest.
    pub(crate) fn evict_one(&self) -> Eviction {
        let connections = self.lock();
        let mut idle = in_phase(&connections, &[Phase::Idle]);
        idle.sort_unstable_by_key(|(since, _)| *since);
        // An idle connection with unread bytes has sent a request that its thread has not noticed yet.
        if idle.iter().any(|(_, connection)| !connection.has_bytes() && connection.evict(Phase::Idle)) {
            return Eviction::Begun;
        }
        let mut slow = in_phase(&connections, &[Phase::Head, Phase::Body, Phase::Flushing]);
        slow.sort_unstable_by_key(|(since, _)| *since);
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (since, connection) in slow {
            let mut evictable_from = self.created + Duration::from_micros(since) + EVICTION_GRACE;
            if evictable_from > now && connection.starved.load(SeqCst) && is_silent(&connection.stream) {
                evictable_from = now;
            }
            if evictable_from <= now {
                // Unread bytes mean that this server is slow, not the client.
                let sends = !connection.has_bytes() && (connection.evict(Phase::Head) || connection.evict(Phase::Body));
                if sends || connection.evict(Phase::Flushing) {
                    return Eviction::Begun;
                }
                evictable_from = now + EVICTION_GRACE;
            }
            next = Some(next.map_or(evictable_from, |next| next.min(evictable_from)));
        }
        next.map_or(Eviction::AllBusy, Eviction::NotBefore)
    }

    /// Stops the server: no connection is added any more, and those that execute no request are evicted.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.stopped.wake();
        self.waker.wake();
        for connection in self.lock().values() {
            let _ = connection.evict(Phase::Idle) || connection.evict(Phase::Head);
        }
    }

    /// Waits until the table is empty and returns true. Returns false if no client has taken a byte for
    /// `stall_timeout`, or after `timeout` in any case.
    pub(crate) fn await_empty(&self, stall_timeout: Duration, timeout: Duration) -> bool {
        let begun = Instant::now();
        loop {
            self.progress.store(false, SeqCst);
            let time = stall_timeout.min(timeout.saturating_sub(begun.elapsed()));
            let waited = self.emptied.wait_timeout_while(self.lock(), time, |connections| !connections.is_empty());
            let empty = waited.unwrap_or_else(PoisonError::into_inner).0.is_empty();
            if empty || time < stall_timeout || !self.progress.load(SeqCst) {
                return empty;
            }
        }
    }

    /// Whether [`ConnectionTable::stop`] was called.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(SeqCst)
    }

    /// Wakes the acceptor.
    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    /// Whether a connection has freed memory since the last call.
    pub(crate) fn take_freed(&self) -> bool {
        self.freed.swap(false, SeqCst)
    }

    /// Records that a connection has freed memory. The first such connection wakes the acceptor.
    fn note_freed(&self) {
        if !self.freed.swap(true, SeqCst) {
            self.waker.wake();
        }
    }

    /// Counts a connection that was refused.
    pub(crate) fn note_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// The number of connections.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// The number of idle connections.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        in_phase(&self.lock(), &[Phase::Idle]).len()
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.created.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_phase<'c>(connections: &'c HashMap<u64, Arc<Connection>>, phases: &[Phase]) -> Vec<(u64, &'c Arc<Connection>)> {
    let is_in = |connection: &&Arc<Connection>| {
        let now = connection.phase.load(SeqCst);
        phases.iter().any(|phase| now == *phase as u8)
    };
    connections.values().filter(is_in).map(|connection| (connection.since.load(SeqCst), connection)).collect()
}

/// Numbers of connections of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionCounts {
    /// Connections that are open.
    pub(crate) open: u64,
    /// Connections that were accepted so far.
    pub(crate) accepted: u64,
    /// Connections that were refused so far.
    pub(crate) refused: u64,
}

impl ConnectionGuard {
    /// The numbers of connections of the server.
    pub(crate) fn counts(&self) -> ConnectionCounts {
        ConnectionCounts {
            open: self.table.lock().len() as u64,
            accepted: self.table.next_id.load(Relaxed),
            refused: self.table.refused.load(Relaxed),
        }
    }

    /// Counts the connection among those that execute a long request. Returns false if the maximum is reached. A thread
    /// that hangs in the kernel stays counted as long as it hangs, even if its client has disconnected.
    pub(crate) fn begin_long(&mut self) -> bool {
        self.count_long(self.table.max_long_requests())
    }

    /// Counts the connection like [`ConnectionGuard::begin_long`], up to the maximum for starts.
    pub(crate) fn begin_start(&mut self) -> bool {
        self.count_long(self.table.max_starts())
    }

    fn count_long(&mut self, max: usize) -> bool {
        let one_more = |count| (count < max).then_some(count + 1);
        self.is_long = self.is_long || self.table.long_requests.fetch_update(SeqCst, SeqCst, one_more).is_ok();
        self.is_long
    }

    /// Ends what [`ConnectionGuard::begin_long`] or [`ConnectionGuard::begin_start`] began.
    pub(crate) fn end_long(&mut self) {
        if std::mem::take(&mut self.is_long) {
            self.table.long_requests.fetch_sub(1, SeqCst);
        }
    }

    /// See [`ConnectionTable::max_long_requests`].
    pub(crate) fn max_long_requests(&self) -> usize {
        self.table.max_long_requests()
    }

    /// See [`ConnectionTable::max_starts`].
    pub(crate) fn max_starts(&self) -> usize {
        self.table.max_starts()
    }

    /// Records that the client has taken bytes.
    pub(crate) fn note_progress(&self) {
        self.table.progress.store(true, Relaxed);
    }

    /// Records that the request head is incomplete, and that all that has arrived of it was read.
    pub(crate) fn await_head(&self) {
        self.connection.starved.store(true, SeqCst);
        if self.table.client_waiting.load(SeqCst) {
            self.table.waker.wake();
        }
    }

    /// Records that more of the request head has arrived, or that nothing more will.
    pub(crate) fn head_continues(&self) {
        self.connection.starved.store(false, SeqCst);
    }

    /// Changes the phase. Returns false if the connection was evicted: it must end without sending another byte.
    pub(crate) fn enter(&self, phase: Phase) -> bool {
        self.connection.since.store(self.table.micros(), SeqCst);
        self.connection.starved.store(false, SeqCst);
        // Only this connection's thread and `evict` write the phase, and an eviction is final.
        let entered = self
            .connection
            .phase
            .fetch_update(SeqCst, SeqCst, |now| (now != Phase::Evicted as u8).then_some(phase as u8))
            .is_ok();
        if phase == Phase::Idle {
            self.table.note_freed();
        }
        if phase != Phase::Busy && self.table.client_waiting.load(SeqCst) {
            self.table.waker.wake();
        }
        entered && (phase != Phase::Idle || !self.table.is_stopping())
    }

    /// See [`ConnectionTable::is_crowded`].
    pub(crate) fn is_crowded(&self) -> bool {
        self.table.is_crowded()
    }

    /// Whether the client has sent bytes that were not read.
    pub(crate) fn has_bytes(&self) -> bool {
        self.connection.has_bytes()
    }

    /// The connection's stream.
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.connection.stream
    }

    /// The pool for request heads.
    pub(crate) fn heads(&self) -> &MemoryPool {
        &self.table.heads
    }

    /// The pool for request bodies that are read as a whole.
    pub(crate) fn bodies(&self) -> &MemoryPool {
        &self.table.bodies
    }

    /// Whether the server is stopping.
    pub(crate) fn is_stopping(&self) -> bool {
        self.table.is_stopping()
    }

    /// What is readable once the server is stopping.
    pub(crate) fn stopped(&self) -> BorrowedFd<'_> {
        self.table.stopped.as_fd()
    }
}

impl AsFd for ConnectionGuard {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.stream.as_fd()
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.end_long();
        let mut connections = self.table.lock();
        connections.remove(&self.connection.id);
        if connections.is_empty() {
            self.table.emptied.notify_all();
        }
        drop(connections);
        self.table.note_freed();
        if self.table.client_waiting.load(SeqCst) {
            self.table.waker.wake();
        }
    }
}
