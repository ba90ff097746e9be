//! The kept output of each stream begins at the beginning of a line.

use super::*;

/// All bytes ever written to a stream, and where its lines begin.
#[derive(Clone, Debug, Default)]
struct Written {
    bytes: Vec<u8>,
    begins: Vec<usize>,
}

impl Written {
    fn append(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let begins = self.bytes.last().is_none_or(|last| *last == b'\n');
            if begins && self.begins.last() != Some(&self.bytes.len()) {
                self.begins.push(self.bytes.len());
            }
            self.bytes.push(*byte);
        }
    }

    fn cut(&mut self) {
        if self.begins.last() != Some(&self.bytes.len()) {
            self.begins.push(self.bytes.len());
        }
    }

    /// The beginning of the first whole line from `from` on; `from` if there is none.
    fn first_line(&self, from: usize) -> usize {
        let mut begins = self.begins.iter().copied();
        begins.find(|begin| (from..self.bytes.len()).contains(begin)).unwrap_or(from)
    }
}

struct Case {
    _dir: TempDir,
    log: Arc<OutputLog>,
    ops: Vec<Op>,
    written: PerStream<Written>,
    max_line: usize,
}

impl Case {
    fn new(random: &mut Random, max_held_lines: &[usize]) -> Case {
        let max_line = [5, 12, 10_000][random.below(3)];
        let (dir, store) = store(4096 * 8, 1000 * 1024, |disk| {
            disk.segment = [40, 100, 300][random.below(3)];
            disk.per_unit = disk.segment * (2 + random.below(4) as u64);
            disk.chunk = [16, 50, 65_536][random.below(3)];
            disk.index_every = [1, 60][random.below(2)];
            disk.max_line = max_line;
            disk.max_held_line = max_held_lines[random.below(max_held_lines.len())];
        });
        let log = store.create(UnitId(1));
        Case { _dir: dir, log, ops: Vec::new(), written: PerStream::default(), max_line }
    }

    fn write(&mut self, ops: Vec<Op>) {
        apply(&self.log, &ops);
        for op in &ops {
            match op {
                Op::Append(stream, bytes) => self.written.get_mut(*stream).append(bytes),
                Op::Cut => [OUT, ERR].into_iter().for_each(|stream| self.written.get_mut(stream).cut()),
            }
        }
        self.ops.extend(ops);
    }

    /// The position at which the kept part of a stream begins.
    fn first(&self, stream: Stream) -> usize {
        let oldest = *self.log.oldest().counts.get(stream) as usize;
        if self.log.oldest().at == 0 { 0 } else { self.written.get(stream).first_line(oldest) }
    }
}

/// Random operations, some without newlines or with output of only one stream.
fn ops(random: &mut Random) -> Vec<Op> {
    let mut ops = random_ops(random, 6);
    match random.below(4) {
        0 => ops.retain(|op| !matches!(op, Op::Append(ERR, _))),
        1 => ops.iter_mut().for_each(|op| {
            if let Op::Append(_, bytes) = op {
                bytes.retain(|byte| *byte != b'\n');
                bytes.push(b'z');
            }
        }),
        _ => {}
    }
    ops
}

fn without_times(lines: impl IntoIterator<Item = Line>) -> Vec<(String, bool, Stream)> {
    lines.into_iter().map(|line| (line.text, line.partial, line.stream)).collect()
}

