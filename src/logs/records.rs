//! Reads the records of a log in chunks from its own position, and detects parts that retention has dropped.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::log::{Bound, OutputLog};
use super::record::{HEADER, Header, Kept, LogPosition, PerStream, RecordKind};
use crate::logs::segments::{Located, Source};
use crate::model::{Millis, Stream};

/// The result of [`Records::peek`]: what is at the position.
#[derive(Debug)]
pub(super) enum Peek {
    /// Output of this stream, read at this time: see [`Records::payload`].
    Output(Stream, Millis),
    /// A cut, made at this time: the unfinished lines end here.
    Cut(Millis),
    /// The record was dropped; the log continues at this place.
    Dropped(Kept),
    /// The position is the bound.
    AtEnd,
    /// The log cannot be read now because descriptors or memory have run out. A later attempt may succeed.
    Failed(io::Error),
}

/// A position in a log, and bytes that were read ahead from there on.
pub(super) struct Records {
    pub(super) log: Arc<OutputLog>,
    pub(super) bound: Bound,
    /// The start of the record that the position is in, or of the next one.
    position: LogPosition,
    /// Bytes of records before the position.
    at: u64,
    /// Bytes of output before the position.
    counts: PerStream<u64>,
    /// The record that the position is in: stream, time, and the number of its bytes after the position, more than 0.
    record: Option<(Stream, Millis, usize)>,
    chunk: Vec<u8>,
    /// Bytes of `chunk` before the position.
    used: usize,
    segment: u64,
    segment_end: u64,
    /// Maximum number of bytes per read.
    most: usize,
}

impl Records {
    pub(super) fn new(log: Arc<OutputLog>, bound: Bound, position: LogPosition) -> Records {
        Records {
            most: log.disk().chunk,
            log,
            bound,
            position,
            at: position.at,
            counts: position.counts,
            record: None,
            chunk: Vec::new(),
            used: 0,
            segment: 0,
            segment_end: 0,
        }
    }

    /// Lowers the maximum number of bytes per read.
    pub(super) fn limit_chunk(&mut self, most: usize) {
        self.most = self.most.min(most);
    }

    pub(super) fn position(&self) -> LogPosition {
        self.position
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// Bytes of this stream before the position.
    pub(super) fn count(&self, stream: Stream) -> u64 {
        *self.counts.get(stream)
    }

    pub(super) fn peek(&mut self) -> Peek {
        loop {
            if let Some((stream, time, _)) = self.record {
                if self.used < self.chunk.len() {
                    return Peek::Output(stream, time);
                }
            } else if let Some(header) = self.chunk.get(self.used..).and_then(|rest| rest.first_chunk::<HEADER>()) {
                match Header::decode(header) {
                    Some(header) if self.fits(header) => match header.kind {
                        RecordKind::Cut => return Peek::Cut(header.time),
                        RecordKind::Output(stream) => self.begin(stream, header),
                    },
                    _ => self.drop_damaged(),
                }
                continue;
            }
            if let Some(peek) = self.refill() {
                return peek;
            }
        }
    }

    fn fits(&self, header: Header) -> bool {
        self.position.after(header).at <= self.segment_end
    }

    fn begin(&mut self, stream: Stream, header: Header) {
        self.step(HEADER);
        self.record = Some((stream, header.time, header.len as usize));
        self.settle();
    }

    fn step(&mut self, n: usize) {
        self.used += n;
        self.at += n as u64;
    }

    /// Moves to the next record if all of this one has been taken.
    fn settle(&mut self) {
        if let Some((_, _, 0)) = self.record {
            self.record = None;
            self.position = LogPosition { at: self.at, counts: self.counts, ..self.position };
        }
    }

    /// The bytes of the current record that have been read, from the position on.
    pub(super) fn payload(&self) -> &[u8] {
        let Some((_, _, left)) = self.record else { return &[] };
        let rest = self.chunk.get(self.used..).unwrap_or_default();
        rest.get(..left).unwrap_or(rest)
    }

    /// Moves the position by `n` bytes of the payload.
    pub(super) fn take(&mut self, n: usize) {
        if let Some((stream, _, left)) = &mut self.record {
            *left = left.saturating_sub(n);
            *self.counts.get_mut(*stream) += n as u64;
            self.step(n);
            self.settle();
        }
    }

    /// Moves the position to the next record.
    pub(super) fn skip_record(&mut self) {
        if let Some((_, _, left)) = self.record {
            self.take(left);
        }
    }

    /// Moves the position over a cut.
    pub(super) fn take_cut(&mut self) {
        self.step(HEADER);
        self.position = LogPosition { at: self.at, counts: self.counts, cuts: self.position.cuts + 1 };
    }

    /// Moves the position.
    pub(super) fn jump(&mut self, position: LogPosition) {
        (self.position, self.at, self.counts, self.record) = (position, position.at, position.counts, None);
        self.release();
    }

    /// Releases the memory of the bytes that were read ahead.
    pub(super) fn release(&mut self) {
        (self.chunk, self.used) = (Vec::new(), 0);
    }

    fn drop_damaged(&mut self) {
        self.log.drop_damaged(self.segment);
        self.chunk.clear();
        self.used = 0;
    }

    /// Reads from the position on. None if `peek` must look again.
    fn refill(&mut self) -> Option<Peek> {
        self.used = 0;
        let located = self.log.locate(self.at, self.bound, self.most);
        let (offset, len, source) = match located {
            Located::AtEnd => {
                self.chunk.clear();
                return Some(Peek::AtEnd);
            }
            Located::Dropped(kept) => {
                self.chunk.clear();
                return Some(Peek::Dropped(kept));
            }
            Located::Here { number, segment_end, offset, len, source } => {
                (self.segment, self.segment_end) = (number, segment_end);
                (offset, len as usize, source)
            }
        };
        if let Source::Memory(bytes) = source {
            self.chunk = bytes;
        } else {
            self.chunk.resize(len, 0);
            let read = self
                .log
                .open_segment(self.segment, &source)
                .and_then(|file| file.read_exact_at(&mut self.chunk, offset));
            match read {
                Ok(()) => {}
                Err(error) if is_temporary(&error) => {
                    self.chunk.clear();
                    return Some(Peek::Failed(error));
                }
                Err(_) => {
                    self.drop_damaged();
                    return None;
                }
            }
        }
        // Less than a header: the file does not contain what was written.
        if self.chunk.is_empty() || (self.record.is_none() && self.chunk.len() < HEADER) {
            self.drop_damaged();
        }
        None
    }
}

/// Whether a later attempt may succeed, because the error is not about the file.
fn is_temporary(error: &io::Error) -> bool {
    error.kind() == ErrorKind::OutOfMemory
        || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::EINTR))
}
