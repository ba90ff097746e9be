//! [`EventLog`]: the ring of events, shared by the threads that add events and by the subscriptions.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Instant;

use crate::clock::wall;
use crate::events::event::{Event, EventFilter, EventKind, EventSubject};
use crate::events::ring::{EventStart, Position, Read, Ring};
use crate::pending::parker::Parker;
use crate::pending::wake;

/// Maximum number of items that a subscription takes from the ring at a time.
const BATCH: usize = 64;

/// Bytes of texts after which a batch ends. A reader refers to the texts of its batch until it has passed all of it on,
/// even after the ring has dropped them.
const BATCH_BYTES: usize = 64 << 10;

/// The latest events, and the subscriptions.
pub(crate) struct EventLog {
    state: Mutex<State>,
    /// Called with the number of subscriptions that want events about ports, whenever it changes.
    on_port_readers: Mutex<Option<PortReaders>>,
}

type PortReaders = Box<dyn Fn(usize) + Send>;

struct State {
    ring: Ring,
    readers: Vec<Arc<Reader>>,
    /// Number of readers that are armed. While it is 0, adding an event wakes nobody.
    armed: usize,
    port_readers: usize,
    /// No event follows.
    closed: bool,
}

/// The part of a subscription that others wake.
struct Reader {
    filter: EventFilter,
    waker: Waker,
    parker: Parker,
    /// Only accessed with the state locked.
    wanting: Mutex<Wanting>,
    /// An event that must not wait for the reader's pause has been added, or no event follows.
    urgent: AtomicBool,
}

/// What a reader waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanting {
    /// Nothing: it has not reached the end, or pauses.
    Nothing,
    /// It has read everything up to the end of that time, and must be woken at the next event that it gets. All events
    /// since then are about others.
    Next,
    /// It was woken for the event with this number. All events before that are about others.
    Woken(u64),
}

impl Reader {
    fn wake(&self) {
        self.parker.unpark();
        wake(&self.waker);
    }

    fn wanting(&self) -> MutexGuard<'_, Wanting> {
        self.wanting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLog").finish_non_exhaustive()
    }
}

impl EventLog {
    /// An empty log of a supervisor that starts now.
    ///
    /// The number of its first event is the time of its start in milliseconds since 1970, times 1,000. So the numbers of
    /// a supervisor are greater than those of an earlier one, unless that one has had more than a million events a
    /// second, or the clock was set back; and they are below 2^53, which JavaScript can represent.
    pub(crate) fn new() -> Arc<EventLog> {
        let ring = Ring::new((wall() * 1_000).max(1));
        let state = State { ring, readers: Vec::new(), armed: 0, port_readers: 0, closed: false };
        Arc::new(EventLog { state: Mutex::new(state), on_port_readers: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event that has happened now, and wakes the subscriptions that wait for it.
    pub(crate) fn push(&self, subject: Option<EventSubject>, kind: EventKind) {
        let at = wall();
        let is_urgent = kind == EventKind::DaemonShutdown;
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let wanted = state.armed > 0 || is_urgent;
        // Only clones of shared texts.
        let (about, what) = if wanted { (subject.clone(), Some(kind.clone())) } else { (None, None) };
        let id = state.ring.push(at, subject, kind);
        let Some(what) = what else { return };
        let (mut woken, mut armed) = (Vec::new(), state.armed);
        for reader in state.readers.iter().filter(|reader| reader.filter.admits(about.as_ref(), &what)) {
            let mut wanting = reader.wanting();
            if *wanting == Wanting::Next {
                *wanting = Wanting::Woken(id);
                armed = armed.saturating_sub(1);
                woken.push(Arc::clone(reader));
            } else if is_urgent {
                woken.push(Arc::clone(reader));
            }
            if is_urgent {
                reader.urgent.store(true, Ordering::Relaxed);
            }
        }
        state.armed = armed;
        drop(state);
        // Without the lock: a waker may drop the subscription that it belongs to.
        woken.iter().for_each(|reader| reader.wake());
    }

    /// Ends all subscriptions once they have read what is kept. Later events are dropped.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let readers = state.readers.clone();
        readers.iter().for_each(|reader| reader.urgent.store(true, Ordering::Relaxed));
        drop(state);
        readers.iter().for_each(|reader| reader.wake());
    }

    /// Ends all subscriptions when the result is dropped.
    pub(crate) fn close_on_drop(self: &Arc<Self>) -> CloseOnDrop {
        CloseOnDrop(Arc::clone(self))
    }

    /// Sets a function that is called, now and whenever it changes, with the number of subscriptions that want events
    /// about ports. It must not block.
    pub(crate) fn set_on_port_readers(&self, notify: impl Fn(usize) + Send + 'static) {
        let mut on_port_readers = self.on_port_readers.lock().unwrap_or_else(PoisonError::into_inner);
        notify(self.lock().port_readers);
        *on_port_readers = Some(Box::new(notify));
    }

    fn count_port_reader(&self, more: isize) {
        // Held across both, so that the function is called in the order of the changes.
        let on_port_readers = self.on_port_readers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.port_readers = state.port_readers.saturating_add_signed(more);
        let count = state.port_readers;
        drop(state);
        if let Some(notify) = &*on_port_readers {
            notify(count);
        }
    }

    /// Subscribes. `waker` is woken when [`Events::try_next`] may return an item.
    pub(crate) fn subscribe(self: &Arc<Self>, start: EventStart, filter: EventFilter, waker: Waker) -> Events {
        let wanting = Mutex::new(Wanting::Nothing);
        let reader =
            Arc::new(Reader { filter, waker, parker: Parker::default(), wanting, urgent: AtomicBool::new(false) });
        let mut state = self.lock();
        reader.urgent.store(state.closed, Ordering::Relaxed);
        state.readers.push(Arc::clone(&reader));
        let position = state.ring.begin(start);
        drop(state);
        if filter.ports {
            self.count_port_reader(1);
        }
        Events { log: Arc::clone(self), reader, position, ended: false }
    }
}

/// See [`EventLog::close_on_drop`].
#[derive(Debug)]
pub(crate) struct CloseOnDrop(Arc<EventLog>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// An item of [`Events`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventItem {
    /// An event.
    Event(Event),
    /// Events are missing here, because they were no longer kept when they were to be read.
    #[non_exhaustive]
    Gap {
        /// How many events of this supervisor, about any process, were lost.
        lost: u64,
        /// The number of the last event before the gap's end: a subscription [after](EventStart::After) it goes on
        /// without this gap.
        id: u64,
    },
}

impl From<Read> for EventItem {
    fn from(read: Read) -> EventItem {
        match read {
            Read::Event(event) => EventItem::Event(event),
            Read::Gap { lost, before } => EventItem::Gap { lost, id: before },
        }
    }
}

/// A subscription to events, which [`Handle::events`](crate::Handle::events) returns. It yields every event that its
/// filter admits, in order and once, or says how many were lost. The latest 10,000 events are kept, 1 MiB at most, so a
/// subscriber can be that far behind. A slow subscriber delays nothing.
///
/// ```
/// use std::task::Waker;
/// use tl_supervisor::{EventFilter, EventItem, EventKind, EventStart, ProcessSpec, Supervisor, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let handle = supervisor.handle();
///
/// // Before the start, so that no event of it is missed.
/// let mut events = handle.events(EventStart::Now, EventFilter::default(), Waker::noop().clone());
/// let job = handle.start(ProcessSpec::command("sh").args(["-c", "exit 3"]).build()?)?.handle;
/// while let Some(item) = events.next(None) {
///     let EventItem::Event(event) = item else { panic!("events were lost: {item:?}") };
///     if let EventKind::ProcessEnded(end) = event.kind
///         && event.subject.is_some_and(|subject| subject.handle == job)
///     {
///         assert_eq!(end.exit.code(), Some(3));
///         break;
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Events {
    log: Arc<EventLog>,
    reader: Arc<Reader>,
    position: Position,
    ended: bool,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("filter", &self.reader.filter).field("position", &self.position).finish()
    }
}

impl Events {
    /// The next item, if there is one. None if there is none yet, in which case the waker will be woken, and after the
    /// last one: see [`Events::has_ended`].
    pub fn try_next(&mut self) -> Option<EventItem> {
        let mut item = None;
        self.read(1, true, |read| item = Some(EventItem::from(read)));
        item
    }

