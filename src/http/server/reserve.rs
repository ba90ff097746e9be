//! Reserve threads: they serve connections while no thread can be started for one.
//!
//! A fork bomb, or anything else that takes the last PID or the last memory for a stack, must not block the requests
//! that can end it. So a few threads are started with the server, and get the connections for which the acceptor cannot
//! start a thread. They answer one short request on each connection and refuse long requests with 503. Their deadlines
//! are short, so that no client can occupy them for long.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tl_os::thread;

use crate::http::connection::table::ConnectionGuard;
use crate::http::server::handler::Handler;
use crate::http::server::options::Options;
use crate::http::server::serve;

/// Number of reserve threads. One request (a DELETE of a process) can occupy a thread for 2 s.
const THREADS: usize = 4;

/// Maximum number of connections that wait for a reserve thread.
const MAX_WAITING: usize = 128;

/// Maximum time for a request head to arrive at a reserve thread.
const HEAD_TIMEOUT: Duration = Duration::from_millis(300);

/// Maximum time for a piece of a body to arrive at a reserve thread.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The queue of the reserve threads. Dropping it ends the threads.
pub(crate) struct Reserve(Arc<Queue>);

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<ConnectionGuard>,
    closed: bool,
}

impl Reserve {
    /// Starts the threads.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn start(handler: &Arc<dyn Handler>, options: &Options) -> io::Result<Reserve> {
        let reserve = Reserve(Arc::default());
        let options = Arc::new(options.clone().head_timeout(HEAD_TIMEOUT).idle_timeout(IDLE_TIMEOUT));
        for _ in 0..THREADS {
            let (queue, handler, options) = (Arc::clone(&reserve.0), Arc::clone(handler), Arc::clone(&options));
            let run = move || {
                while let Some(connection) = queue.next() {
                    serve::serve_one(connection, Arc::clone(&handler), Arc::clone(&options));
                }
                Ok(())
            };
            thread::spawn_persistent("http-reserve", run)?;
        }
        Ok(reserve)
    }

    /// Queues a connection. Returns it if too many are waiting.
    pub(crate) fn take(&self, connection: ConnectionGuard) -> Result<(), ConnectionGuard> {
        let mut state = self.0.lock();
        if state.waiting.len() >= MAX_WAITING {
            return Err(connection);
        }
        state.waiting.push(connection);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Queue {
    /// Waits for a connection and takes the newest, whose client is the least likely to have given up. None once the
    /// server has stopped.
    fn next(&self) -> Option<ConnectionGuard> {
        let is_idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
        let waited = thread::idle(|| self.changed.wait_while(self.lock(), is_idle));
        waited.unwrap_or_else(PoisonError::into_inner).waiting.pop()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
