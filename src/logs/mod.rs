//! The byte-exact log of each unit, and every view of it.
//!
//! A log is a sequence of records (time, stream, bytes) in the order in which they were read, in append-only segment files. The
//! writer does not cut lines: each reader does, with one pure splitter, from a position of its own. So there is no queue and no
//! broadcast that could lag, and the writer knows of a reader only the waker that the reader has registered.
//!
//! | file | what it holds |
//! |---|---|
//! | `store` | all logs, and the bound on all of them together |
//! | `disk`, `directory` | the files of segments; the directory that they are in, and its lock |
//! | `log` | one log: writing, ending, and waking followers |
//! | `writer`, `rescue` | the writing side, which waits for the disk; a segment whose file was removed |
//! | `state`, `segments`, `segment`, `record` | what is under the log's lock; its segments; one segment; one record |
//! | `memory` | records while the disk fails |
//! | `retention` | which logs lose how many segments |
//! | `records` | a reader of records, which also finds what was dropped |
//! | `lines`, `line_reader`, `cursor` | bytes to lines; records to lines; the positions between lines |
//! | `long` | a line that is too long to be held, read piece by piece |
//! | `tail` | where the last so many lines begin |
//! | `follower`, `views` | what readers hold |
//!
//! Locks: the registry of the store, the state of a log, and its wakers. No two of these are held together, and none of them
//! across a system call that can block: the thread that writes logs waits for the disk, and so does a reader that reads, but
//! neither makes the supervisor or another reader wait. The writer's own locks (the writer of a log, `reclaiming`, the directory)
//! are taken before these, by no other thread.

mod cursor;
mod directory;
mod disk;
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
mod state;
mod store;
mod tail;
#[cfg(test)]
mod tests;
mod views;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::{Millis, RunEnd, Stream};

pub use self::cursor::{BadCursor, Cursor};
pub use self::follower::Follower;
pub(crate) use self::follower::Part;
pub use self::log::{OutputLog, Writing};
pub(crate) use self::long::{LongText, PIECE, Text};
pub use self::store::{LogStore, Removal};
pub(crate) use self::views::LineText;
pub use self::views::Lines;

/// Bounds on logs, in bytes on disk. Each read of a pipe adds a header of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// Kept of one unit; at least 4096, at most `total`.
    pub per_unit: u64,
    /// Kept of all units together; at least 4096.
    pub total: u64,
}

/// The streams of a log that a reader sees.
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
    /// At the oldest line that is kept, after a gap if output was dropped.
    Beginning,
    /// At the last so many finished lines.
    Tail(u64),
    /// After the item that had this cursor.
    After(Cursor),
}

/// A line, or a piece of a line that is longer than 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// The text, without the newline, with U+FFFD for what is not UTF-8.
    pub text: String,
    /// More of the same line follows.
    pub partial: bool,
    /// When the end of the line was read.
    pub timestamp: Millis,
    /// The stream that it was written to.
    pub stream: Stream,
}

/// What a follower gets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// A line, and the cursor after it.
    Line(Line, Cursor),
    /// Retention has dropped bytes of this view before the follower has read them.
    Gap {
        /// How many bytes.
        lost_bytes: u64,
        /// The cursor after them.
        cursor: Cursor,
    },
    /// Everything before the end has been given; only a later run's output can follow its cursor.
    End(RunEnd, Cursor),
}

/// Wakes a waker at the end of a log, until it is dropped.
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

/// Takes a lock, also after a panic of a thread that held it: no update is left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
