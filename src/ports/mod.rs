//! Ports: which processes listen for TCP connections, for everybody who asks, waits or subscribes (docs/api.md, Ports).
//!
//! The kernel tells nobody that a socket listens, so the thread `ports` looks again and again. It exists only while
//! somebody waits for a port or subscribes to events about ports; a daemon without those never wakes up for them.
//!
//! | file | what |
//! |---|---|
//! | `schedule` | when to look. Pure |
//! | `table` | which sockets listen where, and what has changed. Pure |
//! | `owners` | the list of sockets, and the processes that have them open |
//! | `shared` | what the thread and those that wait have in common |
//! | `wait` | how far one wait has got, with its probe |
//! | `actor` | the thread |

mod actor;
mod owners;
pub(crate) mod schedule;
mod shared;
pub(crate) mod table;
mod wait;

use std::io;
use std::sync::Arc;
use std::task::Waker;

use mio::Poll;

pub(crate) use self::owners::{Candidate, FindUnits};

use self::actor::{Actor, WAKE};
use self::owners::Lister;
use self::shared::{Shared, State, Want};
use crate::error::Error;
use crate::events::EventLog;
use crate::model::{Port, PortQuery};
use tl_os::thread;

/// A handle to what is known of ports. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ports(Arc<Shared>);

impl Ports {
    /// Adds events about ports to `events` while a subscription wants them. `find` finds the units to whose trees processes
    /// belong.
    pub(crate) fn new(find: FindUnits, events: &Arc<EventLog>) -> Ports {
        let ports = Ports(Arc::new(Shared::new(find, Arc::clone(events))));
        // Not a strong reference: the log of events belongs to what it would refer to.
        let shared = Arc::downgrade(&ports.0);
        events.set_on_port_readers(move |count| {
            if let Some(shared) = shared.upgrade() {
                Ports(shared).set_readers(count);
            }
        });
        ports
    }

    /// The listening sockets, by port.
    pub(crate) fn list(&self) -> Result<Vec<Port>, Error> {
        owners::look(&self.0.find).map_err(|error| Error::from_io("listing the ports", &error))
    }

    /// Waits for a port. `waker` is woken when [`PortWatch::try_take`] returns how it ended.
    pub(crate) fn watch(&self, query: PortQuery, waker: Waker) -> Result<PortWatch, Error> {
        let want = Arc::new(Want::new(query, waker));
        // Most clients wait for a port that is open already, which needs no thread.
        if want.query.http_path().is_none()
            && let Some(port) = self.find(&want.query)?
        {
            want.end(Ok(port));
            return Ok(PortWatch { want, ports: self.clone() });
        }
        let mut state = self.0.lock();
        if state.refuses || state.closed {
            return Err(Error::ShuttingDown);
        }
        state.new.push(Arc::clone(&want));
        if let Err(error) = self.start_or_wake(&mut state) {
            state.new.retain(|other| !Arc::ptr_eq(other, &want));
            return Err(Error::from_io("starting a thread that watches ports", &error));
        }
        drop(state);
        Ok(PortWatch { want, ports: self.clone() })
    }

    /// The entry that a query asks for, if it is there now.
    fn find(&self, query: &PortQuery) -> Result<Option<Port>, Error> {
        let listed = Lister::default().list().map_err(|error| Error::from_io("listing the ports", &error))?;
        let places = listed.iter().filter(|(place, _)| place.0 == query.port());
        let holders = owners::find_holders(&self.0.find, places);
        let mut entries = holders.iter().map(|(place, holders)| owners::entry(place, holders, query.unit()).0);
        Ok(entries.find(|port| query.unit().is_none_or(|unit| port.handle == Some(unit))))
    }

    /// A process has just started, and may listen soon. Cheap while nobody waits or subscribes.
    pub(crate) fn hurry(&self) {
        let mut state = self.0.lock();
        if state.thread.is_some() {
            state.hurry = true;
            state.wake_thread();
        }
    }

    /// The shutdown begins: ends all waits with [`Error::ShuttingDown`]. Events go on.
    pub(crate) fn refuse_waits(&self) {
        let mut state = self.0.lock();
        state.refuses = true;
        state.wake_thread();
    }

    /// Ends the thread and all waits when the result is dropped.
    pub(crate) fn close_on_drop(&self) -> CloseOnDrop {
        CloseOnDrop(self.clone())
    }

    /// Called whenever the number of subscriptions to events about ports changes.
    fn set_readers(&self, count: usize) {
        // What listens before the subscription begins is not told, and what listens from then on is.
        let is_first = count > 0 && self.0.lock().readers == 0;
        let baseline = if is_first { Lister::default().list().ok() } else { None };
        let mut state = self.0.lock();
        state.readers = count;
        if is_first {
            state.baseline = Some(baseline.unwrap_or_default());
        }
        if count == 0 {
            state.baseline = None;
            state.wake_thread();
        } else if !state.closed
            && let Err(error) = self.start_or_wake(&mut state)
        {
            log::warn!("ports are not watched, because no thread can be started: {error}");
        }
    }

    fn start_or_wake(&self, state: &mut State) -> io::Result<()> {
        if state.thread.is_some() {
            state.wake_thread();
            return Ok(());
        }
        let poll = Poll::new()?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), WAKE)?);
        let mut actor = Actor::new(Arc::clone(&self.0), poll);
        thread::spawn_persistent("ports", move || actor.run())?;
        state.thread = Some(waker);
        Ok(())
    }
}

/// See [`Ports::close_on_drop`].
#[derive(Debug)]
pub(crate) struct CloseOnDrop(Ports);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.closed = true;
        state.wake_thread();
    }
}

/// A wait for a port that [`Handle::watch_port`](crate::Handle::watch_port) has begun. Dropping it ends the wait.
#[derive(Debug)]
#[must_use = "dropping it ends the wait"]
pub struct PortWatch {
    want: Arc<Want>,
    ports: Ports,
}

impl PortWatch {
    /// The entry of the port once the wait is met, again at each call; None before.
    ///
    /// An error says that it cannot be met any more: [`Error::ShuttingDown`] after the shutdown has begun.
    pub fn try_take(&self) -> Option<Result<Port, Error>> {
        self.want.outcome()
    }

    /// Looks now whether the wait is met, without a probe. The thread may not have looked since the port was opened.
    pub(crate) fn look(&self) -> Option<Port> {
        self.ports.find(&self.want.query).ok().flatten()
    }
}

impl Drop for PortWatch {
    fn drop(&mut self) {
        self.want.cancel();
        if self.want.outcome().is_none() {
            self.ports.0.lock().wake_thread();
        }
    }
}