#[test]
fn kept_lines_are_the_last_whole_lines() {
    let mut random = Random(4026);
    let (mut suffixes, mut rests) = (0, 0);
    for _ in 0..50 {
        let mut case = Case::new(&mut random, &[3, 7, 1000]);
        for _ in 0..10 {
            case.write(ops(&mut random));
            for view in VIEWS {
                let log = &case.log;
                let mut lost = 0;
                for &stream in view.streams() {
                    let (written, first) = (case.written.get(stream), case.first(stream));
                    lost += first as u64;
                    let own = if stream == OUT { View::Stdout } else { View::Stderr };
                    assert_eq!(raw(log, own), written.bytes[first..], "{:?}", case.ops);
                    let kept = without_times(log.lines(view, None)).into_iter().filter(|line| line.2 == stream);
                    let kept: Vec<_> = kept.collect();
                    let all = without_times(model(&case.ops, own, case.max_line, true));
                    if first == 0 || written.begins.contains(&first) {
                        assert!(all.ends_with(&kept), "{kept:?} of {all:?}");
                        suffixes += 1;
                    } else {
                        // Only the rest of one line is kept, and it is shown.
                        let text: String = kept.iter().map(|line| line.0.as_str()).collect();
                        let rest = String::from_utf8_lossy(&written.bytes[first..]);
                        let rest = rest.strip_suffix('\n').unwrap_or(&rest);
                        // Characters at the ends of pieces differ, because the pieces begin at other places.
                        assert_eq!(text.replace('\u{FFFD}', ""), rest.replace('\u{FFFD}', ""));
                        rests += usize::from(!kept.is_empty());
                    }
                }
                // Raw bytes, lines and the gap agree.
                let written: u64 = view.streams().iter().map(|s| case.written.get(*s).bytes.len() as u64).sum();
                assert_eq!(raw(log, view).len() as u64 + lost, written);
                let items = follow(log, view, StartAt::Beginning);
                let gap: u64 =
                    items.iter().map(|i| if let Item::Gap { lost_bytes, .. } = i { *lost_bytes } else { 0 }).sum();
                assert_eq!(gap, lost, "{view:?} of {:?}", case.ops);
                let all: Vec<_> = log.lines(view, None).collect();
                assert_eq!(texts_without_copies(log, view, None, 2), texts(all.clone()));
                let followed = lines_of(&items);
                assert!(all.starts_with(&followed) && all.len() - followed.len() <= view.streams().len());
                for n in [0, 1, 2, 3, 5, all.len(), all.len() + 1] {
                    let tail: Vec<_> = log.lines(view, Some(n as u64)).collect();
                    assert_eq!(tail, all[all.len().saturating_sub(n)..], "{n} of {view:?} of {:?}", case.ops);
                    let bytes = raw_tail(log, view, Some(n as u64));
                    assert!(view == View::Combined || raw(log, view).ends_with(&bytes));
                    assert!(if n >= all.len() { bytes == raw(log, view) } else { bytes.len() < raw(log, view).len() });
                    let tail = lines_of(&follow(log, view, StartAt::Tail(n as u64)));
                    assert_eq!(tail, followed[followed.len().saturating_sub(n)..]);
                }
            }
        }
    }
    assert!(suffixes > 1000 && rests > 40, "both cases must occur: {suffixes}, {rests}");
}

#[test]
fn a_follower_gets_whole_lines_and_the_number_of_all_other_bytes() {
    let mut random = Random(254_026);
    let mut gaps = 0;
    for _ in 0..300 {
        let mut case = Case::new(&mut random, &[1000]);
        let mut follower = case.log.follow(View::Stdout, StartAt::Beginning, waker());
        let (mut at, mut in_pieces, mut seen) = (0, false, Vec::new());
        for _ in 0..12 {
            case.write(ops(&mut random));
            if random.below(3) > 0 {
                continue;
            }
            if random.below(3) == 0
                && let Some(cursor) = seen.iter().map(cursor).next_back()
            {
                // A client that was disconnected: the next bytes may have been dropped meanwhile.
                follower = case.log.follow(View::Stdout, StartAt::After(cursor), waker());
            }
            let out = case.written.out.clone();
            for item in drain(&mut follower) {
                let to = cursor(&item).from.out as usize;
                match &item {
                    Item::Line(line, _) => {
                        assert!(in_pieces || out.begins.contains(&at), "{at} of {:?}", case.ops);
                        let bytes = &out.bytes[at..to];
                        let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
                        assert_eq!(line.text, String::from_utf8_lossy(bytes));
                        in_pieces = line.partial;
                    }
                    Item::Gap { lost_bytes, .. } => {
                        assert_eq!(at + *lost_bytes as usize, to);
                        assert_eq!(to, case.first(OUT), "{:?}", case.ops);
                        // Only the rest of one line is kept: it is delivered, and may be finished later.
                        (in_pieces, gaps) = (!out.begins.contains(&to), gaps + 1);
                    }
                    Item::End(..) => unreachable!(),
                }
                at = to;
                seen.push(item);
            }
        }
    }
    assert!(gaps > 200, "{gaps}");
}

