//! Replays return the same lines from every starting point.

use super::*;

struct Case {
    _dir: TempDir,
    log: Arc<OutputLog>,
    ops: Vec<Op>,
    max_line: usize,
}

/// Random logs with segments, chunks, index steps and lines so small that the boundaries of each fall inside the
/// others.
fn cases(seed: u64, count: usize) -> impl Iterator<Item = Case> {
    let mut random = Random(seed);
    (0..count).map(move |round| {
        let max_line = [8, 9, 13, 1000][round % 4];
        let (dir, store) = store(64 * MIB, 256 * MIB, |disk| {
            disk.max_line = max_line;
            disk.max_held_line = [3, 5, 10, 1000][random.below(4)];
            disk.segment = [60, 200, 5000][random.below(3)];
            disk.index_every = [1, 50, 300][random.below(3)];
            disk.chunk = [16, 17, 40, 65536][random.below(4)];
        });
        let log = store.create(UnitId(round as u64));
        let length = 1 + random.below(45);
        let ops = random_ops(&mut random, length);
        apply(&log, &ops);
        Case { _dir: dir, log, ops, max_line }
    })
}

#[test]
fn listed_lines_and_raw_bytes_equal_those_written() {
    for case in cases(11, 300) {
        for view in VIEWS {
            let expected = model(&case.ops, view, case.max_line, true);
            assert_eq!(case.log.lines(view, None).collect::<Vec<_>>(), expected, "{view:?} of {:?}", case.ops);
            let texts = texts(expected);
            for most in [1, 2, usize::MAX] {
                assert_eq!(texts_without_copies(&case.log, view, None, most), texts, "{view:?} of {:?}", case.ops);
            }
            let written: Vec<u8> = case
                .ops
                .iter()
                .filter_map(|op| match op {
                    Op::Append(stream, bytes) if view.has(*stream) => Some(bytes.clone()),
                    _ => None,
                })
                .flatten()
                .collect();
            assert_eq!(raw(&case.log, view), written);
        }
        assert!(!case.log.truncated());
    }
}

#[test]
fn a_follower_resumed_at_a_cursor_continues_after_its_item() {
    for case in cases(22, 100) {
        for view in VIEWS {
            let all = follow(&case.log, view, StartAt::Beginning);
            assert_eq!(lines_of(&all), model(&case.ops, view, case.max_line, false));
            for (i, item) in all.iter().enumerate() {
                let cursor: Cursor = cursor(item).to_string().parse().unwrap();
                let rest = follow(&case.log, view, StartAt::After(cursor));
                assert_eq!(rest, all[i + 1..], "{view:?} after item {i} at {cursor} of {:?}", case.ops);
            }
        }
    }
}

#[test]
fn a_cursor_stays_valid_after_more_output() {
    for case in cases(33, 60) {
        let before: Vec<_> = VIEWS.map(|view| follow(&case.log, view, StartAt::Beginning)).into();
        case.log.append(90, ERR, b"more\nand more");
        case.log.append(91, OUT, b"more\nand more");
        case.log.finish_now(end(92));
        case.log.append(93, OUT, b"from the background\n");
        for (view, before) in VIEWS.into_iter().zip(before) {
            let all = follow(&case.log, view, StartAt::Beginning);
            assert_eq!(all[..before.len()], before);
            assert_eq!(end_of(&all), Some(end(92)));
            for (i, item) in before.iter().enumerate() {
                assert_eq!(follow(&case.log, view, StartAt::After(cursor(item))), all[i + 1..]);
            }
        }
    }
}

#[test]
fn a_tail_equals_the_last_lines_of_the_listing() {
    for case in cases(44, 30) {
        for view in VIEWS {
            let all: Vec<_> = case.log.lines(view, None).collect();
            let finished = lines_of(&follow(&case.log, view, StartAt::Beginning));
            for n in 0..=all.len() + 1 {
                let tail: Vec<_> = case.log.lines(view, Some(n as u64)).collect();
                assert_eq!(texts_without_copies(&case.log, view, Some(n as u64), 3), texts(tail.clone()));
                assert_eq!(tail, all[all.len().saturating_sub(n)..], "{n} of {view:?} of {:?}", case.ops);
                let tail = lines_of(&follow(&case.log, view, StartAt::Tail(n as u64)));
                assert_eq!(tail, finished[finished.len().saturating_sub(n)..], "{n} of {view:?} of {:?}", case.ops);
            }
            assert_eq!(case.log.lines(view, Some(u64::MAX)).collect::<Vec<_>>(), all);
        }
    }
}

/// For each line of `ops`, as in `model`: its stream, and the number of bytes of the stream up to its end.
fn ends(ops: &[Op], view: View, max_line: usize) -> Vec<(Stream, usize)> {
    let mut ends = Vec::new();
    let mut splitters = [Splitter::new(max_line), Splitter::new(max_line)];
    let mut counts = [0, 0];
    for op in ops.iter().chain([&Op::Cut]) {
        match op {
            Op::Append(stream, bytes) => {
                let (splitter, count) = (&mut splitters[*stream as usize], &mut counts[*stream as usize]);
                let mut rest = &bytes[..];
                loop {
                    let fed = splitter.feed(rest);
                    let (used, some) = (fed.used, fed.piece.is_some());
                    (rest, *count) = (&rest[used..], *count + used);
                    if !some {
                        break;
                    }
                    ends.push((*stream, *count - splitter.held()));
                }
            }
            Op::Cut => {
                for stream in [OUT, ERR].into_iter().filter(|stream| splitters[*stream as usize].flush().is_some()) {
                    ends.push((stream, counts[stream as usize]));
                }
            }
        }
    }
    ends.retain(|(stream, _)| view.has(*stream));
    ends
}

