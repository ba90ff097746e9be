//! Waits for a line, with an invented clock.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::*;
use crate::logs::LineProgress::{Busy, Ended, Found, Waiting};
use crate::model::LineQuery;
use tl_os::poll::{Events, wait};

/// A wait for `text` in the lines of both streams.
fn watch(log: &Arc<OutputLog>, text: &str) -> (LineWatch, Arc<Waker>) {
    let waker = waker();
    let query = LineQuery::new(text).unwrap();
    (LineWatch::new(log, &query, Arc::clone(&waker).into()), waker)
}

/// A time of the invented clock. It is in the past, because a wait for a time in the future would sleep.
fn begin() -> Instant {
    Instant::now().checked_sub(Duration::from_secs(10)).unwrap()
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn an_unfinished_line_counts_when_nothing_was_added_to_it_for_100_ms() {
    let (_dir, log) = log();
    let (mut watch, waker) = watch(&log, "login:");
    let begin = begin();
    let mut at = |time| watch.advance(begin + ms(time)).unwrap();
    assert_eq!(at(0), Waiting(None));
    log.append(1, OUT, b"web login");
    assert_eq!(at(10), Waiting(None), "the text is not complete");
    log.append(1, OUT, b": ");
    let [events] = wait([(waker.as_fd(), Events::READ)], Some(Instant::now())).unwrap();
    assert!(events.any(Events::READ), "it is woken");
    assert_eq!(at(20), Waiting(Some(begin + ms(120))));
    log.append(1, ERR, b"something else\nand more");
    assert_eq!(at(60), Waiting(Some(begin + ms(120))), "the other stream does not matter");
    log.append(1, OUT, b"x");
    assert_eq!(at(119), Waiting(Some(begin + ms(219))), "the line has changed");
    assert_eq!(at(218), Waiting(Some(begin + ms(219))));
    assert_eq!(at(219), Found("web login: x".to_owned()));
}

#[test]
fn a_line_that_is_finished_counts_at_once_and_as_a_whole() {
    let (_dir, log) = log();
    let (mut watch, _waker) = watch(&log, "port 80");
    let begin = begin();
    log.append(1, OUT, b"port 80");
    assert_eq!(watch.advance(begin).unwrap(), Waiting(Some(begin + ms(100))));
    log.append(1, OUT, b"80\n");
    assert_eq!(watch.advance(begin + ms(1)).unwrap(), Found("port 8080".to_owned()));
}

#[test]
fn a_line_that_was_unfinished_and_has_ended_without_the_text_is_forgotten() {
    let (_dir, log) = log();
    let (mut watch, _waker) = watch(&log, "one");
    let begin = begin();
    log.append(1, OUT, b"thr");
    log.append(1, OUT, b"ee\n");
    assert_eq!(watch.advance(begin).unwrap(), Waiting(None));
    log.append(1, OUT, b"one");
    assert_eq!(watch.advance(begin + ms(500)).unwrap(), Waiting(Some(begin + ms(600))), "quiet from now on");
}

#[test]
fn after_256_kib_it_returns_so_that_its_caller_can_look_at_other_things() {
    let (_dir, log) = log();
    let line = [&[b'x'; 99][..], b"\n"].concat();
    log.append(1, OUT, &line.repeat(10_000));
    log.append(1, OUT, &[b'y'; 3 << 20]);
    log.append(1, OUT, b"\nneedle\n");
    let (mut watch, _waker) = watch(&log, "needle");
    let mut busy = 0;
    let found = loop {
        match watch.advance(begin()).unwrap() {
            Busy => busy += 1,
            other => break other,
        }
    };
    assert_eq!(found, Found("needle".to_owned()));
    // Each short line counts for 163 bytes; of the long one, each piece of 1 MiB is searched as a whole.
    assert_eq!(busy, 10_000 * 163 / (256 << 10) + 3);
}

#[test]
fn a_gap_does_not_end_the_wait_and_joins_nothing() {
    // A line is returned in pieces of 8 bytes, and only the last 4 KiB are kept.
    let (_dir, store) = store(4096, MIB, |disk| {
        disk.segment = 1024;
        disk.max_line = 8;
    });
    let log = store.create(crate::model::UnitId(1));
    let (mut watch, _waker) = watch(&log, "abcdef");
    log.append(1, OUT, b"12345abcX");
    assert_eq!(watch.advance(begin()).unwrap(), Waiting(None));
    for _ in 0..2_000 {
        log.append(1, OUT, b"z\n");
    }
    log.append(1, OUT, b"def\n");
    assert_eq!(watch.advance(begin()).unwrap(), Waiting(None));
    log.append(1, OUT, b"12345abcdef\n");
    let Found(line) = watch.advance(begin()).unwrap() else { panic!() };
    assert!(line.ends_with("abcdef"), "{line}");
}

#[test]
fn the_end_finishes_the_last_line_and_comes_after_it() {
    let (_dir, log) = log();
    let (mut found, _waker) = watch(&log, "last");
    let (mut other, waker) = watch(&log, "never");
    log.append(1, OUT, b"the last words");
    assert_eq!(other.advance(begin()).unwrap(), Waiting(None));
    log.finish_now(end(2));
    log.append(3, OUT, b"never from the background\n");
    let [events] = wait([(waker.as_fd(), Events::READ)], Some(Instant::now())).unwrap();
    assert!(events.any(Events::READ), "it is woken");
    assert_eq!(found.advance(begin()).unwrap(), Found("the last words".to_owned()));
    assert_eq!(other.advance(begin()).unwrap(), Ended);
}
