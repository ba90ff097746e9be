//! Finds where the last N lines begin, without reading the whole log.
//!
//! It counts the lines from an indexed position, and goes back from the end in growing steps until there are enough. An
//! indexed position may be inside a line: the bytes before the first newline (or cut) of a stream belong to a line
//! whose beginning is not known, so only the lines after that count. A second reader then skips the surplus lines.

use std::io;
use std::sync::Arc;

use super::View;
use super::cursor::Cursor;
use super::log::{Bound, OutputLog};
use super::record::{Kept, LogPosition, PerStream};
use crate::logs::line_reader::{LineEvent, LineReader, StreamStart};
use crate::logs::record::Snapshot;
use crate::model::Stream;

/// Returns whether the search is cancelled.
pub(super) type Cancelled<'c> = &'c mut dyn FnMut() -> bool;

/// `cancelled` is called each time this many bytes of the log have been read.
const CHECK_EVERY: u64 = 64 << 10;

/// The lines counted from one position.
#[derive(Default)]
struct Count {
    /// Number of lines before the beginning of a line was found in every stream.
    before: u64,
    /// Number of lines after that.
    after: u64,
    /// For each stream, whether the beginning of a line was found.
    synced: PerStream<bool>,
}

/// A reader that is positioned before the last `n` lines of the snapshot and bounded by its end, and the number of
/// lines that the caller must still skip. With `unfinished`, unfinished lines at the end count as lines; only such
/// lines remain to skip.
///
/// Reading a large log takes time: `cancelled` is called regularly, and the result is None once it returns true.
pub(super) fn last(
    log: &Arc<OutputLog>,
    view: View,
    n: u64,
    snapshot: Snapshot,
    unfinished: bool,
    cancelled: Cancelled<'_>,
) -> Option<(LineReader, u64)> {
    let end = snapshot.end;
    // An unfinished line without a kept byte does not count.
    let kept = log.oldest().counts;
    let is_open = |stream: &Stream| snapshot.open.get(*stream).is_some() && kept.get(*stream) < end.counts.get(*stream);
    let open = view.streams().iter().copied().filter(is_open).count() as u64;
    let extra = if unfinished { open } else { 0 };
    if n == 0
        && let Some(start) = Start::at_end(log, view, &snapshot)
    {
        return Some((start.reader(log, view, end), extra));
    }
    let mut back = log.disk().index_every;
    loop {
        let position = end.at.checked_sub(back).and_then(|at| log.floor(at));
        let (mut start, first) = match position {
            Some(position) if position.at > log.oldest().at => (Start::inside(position), false),
            _ => (Start::whole(log.kept(end)), true),
        };
        let count = count(start.reader(log, view, end), view, cancelled)?;
        let known = first || start.settle(log, view, &snapshot, count.synced);
        if known && (first || count.after + extra >= n) {
            let mut reader = start.reader(log, view, end);
            let skip = count.before + (count.after + extra).saturating_sub(n);
            let left = skip_lines(&mut reader, skip, end, cancelled)?;
            return Some((reader, left));
        }
        back = back.saturating_mul(2);
    }
}

/// The cursor after `lines` more lines, including unfinished ones.
pub(super) fn skip(mut reader: LineReader, mut lines: u64) -> io::Result<Cursor> {
    // Until the beginning of a line is found in a stream, its next byte may be inside a line.
    while lines > 0 || !reader.all_synced() {
        match reader.next() {
            LineEvent::Line(..) | LineEvent::Long(..) => lines = lines.saturating_sub(1),
            LineEvent::AtEnd if lines > 0 && reader.flush(None).is_some() => lines -= 1,
            LineEvent::AtEnd => break,
            LineEvent::Failed(error) => return Err(error),
            LineEvent::Synced | LineEvent::Gap(..) => {}
        }
    }
    Ok(reader.cursor())
}

