//! What the thread `ports` and those that wait have in common.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::owners::{FindUnits, Place};
use super::table::Table;
use crate::error::Error;
use crate::events::EventLog;
use crate::model::{Port, PortQuery};
use crate::pending::wake;

/// What the thread is asked for, and how it is woken.
pub struct Shared {
    state: Mutex<State>,
    pub find: FindUnits,
    pub events: Arc<EventLog>,
}

#[derive(Debug, Default)]
pub struct State {
    /// Wakes the thread. None if it does not run, or is about to end.
    pub thread: Option<Arc<mio::Waker>>,
    /// Waits that the thread has not taken over yet.
    pub new: Vec<Arc<Want>>,
    /// Number of subscriptions to events that want ports.
    pub readers: usize,
    /// What listened when the first of these subscriptions began.
    pub baseline: Option<Table<Place>>,
    /// A process has just started.
    pub hurry: bool,
    /// The shutdown has begun: no wait is met any more.
    pub refuses: bool,
    /// The supervisor has ended: nothing is observed any more.
    pub closed: bool,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Shared {
    pub fn new(find: FindUnits, events: Arc<EventLog>) -> Shared {
        Shared { state: Mutex::default(), find, events }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Wakes the thread, if it runs.
    pub fn wake_thread(&self) {
        if let Some(thread) = &self.thread
            && let Err(error) = thread.wake()
        {
            log::warn!("the thread that watches ports cannot be woken: {error}");
        }
    }
}

/// A wait for a port.
pub struct Want {
    pub query: PortQuery,
    waker: Waker,
    outcome: Mutex<Option<Result<Port, Error>>>,
    /// Nobody waits any more.
    cancelled: AtomicBool,
}

impl fmt::Debug for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Want").field("query", &self.query).finish_non_exhaustive()
    }
}

impl Want {
    pub fn new(query: PortQuery, waker: Waker) -> Want {
        Want { query, waker, outcome: Mutex::default(), cancelled: AtomicBool::new(false) }
    }

    /// How the wait has ended, if it has.
    pub fn outcome(&self) -> Option<Result<Port, Error>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the wait, and wakes who waits.
    pub fn end(&self, outcome: Result<Port, Error>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        wake(&self.waker);
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}
