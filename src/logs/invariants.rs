//! What must hold for all output, also if the files of a log were changed (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::{self, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use super::retention::{Holding, to_drop};
use super::{Cursor, Follower, Item, Line, LogLimits, LogStore, OutputLog, StartAt, View};
use crate::fuzzing::Choices;
use crate::logs::disk::Disk;
use crate::logs::lines::{REST, Splitter};
use crate::model::{Exit, RunEnd, Stream, UnitId};

pub(super) const OUT: Stream = Stream::Stdout;
pub(super) const ERR: Stream = Stream::Stderr;
pub(super) const VIEWS: [View; 3] = [View::Stdout, View::Stderr, View::Combined];

/// An operation on a log.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Append(Stream, Vec<u8>),
    Cut,
}

/// Performs `ops` on a log; the time of each is its number.
pub(super) fn apply(log: &OutputLog, ops: &[Op]) {
    for (time, op) in ops.iter().enumerate() {
        match op {
            Op::Append(stream, bytes) => log.append(time as u64, *stream, bytes),
            Op::Cut => log.cut(time as u64),
        }
    }
}

/// The expected lines of `ops` (docs/api.md, Output), from a simple implementation in memory.
pub(super) fn model(ops: &[Op], view: View, max_line: usize, with_unfinished: bool) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut splitters = [Splitter::new(max_line), Splitter::new(max_line)];
    let mut last = [0, 0];
    let line = |piece: crate::logs::lines::Piece<'_>, timestamp, stream| Line {
        text: String::from_utf8_lossy(piece.bytes.unwrap()).into_owned(),
        partial: piece.partial,
        timestamp,
        stream,
    };
    for (time, op) in ops.iter().enumerate() {
        let time = time as u64;
        match op {
            Op::Append(stream, bytes) => {
                let mut rest = &bytes[..];
                last[*stream as usize] = time;
                loop {
                    let fed = splitters[*stream as usize].feed(rest);
                    rest = &rest[fed.used..];
                    let Some(piece) = fed.piece else { break };
                    lines.push(line(piece, time, *stream));
                }
            }
            Op::Cut => {
                for stream in [OUT, ERR] {
                    lines.extend(splitters[stream as usize].flush().map(|piece| line(piece, time, stream)));
                }
            }
        }
    }
    for stream in [OUT, ERR].into_iter().filter(|_| with_unfinished) {
        lines.extend(splitters[stream as usize].flush().map(|piece| line(piece, last[stream as usize], stream)));
    }
    lines.retain(|line| view.has(line.stream));
    lines
}

/// A line or a piece of one: its length, its bytes if they were kept, and whether more of the line follows.
type Split = (usize, Option<Vec<u8>>, bool);

/// Output is split into the same lines however its bytes arrive. The lines are the output, byte for byte; only lines that
/// are too long are cut, and not within a character.
pub(crate) fn line_splitter(input: &[u8]) {
    let mut choices = Choices(input);
    let (max, keep) = (4 + choices.below(40), 3 + choices.below(40));
    let plan = choices.bytes(8).to_vec();
    let output = choices.0;
    let whole = split(&[output], max, keep);
    assert_eq!(split(&Choices::pieces(&plan, output, 30), max, keep), whole, "{max} {keep} {plan:?}");
    let kept = split(&[output], max, max);
    assert_eq!(whole.len(), kept.len());
    let mut again = Vec::new();
    for ((length, some, partial), (_, bytes, _)) in whole.iter().zip(&kept) {
        let bytes = bytes.as_ref().unwrap();
        assert!(*length == bytes.len() && *length <= max && (!partial || *length + REST >= max));
        let held = if *partial { max } else { *length };
        assert_eq!(some.as_ref(), (held <= keep).then_some(bytes), "{max} {keep}");
        again.extend_from_slice(bytes);
        again.extend((!partial).then_some(b'\n'));
        assert!(!bytes.contains(&b'\n') && (!partial || !bytes.is_empty()));
        assert!(std::str::from_utf8(output).is_err() || std::str::from_utf8(bytes).is_ok(), "a character was cut");
    }
    let has_end = matches!(output.last(), None | Some(b'\n'));
    assert_eq!(again, [output, if has_end { b"" } else { b"\n" }].concat());
}

