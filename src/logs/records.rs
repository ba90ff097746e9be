//! Walks the records of a log from a position of its own, in chunks, and copes with what is dropped meanwhile.

use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::log::{Bound, OutputLog};
use super::record::{HEADER, Header, Kept, LogPosition, PerStream, RecordKind};
use crate::logs::segments::{Located, Source};
use crate::model::{Millis, Stream};

/// What is at the position of a [`Records`].
#[derive(Debug)]
pub(super) enum Peek {
    /// Bytes of output: [`Records::payload`].
    Output(Stream, Millis),
    /// The unfinished lines end here.
    Cut(Millis),
    /// It was dropped; the log goes on there.
    Dropped(Kept),
    /// The bound.
    AtEnd,
    /// It cannot be read now (no descriptor or memory left), but later perhaps.
    Failed(io::Error),
}

/// A position in a log, and the bytes from there on that were read already.
pub(super) struct Records {
    pub(super) log: Arc<OutputLog>,
    pub(super) bound: Bound,
    /// The start of the record that the position is in, or of the next one.
    position: LogPosition,
    /// Bytes of records before the position.
    at: u64,
    /// Bytes of output before the position.
    counts: PerStream<u64>,
    /// The record that the position is in, and the bytes that are left of it; more than none.
    record: Option<(Stream, Millis, usize)>,
    chunk: Vec<u8>,
    /// Of `chunk`.
    used: usize,
    segment: u64,
    segment_end: u64,
    /// What is read at once, in bytes.
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

    /// Reads no more than this at once.
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
                    _ => self.damaged(),
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

    /// The next record begins where this one is used up.
    fn settle(&mut self) {
        if let Some((_, _, 0)) = self.record {
            self.record = None;
            self.position = LogPosition { at: self.at, counts: self.counts, ..self.position };
        }
    }

    /// What was read of the record that the position is in.
    pub(super) fn payload(&self) -> &[u8] {
        let Some((_, _, left)) = self.record else { return &[] };
        let rest = self.chunk.get(self.used..).unwrap_or_default();
        rest.get(..left).unwrap_or(rest)
    }

    /// Takes `n` bytes of the payload.
    pub(super) fn take(&mut self, n: usize) {
        if let Some((stream, _, left)) = &mut self.record {
            *left = left.saturating_sub(n);
            *self.counts.get_mut(*stream) += n as u64;
            self.step(n);
            self.settle();
        }
    }

    /// Goes to the next record, without reading what is left of this one.
    pub(super) fn skip_record(&mut self) {
        if let Some((_, _, left)) = self.record {
            self.take(left);
        }
    }

    /// Takes the cut record.
    pub(super) fn take_cut(&mut self) {
        self.step(HEADER);
        self.position = LogPosition { at: self.at, counts: self.counts, cuts: self.position.cuts + 1 };
    }

    /// Goes on at `position`.
    pub(super) fn jump(&mut self, position: LogPosition) {
        (self.position, self.at, self.counts, self.record) = (position, position.at, position.counts, None);
        self.release();
    }

    /// Gives back the memory of what was read.
    pub(super) fn release(&mut self) {
        (self.chunk, self.used) = (Vec::new(), 0);
    }

    fn damaged(&mut self) {
        self.log.damaged(self.segment);
        self.chunk.clear();
        self.used = 0;
    }

    /// Reads on from the position. None when there is something to look at, or to look again.
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
                Err(error) if is_passing(&error) => {
                    self.chunk.clear();
                    return Some(Peek::Failed(error));
                }
                Err(_) => {
                    self.damaged();
                    return None;
                }
            }
        }
        // Not even a header, or nothing at all: not what was written there.
        if self.chunk.is_empty() || (self.record.is_none() && self.chunk.len() < HEADER) {
            self.damaged();
        }
        None
    }
}

/// The file may be all right.
fn is_passing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::OutOfMemory
        || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN | libc::EINTR))
}
