//! The messages to the output thread, and its notices.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::descriptor::Descriptor;
use mio::Token;

use crate::logs::{OutputLog, Writing};
use crate::model::RunEnd;
use crate::model::terminal_size::TerminalSize;
use crate::pending::ReplySender;
use crate::supervisor::fd_budget::Taken;
use crate::terminal::Terminal;

/// A notice to the supervisor about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// All bytes that were in the pipes at the time of [`Message::Drain`] are in the log, and unfinished lines end
    /// there. Sent also if the disk has not accepted them in time. May be sent more than once.
    Drained,
    /// The process has closed its stdin.
    StdinClosed,
}

/// The daemon's ends of a run's pipes, and the destination of its output.
#[derive(Debug)]
pub struct Attach {
    /// Receives the output of a run without a terminal.
    pub log: Arc<OutputLog>,
    /// Receives the output of a run with a terminal. `stdin` and `stdout` are then the master of the terminal.
    pub terminal: Option<Arc<Terminal>>,
    /// The write end of the standard input.
    pub stdin: Option<OwnedFd>,
    /// The read end of the standard output.
    pub stdout: Option<Arc<Descriptor>>,
    /// The read end of the standard error.
    pub stderr: Option<Arc<Descriptor>>,
    /// The reservation of the other descriptors and of that of the log.
    pub taken: Taken,
}

/// A request to the output thread. The queue has no bound of its own: each unit has at most a few messages in it, and
/// each writer of a stdin waits for its reply before it sends more.
#[derive(Debug)]
pub enum Message {
    /// This pipe of the run could not be registered: close it.
    Unwatched(Token),
    /// The leader of the run, which writes to this log, has been reaped: read the rest of its output, then send
    /// [`Notice::Drained`].
    Drain(Arc<OutputLog>),
    /// The run has failed to execute its program: close its pipes. No drain follows.
    Forget,
    /// Write a chunk to stdin.
    Write {
        /// The number of the writer; a writer has one chunk in the queue.
        writer: u64,
        /// The chunk.
        bytes: Vec<u8>,
        /// Completed when all bytes are in the pipe, or when stdin is closed.
        reply: ReplySender<()>,
    },
    /// Write the entire stdin of the run, and close it after that. From now on it counts as closed for all other
    /// writers. The second value is dropped with the bytes.
    Feed(Vec<u8>, Box<dyn Any + Send>),
    /// Drop the chunk of this writer from the queue of stdin.
    Abandon {
        /// The number of the writer.
        writer: u64,
    },
    /// Append a line written by the supervisor to the stderr of a log.
    AppendToLog(Writing, Vec<u8>),
    /// End a log if it is still in this epoch: followers end there.
    FinishLog(Writing, u64, RunEnd),
    /// Reopen a log after [`Message::FinishLog`], because another run follows.
    ReopenLog(Writing),
    /// Close stdin.
    CloseStdin,
    /// Close the terminal: processes that have it open get SIGHUP.
    HangUp,
    /// Set the size of the terminal, then complete the reply.
    Resize(TerminalSize, ReplySender<()>),
}