#[test]
fn all_bytes_of_a_long_line_are_counted_if_it_is_dropped_before_its_end() {
    let mut random = Random(9_025);
    let (mut gaps, mut lines) = (0, 0);
    for _ in 0..300 {
        let mut case = Case::new(&mut random, &[3, 7]);
        let mut follower = case.log.follow(View::Stdout, StartAt::Beginning, waker());
        let mut at = 0;
        for _ in 0..12 {
            case.write(ops(&mut random));
            if random.below(3) > 0 {
                continue;
            }
            for item in drain(&mut follower) {
                let to = cursor(&item).from.out as usize;
                match &item {
                    Item::Line(line, _) => {
                        let bytes = &case.written.out.bytes[at..to];
                        assert_eq!(line.text, String::from_utf8_lossy(bytes.strip_suffix(b"\n").unwrap_or(bytes)));
                        lines += 1;
                    }
                    Item::Gap { lost_bytes, .. } => {
                        assert_eq!(at + *lost_bytes as usize, to, "{:?}", case.ops);
                        gaps += 1;
                    }
                    Item::End(..) => unreachable!(),
                }
                at = to;
            }
        }
    }
    assert!(gaps > 200 && lines > 1000, "{gaps} {lines}");
}

#[test]
fn a_long_line_that_is_dropped_while_it_is_read_reports_the_lost_bytes() {
    let (_dir, store) = store(64 * 1024, MIB, |disk| disk.segment = 8 * 1024);
    let log = store.create(UnitId(1));
    // A character crosses every boundary of the pieces.
    let text = "€".repeat(10_000);
    log.append(1, ERR, b"other");
    text.as_bytes().chunks(1001).for_each(|chunk| log.append(1, OUT, chunk));
    log.append(2, OUT, b"\n");
    let mut follower = log.follow(View::Stdout, StartAt::Beginning, waker());
    let Some(Part::Long(mut line, _)) = follower.try_part() else { panic!("a long line") };
    let mut read = String::new();
    loop {
        match line.next().unwrap() {
            Text::Piece(piece) => read.push_str(&piece),
            Text::Lost(bytes) => break assert_eq!(read.len() as u64 + bytes, text.len() as u64 + 1),
            Text::End => panic!("it was dropped"),
        }
        (0..80).for_each(|_| log.append(3, ERR, &[b'x'; 1000]));
    }
    assert!(!read.is_empty() && text.starts_with(&read));
}

