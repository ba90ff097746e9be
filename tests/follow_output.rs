//! Followers of output: late, slow, resumed, and many at once.

use std::io::BufRead;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::response::EventStream;
use crate::harness::{Daemon, TIMEOUT, pid_of, procfs, start_daemon, wait_until};

const LINES: u64 = 500_000;

/// Reads a follow of `seq -f %060.0f` to its end; checks that every number comes once, in order, then `eof`.
fn read_numbers(events: EventStream) {
    let mut reader = events.into_reader();
    let (mut next, mut eof, mut line) = (1, false, Vec::new());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).expect("read the stream") == 0 {
            break;
        }
        assert!(!line.starts_with(b"event: gap"), "a gap before line {next}");
        eof |= line.starts_with(b"event: eof");
        let text = std::str::from_utf8(&line).expect("UTF-8");
        let Some((_, rest)) = text.strip_prefix("data:").and_then(|data| data.split_once("\"line\":\"")) else {
            continue;
        };
        let number: u64 = rest[..60].parse().expect("a number");
        assert_eq!(number, next);
        next += 1;
    }
    assert_eq!(next, LINES + 1, "lines are missing at the end");
    assert!(eof, "no eof");
}

#[test]
fn a_slow_follower_loses_no_line_and_delays_neither_writer_nor_followers() {
    let daemon = start_daemon();
    let script = format!("read x; seq -f %060.0f 1 {LINES}");
    let start = json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"});
    let pid = pid_of(&daemon.start_process(&start));
    let slow = daemon.follow(pid, "stdout");
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..19).map(|_| daemon.follow(pid, "stdout")).collect();
        let others: Vec<_> = others.into_iter().map(|events| scope.spawn(move || read_numbers(events))).collect();
        let begun = Instant::now();
        daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"go\n")).expect(204);
        let info = daemon.wait_for_end(pid);
        let took = info["ended_at"].as_u64().expect("an end") - info["started_at"].as_u64().expect("a start");
        // If the slow follower delayed the writer, the writer would not end: the follower reads only after this check.
        assert!(took < 45_000, "the writer took {took} ms");
        for other in others {
            other.join().expect("another follower");
        }
        // The slow follower reads nothing for at least 10 s.
        std::thread::sleep(Duration::from_secs(10).saturating_sub(begun.elapsed()));
        read_numbers(slow);
    });
}

/// Starts a process that writes `count` lines and runs until its stdin is closed; waits for the lines.
fn start_with_lines(daemon: &Daemon, count: u64) -> u64 {
    let start =
        json!({"command": "sh", "args": ["-c", format!("seq 1 {count}; read x; echo end")], "stdin_mode": "pipe"});
    let pid = pid_of(&daemon.start_process(&start));
    wait_until(TIMEOUT, "the process has written", || {
        (daemon.lines(pid, "stdout").len() as u64 == count).then_some(())
    });
    pid
}

fn release(daemon: &Daemon, pid: u64) {
    daemon.request("POST", &format!("/processes/{pid}/stdin/close"), Some(b"")).expect(204);
}

fn numbers_and_end(range: std::ops::RangeInclusive<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).chain(["end".to_owned()]).collect()
}

#[test]
fn follow_replays_kept_lines_and_then_streams_live_ones() {
    let daemon = start_daemon();
    let pid = start_with_lines(&daemon, 1000);
    let mut early = daemon.follow(pid, "stdout");
    let first = early.next_frame().expect("a frame");
    assert_eq!((first.event.as_str(), &first.data["line"]), ("output", &json!("1")));
    release(&daemon, pid);
    assert_eq!(early.all_lines(), numbers_and_end(2..=1000));
    assert_eq!(daemon.follow(pid, "stdout").all_lines(), numbers_and_end(1..=1000), "late");
}

#[test]
fn last_event_id_resumes_right_after_that_event() {
    let daemon = start_daemon();
    for view in ["stdout", "output"] {
        let pid = start_with_lines(&daemon, 500);
        let mut first = daemon.follow(pid, view);
        let mut id = String::new();
        for _ in 0..123 {
            id = first.next_frame().expect("a frame").id;
        }
        drop(first);
        let again = daemon.follow_with(pid, view, &format!("Last-Event-ID: {id}\r\n"));
        release(&daemon, pid);
        assert_eq!(again.all_lines(), numbers_and_end(124..=500), "{view}");
        let after = daemon.follow_with(pid, view, &format!("Last-Event-ID: {id}\r\n"));
        assert_eq!(after.all_lines(), numbers_and_end(124..=500), "{view}, after its end");
    }
}

