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
use crate::logs::line_reader::{LineEvent, LineReader, StreamStart};
use crate::logs::record::Snapshot;
use crate::model::Stream;

/// Says whether the search is not wanted any more.
pub(super) type Gone<'g> = &'g mut dyn FnMut() -> bool;

/// `gone` is asked each time this many bytes of the log have been read.
const ASK_EVERY: u64 = 64 << 10;

/// The lines counted from one position.
#[derive(Default)]
struct Count {
    /// Lines before a line was known to begin in every stream.
    before: u64,
    /// Lines after that.
    after: u64,
    /// For each stream, whether a line is known to have begun.
    synced: PerStream<bool>,
}

/// A reader before the last `n` lines of the snapshot, bounded by its end, and how many lines the caller has to pass over. With
/// `unfinished`, unfinished lines at the end count as lines, and only those are left to be passed over.
///
/// Reading a large log takes a while: `gone` is asked now and then, and the result is none when it says yes.
pub(super) fn last(
    log: &Arc<OutputLog>,
    view: View,
    n: u64,
    snapshot: Snapshot,
    unfinished: bool,
    gone: Gone<'_>,
) -> Option<(LineReader, u64)> {
    let end = snapshot.end;
    // An unfinished line of which no byte is kept does not count.
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

/// The cursor after `lines` more lines, unfinished ones included.
pub(super) fn skip(mut reader: LineReader, mut lines: u64) -> io::Result<Cursor> {
    // Until a line is known to begin in a stream, its next byte may lie inside one.
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

/// Where a reader begins.
#[derive(Clone, Copy)]
struct Start {
    position: LogPosition,
    begin: PerStream<StreamStart>,
}

impl Start {
    /// Before the first lines that are kept.
    fn whole(Kept { record: position, lines }: Kept) -> Start {
        let begin = |from| StreamStart { from, synced: true };
        Start { position, begin: PerStream { out: begin(lines.out), err: begin(lines.err) } }
    }

    /// At a position that may be inside a line.
    fn inside(position: LogPosition) -> Start {
        let mut start = Start::whole(Kept { record: position, lines: position.counts });
        (start.begin.out.synced, start.begin.err.synced) = (false, false);
        start
    }

    /// After the last finished line; None where that is not known.
    fn at_end(log: &OutputLog, view: View, snapshot: &Snapshot) -> Option<Start> {
        let mut start = Start::whole(Kept { record: snapshot.end, lines: snapshot.end.counts });
        start.settle(log, view, snapshot, PerStream::default()).then_some(start)
    }

    /// Sets where the streams begin that had no newline and no cut up to the end. False where that is not known.
    fn settle(&mut self, log: &OutputLog, view: View, snapshot: &Snapshot, synced: PerStream<bool>) -> bool {
        let oldest = log.oldest();
        for &stream in view.streams().iter().filter(|stream| !*synced.get(**stream)) {
            let Some(open) = *snapshot.open.get(stream) else {
                // Nothing is unfinished and nothing came: the next byte of the stream begins a line.
                self.begin.get_mut(stream).synced = true;
                continue;
            };
            // One line, from where it begins, or from where it is kept.
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

/// Passes over `lines` lines, but not over `end`; how many are left.
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
            LineEvent::Line(..) | LineEvent::Long(..) => lines -= 1,
            LineEvent::AtEnd | LineEvent::Failed(_) => break,
            LineEvent::Synced | LineEvent::Gap(..) => {}
        }
    }
    reader.texts = true;
    Some(lines)
}
