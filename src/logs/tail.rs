//! Finds where the last so many lines begin, without reading the whole log.
//!
//! Going back from the end by more and more, it counts the lines from a position that the index knows. There it may have
//! begun inside a line: what comes before the first newline (or cut) of a stream belongs to a line that cannot be
//! judged, so that only lines after that count. Once there are enough of them, a second reader passes over the others.

use std::io;
use std::sync::Arc;

use super::View;
use super::cursor::Cursor;
use super::log::{Bound, OutputLog};
use super::record::{Kept, LogPosition, PerStream};
use crate::logs::line_reader::{Begin, Event, LineReader};
use crate::logs::record::Snapshot;
use crate::model::Stream;

/// Whether nobody wants to know any more.
pub(super) type Gone<'g> = &'g mut dyn FnMut() -> bool;

/// After so many bytes of the log it is asked whether somebody does.
const ASK_EVERY: u64 = 64 << 10;

/// What came of counting from one position.
#[derive(Default)]
struct Count {
    /// Lines before the last stream was in step.
    before: u64,
    /// Lines after that.
    after: u64,
    /// Whether each stream came into step.
    synced: PerStream<bool>,
}

/// A reader with the last `n` lines before the snapshot's end in front of it, and how many lines to pass over
/// once it is there (lines that are unfinished at the end; only with `unfinished`, which counts those as lines too).
///
/// The reader's bound is the end of the snapshot.
///
/// Reading a large log takes a while: it asks `gone` now and then, and gives none once that says so.
pub(super) fn last(
    log: &Arc<OutputLog>,
    view: View,
    n: u64,
    snapshot: Snapshot,
    unfinished: bool,
    gone: Gone<'_>,
) -> Option<(LineReader, u64)> {
    let end = snapshot.end;
    // An unfinished line of which nothing is kept is none.
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
        let count = count(start.reader(log, view, end), view, gone)?;
        let known = first || start.settle(log, view, &snapshot, count.synced);
        if known && (first || count.after + extra >= n) {
            let mut reader = start.reader(log, view, end);
            let skip = count.before + (count.after + extra).saturating_sub(n);
            let left = pass_over(&mut reader, skip, end, gone)?;
            return Some((reader, left));
        }
        back = back.saturating_mul(2);
    }
}

/// The position after so many more lines, unfinished ones included.
pub(super) fn skip(mut reader: LineReader, mut lines: u64) -> io::Result<Cursor> {
    // Before a stream is in step, its next byte need not be the first of a line.
    while lines > 0 || !reader.all_synced() {
        match reader.next() {
            Event::Line(..) | Event::Long(..) => lines = lines.saturating_sub(1),
            Event::AtEnd if lines > 0 && reader.flush(None).is_some() => lines -= 1,
            Event::AtEnd => break,
            Event::Failed(error) => return Err(error),
            Event::Synced | Event::Gap(..) => {}
        }
    }
    Ok(reader.cursor())
}

/// Where a reader begins.
#[derive(Clone, Copy)]
struct Start {
    position: LogPosition,
    begin: PerStream<Begin>,
}

impl Start {
    /// With the first lines after a position.
    fn whole(Kept { record: position, lines }: Kept) -> Start {
        let begin = |from| Begin { from, synced: true };
        Start { position, begin: PerStream { out: begin(lines.out), err: begin(lines.err) } }
    }

    /// At a position that may be inside a line.
    fn inside(position: LogPosition) -> Start {
        let mut start = Start::whole(Kept { record: position, lines: position.counts });
        (start.begin.out.synced, start.begin.err.synced) = (false, false);
        start
    }

    /// After the last finished line; None when that cannot be told.
    fn at_end(log: &OutputLog, view: View, snapshot: &Snapshot) -> Option<Start> {
        let mut start = Start::whole(Kept { record: snapshot.end, lines: snapshot.end.counts });
        start.settle(log, view, snapshot, PerStream::default()).then_some(start)
    }

    /// Settles the streams that had no newline and no cut up to the end; false when that cannot be done.
    fn settle(&mut self, log: &OutputLog, view: View, snapshot: &Snapshot, synced: PerStream<bool>) -> bool {
        let oldest = log.oldest();
        for &stream in view.streams().iter().filter(|stream| !*synced.get(**stream)) {
            let Some(open) = *snapshot.open.get(stream) else {
                // Nothing is unfinished, and nothing came: its next byte begins a line.
                self.begin.get_mut(stream).synced = true;
                continue;
            };
            // One line, however far back it begins; or what is left of it.
            let from = open.from.max(*oldest.counts.get(stream));
            if snapshot.end.counts.get(stream).saturating_sub(from) > log.disk().max_line as u64 {
                return false;
            }
            *self.begin.get_mut(stream) = Begin { from, synced: true };
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

fn count(mut reader: LineReader, view: View, gone: Gone<'_>) -> Option<Count> {
    reader.texts = false;
    let (mut count, mut ask_at) = (Count::default(), reader.at() + ASK_EVERY);
    loop {
        if reader.at() >= ask_at {
            ask_at = reader.at() + ASK_EVERY;
            if gone() {
                return None;
            }
        }
        match reader.next() {
            Event::Line(..) | Event::Long(..) => count.after += 1,
            Event::Synced => (count.before, count.after) = (count.before + count.after, 0),
            Event::Gap(..) => {}
            Event::AtEnd | Event::Failed(_) => break,
        }
    }
    for &stream in view.streams() {
        *count.synced.get_mut(stream) = reader.synced(stream);
    }
    Some(count)
}

/// Passes over so many lines, but not over `end`; how many are left.
fn pass_over(reader: &mut LineReader, mut lines: u64, end: LogPosition, gone: Gone<'_>) -> Option<u64> {
    reader.texts = false;
    let mut ask_at = reader.at() + ASK_EVERY;
    while lines > 0 && reader.at() < end.at {
        if reader.at() >= ask_at {
            ask_at = reader.at() + ASK_EVERY;
            if gone() {
                return None;
            }
        }
        match reader.next() {
            Event::Line(..) | Event::Long(..) => lines -= 1,
            Event::AtEnd | Event::Failed(_) => break,
            Event::Synced | Event::Gap(..) => {}
        }
    }
    reader.texts = true;
    Some(lines)
}