    /// Waits for the next item. Returns None at the deadline, and at once after the last item, when the supervisor has
    /// been shut down or dropped.
    pub fn next(&mut self, deadline: Option<Instant>) -> Option<EventItem> {
        loop {
            let item = self.try_next();
            if item.is_some() || self.ended || !self.reader.parker.park(deadline) {
                return item;
            }
        }
    }

    /// Whether all events have been returned and none follows, because the supervisor has been shut down or dropped.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Passes the next items that are there, one batch at most, to `each`, which may block. Returns false if there was none.
    /// If `arm`, and there was none, the waker is woken at the next one.
    pub(crate) fn read_batch(&mut self, arm: bool, each: impl FnMut(Read)) -> bool {
        self.read(BATCH, arm, each)
    }

    /// Number of subscriptions.
    pub(crate) fn subscriptions(&self) -> usize {
        self.log.lock().readers.len()
    }

    /// Whether what is there should be read at once.
    pub(crate) fn is_urgent(&self) -> bool {
        self.reader.urgent.load(Ordering::Relaxed)
    }

    fn read(&mut self, max: usize, arm: bool, mut each: impl FnMut(Read)) -> bool {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let mut state = self.log.lock();
        let mut wanting = self.reader.wanting();
        let ring = &state.ring;
        match *wanting {
            Wanting::Nothing => {}
            Wanting::Next => self.position = ring.end(),
            Wanting::Woken(id) => self.position = ring.skip_to(self.position, id),
        }
        while batch.len() < max
            && bytes < BATCH_BYTES
            && let Some(read) = ring.read(&mut self.position, &self.reader.filter)
        {
            bytes += read.text_bytes();
            batch.push(read);
        }
        self.ended = batch.is_empty() && state.closed;
        let was_armed = *wanting == Wanting::Next;
        let is_armed = arm && batch.is_empty() && !self.ended;
        *wanting = if is_armed { Wanting::Next } else { Wanting::Nothing };
        drop(wanting);
        state.armed = state.armed + usize::from(is_armed) - usize::from(was_armed);
        drop(state);
        let any = !batch.is_empty();
        batch.into_iter().for_each(&mut each);
        any
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        state.readers.retain(|reader| !Arc::ptr_eq(reader, &self.reader));
        if *self.reader.wanting() == Wanting::Next {
            state.armed = state.armed.saturating_sub(1);
        }
        drop(state);
        if self.reader.filter.ports {
            self.log.count_port_reader(-1);
        }
    }
}

#[cfg(test)]
#[path = "subscriptions_tests.rs"]
mod tests;
