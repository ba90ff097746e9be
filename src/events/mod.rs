//! Events: what happens to processes, terminal sessions and the supervisor, for everybody who subscribes (docs/api.md,
//! Events).
//!
//! | file | what |
//! |---|---|
//! | `event` | the types of an event, and the filter of a subscription |
//! | `ring` | the latest events and their numbers; what a reader gets, and what it has lost. Pure |
//! | `subscriptions` | the ring, shared by the threads that add events and by the subscriptions |
//!
//! Absent on purpose: a queue for each subscriber. A subscription is a position in the one ring, so that a reader that
//! is slow, or does not read at all, costs nothing and delays nobody.

pub(crate) mod event;
pub(crate) mod ring;
pub(crate) mod subscriptions;

pub use event::{Event, EventFilter, EventKind, EventSubject};
pub use ring::EventStart;
pub(crate) use subscriptions::EventLog;
pub use subscriptions::{EventItem, Events};
