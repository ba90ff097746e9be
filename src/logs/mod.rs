//! The byte-exact log of each unit, and every view of it.
//!
//! A log is a sequence of records (time, stream, bytes) in the order in which they were read, in append-only segment
//! files. Nothing is cut into lines when it is written: whoever reads does that, with one pure splitter, from a position
//! of its own. So there is no queue and no broadcast that could lag, and no reader is known to the writer except by a
//! waker that it asks to be woken.
//!
//! | file | what |
//! |---|---|
//! | `store`, `directory` | the bound on all logs together; the directory that they are in |
//! | `rescue` | a segment whose file was removed |
//! | `log` | one log as its writer knows it, its lock, and who is woken |
//! | `chain`, `segment`, `record` | its segments under that lock; one segment; one record |
//! | `memory` | records while the disk is full |
//! | `records` | walks the records, and what was dropped |
//! | `cutter`, `cursor` | lines out of records, and the places between them |
//! | `long` | a line that is too long to be held, read piece by piece |
//! | `tail` | where the last so many lines begin |
//! | `follower`, `views` | what readers hold |
//!
//! Locks: the registry of the store, the state of a log, its wakers. No two of these are ever held together (only
//! `reclaiming` is, and it is taken before any of them; and that of the directory, which is taken last), and readers do their reading under none.

mod cursor;
mod directory;
mod follower;
mod line_reader;
pub mod lines;
mod log;
mod long;
mod memory;
mod record;
mod records;
mod rescue;
mod retention;
mod segment;
mod segments;
mod store;
mod tail;
#[cfg(test)]
mod tests;
mod views;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::{Millis, RunEnd, Stream};

pub use self::cursor::{BadCursor, Cursor};
pub use self::follower::Follower;
pub(crate) use self::follower::Part;
pub use self::log::OutputLog;
pub(crate) use self::long::{LongText, PIECE, Text};
pub use self::store::{LogLimits, LogStore};
pub use self::views::Lines;
pub(crate) use self::views::Shown;

/// Which streams of a log one wants to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Only stdout.
    Stdout,
    /// Only stderr.
    Stderr,
    /// Both, in the order in which they were read; lines in the order in which they were completed.
    Combined,
}

impl View {
    fn streams(self) -> &'static [Stream] {
        match self {
            View::Stdout => &[Stream::Stdout],
            View::Stderr => &[Stream::Stderr],
            View::Combined => &[Stream::Stdout, Stream::Stderr],
        }
    }

    fn has(self, stream: Stream) -> bool {
        match self {
            View::Stdout => stream == Stream::Stdout,
            View::Stderr => stream == Stream::Stderr,
            View::Combined => true,
        }
    }
}

/// Where a follower begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// With all that is kept; with a gap first if something was dropped.
    Beginning,
    /// With the last so many finished lines.
    Tail(u64),
    /// Right after the item that had this cursor.
    After(Cursor),
}

/// A line, or a piece of a line that is longer than 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// Without the newline; U+FFFD for what is not UTF-8.
    pub text: String,
    /// More of the same line follows.
    pub partial: bool,
    /// When its end was read.
    pub timestamp: Millis,
    /// Which stream it is from.
    pub stream: Stream,
}

/// What a follower comes upon.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// A line, and the place after it.
    Line(Line, Cursor),
    /// Bytes of this view were dropped before they were read here.
    Gap {
        /// How many.
        lost_bytes: u64,
        /// The place after them.
        cursor: Cursor,
    },
    /// All that there was before the end was given. Right after its place stands only what comes of a later run.
    End(RunEnd, Cursor),
}

/// Unregisters on drop.
#[derive(Debug)]
pub struct EndWatch {
    log: Arc<OutputLog>,
    id: u64,
}

impl Drop for EndWatch {
    fn drop(&mut self) {
        self.log.unwatch_end(self.id);
    }
}

/// A thread that died with the lock left nothing half done that would be worse than dying as well.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
