//! Followers: ends, wake-ups, cuts, and many followers at once.

use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use tl_os::poll::{Events, wait};

fn woken(waker: &Waker) -> bool {
    let [events] = wait([(waker.as_fd(), Events::READ)], Some(Instant::now())).unwrap();
    waker.clear();
    events.any(Events::READ)
}

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(60))
}

#[test]
fn the_end_comes_after_all_lines_and_before_what_a_child_writes_later() {
    let (_dir, log) = log();
    log.append(1, OUT, b"one\nunfinished");
    log.append(2, ERR, b"too");
    let mut early = log.follow(View::Combined, StartAt::Beginning, waker());
    assert_eq!(texts(lines_of(&drain(&mut early))), ["one"]);
    log.finish_now(end(9));
    log.append(10, OUT, b"from the background\n");
    assert_eq!(log.ended(), Some(end(9)));
    let rest = drain(&mut early);
    assert_eq!(texts(lines_of(&rest)), ["unfinished", "too"]);
    assert_eq!(lines_of(&rest)[0].timestamp, 9, "a line's time is that of its end");
    assert_eq!(end_of(&rest), Some(end(9)));
    assert_eq!(early.try_next(), None);
    assert_eq!(early.next(None).unwrap(), None, "after the end, it does not block");
    let late = follow(&log, View::Combined, StartAt::Beginning);
    assert_eq!(texts(lines_of(&late)), ["one", "unfinished", "too"]);
    for item in &late[2..] {
        assert_eq!(follow(&log, View::Combined, StartAt::After(cursor(item))), late[3..], "the end is delivered again");
    }
    assert_eq!(
        texts(log.lines(View::Combined, None)),
        ["one", "unfinished", "too", "from the background"],
        "the listing includes output after the end"
    );
    assert_eq!(follow(&log, View::Combined, StartAt::Tail(1)), late[2..]);
}

#[test]
fn a_follower_that_has_not_reached_the_end_continues_after_the_log_is_reopened() {
    let (_dir, log) = log();
    log.append(1, OUT, b"first\n");
    let mut behind = log.follow(View::Stdout, StartAt::Beginning, waker());
    let mut ended = log.follow(View::Stdout, StartAt::Beginning, waker());
    log.finish_now(end(2));
    let first_end = cursor(&drain(&mut ended)[1]);
    log.append(3, OUT, b"back");
    log.begin_again();
    assert_eq!(log.ended(), None);
    log.append(4, OUT, b"second\n");
    log.finish_now(end(5));
    let expected = ["first", "back", "second"];
    let items = drain(&mut behind);
    assert_eq!(texts(lines_of(&items)), expected, "it continues beyond the revoked end");
    assert_eq!(end_of(&items), Some(end(5)));
    assert_eq!(drain(&mut ended), [], "a follower ends at the first end that it reaches");
    let after = follow(&log, View::Stdout, StartAt::After(first_end));
    assert_eq!(after, items[1..], "a cursor of the first end resumes after it");
    assert_eq!(texts(lines_of(&follow(&log, View::Stdout, StartAt::Beginning))), expected);
}

#[test]
fn live_followers_and_listings_cut_lines_at_the_same_places() {
    let (_dir, log) = log();
    log.append(1, OUT, b"a");
    log.append(1, ERR, b"b");
    let mut live = log.follow(View::Combined, StartAt::Beginning, waker());
    assert_eq!(drain(&mut live), []);
    log.cut(2);
    log.cut(3);
    log.append(4, OUT, b"c\n");
    let expected = ["a", "b", "c"];
    assert_eq!(texts(lines_of(&drain(&mut live))), expected);
    assert_eq!(texts(log.lines(View::Combined, None)), expected);
    assert_eq!(raw(&log, View::Combined), b"abc\n");
}

