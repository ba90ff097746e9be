//! A batch of work for the log writer thread: operations in order, and a buffer with the bytes that they append.
//!
//! Pipes are read into the buffer and logs are written from it, so the bytes are not copied in between.

use std::ops::Range;
use std::sync::Arc;

use super::message::Notice;
use crate::logs::{OutputLog, Writing};
use crate::model::{Millis, RunEnd, RunKey, Stream};
use tl_os::allocator::release_pages;

/// Buffer size of one read, in bytes: the largest capacity that an unprivileged process can give a pipe (pipe(7),
/// `pipe-max-size`).
///
/// A read with a smaller buffer may end within a packet, and the kernel discards the rest of that packet. Pages of the
/// buffer beyond the real capacity of a pipe are never touched: 64 KiB by default, 256 KiB after it was enlarged.
pub(super) const ROOM: usize = 1 << 20;

/// Number of bytes from which on a batch accepts no more reads.
const FULL: usize = 256 << 10;
/// Number of operations from which on a batch accepts no more reads.
const FULL_OPERATIONS: usize = 1_024;

/// One operation on a log.
#[derive(Debug)]
pub(super) enum Operation {
    /// Append this range of the batch's buffer.
    Append(Writing, Millis, Stream, Range<usize>),
    AppendOwned(Writing, Millis, Stream, Vec<u8>),
    Cut(Writing, Millis),
    Finish(Writing, u64, RunEnd),
    Reopen(Writing),
    /// Close the file of a log. Does not count as pending output: a log may end before its file is closed.
    Close(Arc<OutputLog>),
    /// Report [`Notice::Drained`]: all earlier operations have been performed.
    Drained(RunKey),
}

/// A batch of operations.
#[derive(Debug)]
pub(super) struct Batch {
    /// Sequence number.
    pub(super) number: u64,
    operations: Vec<Operation>,
    buffer: Box<[u8]>,
    /// Number of bytes of the buffer that operations refer to.
    used: usize,
    /// Number of bytes that operations own.
    owned: usize,
    /// Number of bytes of the buffer that have been used since its memory was returned to the kernel.
    touched: usize,
}

impl Batch {
    pub(super) fn new() -> Batch {
        // Zeroed memory from the kernel: only pages that are read into use memory.
        let buffer = vec![0; FULL + ROOM].into_boxed_slice();
        Batch { number: 0, operations: Vec::new(), buffer, used: 0, owned: 0, touched: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.used + self.owned >= FULL || self.operations.len() >= FULL_OPERATIONS
    }

    /// Upper bound of the memory that the batch uses, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.touched + self.operations.capacity() * size_of::<Operation>()
    }

    /// Returns its memory to the kernel. The batch must be empty.
    pub(super) fn release_memory(&mut self) {
        release_pages(&mut self.buffer);
        self.touched = 0;
        self.operations = Vec::new();
    }

    pub(super) fn push(&mut self, operation: Operation) {
        if let Operation::AppendOwned(.., bytes) = &operation {
            self.owned += bytes.len();
        }
        self.operations.push(operation);
    }

    /// The unused part of the buffer, for one read. Shorter than [`ROOM`] only in a full batch.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.used..).unwrap_or_default()
    }

    /// Appends the first `count` of the `read` bytes that were read into the room to a log.
    pub(super) fn append(&mut self, log: Writing, time: Millis, stream: Stream, count: usize, read: usize) {
        self.touched = self.touched.max(self.used + read);
        let bytes = self.used..self.used + count;
        self.used = bytes.end;
        self.operations.push(Operation::Append(log, time, stream, bytes));
    }

    /// Performs the operations in order, and empties the batch. Blocks while the disk does.
    pub(super) fn perform(&mut self, notify: &dyn Fn(RunKey, Notice)) {
        for operation in self.operations.drain(..) {
            match operation {
                Operation::Append(writing, time, stream, bytes) => {
                    writing.log().append(time, stream, self.buffer.get(bytes).unwrap_or_default());
                }
                Operation::AppendOwned(writing, time, stream, bytes) => writing.log().append(time, stream, &bytes),
                Operation::Cut(writing, time) => writing.log().cut(time),
                Operation::Finish(writing, epoch, end) => writing.log().finish(epoch, end),
                Operation::Reopen(writing) => writing.log().reopen(),
                Operation::Close(log) => log.close_file(),
                Operation::Drained(run) => notify(run, Notice::Drained),
            }
        }
        (self.used, self.owned) = (0, 0);
        if self.operations.capacity() > FULL_OPERATIONS {
            self.operations = Vec::new();
        }
    }
}
