//! Threads in reserve: they serve connections while no thread can be started for one.
//!
//! A fork bomb, or whatever else takes the last PID or the last memory for a stack, must not keep away the requests that
//! end it. So a few threads are started with the server, and get what the acceptor cannot start a thread for. They
//! answer one short request for each connection (metadata, signals, DELETE), refuse every other with 503, and wait for
//! nobody: a client has to have its request ready.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tl_os::thread;

use crate::http::Options;
use crate::http::server::connection::{Connection, Service};
use crate::http::server::connections::Seated;

/// How many threads there are: a DELETE takes up to 2 s of one.
const THREADS: usize = 4;

/// Connections that may wait for one of them.
const MOST_WAITING: usize = 128;

/// How long one of them waits for the head of a request, and for each piece of a body, and for a client to take a piece
/// of the answer.
const HEAD: Duration = Duration::from_millis(300);
const PIECE: Duration = Duration::from_secs(1);

/// The threads' queue. Dropping it ends them.
pub(in crate::http) struct Reserve(Arc<Queue>);

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Default)]
struct Waiting {
    seats: Vec<Seated>,
    closed: bool,
}

impl Reserve {
    /// Starts the threads.
    pub(in crate::http) fn start(service: &Service, options: &Options) -> io::Result<Reserve> {
        let reserve = Reserve(Arc::default());
        let options = Options { head_timeout: HEAD, idle_timeout: PIECE, ..options.clone() };
        let options = Arc::new(options);
        for _ in 0..THREADS {
            let (queue, service, options) = (Arc::clone(&reserve.0), Arc::clone(service), Arc::clone(&options));
            let serve = move || {
                while let Some(seated) = queue.next() {
                    Connection::serve_one(seated, Arc::clone(&service), Arc::clone(&options));
                }
                Ok(())
            };
            thread::spawn("http-reserve", serve, || {})?;
        }
        Ok(reserve)
    }

    /// Hands over a connection; gives it back where too many wait already.
    pub(in crate::http) fn take(&self, seated: Seated) -> Result<(), Seated> {
        let mut waiting = self.0.lock();
        if waiting.seats.len() >= MOST_WAITING {
            return Err(seated);
        }
        waiting.seats.push(seated);
        self.0.more.notify_one();
        Ok(())
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.more.notify_all();
    }
}

impl Queue {
    /// The newest connection that waits: its client has not given up yet. None once the server is stopped.
    fn next(&self) -> Option<Seated> {
        let idle = |waiting: &mut Waiting| waiting.seats.is_empty() && !waiting.closed;
        let waited = self.more.wait_while(self.lock(), idle);
        waited.unwrap_or_else(PoisonError::into_inner).seats.pop()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
