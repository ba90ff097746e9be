//! What the output thread keeps of each run and of each of its pipes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use mio::Token;

use super::batch::Operation;
use super::stdin::StdinQueue;
use crate::logs::{OutputLog, Writing};
use crate::model::{RunKey, Stream};
use crate::supervisor::fd_budget::Taken;
use crate::terminal::Terminal;

/// Room for one read, in bytes: as much as an unprivileged process can make a pipe hold (pipe(7), `pipe-max-size`).
///
/// A read with less room than the pipe holds may end within a packet, and the kernel discards the rest of that packet. Pages
/// beyond what a pipe really holds, 64 KiB by default, are never touched.
pub(super) const ROOM: usize = 1 << 20;

/// A pipe, or a terminal's master in one direction.
pub(super) struct Pipe {
    pub(super) fd: OwnedFd,
    pub(super) run: RunKey,
    pub(super) kind: PipeKind,
    /// It is in a queue of pipes to be read again.
    pub(super) queued: bool,
    /// Given back when the pipe is closed.
    pub(super) _taken: Taken,
}

pub(super) enum PipeKind {
    Output {
        stream: Stream,
        drain: Drain,
        /// Bytes that one read gave beyond the last byte of a drain.
        surplus: Vec<u8>,
    },
    Stdin(StdinQueue),
    /// The report of the exec.
    Report,
}

/// How much of a pipe is still to be read for the end of its run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    /// No drain is going on: read whatever comes.
    Open,
    /// This many bytes, more than 0, were in the pipe when the leader was reaped and have not been read.
    Left(usize),
    /// All of them have been read, but not those of the other pipe: what comes now belongs after the end.
    Held,
}

/// A run with open pipes, or whose drain is still to come.
pub(super) struct Run {
    pub(super) log: Arc<OutputLog>,
    pub(super) terminal: Option<Arc<Terminal>>,
    /// Its open pipes.
    pub(super) tokens: Vec<Token>,
    /// The drain, while one is going on.
    pub(super) draining: Option<Draining>,
    pub(super) drained: bool,
    /// Counts its descriptors that are not pipes: that of the log, and that of a probe.
    pub(super) taken: Taken,
}

/// A drain that is going on.
pub(super) struct Draining {
    /// The log has something to write while there are bytes in the pipes: it must not end before them.
    pub(super) writing: Writing,
    /// Operations on the log that come after those bytes: its end, and what follows.
    pub(super) then: Vec<Operation>,
}
