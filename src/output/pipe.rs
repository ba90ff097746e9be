//! The state of the output thread for each run and for each of its pipes.

use std::sync::Arc;

use mio::Token;

use super::batch::Operation;
use super::capacity::Capacity;
use super::descriptor::Descriptor;
use super::stdin::StdinQueue;
use crate::logs::{OutputLog, Writing};
use crate::model::{RunKey, Stream};
use crate::supervisor::fd_budget::Taken;
use crate::terminal::Terminal;

/// A pipe, or one direction of a terminal's master.
pub(super) struct Pipe {
    pub(super) fd: Arc<Descriptor>,
    pub(super) run: RunKey,
    pub(super) kind: PipeKind,
    /// Whether it is in a queue of pipes to be served again.
    pub(super) queued: bool,
    pub(super) capacity: Capacity,
}

pub(super) enum PipeKind {
    Output {
        stream: Stream,
        drain: Drain,
        /// Bytes that were read beyond the last byte of a drain.
        surplus: Vec<u8>,
    },
    Stdin(StdinQueue),
}

/// How much of a pipe must still be read before the drain of its run ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    /// No drain is in progress: the pipe is read without a limit.
    Open,
    /// Number of bytes, more than 0, that were in the pipe when the leader was reaped and have not been read yet.
    Left(usize),
    /// All bytes of the drain have been read from this pipe but not from the other one. Further output comes after the
    /// end.
    Held,
}

/// A run that has open pipes or has not been drained.
pub(super) struct Run {
    pub(super) log: Arc<OutputLog>,
    pub(super) terminal: Option<Arc<Terminal>>,
    /// Its open pipes.
    pub(super) tokens: Vec<Token>,
    /// The drain, while one is going on.
    pub(super) draining: Option<Draining>,
    pub(super) drained: bool,
    /// The reservation of its descriptors that are not pipes: that of the log, and that of a probe.
    pub(super) _taken: Taken,
}

/// A drain that is going on.
pub(super) struct Draining {
    /// Keeps the log from ending while its bytes are in the pipes.
    pub(super) writing: Writing,
    /// Operations on the log that are performed after those bytes were appended.
    pub(super) then: Vec<Operation>,
}
