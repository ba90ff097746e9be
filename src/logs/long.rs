//! Lines that are too long for memory: the position of such a line in the log, and a reader that returns its text in
//! pieces.
//!
//! Retention may drop a part of the line before it is read. The reader then reports the number of lost bytes.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Line;
use super::cursor::Cursor;
use super::log::{Bound, OutputLog};
use super::record::{HEADER, LogPosition};
use super::records::{Peek, Records};
use crate::logs::lines::REST;
use crate::model::{Millis, Stream};

/// Maximum number of bytes of a line per piece.
pub(crate) const PIECE: usize = 4 << 10;

/// Maximum number of bytes that a reader of a long line reads from the log at once.
const CHUNK: usize = 32 << 10;

/// A long line in the log.
#[derive(Clone, Debug)]
pub(crate) struct Long {
    /// The bound of the reader that has found it.
    pub(super) bound: Bound,
    /// The record with its first byte, or an earlier record.
    pub(super) position: LogPosition,
    /// The range of its bytes in the stream, without the newline.
    pub(super) bytes: Range<u64>,
    /// Number of bytes of the stream before the next line.
    pub(super) end: u64,
    /// Whether more of the same line follows.
    pub(crate) partial: bool,
    /// When its last byte was read.
    pub(crate) timestamp: Millis,
    /// The stream that it was written to.
    pub(crate) stream: Stream,
}

/// The result of [`LongText::next`].
#[derive(Debug)]
pub(crate) enum Text<'t> {
    /// The next piece. Bytes that are not UTF-8 are replaced by U+FFFD.
    Piece(Cow<'t, str>),
    /// The end of the line.
    End,
    /// Retention has dropped the rest: the number of bytes, including the newline.
    Lost(u64),
}

/// Reads one long line.
pub(crate) struct LongText {
    long: Long,
    records: Records,
    /// Number of bytes of the stream before the next byte to read.
    at: u64,
    buffer: Box<[u8; REST + PIECE]>,
    /// Number of bytes that were read but not returned: the beginning of a character. They follow the returned ones.
    carried: usize,
    /// Number of bytes at the front of the buffer that the last call returned.
    given: usize,
}

impl Long {
    /// A reader of the line.
    pub(crate) fn text(&self, log: &Arc<OutputLog>) -> LongText {
        let mut records = Records::new(Arc::clone(log), self.bound, self.position);
        // A line shorter than a chunk needs no more memory than its length.
        let length = usize::try_from(self.bytes.end - self.bytes.start).unwrap_or(CHUNK);
        records.limit_chunk(CHUNK.min(length.saturating_add(2 * HEADER)));
        let at = self.bytes.start;
        LongText { long: self.clone(), records, at, buffer: Box::new([0; REST + PIECE]), carried: 0, given: 0 }
    }

    /// The cursor between the part of the line that was read and its last `lost` bytes, which are lost. `after` is the
    /// cursor after the line. A follower that continues there gets the gap.
    pub(crate) fn cursor_before_loss(&self, lost: u64, after: Cursor) -> Cursor {
        let LogPosition { at, counts, .. } = self.position;
        // The other stream may have an unfinished line that begins before this one.
        let (at, base) = if at < after.at { (at, counts) } else { (after.at, after.base) };
        let mut from = after.from;
        *from.get_mut(self.stream) = self.end.saturating_sub(lost);
        Cursor { at, base, from, ..after }
    }

    /// The kept part of the line, and the number of its lost bytes.
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
    /// The line that is read.
    pub(crate) fn long(&self) -> &Long {
        &self.long
    }

    /// The next piece.
    ///
    /// # Errors
    /// If the log cannot be read now because descriptors or memory have run out. Nothing is lost: call it again later.
    pub(crate) fn next(&mut self) -> io::Result<Text<'_>> {
        self.buffer.copy_within(self.given..self.given + self.carried, 0);
        self.given = 0;
        let mut filled = self.carried;
        while filled < self.buffer.len() && self.at < self.long.bytes.end {
            match self.read(filled) {
                Ok(Some(read)) => filled += read,
                // The bytes that were read are returned before the loss or the error.
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

    /// Reads bytes of the line into the buffer from index `to` on. Returns their number; None if they were dropped.
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

/// The number of bytes at the end of `bytes` that are the beginning of a UTF-8 character.
fn unfinished_character(bytes: &[u8]) -> usize {
    for back in 1..=REST.min(bytes.len()) {
        let tail = bytes.get(bytes.len() - back..).unwrap_or_default();
        if !matches!(tail.first(), Some(0x80..=0xBF)) {
            let continues = std::str::from_utf8(tail).is_err_and(|error| error.error_len().is_none());
            return if continues { back } else { 0 };
        }
    }
    0
}
