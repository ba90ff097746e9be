//! The latest events, each with its number. Pure: no clock and no lock.

use std::collections::VecDeque;

use crate::events::event::{Event, EventFilter, EventKind, EventSubject, text_bytes};
use crate::model::Millis;

/// Number of events that are kept.
pub const MAX_EVENTS: usize = 10_000;

/// Bytes that the kept events may take, with the texts that they refer to.
pub const MAX_BYTES: usize = 1 << 20;

/// A kept event. Its number follows from its place.
#[derive(Debug)]
struct Kept {
    at: Millis,
    subject: Option<EventSubject>,
    kind: EventKind,
}

impl Kept {
    /// Memory that it takes, in bytes. A text that several events share counts for each.
    fn cost(&self) -> usize {
        size_of::<Kept>() + text_bytes(self.subject.as_ref(), &self.kind)
    }
}

/// The latest events: at most [`MAX_EVENTS`] and [`MAX_BYTES`]; the latest one is always among them.
#[derive(Debug)]
pub struct Ring {
    kept: VecDeque<Kept>,
    /// Number of the first event of all.
    first: u64,
    /// Number of the next event.
    next: u64,
    bytes: usize,
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventStart {
    /// With the next event.
    Now,
    /// With the oldest event that is kept.
    Oldest,
    /// After the event with this number. 0 stands for the number before the first one of this supervisor. Any other
    /// number that this supervisor has not given is one of an earlier supervisor: a gap and all that is kept follow.
    After(u64),
}

/// The place of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Number of the next event to read.
    next: u64,
    /// A gap comes first, even if nothing was lost of this ring.
    foreign: bool,
}

/// What a reader finds at its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// An event.
    Event(Event),
    /// This many events are no longer kept. `before`: the number before the oldest event that is kept.
    Gap { lost: u64, before: u64 },
}

impl Read {
    /// Bytes of the texts that it refers to.
    pub fn text_bytes(&self) -> usize {
        match self {
            Read::Event(event) => text_bytes(event.subject.as_ref(), &event.kind),
            Read::Gap { .. } => 0,
        }
    }
}

impl Ring {
    /// An empty ring whose first event gets the number `first`.
    pub fn new(first: u64) -> Ring {
        Ring { kept: VecDeque::new(), first, next: first, bytes: 0 }
    }

    /// Adds an event. Returns its number.
    pub fn push(&mut self, at: Millis, subject: Option<EventSubject>, kind: EventKind) -> u64 {
        let kept = Kept { at, subject, kind };
        self.bytes += kept.cost();
        // Doubled once more, the capacity would be far beyond the limit.
        if self.kept.len() == self.kept.capacity() && self.kept.len() > MAX_EVENTS / 2 {
            self.kept.reserve_exact((MAX_EVENTS + 1).saturating_sub(self.kept.len()));
        }
        self.kept.push_back(kept);
        while self.kept.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.kept.len() > 1) {
            self.bytes -= self.kept.pop_front().map_or(0, |oldest| oldest.cost());
        }
        let id = self.next;
        self.next += 1;
        id
    }

    /// Number of the oldest event that is kept, or of the next one if none is.
    fn oldest(&self) -> u64 {
        self.next - self.kept.len() as u64
    }

    /// The position of a new reader.
    pub fn begin(&self, start: EventStart) -> Position {
        match start {
            EventStart::Now => self.end(),
            EventStart::Oldest => Position { next: self.oldest(), foreign: false },
            EventStart::After(0) => Position { next: self.first, foreign: false },
            EventStart::After(id) if id.checked_add(1).is_some_and(|next| (self.first..=self.next).contains(&next)) => {
                Position { next: id + 1, foreign: false }
            }
            EventStart::After(_) => Position { next: self.first, foreign: true },
        }
    }

    /// The position after all events.
    pub fn end(&self) -> Position {
        Position { next: self.next, foreign: false }
    }

    /// The position moved on to the event with the number `id`, if it is before that.
    pub fn skip_to(&self, position: Position, id: u64) -> Position {
        Position { next: position.next.max(id), ..position }
    }

    /// What a reader at `position`, which is moved on, finds next: an event that `filter` admits, or a gap. None if there
    /// is nothing more.
    pub fn read(&self, position: &mut Position, filter: &EventFilter) -> Option<Read> {
        let oldest = self.oldest();
        if position.foreign || position.next < oldest {
            let lost = oldest.saturating_sub(position.next);
            *position = Position { next: position.next.max(oldest), foreign: false };
            return Some(Read::Gap { lost, before: position.next.saturating_sub(1) });
        }
        while let Some(kept) = self.kept.get(usize::try_from(position.next - oldest).unwrap_or(usize::MAX)) {
            let id = position.next;
            position.next += 1;
            if filter.admits(kept.subject.as_ref(), &kept.kind) {
                let (subject, kind) = (kept.subject.clone(), kept.kind.clone());
                return Some(Read::Event(Event { id, at: kept.at, subject, kind }));
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
