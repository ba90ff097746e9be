//! Reads records and splits them into lines, with one splitter per stream of the view, and a cursor after each line.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use memchr::memchr;

use crate::logs::cursor::Cursor;
use crate::logs::lines::{Piece, Splitter};
use crate::logs::log::{Bound, OutputLog};
use crate::logs::long::{Long, PIECE};
use crate::logs::record::{Kept, LogPosition, PerStream};
use crate::logs::records::{Peek, Records};
use crate::logs::{Line, View};
use crate::model::{Millis, Stream};

/// The result of [`LineReader::next`].
#[derive(Debug)]
pub(super) enum LineEvent {
    /// A line, and the cursor after it.
    Line(Line, Cursor),
    /// A line that is too long for memory, and the cursor after it.
    Long(Box<Long>, Cursor),
    /// The number of dropped bytes of the view, and the cursor after them.
    Gap(u64, Cursor),
    /// The beginning of a line was found in a stream; the bytes before it were skipped.
    Synced,
    /// The position is the bound.
    AtEnd,
    /// The log cannot be read now because descriptors or memory have run out.
    Failed(io::Error),
}

/// The position in one stream at which a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamStart {
    /// Number of bytes of the stream before the first byte to read.
    pub(super) from: u64,
    /// Whether a line begins at `from`. If not, the bytes before the next line are skipped.
    pub(super) synced: bool,
}

/// Reads the lines of one view of a log.
pub(super) struct LineReader {
    records: Records,
    view: View,
    states: PerStream<StreamState>,
    /// Whether lines contain their text, which is not needed for counting.
    pub(super) texts: bool,
}

/// The state of the reader for one stream.
struct StreamState {
    begin: StreamStart,
    splitter: Splitter,
    /// The record with the first byte that the splitter holds, or an earlier record.
    origin: LogPosition,
    /// The record in which the line came within [`REST`](crate::logs::lines::REST) bytes of its maximum length. The
    /// bytes that the next cut leaves may begin there.
    late: LogPosition,
    /// The time of the last record that was read from the stream.
    time: Millis,
}

impl LineReader {
    pub(super) fn new(
        log: &Arc<OutputLog>,
        view: View,
        bound: Bound,
        position: LogPosition,
        begin: PerStream<StreamStart>,
    ) -> LineReader {
        let disk = log.disk();
        let splitter = || Splitter::keeping(disk.max_line, disk.max_held_line);
        let state = |begin| StreamState { begin, splitter: splitter(), origin: position, late: position, time: 0 };
        let states = PerStream { out: state(begin.out), err: state(begin.err) };
        LineReader { records: Records::new(Arc::clone(log), bound, position), view, states, texts: true }
    }

    /// A reader that begins at the first byte ever written to the log.
    pub(super) fn from_beginning(log: &Arc<OutputLog>, view: View, bound: Bound) -> LineReader {
        let begin = StreamStart { from: 0, synced: true };
        LineReader::new(log, view, bound, LogPosition::default(), PerStream { out: begin, err: begin })
    }

    /// A reader that begins with the item after `cursor`, or at the beginning if the cursor does not match the log.
    pub(super) fn resume(log: &Arc<OutputLog>, view: View, bound: Bound, cursor: Cursor) -> LineReader {
        let Some(position) = find(log, cursor) else { return LineReader::from_beginning(log, view, bound) };
        let begin = |from| StreamStart { from, synced: true };
        LineReader::new(
            log,
            view,
            bound,
            position,
            PerStream { out: begin(cursor.from.out), err: begin(cursor.from.err) },
        )
    }

    /// Changes how far it reads.
    pub(super) fn set_bound(&mut self, bound: Bound) {
        self.records.bound = bound;
    }

    /// The position, as a number of bytes of records.
    pub(super) fn at(&self) -> u64 {
        self.records.at()
    }

    /// Whether a line of this stream is known to have begun.
    pub(super) fn synced(&self, stream: Stream) -> bool {
        self.states.get(stream).begin.synced
    }

    /// Whether a line is known to have begun in every stream of the view.
    pub(super) fn all_synced(&self) -> bool {
        self.view.streams().iter().all(|stream| self.synced(*stream))
    }

    /// The bytes of the unfinished line of this stream. None if there are none, or more than are held in memory.
    pub(super) fn unfinished(&self, stream: Stream) -> Option<&[u8]> {
        self.states.get(stream).splitter.unfinished()
    }

    /// Releases memory that unfinished lines do not need.
    pub(super) fn release(&mut self) {
        self.records.release();
        self.states.out.splitter.shrink();
        self.states.err.splitter.shrink();
    }