#[test]
fn a_follower_is_woken_once_after_each_time_it_found_nothing() {
    let (_dir, log) = log();
    let (wake, other) = (waker(), waker());
    let mut follower = log.follow(View::Stdout, StartAt::Beginning, Arc::clone(&wake));
    let idle = log.follow(View::Stdout, StartAt::Beginning, Arc::clone(&other));
    log.append(1, OUT, b"one\n");
    assert!(!woken(&wake), "it has not found the log empty yet");
    assert_eq!(drain(&mut follower).len(), 1);
    log.append(2, OUT, b"two\n");
    assert!(woken(&wake));
    log.append(3, OUT, b"three\n");
    assert!(!woken(&wake), "it was woken and has not read since");
    assert_eq!(drain(&mut follower).len(), 2);
    assert!(!woken(&other));
    log.finish_now(end(4));
    assert!(woken(&wake) && woken(&other), "an end wakes all followers");
    drop((follower, idle));
    log.begin_again();
    log.append(5, OUT, b"four\n");
    log.finish_now(end(6));
    assert!(!woken(&wake), "a dropped follower is not woken");
}

#[test]
fn an_end_watch_is_woken_by_the_end() {
    let (_dir, log) = log();
    let (wake, gone) = (waker(), waker());
    let watch = log.watch_end(Arc::clone(&wake));
    drop(log.watch_end(Arc::clone(&gone)));
    log.append(1, OUT, b"x\n");
    assert!(!woken(&wake));
    log.finish_now(end(2));
    assert!(woken(&wake) && !woken(&gone));
    let _late = log.watch_end(Arc::clone(&gone));
    assert!(woken(&gone), "a watch of an ended log is woken at once");
    drop(watch);
}

#[test]
fn next_waits_for_output_and_for_the_deadline() {
    let (_dir, log) = log();
    let mut follower = log.follow(View::Stdout, StartAt::Beginning, waker());
    assert_eq!(follower.next(Some(Instant::now())).unwrap(), None);
    let writer = Arc::clone(&log);
    let thread = thread::spawn(move || {
        writer.append(1, OUT, b"one\n");
        writer.finish_now(end(2));
    });
    assert!(matches!(follower.next(soon()).unwrap(), Some(Item::Line(line, _)) if line.text == "one"));
    assert!(matches!(follower.next(soon()).unwrap(), Some(Item::End(run, _)) if run == end(2)));
    thread.join().unwrap();
}

#[test]
fn half_a_million_lines_reach_every_follower() {
    const LINES: u64 = 500_000;
    let (_dir, log) = log();
    let read = |view, slow: bool| {
        let log = Arc::clone(&log);
        thread::spawn(move || {
            let mut follower = log.follow(view, StartAt::Beginning, waker());
            let mut expected = 0;
            let mut resumed = 0;
            loop {
                match follower.next(soon()).unwrap().unwrap() {
                    Item::Line(line, cursor) => {
                        let number: u64 = line.text.strip_prefix("line ").unwrap().parse().unwrap();
                        assert_eq!(number, expected);
                        expected += 1;
                        if slow && expected % 4099 == 0 {
                            // A client that reconnects.
                            follower = log.follow(view, StartAt::After(cursor), waker());
                            resumed += 1;
                            thread::yield_now();
                        }
                    }
                    Item::End(..) => break assert!(expected == LINES && (!slow || resumed > 100)),
                    gap @ Item::Gap { .. } => panic!("{gap:?}"),
                }
            }
        })
    };
    let threads = [read(View::Stdout, false), read(View::Combined, true)];
    let mut bytes = Vec::new();
    for number in 0..LINES {
        bytes.extend(format!("line {number}\n").into_bytes());
        if bytes.len() > 3000 {
            // Splits records anywhere in a line.
            let rest = bytes.split_off(2990);
            log.append(1, OUT, &bytes);
            bytes = rest;
        }
    }
    log.append(1, OUT, &bytes);
    log.finish_now(end(2));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_thousand_idle_followers_are_cheap() {
    let (_dir, log) = log();
    let wake = waker();
    log.append(1, OUT, &[b'x'; 10_000]);
    let mut followers: Vec<_> =
        (0..1000).map(|_| log.follow(View::Combined, StartAt::Tail(0), Arc::clone(&wake))).collect();
    assert!(followers.iter_mut().all(|follower| follower.try_next().is_none()));
    assert!(size_of::<Follower>() < 1024, "{}", size_of::<Follower>());
    log.append(2, OUT, b"\n");
    for follower in &mut followers {
        let Some(Item::Line(line, _)) = follower.try_next() else { panic!() };
        assert_eq!(line.text.len(), 10_000);
    }
}