#[test]
fn a_follower_resumed_after_the_kept_part_of_a_long_line_gets_the_gap() {
    for (other, cut) in [(false, false), (true, false), (false, true), (true, true)] {
        let (_dir, store) = store(64 * 1024, MIB, |disk| disk.segment = 8 * 1024);
        let log = store.create(UnitId(1));
        if other {
            log.append(1, ERR, b"an unfinished line that begins before");
        }
        let text = "€".repeat(10_000);
        text.as_bytes().chunks(1001).for_each(|chunk| log.append(1, OUT, chunk));
        log.append(2, OUT, b"\nnext\n");
        let mut follower = log.follow(View::Combined, StartAt::Beginning, waker());
        let Some(Part::Long(mut line, after)) = follower.try_part() else { panic!("a long line") };
        let Text::Piece(first) = line.next().unwrap() else { panic!("the first piece") };
        let mut read = first.len() as u64;
        (0..60).for_each(|_| log.append(3, if other { OUT } else { ERR }, &[b'x'; 1000]));
        if cut {
            log.cut(4);
        }
        let lost = loop {
            match line.next().unwrap() {
                Text::Piece(piece) => read += piece.len() as u64,
                Text::Lost(bytes) => break bytes,
                Text::End => panic!("it was dropped"),
            }
        };
        assert_eq!(read + lost, text.len() as u64 + 1);
        let cursor = line.long().cursor_before_loss(lost, after).to_string().parse().unwrap();
        let items = follow(&log, View::Stdout, StartAt::After(cursor));
        let Some(Item::Gap { lost_bytes, .. }) = items.first() else { panic!("no gap: {items:?}") };
        // The next line was dropped, too.
        assert!(*lost_bytes >= lost + 5, "{lost_bytes} of {lost}: {items:?}");
    }
}

/// The lines of a log of 4 KiB, in segments of 1000 bytes, after these writes.
fn kept(writes: &[(Stream, &[u8])]) -> (Vec<String>, Arc<OutputLog>, TempDir) {
    let (dir, store) = store(4096, 1000 * 1024, |disk| disk.segment = 1000);
    let log = store.create(UnitId(1));
    writes.iter().for_each(|(stream, bytes)| log.append(1, *stream, bytes));
    (texts(log.lines(View::Combined, None)), log, dir)
}

#[test]
fn a_line_longer_than_the_log_is_shown_as_far_as_it_is_kept() {
    let long = [b'x'; 984];
    let mut writes = vec![(OUT, &long[..]); 10];
    let (lines, log, _dir) = kept(&writes);
    assert_eq!(lines, ["x".repeat(4 * 984)], "unfinished");
    assert_eq!(raw(&log, View::Stdout).len(), 4 * 984);
    writes.push((OUT, b"\n"));
    let (lines, ..) = kept(&writes);
    assert_eq!(lines, ["x".repeat(4 * 984)], "finished, and no line follows");
    writes.push((OUT, b"y"));
    let (lines, log, _dir) = kept(&writes);
    assert_eq!(lines, ["y"], "the next line is whole");
    assert_eq!(raw(&log, View::Stdout), b"y");
    let items = follow(&log, View::Stdout, StartAt::Beginning);
    assert!(matches!(items[..], [Item::Gap { lost_bytes: 9841, .. }]), "{items:?}");
}

#[test]
fn after_a_cut_a_new_line_begins() {
    let (dir, store) = store(4096, 1000 * 1024, |disk| disk.segment = 1000);
    let log = store.create(UnitId(1));
    for _ in 0..8 {
        log.append(1, OUT, &[b'x'; 900]);
    }
    log.cut(2);
    log.append(3, OUT, b"next run");
    assert_eq!(texts(log.lines(View::Stdout, None)), ["next run"]);
    assert_eq!(raw(&log, View::Stdout), b"next run");
    drop(dir);
}

#[test]
fn a_stream_that_lost_the_beginning_of_a_line_does_not_hide_the_other() {
    let mut writes: Vec<(Stream, &[u8])> = vec![(ERR, b"begun "), (ERR, b"and ended\n")];
    writes.extend(vec![(OUT, &[b'x'; 900][..]); 3]);
    writes.extend([(ERR, &b"whole\n"[..]), (OUT, b"torn\nwhole too\n"), (ERR, b"last")]);
    writes.extend(vec![(OUT, &[b'y'; 900][..]); 2]);
    let (lines, log, _dir) = kept(&writes);
    assert_eq!(lines[..2], ["whole", "whole too"]);
    assert_eq!(lines[2].len(), 1800);
    assert_eq!(lines[3], "last");
    assert!(raw(&log, View::Combined).starts_with(b"whole\nwhole too\nlasty"));
}