/// The position at which a reader begins, and the state of each stream there.
#[derive(Clone, Copy)]
struct Start {
    position: LogPosition,
    begin: PerStream<StreamStart>,
}

impl Start {
    /// A start before the first kept lines.
    fn whole(Kept { record: position, lines }: Kept) -> Start {
        let begin = |from| StreamStart { from, synced: true };
        Start { position, begin: PerStream { out: begin(lines.out), err: begin(lines.err) } }
    }

    /// A start at a position that may be inside a line.
    fn inside(position: LogPosition) -> Start {
        let mut start = Start::whole(Kept { record: position, lines: position.counts });
        (start.begin.out.synced, start.begin.err.synced) = (false, false);
        start
    }

    /// A start after the last finished line; None if that position is not known.
    fn at_end(log: &OutputLog, view: View, snapshot: &Snapshot) -> Option<Start> {
        let mut start = Start::whole(Kept { record: snapshot.end, lines: snapshot.end.counts });
        start.settle(log, view, snapshot, PerStream::default()).then_some(start)
    }

    /// Sets the start of each stream without a newline or cut up to the end. Returns false if the start is not known.
    fn settle(&mut self, log: &OutputLog, view: View, snapshot: &Snapshot, synced: PerStream<bool>) -> bool {
        let oldest = log.oldest();
        for &stream in view.streams().iter().filter(|stream| !*synced.get(**stream)) {
            let Some(open) = *snapshot.open.get(stream) else {
                // The stream has no unfinished line and no output here: its next byte begins a line.
                self.begin.get_mut(stream).synced = true;
                continue;
            };
            // One line, from its beginning or from its first kept byte.
            let from = open.from.max(*oldest.counts.get(stream));
            if snapshot.end.counts.get(stream).saturating_sub(from) > log.disk().max_line as u64 {
                return false;
            }
            *self.begin.get_mut(stream) = StreamStart { from, synced: true };
            let position = if open.record.at < oldest.at { oldest } else { open.record };
            if position.at < self.position.at {
                self.position = position;
            }
        }
        true
    }

    fn reader(&self, log: &Arc<OutputLog>, view: View, end: LogPosition) -> LineReader {
        LineReader::new(log, view, Bound::At(end), self.position, self.begin)
    }
}

fn count(mut reader: LineReader, view: View, cancelled: Cancelled<'_>) -> Option<Count> {
    reader.texts = false;
    let (mut count, mut check_at) = (Count::default(), reader.at() + CHECK_EVERY);
    loop {
        if reader.at() >= check_at {
            check_at = reader.at() + CHECK_EVERY;
            if cancelled() {
                return None;
            }
        }
        match reader.next() {
            LineEvent::Line(..) | LineEvent::Long(..) => count.after += 1,
            LineEvent::Synced => (count.before, count.after) = (count.before + count.after, 0),
            LineEvent::Gap(..) => {}
            LineEvent::AtEnd | LineEvent::Failed(_) => break,
        }
    }
    for &stream in view.streams() {
        *count.synced.get_mut(stream) = reader.synced(stream);
    }
    Some(count)
}

/// Skips `lines` lines, but not beyond `end`. Returns the number of lines that remain to skip.
fn skip_lines(reader: &mut LineReader, mut lines: u64, end: LogPosition, cancelled: Cancelled<'_>) -> Option<u64> {
    reader.texts = false;
    let mut check_at = reader.at() + CHECK_EVERY;
    while lines > 0 && reader.at() < end.at {
        if reader.at() >= check_at {
            check_at = reader.at() + CHECK_EVERY;
            if cancelled() {
                return None;
            }
        }
        match reader.next() {
            LineEvent::Line(..) | LineEvent::Long(..) => lines -= 1,
            LineEvent::AtEnd | LineEvent::Failed(_) => break,
            LineEvent::Synced | LineEvent::Gap(..) => {}
        }
    }
    reader.texts = true;
    Some(lines)
}