#[test]
fn a_raw_tail_contains_the_bytes_of_the_last_lines() {
    for case in cases(45, 60) {
        for view in VIEWS {
            let ends = ends(&case.ops, view, case.max_line);
            assert_eq!(ends.len(), case.log.lines(view, None).count());
            for n in 0..=ends.len() + 1 {
                let before = &ends[..ends.len().saturating_sub(n)];
                let mut count = PerStream { out: 0, err: 0 };
                let mut expected: Vec<u8> = Vec::new();
                for op in &case.ops {
                    let Op::Append(stream, bytes) = op else { continue };
                    let begin = before.iter().rev().find(|end| end.0 == *stream).map_or(0, |end| end.1);
                    let count = count.get_mut(*stream);
                    if view.has(*stream) {
                        expected.extend(&bytes[begin.saturating_sub(*count).min(bytes.len())..]);
                    }
                    *count += bytes.len();
                }
                let tail = raw_tail(&case.log, view, Some(n as u64));
                assert_eq!(tail, expected, "{n} of {view:?} of {:?}", case.ops);
            }
        }
    }
}

#[test]
fn a_follower_of_a_tail_continues_with_whole_lines() {
    for case in cases(55, 150) {
        for view in VIEWS {
            let mut followers: Vec<_> = (0..4).map(|n| case.log.follow(view, StartAt::Tail(n), waker())).collect();
            let before = lines_of(&follow(&case.log, view, StartAt::Beginning));
            let tails: Vec<_> = followers.iter_mut().map(|follower| lines_of(&drain(follower))).collect();
            case.log.append(90, OUT, b"the end\nnew\n");
            case.log.append(91, ERR, b"the end\nnew\n");
            let after = lines_of(&follow(&case.log, view, StartAt::Beginning));
            for (follower, tail) in followers.iter_mut().zip(tails) {
                assert_eq!(tail, before[before.len() - tail.len()..]);
                assert_eq!(lines_of(&drain(follower)), after[before.len()..], "{view:?} of {:?}", case.ops);
            }
        }
    }
}

#[test]
fn a_tail_does_not_read_the_whole_log() {
    let (dir, log) = log();
    let chunk: Vec<u8> = b"0123456789\n".iter().copied().cycle().take(65_538).collect();
    for _ in 0..400 {
        log.append(1, OUT, &chunk);
    }
    log.append(1, OUT, b"last\n");
    // The tail must not need the removed segments.
    for n in 0..2 {
        std::fs::remove_file(dir.path().join(format!("logs/1.{n}"))).unwrap();
    }
    assert_eq!(texts(log.lines(View::Combined, Some(2))), ["0123456789", "last"]);
    assert_eq!(texts(lines_of(&follow(&log, View::Stdout, StartAt::Tail(1)))), ["last"]);
    assert!(!log.truncated(), "the missing segments were not read");
}

#[test]
fn a_cursor_that_does_not_match_the_log_begins_at_the_beginning() {
    for case in cases(66, 6) {
        let view = View::Combined;
        let all = follow(&case.log, view, StartAt::Beginning);
        let good = case.log.snapshot().end;
        let starts: Vec<u64> = all.iter().map(cursor).map(|cursor| cursor.at).collect();
        for at in (0..good.at + 40).chain([u64::MAX, 1 << 40]) {
            let fits = Cursor { log: case.log.tag(), at, base: PerStream::default(), from: PerStream::default() };
            let items = follow(&case.log, view, StartAt::After(fits));
            if at > good.at {
                assert_eq!(items, all);
            }
            assert!(items.len() <= all.len() + 2 || starts.contains(&at));
            let foreign = Cursor { log: case.log.tag() ^ 1, ..fits };
            assert_eq!(follow(&case.log, view, StartAt::After(foreign)), all);
        }
        let wild = PerStream { out: u64::MAX, err: u64::MAX };
        let wild = Cursor { log: case.log.tag(), at: 0, base: wild, from: wild };
        assert_eq!(follow(&case.log, view, StartAt::After(wild)), all);
    }
}

#[test]
fn output_that_looks_like_a_header_is_not_taken_for_a_record() {
    use crate::logs::record::{HEADER, Header, RecordKind};
    let (_dir, log) = log();
    let forged = Header { kind: RecordKind::Output(ERR), len: 5, time: 1 }.encode();
    log.append(1, OUT, &[&forged[..], b"evil\n", b"good\n"].concat());
    let all = follow(&log, View::Combined, StartAt::Beginning);
    let inside = Cursor { log: log.tag(), at: HEADER as u64, base: PerStream::default(), from: PerStream::default() };
    assert_eq!(follow(&log, View::Combined, StartAt::After(inside)), all);
}
