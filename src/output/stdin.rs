//! The writers of one stdin: a queue of chunks, at most one for each writer, written as the pipe takes them.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::write;

use crate::error::Error;
use crate::model::{Target, UnitId};
use crate::pending::{ReplySender, pending};

/// No writer has this number.
const NOBODY: u64 = 0;

#[derive(Debug)]
struct Chunk {
    writer: u64,
    bytes: Vec<u8>,
    written: usize,
    reply: ReplySender<()>,
    /// Dropped with the bytes.
    _held: Option<Box<dyn Any + Send>>,
}

/// The queue. Dropped with chunks in it, their writers learn that stdin is closed.
#[derive(Debug)]
pub(super) struct StdinQueue {
    unit: UnitId,
    chunks: VecDeque<Chunk>,
    /// Nothing comes after these chunks.
    last: bool,
}

impl StdinQueue {
    pub(super) fn new(unit: UnitId) -> StdinQueue {
        StdinQueue { unit, chunks: VecDeque::new(), last: false }
    }

    pub(super) fn push(&mut self, writer: u64, bytes: Vec<u8>, reply: ReplySender<()>) {
        if self.last {
            return reply.send(Err(closed(self.unit)));
        }
        self.chunks.push_back(Chunk { writer, bytes, written: 0, reply, _held: None });
    }

    /// After these bytes there are no more. Nobody waits for them.
    pub(super) fn push_last(&mut self, bytes: Vec<u8>, held: Box<dyn Any + Send>) {
        if !std::mem::replace(&mut self.last, true) {
            let reply = pending().0;
            self.chunks.push_back(Chunk { writer: NOBODY, bytes, written: 0, reply, _held: Some(held) });
        }
    }

    /// Whether all there will ever be has been written.
    pub(super) fn is_at_end(&self) -> bool {
        self.last && self.chunks.is_empty()
    }

    pub(super) fn abandon(&mut self, writer: u64) {
        self.chunks.retain(|chunk| chunk.writer != writer);
    }

    /// Writes what the pipe takes now.
    ///
    /// # Errors
    /// When nobody reads any more (EPIPE), or whatever else makes the pipe useless.
    pub(super) fn write_to(&mut self, pipe: &OwnedFd) -> io::Result<()> {
        while let Some(chunk) = self.chunks.front_mut() {
            let rest = chunk.bytes.get(chunk.written..).unwrap_or_default();
            if rest.is_empty() {
                if let Some(done) = self.chunks.pop_front() {
                    done.reply.send(Ok(()));
                }
                continue;
            }
            match write(pipe.as_fd(), rest) {
                Ok(count) => chunk.written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

impl Drop for StdinQueue {
    fn drop(&mut self) {
        for chunk in self.chunks.drain(..) {
            chunk.reply.send(Err(closed(self.unit)));
        }
    }
}

pub(super) fn closed(unit: UnitId) -> Error {
    Error::StdinClosed(Target::Unit(unit))
}