fn split(pieces: &[&[u8]], max: usize, keep: usize) -> Vec<Split> {
    let (mut splitter, mut lines) = (Splitter::keeping(max, keep), Vec::new());
    for (n, piece) in pieces.iter().enumerate() {
        let mut rest = *piece;
        while !rest.is_empty() {
            let line = splitter.whole_line(rest).map(<[u8]>::to_vec);
            let fed = splitter.feed(rest);
            if let Some(line) = line {
                assert_eq!(fed.piece.map(|piece| (piece.bytes, fed.used)), Some((Some(&line[..]), line.len() + 1)));
            }
            rest = &rest[fed.used..];
            assert!(fed.piece.is_some() || rest.is_empty());
            lines.extend(fed.piece.map(|piece| (piece.length, piece.bytes.map(<[u8]>::to_vec), piece.partial)));
            assert!(splitter.held() <= max);
        }
        if n % 3 == 0 {
            splitter.shrink();
        }
    }
    lines.extend(splitter.flush().map(|piece| (piece.length, piece.bytes.map(<[u8]>::to_vec), piece.partial)));
    assert_eq!((splitter.held(), splitter.flush()), (0, None));
    lines
}

/// A store in a directory of its own, which is removed when it is dropped.
struct Scratch {
    dir: PathBuf,
    store: Arc<LogStore>,
}

