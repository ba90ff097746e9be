//! Listings: the lines, or the raw bytes, that a log contains at one moment.

use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

use super::log::{Bound, OutputLog};
use super::long::{Long, LongText};
use super::record::{LogPosition, PerStream};
use super::records::{Peek, Records};
use super::{Cursor, Line, View, tail};
use crate::logs::line_reader::{LineEvent, LineReader};
use crate::model::Stream;

/// The lines that a log contained when this was created. Reads the log during the iteration, in bounded memory.
pub struct Lines {
    log: Arc<OutputLog>,
    reader: LineReader,
    /// Number of lines to skip before the first one that is returned.
    skip: u64,
    failure: Option<io::Error>,
}

/// The bytes that a log contained when this was created. Reads the log during [`Read::read`], in bounded memory.
pub struct Raw {
    records: Records,
    view: View,
    /// Number of bytes of each stream before the first one that is returned.
    from: PerStream<u64>,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").finish_non_exhaustive()
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").finish_non_exhaustive()
    }
}

impl OutputLog {
    /// The lines that are kept now, including unfinished ones. With `tail`, only that many last lines.
    pub fn lines(self: &Arc<Self>, view: View, tail: Option<u64>) -> Lines {
        let all = || self.all_lines(view);
        tail.and_then(|n| self.last_lines(view, n, || false)).unwrap_or_else(all)
    }

    fn all_lines(self: &Arc<Self>, view: View) -> Lines {
        let reader = LineReader::from_beginning(self, view, Bound::At(self.snapshot().end));
        Lines { log: Arc::clone(self), reader, skip: 0, failure: None }
    }

    /// The last `n` lines; None if `cancelled` returns true meanwhile.
    pub(crate) fn last_lines(
        self: &Arc<Self>,
        view: View,
        n: u64,
        mut cancelled: impl FnMut() -> bool,
    ) -> Option<Lines> {
        let (reader, skip) = tail::last(self, view, n, self.snapshot(), true, &mut cancelled)?;
        Some(Lines { log: Arc::clone(self), reader, skip, failure: None })
    }

    /// Number of kept bytes of records. The time to find the last lines is at most proportional to it.
    pub(crate) fn kept_bytes(&self) -> u64 {
        self.snapshot().end.at.saturating_sub(self.oldest().at)
    }

    /// The bytes that are kept now, exactly as they were written, both streams in the order in which they were read.
    /// With `tail`, only the bytes of that many last lines.
    ///
    /// # Errors
    /// If the log cannot be read because descriptors or memory have run out.
    pub fn raw(self: &Arc<Self>, view: View, tail: Option<u64>) -> io::Result<Raw> {
        let all = || self.raw_from(view, LogPosition::default(), PerStream::default(), self.snapshot().end);
        match tail {
            None => Ok(all()),
            Some(n) => Ok(self.last_raw(view, n, || false)?.unwrap_or_else(all)),
        }
    }

    fn raw_from(self: &Arc<Self>, view: View, position: LogPosition, from: PerStream<u64>, end: LogPosition) -> Raw {
        Raw { records: Records::new(Arc::clone(self), Bound::At(end), position), view, from }
    }

    /// The bytes of the last `n` lines; None if `cancelled` returns true meanwhile.
    ///
    /// # Errors
    /// If the log cannot be read because descriptors or memory have run out.
    pub(crate) fn last_raw(
        self: &Arc<Self>,
        view: View,
        n: u64,
        mut cancelled: impl FnMut() -> bool,
    ) -> io::Result<Option<Raw>> {
        let snapshot = self.snapshot();
        let Some((reader, skip)) = tail::last(self, view, n, snapshot, true, &mut cancelled) else { return Ok(None) };
        let Cursor { at, base, from, .. } = tail::skip(reader, skip)?;
        Ok(Some(self.raw_from(view, LogPosition { at, counts: base, cuts: 0 }, from, snapshot.end)))
    }
}

/// The text of a line of a listing.
pub(crate) enum LineText {
    /// The whole text.
    Short(String),
    /// A reader of a long text.
    Long(Box<LongText>),
}

