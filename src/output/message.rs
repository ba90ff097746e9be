//! What the output thread is asked, and what it reports.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::logs::{OutputLog, Writing};
use crate::model::RunEnd;
use crate::model::terminal_size::TerminalSize;
use crate::pending::ReplySender;
use crate::supervisor::fd_budget::Taken;
use crate::terminal::Terminal;
use tl_os::spawn::ExecFailure;

/// What the thread reports about a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The program runs, or its process was killed before it did.
    ExecOk,
    /// The program could not be run.
    ExecFailed(ExecFailure),
    /// Everything that was in the pipes when [`Message::Drain`] came is in the log, and lines are cut there; or the disk has not
    /// taken it in time. Can come more than once.
    Drained,
    /// The process has closed its stdin.
    StdinClosed,
}

/// The daemon's ends of a run's pipes, and where its output goes.
#[derive(Debug)]
pub struct Attach {
    /// Gets the output of a run without a terminal.
    pub log: Arc<OutputLog>,
    /// Gets the output of a run with a terminal; `stdin` and `stdout` are its master then.
    pub terminal: Option<Arc<Terminal>>,
    /// To write to.
    pub stdin: Option<OwnedFd>,
    /// To read from.
    pub stdout: Option<OwnedFd>,
    /// To read from.
    pub stderr: Option<OwnedFd>,
    /// The pipe on which the child reports a failed exec.
    pub report: OwnedFd,
    /// Counts these descriptors and that of the log.
    pub taken: Taken,
}

/// What the thread is asked to do. The queue has no bound of its own: each unit has a few messages in it at most, and each writer
/// of a stdin waits for its answer before it sends more.
#[derive(Debug)]
pub enum Message {
    /// A run has been forked.
    Attach(Box<Attach>),
    /// The leader of the run has been reaped: answer with [`Notice::Drained`].
    Drain,
    /// The run has never executed its program: no drain follows.
    Forget,
    /// A chunk for stdin. Answered when all of it is in the pipe.
    Write {
        /// The number of the writer; a writer has one chunk in the queue.
        writer: u64,
        /// The chunk.
        bytes: Vec<u8>,
        /// Completed when all bytes are in the pipe, or stdin is closed.
        reply: ReplySender<()>,
    },
    /// All that stdin gets: it is closed once this is in the pipe, and counts as closed for every other writer from now on. The
    /// second value is dropped with the bytes.
    Feed(Vec<u8>, Box<dyn Any + Send>),
    /// Drop what this writer has in the queue of stdin.
    Abandon {
        /// The number of the writer.
        writer: u64,
    },
    /// Append a line of the supervisor's own to the stderr of a log.
    AppendToLog(Writing, Vec<u8>),
    /// End a log, in this epoch of it: followers end there.
    FinishLog(Writing, u64, RunEnd),
    /// Another run follows after [`Message::FinishLog`].
    ReopenLog(Writing),
    /// Close stdin.
    CloseStdin,
    /// Close the terminal: processes that have it open get a hang-up.
    HangUp,
    /// Set the size of the terminal. Answered when it is set.
    Resize(TerminalSize, ReplySender<()>),
}