impl Scratch {
    fn new(choices: &mut Choices) -> Scratch {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("tl-fuzz-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        let tune = |disk: &mut Disk| {
            disk.segment = choices.one_of(&[60, 200, 5000]);
            disk.index_every = choices.one_of(&[1, 50, 300]);
            disk.chunk = choices.one_of(&[16, 17, 40, 65536]);
            disk.max_line = choices.one_of(&[8, 9, 13, 1000]);
            disk.max_held_line = choices.one_of(&[3, 5, 10, 1000]);
        };
        let limits = LogLimits { per_unit: 64 << 20, total: 256 << 20 };
        let store = LogStore::open_with(&dir, limits, tune).unwrap();
        Scratch { dir, store }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What was written is what is read, by every reader, from every cursor. If files were changed, every reader comes to its
/// end and returns no more than was written, and what is written later is read.
pub(crate) fn log_reader(input: &[u8]) {
    let mut choices = Choices(input);
    let scratch = Scratch::new(&mut choices);
    let log = scratch.store.create(UnitId(1));
    let ops = written(&mut choices);
    apply(&log, &ops);
    let ends = choices.below(2) > 0;
    if ends {
        log.finish(log.epoch(), RunEnd { exit: Exit::Code(0), timed_out: false, ended_at: ops.len() as u64 });
    }
    if choices.below(4) == 0 {
        return check_intact(&log, &ops, &mut choices);
    }
    let before = follow(&log, View::Combined, StartAt::Beginning);
    let damaged = (0..3).filter(|_| damage(&scratch, &mut choices)).count();
    let bytes = ops.iter().map(|op| if let Op::Append(_, bytes) = op { bytes.len() } else { 0 }).sum();
    let (mut cursors, tail) = (Vec::new(), choices.number());
    cursors.extend(before.iter().map(cursor).take(8));
    for view in VIEWS {
        read_all(&log, view, bytes, tail, &cursors);
    }
    if damaged == 0 {
        assert_eq!(follow(&log, View::Combined, StartAt::Beginning), before);
    }
    check_later_output(&log);
}

/// The operations that an input describes.
fn written(choices: &mut Choices) -> Vec<Op> {
    let mut ops = Vec::new();
    for _ in 0..choices.below(24) {
        let stream = match choices.below(8) {
            0 => None,
            n => Some(if n < 6 { OUT } else { ERR }),
        };
        match stream.map(|stream| (stream, choices.bytes(60))) {
            None => ops.push(Op::Cut),
            // Nothing is written.
            Some((_, [])) => {}
            Some((stream, bytes)) => ops.push(Op::Append(stream, bytes.to_vec())),
        }
    }
    ops
}

fn check_intact(log: &Arc<OutputLog>, ops: &[Op], choices: &mut Choices) {
    let max_line = log.disk().max_line;
    for view in VIEWS {
        let has_end = log.ended().is_some();
        let expected = model(&ended(ops, has_end), view, max_line, true);
        assert_eq!(log.lines(view, None).collect::<Vec<_>>(), expected, "{view:?} of {ops:?}");
        let tail = choices.below(20);
        let last = &expected[expected.len().saturating_sub(tail)..];
        assert_eq!(log.lines(view, Some(tail as u64)).collect::<Vec<_>>(), last, "{tail} of {view:?} of {ops:?}");
        let mut sent = Vec::new();
        for op in ops {
            match op {
                Op::Append(stream, bytes) if view.has(*stream) => sent.extend_from_slice(bytes),
                _ => {}
            }
        }
        assert_eq!(raw(log, view, None), sent);
        assert!(sent.ends_with(&raw(log, view, Some(tail as u64))) || view == View::Combined);
        let all = follow(log, view, StartAt::Beginning);
        let lines: Vec<_> =
            all.iter().filter_map(|item| if let Item::Line(line, _) = item { Some(line) } else { None }).collect();
        assert!(lines.into_iter().eq(&model(&ended(ops, has_end), view, max_line, false)), "{view:?} of {ops:?}");
        let at = choices.below(all.len().max(1));
        if let Some(item) = all.get(at) {
            let cursor: Cursor = cursor(item).to_string().parse().unwrap();
            // The end is repeated: nothing else can follow it.
            let rest = if matches!(item, Item::End(..)) { &all[at..] } else { &all[at + 1..] };
            assert_eq!(follow(log, view, StartAt::After(cursor)), rest, "{view:?} after {at} of {ops:?}");
        }
    }
    assert!(!log.truncated());
}

/// The operations with the cut at the end of a run.
fn ended(ops: &[Op], has_end: bool) -> Vec<Op> {
    ops.iter().cloned().chain(has_end.then_some(Op::Cut)).collect()
}

/// Changes a file of the log. Returns whether there was one.
fn damage(scratch: &Scratch, choices: &mut Choices) -> bool {
    let path = scratch.dir.join(format!("1.{}", choices.below(8)));
    let (kind, at) = (choices.below(6), u64::from(choices.byte()) + u64::from(choices.byte()) * 16);
    let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { return false };
    match kind {
        0 => fs::remove_file(path).unwrap(),
        1 => file.set_len(at).unwrap(),
        2 => file.write_all_at(choices.bytes(40), at).unwrap(),
        3 => file.write_all_at(&[0; 16], at).unwrap(),
        _ => {
            // One bit of one byte, often of a header.
            let mut byte = [0];
            let _ = file.read_at(&mut byte, at);
            byte[0] ^= 1 << choices.below(8);
            file.write_all_at(&byte, at).unwrap();
        }
    }
    true
}

/// Reads all that is there in every way. `bytes` is what was written.
fn read_all(log: &Arc<OutputLog>, view: View, bytes: usize, tail: u64, cursors: &[Cursor]) {
    // A damaged byte can become a newline, so there can be as many lines as bytes, and each can be lost once.
    let most = 2 * bytes + 50;
    let lines: Vec<Line> = log.lines(view, None).take(most + 1).collect();
    assert!(lines.len() <= most, "endless lines");
    assert!(log.lines(view, Some(tail)).take(most + 1).count() <= most, "endless lines");
    for tail in [None, Some(tail)] {
        let mut out = Vec::new();
        log.raw(view, tail).unwrap().take(most as u64 + 1).read_to_end(&mut out).unwrap();
        assert!(out.len() <= bytes, "{} of {bytes} bytes", out.len());
    }
    let end = log.snapshot().end.at;
    let made_up = [0, 1, end / 2, end, end + 1].map(|at| Cursor { log: log.tag(), at, ..cursor_of(log) });
    let starts = cursors.iter().chain(&made_up).map(|cursor| StartAt::After(*cursor));
    for start in starts.chain([StartAt::Beginning, StartAt::Tail(tail)]) {
        let mut follower = log.follow(view, start, Waker::noop().clone());
        let items = (0..=most).map_while(|_| next(&mut follower)).count();
        assert!(items <= most, "endless items from {start:?}");
    }
}

/// A cursor at the beginning.
fn cursor_of(log: &OutputLog) -> Cursor {
    let (base, from) = Default::default();
    Cursor { log: log.tag(), at: 0, base, from }
}

/// What a run writes after the damage is read by every reader.
fn check_later_output(log: &Arc<OutputLog>) {
    log.revoke_end();
    log.reopen();
    log.append(1000, OUT, b"\nlater\n");
    log.append(1000, ERR, b"\nlater\n");
    for view in VIEWS {
        assert!(raw(log, view, None).ends_with(b"\nlater\n"), "{view:?}");
        assert_eq!(log.lines(view, None).last().map(|line| line.text).as_deref(), Some("later"), "{view:?}");
        let tail: Vec<_> = log.lines(view, Some(1)).map(|line| line.text).collect();
        assert_eq!(tail, ["later"], "{view:?}");
        match follow(log, view, StartAt::Beginning).last() {
            Some(Item::Line(line, _)) => assert_eq!(line.text, "later", "{view:?}"),
            _ => panic!("{view:?}: {:#?}", follow(log, view, StartAt::Beginning)),
        }
    }
}

fn next(follower: &mut Follower) -> Option<Item> {
    follower.try_next()
}

fn follow(log: &Arc<OutputLog>, view: View, from: StartAt) -> Vec<Item> {
    let mut follower = log.follow(view, from, Waker::noop().clone());
    std::iter::from_fn(|| next(&mut follower)).take(100_000).collect()
}

fn cursor(item: &Item) -> Cursor {
    match item {
        Item::Line(_, cursor) | Item::Gap { cursor, .. } | Item::End(_, cursor) => *cursor,
    }
}

fn raw(log: &Arc<OutputLog>, view: View, tail: Option<u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    log.raw(view, tail).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Retention drops as much as is necessary and no segment more: of ended units first, in the order of their ends.
pub(crate) fn retention(input: &[u8]) {
    let mut choices = Choices(input);
    let excess = choices.number() >> 8;
    let mut logs = Vec::new();
    while !choices.is_done() && logs.len() < 40 {
        let ended = (choices.below(2) > 0).then(|| choices.number() % 8);
        let segments = (0..choices.below(6)).map(|_| choices.number() >> 16).collect();
        logs.push(Holding { unit: UnitId(logs.len() as u64), ended, segments });
    }
    let plan = to_drop(logs.clone(), excess);
    let of = |unit: UnitId| &logs[unit.0 as usize];
    let size = |(unit, count): &(UnitId, usize)| of(*unit).segments[..*count].iter().sum::<u64>();
    let freed: u64 = plan.iter().map(size).sum();
    let total: u64 = logs.iter().flat_map(|log| &log.segments).sum();
    assert!(freed >= excess.min(total), "{freed} of {excess}");
    let mut units: Vec<_> = plan.iter().map(|(unit, _)| *unit).collect();
    units.sort_unstable();
    units.dedup();
    assert_eq!(units.len(), plan.len(), "a unit twice: {plan:?}");
    // Without the last segment of some log it would not be enough.
    let last = plan.iter().map(|(unit, count)| of(*unit).segments[count - 1]);
    assert!(plan.is_empty() || last.into_iter().any(|size| freed - size < excess), "too much: {plan:?}");
    let dropped = |unit: UnitId| plan.iter().find(|(other, _)| *other == unit).map_or(0, |(_, count)| *count);
    for log in &logs {
        let is_whole = dropped(log.unit) == log.segments.len();
        for later in logs.iter().filter(|later| dropped(later.unit) > 0) {
            let is_before = match (log.ended, later.ended) {
                (Some(own), Some(other)) => own < other,
                (own, None) => own.is_some(),
                (None, Some(_)) => false,
            };
            assert!(
                !is_before || is_whole || log.segments.iter().sum::<u64>() == 0,
                "{log:?} before {later:?}: {plan:?}"
            );
        }
    }
}
