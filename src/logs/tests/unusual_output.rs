//! Output that is not text, long lines, and units without output.

use super::*;

#[test]
fn bytes_that_are_not_utf_8_are_replaced() {
    let (_dir, log) = log();
    log.append(1, OUT, b"a\0b\n\n\r\nprogress 1\rprogress 2\r");
    log.append(2, OUT, b"\n\xff\xfe\n\xe2");
    log.append(3, ERR, b"between\n");
    log.append(4, OUT, b"\x82");
    log.append(5, OUT, b"\xac\nunfinished");
    let expected = [
        (1, OUT, "a\0b"),
        (1, OUT, ""),
        (1, OUT, "\r"),
        (2, OUT, "progress 1\rprogress 2\r"),
        (2, OUT, "\u{FFFD}\u{FFFD}"),
        (3, ERR, "between"),
        (5, OUT, "€"),
        (5, OUT, "unfinished"),
    ];
    let lines: Vec<_> = log.lines(View::Combined, None).collect();
    let seen: Vec<_> = lines.iter().map(|line| (line.timestamp, line.stream, &*line.text)).collect();
    assert_eq!(seen, expected);
    assert!(lines.iter().all(|line| !line.partial));
    assert_eq!(raw(&log, View::Stderr), b"between\n");
}

#[test]
fn a_line_of_64_mib_is_read_in_pieces_of_1_mib() {
    let (_dir, store) = store(256 * MIB, 512 * MIB, |_| {});
    let log = store.create(UnitId(1));
    log.append(1, ERR, b"prompt> ");
    let chunk = vec![b'x'; 65_537];
    let total = 64 * MIB;
    let mut left = total as usize;
    while left > 0 {
        let n = left.min(chunk.len());
        log.append(1, OUT, &chunk[..n]);
        left -= n;
    }
    log.append(2, OUT, b"\nshort\n");
    let lines: Vec<_> = log.lines(View::Stdout, None).map(|line| (line.text.len() as u64, line.partial)).collect();
    assert_eq!(lines.len(), 65);
    assert!(lines[..63].iter().all(|line| *line == (MIB, true)));
    assert_eq!(lines[63..], [(MIB, false), (5, false)]);
    let tail: Vec<_> = log.lines(View::Combined, Some(3)).map(|line| line.text.len() as u64).collect();
    assert_eq!(tail, [MIB, 5, 8], "the unfinished prompt is a line too");

    // A cursor between two pieces.
    let mut follower = log.follow(View::Combined, StartAt::Beginning, waker());
    let Some(Item::Line(_, cursor)) = (0..40).map(|_| follower.try_next()).last().flatten() else { panic!() };
    let rest = drain(&mut follower);
    assert_eq!(rest.len(), 25);
    assert_eq!(follow(&log, View::Combined, StartAt::After(cursor)), rest);
}

#[test]
fn the_cut_of_a_long_line_does_not_split_a_character() {
    let (_dir, log) = log();
    // Neither 1 MiB nor the length of a record is a multiple of 3, the length of the character.
    let text = "€".repeat(1_000_000);
    for chunk in text.as_bytes().chunks(1000) {
        log.append(1, OUT, chunk);
    }
    log.append(1, OUT, b"\n");
    let all = follow(&log, View::Stdout, StartAt::Beginning);
    assert_eq!(texts(lines_of(&all)).concat(), text);
    assert_eq!(all.len(), 3);
    for (i, item) in all.iter().enumerate() {
        let cursor = cursor(item);
        assert_eq!(follow(&log, View::Stdout, StartAt::After(cursor)), all[i + 1..]);
        let read_again = log.snapshot().end.at - cursor.at;
        let left: usize = lines_of(&all[i + 1..]).iter().map(|line| line.text.len()).sum();
        assert!(read_again < left as u64 + left as u64 / 10 + 3000, "a cursor begins near its item");
    }
}

#[test]
fn combined_lines_come_in_the_order_of_their_ends() {
    let (_dir, log) = log();
    log.append(1, OUT, b"out ");
    log.append(2, ERR, b"err ");
    log.append(3, OUT, b"1\nout ");
    log.append(4, ERR, b"1\nerr ");
    log.append(5, ERR, b"2\n");
    log.append(6, OUT, b"2\n");
    let expected = ["out 1", "err 1", "err 2", "out 2"];
    assert_eq!(texts(log.lines(View::Combined, None)), expected);
    assert_eq!(texts(lines_of(&follow(&log, View::Combined, StartAt::Beginning))), expected);
}

#[test]
fn a_unit_without_output_has_no_file() {
    let (dir, log) = log();
    log.append(1, OUT, b"");
    log.cut(1);
    log.finish_now(end(2));
    log.close_file();
    let files: Vec<_> = std::fs::read_dir(dir.path().join("logs")).unwrap().map(|f| f.unwrap().file_name()).collect();
    assert_eq!(files, ["lock"]);
    assert_eq!(log.store().total_bytes(), 0);
    assert_eq!(log.lines(View::Combined, None).count(), 0);
    assert_eq!(log.lines(View::Combined, Some(5)).count(), 0);
    let items = follow(&log, View::Combined, StartAt::Tail(3));
    assert_eq!((items.len(), end_of(&items)), (1, Some(end(2))));
    assert!(size_of::<OutputLog>() < 600, "{}", size_of::<OutputLog>());
}

#[test]
fn a_listing_ends_at_the_end_of_the_log_when_it_was_created() {
    let (_dir, log) = log();
    log.append(1, OUT, b"one\ntwo");
    let (lines, raw) = (log.lines(View::Stdout, None), log.raw(View::Stdout, None).unwrap());
    let tail = log.lines(View::Stdout, Some(1));
    log.append(2, OUT, b" and more\nthree\n");
    assert_eq!(texts(lines), ["one", "two"]);
    assert_eq!(texts(tail), ["two"]);
    assert_eq!(std::io::read_to_string(raw).unwrap(), "one\ntwo");
}
