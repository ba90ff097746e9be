//! A line too long to be held: where it lies in the log, and a reader that gives its text piece by piece.
//!
//! Retention may drop a part of the line before it is read. What was given by then stands, and the reader says how many
//! bytes of the line are lost.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Line;
use super::log::{Bound, OutputLog};
use super::record::{HEADER, LogPosition};
use super::records::{Peek, Records};
use crate::logs::lines::REST;
use crate::model::{Millis, Stream};

/// The most bytes of a line that are given at once.
pub(crate) const PIECE: usize = 4 << 10;

/// What a reader of a long line reads from the log at once, in bytes.
const CHUNK: usize = 32 << 10;

/// Where a long line lies.
#[derive(Clone, Debug)]
pub(crate) struct Long {
    /// How far the reader may read that has found it.
    pub(super) bound: Bound,
    /// The record with its first byte, or one before it.
    pub(super) position: LogPosition,
    /// Bytes of the stream before the line, and up to its end without the newline.
    pub(super) bytes: Range<u64>,
    /// Bytes of the stream up to where the next line begins.
    pub(super) end: u64,
    /// More of the same line follows.
    pub(crate) partial: bool,
    /// When its end was read.
    pub(crate) timestamp: Millis,
    /// Which stream it is from.
    pub(crate) stream: Stream,
}

/// What comes next of a long line.
#[derive(Debug)]
pub(crate) enum Text<'t> {
    /// More of it; U+FFFD for what is not UTF-8.
    Piece(Cow<'t, str>),
    /// That was all of it.
    End,
    /// The rest was dropped from the log, this many bytes with the newline.
    Lost(u64),
}

/// Reads one long line.
pub(crate) struct LongText {
    long: Long,
    records: Records,
    /// Bytes of the stream before the next that is read.
    at: u64,
    /// Bytes that were read and not given, at the front: the beginning of a character.
    buffer: Box<[u8; REST + PIECE]>,
    carried: usize,
    /// Bytes at the front that were given by the last call.
    given: usize,
}

impl Long {
    /// A reader that begins at the line's beginning.
    pub(crate) fn text(&self, log: &Arc<OutputLog>) -> LongText {
        let mut records = Records::new(Arc::clone(log), self.bound, self.position);
        // A line that is not much too long to be held is read at once.
        let length = usize::try_from(self.bytes.end - self.bytes.start).unwrap_or(CHUNK);
        records.limit_chunk(CHUNK.min(length.saturating_add(2 * HEADER)));
        let at = self.bytes.start;
        LongText { long: self.clone(), records, at, buffer: Box::new([0; REST + PIECE]), carried: 0, given: 0 }
    }

    /// The whole of it in memory, as far as it can still be read, and how many bytes are lost.
    pub(super) fn whole(&self, log: &Arc<OutputLog>) -> io::Result<(Line, u64)> {
        let (mut reader, mut text) = (self.text(log), String::new());
        let lost = loop {
            match reader.next()? {
                Text::Piece(piece) => text.push_str(&piece),
                Text::End => break 0,
                Text::Lost(bytes) => break bytes,
            }
        };
        let partial = self.partial || lost > 0;
        Ok((Line { text, partial, timestamp: self.timestamp, stream: self.stream }, lost))
    }
}

impl LongText {
    /// The line it reads.
    pub(crate) fn long(&self) -> &Long {
        &self.long
    }

    /// The next piece.
    ///
    /// # Errors
    /// When the log cannot be read now, for want of descriptors or memory. Nothing is lost: call it again.
    pub(crate) fn next(&mut self) -> io::Result<Text<'_>> {
        self.buffer.copy_within(self.given..self.given + self.carried, 0);
        self.given = 0;
        let mut filled = self.carried;
        while filled < self.buffer.len() && self.at < self.long.bytes.end {
            match self.read(filled) {
                Ok(Some(read)) => filled += read,
                // What was read is given first.
                Ok(None) | Err(_) if filled > self.carried => break,
                Err(error) => return Err(error),
                Ok(None) => return Ok(Text::Lost(self.long.end.saturating_sub(self.at - self.carried as u64))),
            }
        }
        let bytes = self.buffer.get(..filled).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(Text::End);
        }
        let ends = self.at >= self.long.bytes.end;
        self.carried = if ends { 0 } else { unfinished_character(bytes) };
        self.given = filled - self.carried;
        Ok(Text::Piece(String::from_utf8_lossy(bytes.get(..self.given).unwrap_or_default())))
    }

    /// Reads some of the line to this position of the buffer; none where it was dropped.
    fn read(&mut self, to: usize) -> io::Result<Option<usize>> {
        let stream = self.long.stream;
        loop {
            match self.records.peek() {
                Peek::Output(other, _) if other != stream => self.records.skip_record(),
                Peek::Output(..) => {
                    let passed = self.at.saturating_sub(self.records.count(stream));
                    let payload = self.records.payload();
                    if passed > 0 {
                        let passed = payload.len().min(usize::try_from(passed).unwrap_or(usize::MAX));
                        self.records.take(passed);
                        continue;
                    }
                    let left = usize::try_from(self.long.bytes.end - self.at).unwrap_or(usize::MAX);
                    let room = self.buffer.get_mut(to..).unwrap_or_default();
                    let count = payload.len().min(left).min(room.len());
                    if let (Some(room), Some(payload)) = (room.get_mut(..count), payload.get(..count)) {
                        room.copy_from_slice(payload);
                    }
                    self.records.take(count);
                    self.at += count as u64;
                    return Ok(Some(count));
                }
                Peek::Cut(_) => self.records.take_cut(),
                Peek::Dropped(kept) if *kept.record.counts.get(stream) <= self.at => self.records.jump(kept.record),
                Peek::Dropped(_) | Peek::AtEnd => return Ok(None),
                Peek::Failed(error) => return Err(error),
            }
        }
    }
}

/// How many bytes at the end of `bytes` begin a UTF-8 character that may go on.
fn unfinished_character(bytes: &[u8]) -> usize {
    for back in 1..=REST.min(bytes.len()) {
        let tail = bytes.get(bytes.len() - back..).unwrap_or_default();
        if !matches!(tail.first(), Some(0x80..=0xBF)) {
            let goes_on = std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
            return if goes_on { back } else { 0 };
        }
    }
    0
}
