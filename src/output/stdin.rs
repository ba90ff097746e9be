//! The queue of one stdin: chunks of its writers, at most one per writer, written as fast as the pipe accepts them.

use std::any::Any;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::unistd::write;

use crate::error::Error;
use crate::model::{Target, UnitId};
use crate::pending::{ReplySender, pending};

/// The writer id of the chunk of [`StdinQueue::push_last`]; no other writer has it.
const LAST_WRITER: u64 = 0;

#[derive(Debug)]
struct Chunk {
    writer: u64,
    bytes: Vec<u8>,
    written: usize,
    reply: ReplySender<()>,
    /// A value that is dropped with the bytes.
    _held: Option<Box<dyn Any + Send>>,
}

/// The queue. When it is dropped, the writers of the chunks in it get [`Error::StdinClosed`].
#[derive(Debug)]
pub(super) struct StdinQueue {
    unit: UnitId,
    chunks: VecDeque<Chunk>,
    /// No further chunk is accepted.
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

    /// Adds the last bytes for stdin. No writer waits for them.
    pub(super) fn push_last(&mut self, bytes: Vec<u8>, held: Box<dyn Any + Send>) {
        if !std::mem::replace(&mut self.last, true) {
            let reply = pending().0;
            self.chunks.push_back(Chunk { writer: LAST_WRITER, bytes, written: 0, reply, _held: Some(held) });
        }
    }

    /// Whether the last bytes have been written.
    pub(super) fn is_at_end(&self) -> bool {
        self.last && self.chunks.is_empty()
    }

    pub(super) fn abandon(&mut self, writer: u64) {
        self.chunks.retain(|chunk| chunk.writer != writer);
    }

    /// Writes as much as the pipe accepts without blocking.
    ///
    /// # Errors
    /// If the pipe has no reader any more (EPIPE), or another error of `write(2)`.
    pub(super) fn write_to(&mut self, pipe: &impl AsFd) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn the_last_bytes_are_taken_once_and_nothing_after_them() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut queue = StdinQueue::new(UnitId(1));
        let (first, _) = pending();
        queue.push(1, b"a".to_vec(), first);
        queue.push_last(b"b".to_vec(), Box::new(()));
        queue.push_last(b"c".to_vec(), Box::new(()));
        let (late, refused) = pending();
        queue.push(2, b"d".to_vec(), late);
        assert_eq!(refused.wait(), Err(closed(UnitId(1))));
        assert!(!queue.is_at_end());
        queue.write_to(&writer).unwrap();
        assert!(queue.is_at_end());
        drop(writer);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "ab");
    }
}