#[test]
fn resuming_after_eof_sends_only_output_of_later_runs() {
    let daemon = start_daemon();
    let body =
        json!({"command": "sh", "args": ["-c", "echo run; printf cut"], "name": "s", "restart": {"policy": "never"}});
    let pid = pid_of(&daemon.start_process(&body));
    let (frames, end) = daemon.follow(pid, "output").with_eof();
    assert_eq!(frames.len(), 2);
    let header = format!("Last-Event-ID: {end}\r\n");
    for _ in 0..2 {
        let (frames, again) = daemon.follow_with(pid, "output", &header).with_eof();
        assert!(frames.is_empty() && again == end, "{frames:?}, {again} after {end}");
    }
    daemon.post("/processes/s/restart", &json!({})).expect(200);
    assert_eq!(daemon.follow_with(pid, "output", &header).all_lines(), ["run", "cut"], "what the second run wrote");
    assert_eq!(daemon.follow(pid, "output").all_lines(), ["run", "cut", "run", "cut"]);
}

#[test]
fn tail_returns_the_last_n_lines() {
    let daemon = start_daemon();
    let pid = start_with_lines(&daemon, 500);
    assert_eq!(daemon.lines(pid, "stdout?tail=3"), ["498", "499", "500"]);
    let live = daemon.follow(pid, "stdout?tail=2");
    // The response head comes before the follower has found its starting point, so `end` may already be written.
    release(&daemon, pid);
    let lines = live.all_lines();
    assert!(lines == numbers_and_end(499..=500) || lines == numbers_and_end(500..=500), "{lines:?}");
    daemon.wait_for_end(pid);
    for (tail, expected) in [(0, 0), (1, 1), (501, 501), (1_000_000, 501)] {
        for view in ["stdout", "output"] {
            let all = numbers_and_end(1..=500);
            let expected = &all[all.len() - expected..];
            assert_eq!(daemon.lines(pid, &format!("{view}?tail={tail}")), expected);
            assert_eq!(daemon.follow(pid, &format!("{view}?tail={tail}")).all_lines(), expected);
        }
    }
    for bad in ["x", "-1", "", "1.5"] {
        daemon.get(&format!("/processes/{pid}/stdout?tail={bad}")).expect_error(400, "INVALID_REQUEST", "tail");
    }
}

#[test]
fn a_silent_follow_sends_a_keep_alive_comment_after_15_s() {
    let daemon = start_daemon();
    let pid = start_with_lines(&daemon, 1);
    // Before the response, which may be read late.
    let begun = Instant::now();
    let mut reader = daemon.follow(pid, "stdout").into_reader();
    let mut line = String::new();
    while !line.starts_with(':') {
        line.clear();
        assert!(reader.read_line(&mut line).expect("read the stream") > 0, "it ended");
    }
    let silent = begun.elapsed().as_secs();
    assert!((14..60).contains(&silent), "the comment came after {silent} s");
    release(&daemon, pid);
    assert!(reader.lines().any(|line| line.is_ok_and(|line| line == "event: eof")));
}

#[test]
fn the_search_for_a_tail_stops_when_its_client_disconnects() {
    let daemon = start_daemon();
    // Ten million empty lines.
    let pid = daemon.sh("yes '' | head -c 10M");
    daemon.wait_for_end(pid);
    let path = format!("/processes/{pid}/stdout?tail=100000000");
    let cost = |work: &dyn Fn()| {
        let before = procfs::cpu_time(daemon.pid);
        work();
        // Includes work that continues after the clients have disconnected.
        daemon.wait_until_idle(Duration::from_millis(300));
        procfs::cpu_time(daemon.pid) - before
    };
    let one = cost(&|| assert_eq!(daemon.get(&path).status, 200));
    for head in ["", "Accept: application/octet-stream\r\n"] {
        for path in [path.clone(), path.replace('?', "/follow?")] {
            let ask = || {
                for _ in 0..10 {
                    let mut socket = daemon.connect();
                    let request = daemon.request_head("GET", &path, head);
                    std::io::Write::write_all(&mut socket, request.as_bytes()).expect("send the request");
                }
            };
            // Without the early stop, each request would cost as much as the first. On a busy machine, the daemon may
            // get far before a client has disconnected: one of ten tries must cost less.
            let costs: Vec<Duration> = (0..10).map(|_| cost(&ask)).take_while(|gone| *gone >= 3 * one).collect();
            assert!(costs.len() < 10, "{path}: {costs:?} for ten disconnected clients, {one:?} for one connected");
        }
    }
}