/// A line, or a long line that is still in the log.
enum FoundLine {
    Line(Line),
    Long(Box<Long>),
}

impl Lines {
    /// Why the iteration has ended early, if it has: the log could not be read because descriptors or memory have run
    /// out.
    pub fn failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// The text of the next line, or a reader of it if it is long.
    pub(crate) fn next_text(&mut self) -> Option<LineText> {
        Some(match self.find()? {
            FoundLine::Line(line) => LineText::Short(line.text),
            FoundLine::Long(long) => LineText::Long(Box::new(long.text(&self.log))),
        })
    }

    /// Passes the texts of the next lines to `each` until it returns false, or until a line cannot be read without a copy:
    /// [`next_text`](Self::next_text) returns that line.
    pub(crate) fn short_texts(&mut self, each: impl FnMut(&str) -> bool) {
        if self.skip == 0 {
            self.reader.short_lines(each);
        }
    }

    fn find(&mut self) -> Option<FoundLine> {
        loop {
            let event = match self.reader.next() {
                LineEvent::AtEnd => self.reader.flush(None)?,
                event => event,
            };
            let found = match event {
                LineEvent::Line(line, _) => FoundLine::Line(line),
                LineEvent::Long(long, _) => FoundLine::Long(long),
                LineEvent::Gap(..) | LineEvent::Synced => continue,
                LineEvent::AtEnd => return None,
                LineEvent::Failed(error) => {
                    self.failure = Some(error);
                    return None;
                }
            };
            match self.skip.checked_sub(1) {
                None => return Some(found),
                Some(left) => self.skip = left,
            }
        }
    }
}

impl Iterator for Lines {
    type Item = Line;

    fn next(&mut self) -> Option<Line> {
        match self.find()? {
            FoundLine::Line(line) => Some(line),
            // If the end of the line was dropped meanwhile, it is missing.
            FoundLine::Long(long) => match long.whole(&self.log) {
                Ok((line, _)) => Some(line),
                Err(error) => {
                    self.failure = Some(error);
                    None
                }
            },
        }
    }
}

impl Raw {
    /// Writes all bytes to `out`, without a copy in between.
    ///
    /// # Errors
    /// Those of `out`, and if the log cannot be read because descriptors or memory have run out.
    pub(crate) fn write_to(&mut self, out: &mut impl Write) -> io::Result<()> {
        while self.find()? {
            let payload = self.records.payload();
            let length = payload.len();
            out.write_all(payload)?;
            self.records.take(length);
        }
        Ok(())
    }

    /// Moves to the next bytes: the payload of the record. Returns false at the end.
    fn find(&mut self) -> io::Result<bool> {
        loop {
            match self.records.peek() {
                Peek::Output(stream, _) if self.view.has(stream) => {
                    let before = self.from.get(stream).saturating_sub(self.records.count(stream));
                    if before == 0 {
                        return Ok(true);
                    }
                    let passed = self.records.payload().len().min(usize::try_from(before).unwrap_or(usize::MAX));
                    self.records.take(passed);
                }
                Peek::Output(..) => self.records.skip_record(),
                Peek::Cut(_) => self.records.take_cut(),
                Peek::Dropped(kept) => {
                    for stream in [Stream::Stdout, Stream::Stderr] {
                        // After a loss, a stream continues with its next line, as in a listing of lines.
                        let read = self.records.count(stream).max(*self.from.get(stream));
                        if read < *kept.record.counts.get(stream) {
                            *self.from.get_mut(stream) = *kept.lines.get(stream);
                        }
                    }
                    self.records.jump(kept.record);
                }
                Peek::AtEnd => return Ok(false),
                Peek::Failed(error) => return Err(error),
            }
        }
    }
}

impl Read for Raw {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || !self.find()? {
            return Ok(0);
        }
        // Reading from a slice does not fail.
        let n = self.records.payload().read(buf)?;
        self.records.take(n);
        Ok(n)
    }
}
