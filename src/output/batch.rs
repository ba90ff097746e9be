//! What is handed to the thread that writes logs: operations in order, and a buffer with the bytes that they append.
//!
//! Pipes are read into the buffer, and logs are written from it: the bytes are copied nowhere in between.

use std::ops::Range;
use std::sync::Arc;

use super::message::Notice;
use super::pipe::ROOM;
use crate::logs::{OutputLog, Writing};
use crate::model::{Millis, RunEnd, RunKey, Stream};
use tl_os::allocator::give_back_pages;

/// A batch with this many bytes takes no more reads.
const FULL: usize = 256 << 10;
/// A batch with this many operations takes no more reads.
const FULL_OPERATIONS: usize = 1_024;

/// One operation on a log.
#[derive(Debug)]
pub(super) enum Operation {
    /// Append these bytes of the batch's buffer.
    Append(Writing, Millis, Stream, Range<usize>),
    AppendOwned(Writing, Millis, Stream, Vec<u8>),
    Cut(Writing, Millis),
    Finish(Writing, u64, RunEnd),
    Reopen(Writing),
    /// Not counted as something to write: a log may end before its file is closed.
    Close(Arc<OutputLog>),
    /// Everything before this is in the log: report [`Notice::Drained`].
    Drained(RunKey),
}

/// A batch of operations.
#[derive(Debug)]
pub(super) struct Batch {
    /// Increases from batch to batch.
    pub(super) number: u64,
    operations: Vec<Operation>,
    buffer: Box<[u8]>,
    /// Bytes of the buffer that operations refer to.
    used: usize,
    /// Bytes that operations bring with them.
    owned: usize,
    /// Bytes of the buffer that have been used since its memory was given back.
    touched: usize,
}

impl Batch {
    pub(super) fn new() -> Batch {
        // Zeroed memory from the kernel: only pages that are read into take memory.
        let buffer = vec![0; FULL + ROOM].into_boxed_slice();
        Batch { number: 0, operations: Vec::new(), buffer, used: 0, owned: 0, touched: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.used + self.owned >= FULL || self.operations.len() >= FULL_OPERATIONS
    }

    /// Bytes of memory that the batch has taken from the kernel.
    pub(super) fn memory(&self) -> usize {
        self.touched + self.operations.capacity() * size_of::<Operation>()
    }

    /// Gives its memory back to the kernel. For an empty batch.
    pub(super) fn give_back(&mut self) {
        give_back_pages(&mut self.buffer);
        self.touched = 0;
        self.operations = Vec::new();
    }

    pub(super) fn push(&mut self, operation: Operation) {
        if let Operation::AppendOwned(.., bytes) = &operation {
            self.owned += bytes.len();
        }
        self.operations.push(operation);
    }

    /// Room for one read; less than [`ROOM`] only in a full batch.
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

    /// Performs the operations in order, and empties the batch. Blocks as long as the disk does.
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
