//! Connections to the daemons of sandboxes that are kept for the next request.
//!
//! A kept connection is used only for a request that may be sent twice (`exchange`): the daemon can close it at the moment
//! at which the request is sent, and nobody could tell whether that was executed. Connections to programs in sandboxes
//! are not kept: a server that serves one connection at a time would serve nobody else.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tl_os::poll::{self, Events};
use tl_os::thread;

/// Maximum number of kept connections to one sandbox: each has a thread of its daemon.
const MAX_PER_SANDBOX: usize = 8;

/// Maximum number of all kept connections.
const MAX_KEPT: usize = 256;

/// How long a connection is kept without use. The daemon closes an idle connection after 75 s.
const MAX_IDLE: Duration = Duration::from_secs(30);

/// The daemon that a connection goes to. The id is part of it, because a new sandbox can get the address of one that is
/// gone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct DaemonKey {
    pub(crate) sandbox: String,
    pub(crate) addr: SocketAddr,
}

/// The kept connections.
#[derive(Debug)]
pub(crate) struct Pool {
    kept: Mutex<Kept>,
    /// Notified when the first connection is kept, and at the end.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    /// By daemon, the most recently used connection last.
    by_daemon: HashMap<DaemonKey, Vec<(TcpStream, Instant)>>,
    count: usize,
    has_ended: bool,
}

impl Pool {
    /// An empty pool, with a thread that closes connections that are not used.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn start() -> io::Result<Arc<Pool>> {
        let pool = Arc::new(Pool { kept: Mutex::default(), changed: Condvar::new() });
        let of_thread = Arc::clone(&pool);
        thread::spawn_persistent("proxy-idle", move || {
            of_thread.close_unused();
            Ok(())
        })?;
        Ok(pool)
    }

    /// A kept connection to this daemon on which nothing has arrived, not even its end.
    pub(crate) fn take(&self, key: &DaemonKey) -> Option<TcpStream> {
        loop {
            let (stream, since) = self.lock().take(key)?;
            if since.elapsed() < MAX_IDLE && is_quiet(&stream) {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection on which a response has ended. It is closed if there are too many.
    pub(crate) fn keep(&self, key: DaemonKey, stream: TcpStream) {
        let mut kept = self.lock();
        if kept.has_ended || kept.count >= MAX_KEPT {
            return;
        }
        let of_daemon = kept.by_daemon.entry(key).or_default();
        if of_daemon.len() >= MAX_PER_SANDBOX {
            return;
        }
        of_daemon.push((stream, Instant::now()));
        kept.count += 1;
        if kept.count == 1 {
            self.changed.notify_all();
        }
    }

    /// Closes all kept connections, and ends the thread.
    pub(crate) fn end(&self) {
        let mut kept = self.lock();
        *kept = Kept { has_ended: true, ..Kept::default() };
        self.changed.notify_all();
    }

    fn close_unused(&self) {
        let mut kept = self.lock();
        while !kept.has_ended {
            kept = match kept.close_older_than(Instant::now()) {
                None => self.changed.wait(kept).unwrap_or_else(PoisonError::into_inner),
                Some(next) => {
                    let time = next.saturating_duration_since(Instant::now());
                    self.changed.wait_timeout(kept, time).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.lock().count
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn take(&mut self, key: &DaemonKey) -> Option<(TcpStream, Instant)> {
        let of_daemon = self.by_daemon.get_mut(key)?;
        let taken = of_daemon.pop();
        if of_daemon.is_empty() {
            self.by_daemon.remove(key);
        }
        self.count -= usize::from(taken.is_some());
        taken
    }

    /// Closes the connections that have not been used for [`MAX_IDLE`] at `now`, and returns when the next one has not.
    fn close_older_than(&mut self, now: Instant) -> Option<Instant> {
        self.by_daemon.retain(|_, of_daemon| {
            of_daemon.retain(|(_, since)| *since + MAX_IDLE > now);
            !of_daemon.is_empty()
        });
        self.count = self.by_daemon.values().map(Vec::len).sum();
        self.by_daemon.values().flatten().map(|(_, since)| *since + MAX_IDLE).min()
    }
}

fn is_quiet(stream: &TcpStream) -> bool {
    let now = Some(Instant::now());
    matches!(poll::wait([(stream.as_fd(), Events::READ.and(Events::GONE))], now), Ok([Events::NONE]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    fn key(addr: SocketAddr, sandbox: &str) -> DaemonKey {
        DaemonKey { sandbox: sandbox.to_owned(), addr }
    }

    fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (ours, listener.accept().unwrap().0)
    }

    #[test]
    fn only_a_quiet_connection_to_the_same_sandbox_is_used_again() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let pool = Pool::start().unwrap();
        let (ours, theirs) = connection(&listener);
        let local = ours.local_addr().unwrap();
        pool.keep(key(addr, "a"), ours);
        assert!(pool.take(&key(addr, "b")).is_none(), "another sandbox");
        let again = pool.take(&key(addr, "a")).expect("it was kept");
        assert_eq!((again.local_addr().unwrap(), pool.count()), (local, 0));
        // Closed meanwhile.
        pool.keep(key(addr, "a"), again);
        drop(theirs);
        tl_os_wait(|| pool.take(&key(addr, "a")).is_none());
        // Something has arrived that nobody asked for.
        let (ours, mut theirs) = connection(&listener);
        theirs.write_all(b"x").unwrap();
        poll::wait([(ours.as_fd(), Events::READ)], None).unwrap();
        pool.keep(key(addr, "a"), ours);
        assert!(pool.take(&key(addr, "a")).is_none());
        pool.end();
    }

    /// Waits until the end of a connection has arrived over loopback.
    fn tl_os_wait(mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "the end of the connection has not arrived");
            std::thread::yield_now();
        }
    }

    #[test]
    fn kept_connections_are_limited_in_number_and_time() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let pool = Pool::start().unwrap();
        let mut theirs = Vec::new();
        for _ in 0..MAX_PER_SANDBOX + 2 {
            let (ours, other) = connection(&listener);
            theirs.push(other);
            pool.keep(key(addr, "a"), ours);
        }
        assert_eq!(pool.count(), MAX_PER_SANDBOX);
        let mut kept = pool.lock();
        assert!(kept.close_older_than(Instant::now()).is_some());
        assert_eq!(kept.close_older_than(Instant::now() + MAX_IDLE), None);
        assert_eq!(kept.count, 0);
        drop(kept);
        pool.end();
        let (ours, _other) = connection(&listener);
        pool.keep(key(addr, "a"), ours);
        assert_eq!(pool.count(), 0, "an ended pool keeps nothing");
    }
}
