//! Which output is dropped, and how readers learn of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

const KIB: u64 = 1024;

fn files(dir: &TempDir) -> u64 {
    let sizes = std::fs::read_dir(dir.path().join("logs")).unwrap().map(|file| file.unwrap().metadata().unwrap().len());
    sizes.sum()
}

#[test]
fn a_log_keeps_its_newest_output_within_its_limit() {
    let (dir, store) = store(64 * KIB, 1000 * KIB, |_| {});
    let log = store.create(UnitId(1));
    for number in 0..10_000 {
        log.append(1, OUT, format!("line {number:05}\n").as_bytes());
        assert!(store.total_bytes() <= 64 * KIB);
    }
    assert_eq!(files(&dir), store.total_bytes());
    assert!(store.total_bytes() > 52 * KIB, "one segment is dropped at a time");
    assert!(log.truncated());
    let lines = texts(log.lines(View::Stdout, None));
    assert_eq!(lines.last().unwrap(), "line 09999");
    assert!(lines.iter().zip(10_000 - lines.len()..).all(|(line, number)| *line == format!("line {number:05}")));
    drop(log);
    assert_eq!((files(&dir), store.total_bytes()), (0, 0), "the files are removed with the log");
}

#[test]
fn a_gap_contains_the_exact_number_of_lost_bytes() {
    let mut random = Random(77);
    for round in 0..40 {
        let (_dir, store) = store(4 * KIB * 8, 1000 * KIB, |disk| {
            disk.segment = 300;
            disk.per_unit = 1500;
            disk.chunk = [50, 300, 65536][round % 3];
            disk.max_line = [20, 100_000][round % 2];
        });
        let log = store.create(UnitId(1));
        let mut followers = VIEWS.map(|view| (view, log.follow(view, StartAt::Beginning, waker()), 0));
        let mut written = [0, 0];
        for _ in 0..30 {
            let length = 1 + random.below(20);
            let ops = random_ops(&mut random, length);
            apply(&log, &ops);
            for op in &ops {
                if let Op::Append(stream, bytes) = op {
                    written[*stream as usize] += bytes.len() as u64;
                }
            }
            if random.below(3) > 0 {
                continue;
            }
            for (view, follower, lost) in &mut followers {
                let items = drain(follower);
                let gaps = items.iter().filter(|item| matches!(item, Item::Gap { .. })).count();
                assert!(gaps <= 1, "one gap for one loss: {items:?}");
                for item in &items {
                    if let Item::Gap { lost_bytes, .. } = item {
                        assert!(*lost_bytes > 0);
                        *lost += lost_bytes;
                    }
                }
                // A new follower is told of all lost bytes.
                let fresh = follow(&log, *view, StartAt::Beginning);
                let kept = raw(&log, *view).len() as u64;
                let all: u64 = written.iter().zip([OUT, ERR]).filter(|(_, s)| view.has(*s)).map(|(n, _)| n).sum();
                match fresh.first() {
                    Some(Item::Gap { lost_bytes, .. }) => assert_eq!(lost_bytes + kept, all),
                    _ => assert_eq!(kept, all),
                }
                assert!(!matches!(follow(&log, *view, StartAt::Tail(1)).first(), Some(Item::Gap { .. })));
                // A cursor after a gap resumes like any other.
                let cursors: Vec<_> = items.iter().map(cursor).collect();
                if let Some(gap) = items.iter().position(|item| matches!(item, Item::Gap { .. })) {
                    // A follower that holds the beginning of another stream's line keeps it; a cursor does not hold it.
                    if *view != View::Combined || cursors[gap].at >= log.oldest().at {
                        assert_eq!(follow(&log, *view, StartAt::After(cursors[gap])), items[gap + 1..]);
                    }
                    if gap > 0 {
                        let resumed = follow(&log, *view, StartAt::After(cursors[gap - 1]));
                        if *view != View::Combined {
                            assert_eq!(resumed, items[gap..], "after {:?}", items[gap - 1]);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn no_line_continues_over_a_gap() {
    let (_dir, store) = store(4 * KIB, 1000 * KIB, |disk| disk.segment = 1000);
    let log = store.create(UnitId(1));
    let mut follower = log.follow(View::Combined, StartAt::Beginning, waker());
    log.append(1, OUT, b"head of a line");
    log.append(2, ERR, b"and another");
    assert_eq!(drain(&mut follower), []);
    for _ in 0..20 {
        log.append(3, OUT, &[b'x'; 900]);
    }
    log.append(4, OUT, b"\n");
    log.append(5, OUT, b"whole\n");
    log.append(6, ERR, b", in two parts\n");
    let items = drain(&mut follower);
    let Item::Gap { lost_bytes, .. } = items[0] else { panic!("{:?}", items[0]) };
    assert_eq!(lost_bytes, 14 + 20 * 900 + 1);
    assert_eq!(texts(lines_of(&items[1..])), ["whole", "and another, in two parts"]);
    assert_eq!(items.len(), 3);
}

#[test]
fn bytes_lost_from_another_stream_do_not_cut_a_line() {
    let (_dir, store) = store(4 * KIB, 1000 * KIB, |disk| disk.segment = 1000);
    let log = store.create(UnitId(1));
    let mut follower = log.follow(View::Stdout, StartAt::Beginning, waker());
    log.append(1, OUT, b"head ");
    assert_eq!(drain(&mut follower), []);
    for _ in 0..20 {
        log.append(3, ERR, &[b'x'; 900]);
    }
    log.append(4, OUT, b"and tail\n");
    assert_eq!(texts(lines_of(&drain(&mut follower))), ["head and tail"]);
}

#[test]
fn above_the_total_limit_ended_logs_lose_output_first() {
    let (dir, store) = store(100 * KIB, 100 * KIB, |disk| disk.segment = 4096);
    let logs: Vec<_> = (0..4).map(|unit| store.create(UnitId(unit))).collect();
    for log in &logs {
        (0..20).for_each(|_| log.append(1, OUT, &[b'x'; 1000]));
    }
    logs[2].finish_now(end(1));
    logs[1].finish_now(end(2));
    logs[1].begin_again();
    logs[0].finish_now(end(3));
    let kept = |log: &Arc<OutputLog>| raw(log, View::Stdout).len();
    // 80 KB are kept; the next 80 KB replace the two ended logs first, in the order in which they ended.
    for round in 0..80 {
        logs[3].append(1, OUT, &[b'y'; 1000]);
        assert!(store.total_bytes() <= 100 * KIB);
        assert!(kept(&logs[2]) == 0 || kept(&logs[0]) == 20_000, "round {round}");
        assert!(kept(&logs[0]) == 0 || kept(&logs[3]) >= 20_000 + 1000 * (round + 1));
    }
    assert_eq!((kept(&logs[2]), kept(&logs[0]), kept(&logs[1])), (0, 0, 20_000));
    assert!(logs[2].truncated() && logs[0].truncated() && logs[3].truncated() && !logs[1].truncated());
    assert_eq!(files(&dir), store.total_bytes());
    assert_eq!(follow(&logs[2], View::Stdout, StartAt::Beginning).len(), 2, "a gap and the end");
    assert_eq!(texts(logs[2].lines(View::Combined, Some(4))), Vec::<String>::new());
}

#[test]
fn concurrent_writers_followers_and_retention_lose_or_count_every_byte() {
    let (dir, store) = store(64 * KIB, 128 * KIB, |_| {});
    let logs: Vec<_> = (0..4).map(|unit| store.create(UnitId(unit))).collect();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for log in &logs {
            scope.spawn(|| {
                let mut follower = log.follow(View::Combined, StartAt::Beginning, waker());
                // Each byte of the output is delivered or counted as lost.
                let mut bytes = 0;
                let mut last = None;
                while let Some(item) = follower.next(None).unwrap() {
                    match item {
                        Item::Line(line, _) => {
                            bytes += line.text.len() as u64 + 1;
                            let number: u64 = line.text.strip_prefix("line ").unwrap().parse().unwrap();
                            assert!(
                                line.text.len() == 15 && last.is_none_or(|last| last < number),
                                "{last:?} {line:?}"
                            );
                            last = Some(number);
                        }
                        Item::Gap { lost_bytes, .. } => bytes += lost_bytes,
                        Item::End(..) => break,
                    }
                }
                assert_eq!(bytes, 16 * 20_000);
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert!(log.lines(View::Combined, Some(7)).count() <= 7);
                    log.lines(View::Combined, None).take(50).for_each(drop);
                }
            });
        }
        let writers: Vec<_> = logs
            .iter()
            .map(|log| {
                scope.spawn(|| {
                    for number in 0..20_000 {
                        log.append(1, OUT, format!("line {number:010}\n").as_bytes());
                    }
                    log.finish_now(end(1));
                    log.close_file();
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        stop.store(true, Ordering::Relaxed);
    });
    assert!(store.total_bytes() <= 128 * KIB);
    assert_eq!(files(&dir), store.total_bytes());
}
