//! The byte-exact log of each unit, and every view of it.
//!
//! A log is a sequence of records (time, stream, bytes) in the order in which they were read, in append-only segment
//! files. The writer does not split lines: each reader does, with the same pure splitter, from its own position. So
//! there is no queue and no broadcast that could lag, and the writer knows only the wakers of readers.
//!
//! | file | content |
//! |---|---|
//! | `store` | all logs, and the bound on all of them together |
//! | `disk`, `directory` | the files of segments; the directory that they are in, and its lock |
//! | `log` | one log: writing, ending, and waking followers |
//! | `writer`, `rescue` | the writing side, which waits for the disk; rescues a segment whose file was removed |
//! | `state`, `segments`, `segment`, `record` | the state under the log's lock; its segments; one segment; one record |
//! | `memory` | records kept in memory while the disk fails |
//! | `retention` | decides how many segments each log loses |
//! | `records` | a reader of records, which also detects dropped parts |
//! | `lines`, `line_reader`, `cursor` | splits bytes into lines; splits records into lines; positions between lines |
//! | `long` | a line that is too long for memory, read piece by piece |
//! | `tail` | finds where the last N lines begin |
//! | `follower`, `views` | followers; listings of lines and of raw bytes |
//! | `line_watch`, `line_search` | waits for a line with a certain text; finds the text in lines |
//!
//! Locks: the registry of the store, the state of a log, and its wakers. No thread holds two of these at once, nor any
//! of them across a system call that can block. The log writer thread and a reader wait for the disk, but neither makes
//! the supervisor or another reader wait. Further locks (the writer of a log, `reclaiming`, the directory) are used
//! only by the log writer thread, which takes them before these.

mod cursor;
mod directory;
mod disk;
mod follower;
#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;
mod line_reader;
mod line_search;
mod line_watch;
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
mod wakers;
mod writer;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::model::{Millis, RunEnd, Stream};

pub use self::cursor::{BadCursor, Cursor};
pub use self::follower::Follower;
pub(crate) use self::follower::Part;
pub(crate) use self::line_watch::{LineProgress, LineWatch};
pub use self::log::{OutputLog, Writing};
pub(crate) use self::long::{LongText, PIECE, Text};
pub use self::store::{LogStore, Removal};
pub use self::views::Lines;
pub(crate) use self::views::{LineText, Raw};

/// Limits on the size of logs on disk, in bytes. Each read of a pipe adds a header of 16 bytes.
#[derive(Clone, Copy, Debug)]
pub struct LogLimits {
    /// Limit for the log of one unit. A value below 4096 counts as 4096, one above `total` as `total`.
    pub per_unit: u64,
    /// Limit for the logs of all units together. A value below 4096 counts as 4096.
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

/// The position at which a follower begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the oldest line that is kept, after a gap if output was dropped.
    Beginning,
    /// At the last N finished lines.
    Tail(u64),
    /// After the item that had this cursor.
    After(Cursor),
}

/// A line, or a piece of a line that is longer than 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// The text, without the newline. Bytes that are not UTF-8 are replaced by U+FFFD.
    pub text: String,
    /// Whether more of the same line follows.
    pub partial: bool,
    /// When the end of the line was read.
    pub timestamp: Millis,
    /// The stream that it was written to.
    pub stream: Stream,
}

/// An item of a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Item {
    /// A line, and the cursor after it.
    Line(Line, Cursor),
    /// Retention has dropped bytes of this view before the follower has read them.
    Gap {
        /// Number of dropped bytes.
        lost_bytes: u64,
        /// The cursor after the gap.
        cursor: Cursor,
    },
    /// The end of the log: the last run has ended, and the supervisor does not start another by itself. The end of a run
    /// that is followed by a restart is not an item. All lines before it have been delivered; only the output of a later
    /// run can follow its cursor.
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

/// Locks a mutex, even if a thread has panicked while it held the lock: no panic leaves an update half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