    pub(super) fn next(&mut self) -> LineEvent {
        loop {
            let event = match self.records.peek() {
                Peek::Output(stream, _) if !self.view.has(stream) => {
                    self.records.skip_record();
                    None
                }
                Peek::Output(stream, time) => self.feed(stream, time),
                Peek::Cut(time) => self.cut(time),
                Peek::Dropped(kept) => self.dropped(kept),
                Peek::AtEnd => Some(LineEvent::AtEnd),
                Peek::Failed(error) => Some(LineEvent::Failed(error)),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }

    /// Passes the texts of the next lines to `each` without copying them. It stops when `each` returns false, before a
    /// line of more than [`PIECE`] bytes, and before a line that is not as a whole in the bytes of one record that have
    /// been read: [`next`](Self::next) returns that line.
    pub(super) fn short_lines(&mut self, mut each: impl FnMut(&str) -> bool) {
        while self.short_lines_of_record(&mut each) {}
    }

    /// Passes the lines of the current record. Returns whether the next record may follow.
    fn short_lines_of_record(&mut self, each: &mut impl FnMut(&str) -> bool) -> bool {
        let Peek::Output(stream, _) = self.records.peek() else { return false };
        let count = self.records.count(stream);
        let state = self.states.get(stream);
        if !self.view.has(stream) || !state.begin.synced || state.begin.from > count {
            return false;
        }
        let mut rest = self.records.payload();
        let (mut used, mut more) = (0, true);
        while more && let Some(line) = state.splitter.whole_line(rest).filter(|line| line.len() <= PIECE) {
            used += line.len() + 1;
            (_, rest) = rest.split_at(line.len() + 1);
            more = each(&text(line));
        }
        let is_whole = rest.is_empty();
        self.records.take(used);
        more && is_whole
    }

    /// Ends the unfinished line of one stream of the view, if there is one. The line gets the time `time`, by default
    /// the time of its last record.
    pub(super) fn flush(&mut self, time: Option<Millis>) -> Option<LineEvent> {
        self.view.streams().iter().find_map(|stream| self.flush_stream(*stream, time))
    }

    fn flush_stream(&mut self, stream: Stream, time: Option<Millis>) -> Option<LineEvent> {
        let end = self.records.count(stream);
        let state = self.states.get_mut(stream);
        let time = time.unwrap_or(state.time);
        let cut = state.splitter.flush().map(|piece| owned_piece(piece, time, stream, self.texts))?;
        let origin = state.origin;
        Some(self.event(cut, origin, end, end))
    }

    /// `end` is the number of bytes of the stream up to the end of the line, `next` that up to the beginning of the
    /// next line.
    fn event(&self, piece: OwnedPiece, position: LogPosition, end: u64, next: u64) -> LineEvent {
        match piece {
            OwnedPiece::Line(line) => LineEvent::Line(line, self.cursor()),
            OwnedPiece::Long { length, partial, timestamp, stream } => {
                let bytes = end.saturating_sub(length as u64)..end;
                let bound = self.records.bound;
                let long = Long { bound, position, bytes, end: next, partial, timestamp, stream };
                LineEvent::Long(Box::new(long), self.cursor())
            }
        }
    }

    fn feed(&mut self, stream: Stream, time: Millis) -> Option<LineEvent> {
        let record = self.records.position();
        let count = self.records.count(stream);
        let state = self.states.get_mut(stream);
        let payload = self.records.payload();
        state.time = time;
        if let Some(before) = state.begin.from.checked_sub(count).filter(|before| *before > 0) {
            let skipped = payload.len().min(usize::try_from(before).unwrap_or(usize::MAX));
            self.records.take(skipped);
            return None;
        }
        if !state.begin.synced {
            let newline = memchr(b'\n', payload);
            let passed = newline.map_or(payload.len(), |at| at + 1);
            state.begin.synced = newline.is_some();
            self.records.take(passed);
            return newline.map(|_| LineEvent::Synced);
        }
        let before = state.splitter.held();
        let fed = state.splitter.feed(payload);
        let used = fed.used;
        let newline = fed.piece.is_some_and(|piece| !piece.partial);
        let cut = fed.piece.map(|piece| owned_piece(piece, time, stream, self.texts));
        let first = if before > 0 { state.origin } else { record };
        // A cut leaves at most three bytes, the beginning of a character.
        let late = self.records.log.disk().max_line.saturating_sub(3);
        if before <= late && before + used > late {
            state.late = record;
        }
        let held = state.splitter.held() as u64;
        let next = count + used as u64 - held;
        if held > 0 && (cut.is_some() || before == 0) {
            state.origin = if next >= *record.counts.get(stream) { record } else { state.late };
        }
        self.records.take(used);
        cut.map(|cut| self.event(cut, first, next - u64::from(newline), next))
    }

    fn cut(&mut self, time: Millis) -> Option<LineEvent> {
        if let Some(event) = self.flush(Some(time)) {
            return Some(event);
        }
        self.records.take_cut();
        self.sync().then_some(LineEvent::Synced)
    }

    /// Records that a line begins here in every stream of the view. Returns false if that was known.
    fn sync(&mut self) -> bool {
        let mut changed = false;
        for &stream in self.view.streams() {
            let begin = &mut self.states.get_mut(stream).begin;
            changed |= !begin.synced;
            begin.synced = true;
        }
        changed
    }

    /// Skips dropped records. A stream without bytes in them continues unchanged. A stream with bytes in them continues
    /// with its next line, and loses the part of the line before that was not returned.
    fn dropped(&mut self, kept: Kept) -> Option<LineEvent> {
        let Kept { record: position, lines } = kept;
        let cut_lost = position.cuts > self.records.position().cuts;
        let torn = |stream: Stream, read: u64| read < *position.counts.get(stream);
        for &stream in self.view.streams() {
            // A line that has lost only the cut after it is complete.
            if cut_lost
                && !torn(stream, self.read(stream))
                && let Some(event) = self.flush_stream(stream, None)
            {
                return Some(event);
            }
        }
        let mut lost = 0;
        for &stream in self.view.streams() {
            let read = self.read(stream);
            if torn(stream, read) {
                let (state, begin) = (self.states.get_mut(stream), *lines.get(stream));
                let given = read.saturating_sub(state.splitter.held() as u64);
                lost += begin.saturating_sub(given);
                state.splitter.clear();
                state.begin = StreamStart { from: begin, synced: true };
            }
        }
        self.records.jump(position);
        let newly_synced = cut_lost && self.sync();
        match lost {
            0 => newly_synced.then_some(LineEvent::Synced),
            _ => Some(LineEvent::Gap(lost, self.cursor())),
        }
    }

    /// Number of bytes of this stream that were read, or that precede the first byte to read.
    fn read(&self, stream: Stream) -> u64 {
        self.records.count(stream).max(self.states.get(stream).begin.from)
    }

    /// The cursor after the last returned item.
    pub(super) fn cursor(&self) -> Cursor {
        let mut start = self.records.position();
        let mut from = PerStream { out: self.records.count(Stream::Stdout), err: self.records.count(Stream::Stderr) };
        for &stream in self.view.streams() {
            let state = self.states.get(stream);
            let held = state.splitter.held() as u64;
            let from = from.get_mut(stream);
            *from = from.saturating_sub(held).max(state.begin.from);
            if held > 0 && state.origin.at < start.at {
                start = state.origin;
            }
        }
        Cursor { log: self.records.log.tag(), at: start.at, base: start.counts, from }
    }
}

/// A piece that does not borrow from the splitter.
enum OwnedPiece {
    Line(Line),
    Long { length: usize, partial: bool, timestamp: Millis, stream: Stream },
}

fn owned_piece(piece: Piece<'_>, timestamp: Millis, stream: Stream, with_text: bool) -> OwnedPiece {
    let Piece { bytes, length, partial } = piece;
    let text = match bytes {
        _ if !with_text => String::new(),
        Some(bytes) => text(bytes).into_owned(),
        None => return OwnedPiece::Long { length, partial, timestamp, stream },
    };
    OwnedPiece::Line(Line { text, partial, timestamp, stream })
}

/// The text of a line. Bytes that are not UTF-8 are replaced.
fn text(line: &[u8]) -> Cow<'_, str> {
    // Checks valid text several bytes at a time, which `from_utf8_lossy` does not.
    std::str::from_utf8(line).map_or_else(|_| String::from_utf8_lossy(line), Cow::Borrowed)
}

/// The record at which `cursor` begins; None if no record begins there.
fn find(log: &Arc<OutputLog>, cursor: Cursor) -> Option<LogPosition> {
    let end = log.snapshot().end;
    let beyond = cursor.from.out > end.counts.out || cursor.from.err > end.counts.err || cursor.at > end.at;
    if cursor.log != log.tag() || beyond {
        return None;
    }
    if cursor.at == end.at {
        return Some(end);
    }
    let Some(floor) = log.floor(cursor.at) else {
        // The record was dropped. The cursor contains what preceded it, so that the lost bytes can be counted.
        return Some(LogPosition { at: cursor.at, counts: cursor.base, cuts: 0 });
    };
    // A position inside a record must be rejected, because output of a process may look like a header.
    let mut records = Records::new(Arc::clone(log), Bound::At(end), floor);
    while records.position().at < cursor.at {
        match records.peek() {
            Peek::Output(..) => records.skip_record(),
            Peek::Cut(_) => records.take_cut(),
            Peek::Dropped(_) => return Some(LogPosition { at: cursor.at, counts: cursor.base, cuts: 0 }),
            Peek::AtEnd | Peek::Failed(_) => return None,
        }
    }
    (records.position().at == cursor.at).then(|| records.position())
}
