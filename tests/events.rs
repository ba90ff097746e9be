//! `GET /events`: the stream of what happens (docs/api.md, Events).

use std::io::BufRead;
use std::net::TcpListener;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use crate::harness::response::{EventStream, Frame, ResponseStream};
use crate::harness::{Daemon, TIMEOUT, check_times, procfs, reserve_closed_port, start_daemon, start_daemon_with};

/// The header of a client that asks for everything that is kept.
const ALL: &str = "Last-Event-ID: 0\r\n";

/// A path of `true` with 4,000 bytes, so that few events fill the mebibyte that is kept.
fn long_true() -> String {
    format!("/bin{}/true", "/.".repeat(2_000))
}

fn number(frame: &Frame) -> u64 {
    frame.id.parse().unwrap_or_else(|_| panic!("the id is no number: {frame:?}"))
}

/// Reads the next events; fails if their numbers do not grow by one.
fn next(stream: &mut EventStream, count: usize) -> Vec<Frame> {
    let frames: Vec<Frame> = (0..count).map(|_| stream.next_frame().expect("another event")).collect();
    for pair in frames.windows(2) {
        assert_eq!(number(&pair[1]), number(&pair[0]) + 1, "{pair:?}");
    }
    frames
}

fn kinds(frames: &[Frame]) -> Vec<&str> {
    frames.iter().map(|frame| frame.event.as_str()).collect()
}

/// What is kept of the events, with a query that may narrow it.
fn kept(daemon: &Daemon, query: &str) -> Vec<Frame> {
    let mut stream = daemon.events(&format!("?follow=false{query}"), ALL);
    std::iter::from_fn(|| stream.next_frame()).collect()
}

#[test]
fn a_managed_process_is_told_of_from_its_start_to_its_last_restart() {
    let daemon = start_daemon();
    let mut stream = daemon.events("", "");
    let body = json!({
        "command": "sh", "args": ["-c", "exit 3"], "name": "svc",
        "restart": {"policy": "on_failure", "max_restarts": 1, "initial_backoff_ms": 10},
    });
    let info = daemon.start_process(&body);
    let frames = next(&mut stream, 6);
    let right = ["started", "ended", "restarting", "started", "ended", "stopped"].map(|word| format!("process.{word}"));
    assert_eq!(kinds(&frames), right);
    for frame in &frames {
        assert_eq!((&frame.data["handle"], &frame.data["name"]), (&info["handle"], &json!("svc")), "{frame:?}");
        let at = frame.data["at"].as_u64().expect("a time");
        assert!(at >= info["started_at"].as_u64().expect("a time") && at < number(&frames[0]) / 1_000 + 3_600_000);
    }
    let started = |frame: &Frame, count| {
        assert_eq!((&frame.data["command"], &frame.data["restart_count"]), (&json!("sh"), &json!(count)), "{frame:?}");
    };
    started(&frames[0], 0);
    started(&frames[3], 1);
    assert_eq!(frames[0].data["pid"], info["pid"]);
    assert_eq!(frames[1].data["pid"], info["pid"]);
    assert_eq!(frames[3].data["pid"], frames[5].data["pid"]);
    assert_ne!(frames[3].data["pid"], info["pid"]);
    for ended in [&frames[1], &frames[4]] {
        let how = ["exit_code", "signal", "oom_killed", "reason"].map(|field| ended.data[field].clone());
        assert_eq!(json!(how), json!([3, null, false, "exited"]));
    }
    assert_eq!((&frames[2].data["delay_ms"], &frames[2].data["reason"]), (&json!(10), &json!("exited")));
    assert!(frames[5].data["last_error"].is_string(), "{:?}", frames[5]);
}

#[test]
fn runs_and_plain_processes_are_told_of_with_the_reason_of_their_end() {
    let daemon = start_daemon();
    let mut stream = daemon.events("", "");
    daemon.run(&json!({"command": "sleep", "args": ["60"], "timeout": 0.05}));
    let frames = next(&mut stream, 2);
    assert_eq!(kinds(&frames), ["process.started", "process.ended"]);
    assert_eq!((&frames[1].data["reason"], &frames[1].data["signal"]), (&json!("timed_out"), &json!(9)));
    assert_eq!(frames[1].data["name"], Value::Null);
    let pid = daemon.sh("exec sleep 60");
    daemon.post(&format!("/processes/{pid}/signal"), &json!({"signal": 15})).expect(200);
    let frames = next(&mut stream, 2);
    assert_eq!((&frames[1].data["reason"], &frames[1].data["signal"]), (&json!("signaled"), &json!(15)));
    // A program that cannot be started is not told of.
    daemon.post("/processes", &json!({"command": "no-such-command"})).expect(400);
    assert_eq!(daemon.run_sh("true").code(), Some(0));
    assert_eq!(next(&mut stream, 2)[0].data["command"], "sh");
}

#[test]
fn a_change_of_health_is_told() {
    let daemon = start_daemon();
    let mut stream = daemon.events("", "");
    let service = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let start = |port: u16| {
        let check = json!({"type": "tcp", "port": port, "initial_delay_ms": 0, "interval_ms": 50, "timeout_ms": 5_000,
            "failure_threshold": 1});
        let body = json!({"command": "sleep", "args": ["60"], "restart": {"policy": "never"}, "health_check": check});
        daemon.start_process(&body);
    };
    start(service.local_addr().expect("an address").port());
    let frames = next(&mut stream, 2);
    assert_eq!(kinds(&frames), ["process.started", "process.health"]);
    assert_eq!((&frames[1].data["health_status"], &frames[1].data["error"]), (&json!("healthy"), &Value::Null));
    let (port, _reserved) = reserve_closed_port();
    start(port);
    let frames = next(&mut stream, 2);
    assert_eq!(kinds(&frames), ["process.started", "process.health"]);
    assert_eq!(frames[1].data["health_status"], "unhealthy");
    assert!(frames[1].data["error"].is_string(), "{frames:?}");
}

#[test]
fn terminal_sessions_are_told_of_when_they_are_opened_and_ended() {
    let daemon = start_daemon();
    let mut stream = daemon.events("", "");
    let session = daemon.open_pty(&json!({"command": "sh", "args": ["-c", "exit 5"]}));
    let frames = next(&mut stream, 2);
    assert_eq!(kinds(&frames), ["pty.opened", "pty.ended"]);
    assert!(frames.iter().all(|frame| frame.data["session_id"] == session.id), "{frames:?}");
    assert_eq!(frames[1].data["exit_code"], 5);
    // By a signal: the same code as that of the session.
    let session = daemon.open_pty(&json!({"command": "sh", "args": ["-c", "kill -9 $$"]}));
    let ended = next(&mut stream, 2).pop().expect("two events");
    assert_eq!(ended.data["exit_code"], 137);
    assert_eq!(ended.data["exit_code"], daemon.get(&format!("/pty/{}", session.id)).expect(200)["exit_code"]);
}

#[test]
fn truncated_output_is_told_once_for_each_process() {
    let daemon = start_daemon_with(&["--log-limit", "1M"]);
    let mut stream = daemon.events("", "");
    // Sixteen times as much as is kept.
    let pid = daemon.sh("seq -f %015.0f 1 1048576");
    daemon.wait_for_end(pid);
    daemon.run_sh("echo x");
    let frames = next(&mut stream, 5);
    let truncated: Vec<&Frame> = frames.iter().filter(|frame| frame.event == "output.truncated").collect();
    assert_eq!(truncated.len(), 1, "{frames:?}");
    assert_eq!(truncated[0].data["pid"], pid);
}

#[test]
fn a_client_that_was_disconnected_resumes_without_a_gap() {
    let daemon = start_daemon();
    let mut stream = daemon.events("", "");
    daemon.run_sh("true");
    let seen = next(&mut stream, 1);
    drop(stream);
    (0..20).for_each(|_| drop(daemon.run_sh("true")));
    let mut again = daemon.events("", &format!("Last-Event-ID: {}\r\n", seen[0].id));
    let frames = next(&mut again, 41);
    assert_eq!(number(&frames[0]), number(&seen[0]) + 1);
    // It goes on live.
    daemon.run_sh("true");
    assert_eq!(number(&next(&mut again, 2)[0]), number(&frames[40]) + 1);
    // After the last one nothing is kept, and no gap comes.
    let last = kept(&daemon, "").pop().expect("an event");
    let mut stream = daemon.events("?follow=false", &format!("Last-Event-ID: {}\r\n", last.id));
    assert!(stream.next_frame().is_none());
    assert!(daemon.events("?follow=false", "").next_frame().is_none(), "from now on");
}

#[test]
fn events_that_are_no_longer_kept_are_a_gap_that_counts_them() {
    let daemon = start_daemon();
    let mut stream = daemon.events("", "");
    daemon.run_sh("true");
    let first = next(&mut stream, 2);
    for _ in 0..400 {
        daemon.run(&json!({"command": long_true()}));
    }
    let resume = |id: &str| {
        let mut stream = daemon.events("?follow=false", &format!("Last-Event-ID: {id}\r\n"));
        let gap = stream.next_frame().expect("a gap");
        let rest: Vec<Frame> = std::iter::from_fn(|| stream.next_frame()).collect();
        assert_eq!(gap.event, "gap");
        assert_eq!(number(&gap) + 1, number(&rest[0]), "the gap can be resumed after");
        let last = number(&rest[rest.len() - 1]);
        assert_eq!(last - number(&rest[0]) + 1, rest.len() as u64, "no event is missing after the gap");
        assert_eq!(last, number(&first[0]) + 801);
        // 1 MiB in all, of which each start takes some 4 KiB.
        assert!((300..600).contains(&rest.len()), "{} events are kept", rest.len());
        (gap.data["lost"].as_u64().expect("a number"), number(&rest[0]))
    };
    let (lost, oldest) = resume("0");
    assert_eq!(lost, oldest - number(&first[0]));
    assert_eq!(resume(&first[0].id), (lost - 1, oldest));
    // The client that was connected all the time has missed nothing.
    assert_eq!(number(&next(&mut stream, 800)[799]), number(&first[0]) + 801);
}

#[test]
fn the_number_of_an_earlier_daemon_is_answered_with_a_gap_and_all_that_is_kept() {
    let earlier = start_daemon();
    earlier.run_sh("true");
    let old = kept(&earlier, "");
    drop(earlier);
    let daemon = start_daemon();
    daemon.run_sh("true");
    let all = kept(&daemon, "");
    assert!(number(&all[0]) > number(&old[1]) && number(&all[1]) < 1 << 53);
    assert_eq!(number(&all[0]) % 1_000, 0, "it is a time in milliseconds, times 1,000");
    let after_last = (number(&all[1]) + 1).to_string();
    for id in [&old[1].id, "1", &after_last, "18446744073709551615", "99999999999999999999999"] {
        let mut stream = daemon.events("", &format!("Last-Event-ID: {id}\r\n"));
        let gap = stream.next_frame().expect("a gap");
        assert_eq!((gap.event.as_str(), gap.data), ("gap", json!({"lost": 0})), "after {id}");
        assert_eq!(next(&mut stream, 2)[0].id, all[0].id);
    }
}

#[test]
fn a_stream_can_be_narrowed_to_one_process() {
    let daemon = start_daemon();
    let body = |name: &str| json!({"command": "sleep", "args": ["60"], "name": name});
    let (one, two) = (daemon.start_process(&body("one")), daemon.start_process(&body("two")));
    for query in ["process=two".to_owned(), format!("process={}", two["pid"]), format!("handle={}", two["handle"])] {
        let frames = kept(&daemon, &format!("&{query}"));
        assert_eq!(kinds(&frames), ["process.started"], "{query}");
        assert_eq!(frames[0].data["handle"], two["handle"]);
    }
    let mut stream = daemon.events("?process=two", "");
    daemon.delete("/processes/one").expect(204);
    daemon.delete("/processes/two").expect(204);
    let frame = stream.next_frame().expect("an event");
    assert_eq!((frame.event.as_str(), &frame.data["handle"]), ("process.ended", &two["handle"]));
    assert_ne!(one["handle"], two["handle"]);
}

#[test]
fn a_request_that_is_wrong_is_refused_with_the_name_of_the_field() {
    let daemon = start_daemon();
    for id in ["", "x", "-1", "1.5", "0x10", "1 2", "5cda9f1600000001-14-4-0-0-0"] {
        let head = format!("Last-Event-ID: {id}\r\n");
        let response = daemon.open("GET", "/events", &head, b"").into_response("GET /events");
        response.expect_error(400, "INVALID_REQUEST", "`Last-Event-ID`");
    }
    let twice = "Last-Event-ID: 1\r\nlast-event-id: 1\r\n";
    let response = daemon.open("GET", "/events", twice, b"").into_response("GET /events");
    response.expect_error(400, "INVALID_REQUEST", "`Last-Event-ID` must be sent once");
    for (query, status, part) in [
        ("ports=1", 400, "`ports`"),
        ("follow=", 400, "`follow`"),
        ("handle=x", 400, "`handle`"),
        ("handle=77", 404, "handle 77"),
        ("process=nothing", 404, "\"nothing\""),
        ("process=", 404, "name"),
        ("process=4000000", 404, "4000000"),
    ] {
        let code = if status == 400 { "INVALID_REQUEST" } else { "NOT_FOUND" };
        daemon.get(&format!("/events?{query}")).expect_error(status, code, part);
    }
    daemon.post("/events", &json!({})).expect_error(405, "METHOD_NOT_ALLOWED", "");
    daemon.get("/events?ports=true&follow=false").expect(200);
}

#[test]
fn a_client_that_does_not_read_gets_a_gap_and_holds_up_nothing() {
    let daemon = start_daemon();
    let mut socket = daemon.connect();
    setsockopt(&socket, sockopt::RcvBuf, &65_536).expect("set the buffer size");
    let head = daemon.request_head("GET", "/events", ALL);
    std::io::Write::write_all(&mut socket, head.as_bytes()).expect("send the request");
    let stream = ResponseStream::read(socket).expect("the head of the response");
    // 12 MiB of events: more than all buffers of the connection and what is kept.
    for _ in 0..3_000 {
        daemon.run(&json!({"command": long_true()}));
    }
    let mut stream = EventStream::new(stream);
    let (mut seen, mut gaps) = (0, 0);
    while seen < 6_000 {
        let frame = stream.next_frame().expect("another event");
        match frame.event.as_str() {
            "gap" => {
                gaps += 1;
                seen += frame.data["lost"].as_u64().expect("a number");
            }
            _ => seen += 1,
        }
    }
    assert_eq!((seen, gaps > 0), (6_000, true), "{gaps} gaps");
}

#[test]
fn long_names_cost_the_streams_little_memory() {
    const STREAMS: usize = 50;
    let daemon = start_daemon();
    // One byte of the name is six bytes of JSON, so the data of an event takes 600 kB.
    let name = "\u{1}".repeat(100_000);
    let mut streams: Vec<EventStream> = (0..STREAMS).map(|_| daemon.events("", "")).collect();
    daemon.run_sh("true");
    streams.iter_mut().for_each(|stream| drop(next(stream, 2)));
    let before = procfs::kilobytes(daemon.pid, "VmHWM");
    daemon.start_process(&json!({"command": "true", "name": name}));
    std::thread::scope(|scope| {
        for stream in &mut streams {
            scope.spawn(|| {
                for frame in next(stream, 3) {
                    assert!(frame.data["name"] == name, "another name");
                }
            });
        }
    });
    let grown = procfs::kilobytes(daemon.pid, "VmHWM") - before;
    // Each stream may collect 64 KiB. 30 MB were collected before names were sent piece by piece.
    assert!(grown < 12 * 1024, "{grown} kB for {STREAMS} streams");
}

#[test]
fn the_shutdown_is_told_before_the_stream_ends() {
    let mut daemon = start_daemon();
    daemon.start_process(&json!({"command": "sleep", "args": ["60"], "name": "svc"}));
    let mut streams: Vec<EventStream> = (0..50).map(|_| daemon.events("", "")).collect();
    let mut narrowed = daemon.events("?process=svc", "");
    let mut others = daemon.events(&format!("?process={}", daemon.sh("exec sleep 60")), "");
    // The streams pause after this.
    daemon.run_sh("true");
    daemon.signal(Signal::SIGTERM);
    for stream in streams.iter_mut().chain([&mut narrowed, &mut others]) {
        let frames: Vec<Frame> = std::iter::from_fn(|| stream.next_frame()).collect();
        let shutdown = frames.iter().position(|frame| frame.event == "daemon.shutdown").expect("the shutdown is told");
        assert_eq!(frames[shutdown].data["handle"], Value::Null);
        let ends = frames[shutdown + 1..].iter().filter(|frame| frame.event == "process.ended").count();
        assert!(ends >= 1, "the ends of the processes follow: {frames:?}");
    }
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0));
}

#[test]
fn a_shutdown_without_any_process_is_told() {
    let mut daemon = start_daemon();
    let mut stream = daemon.events("", "");
    daemon.signal(Signal::SIGTERM);
    assert_eq!(kinds(&next(&mut stream, 1)), ["daemon.shutdown"]);
    assert!(stream.next_frame().is_none());
    daemon.wait_for_exit(TIMEOUT);
}

/// The goal, 10 %, is measured by the benchmark `events` (docs/performance.md).
#[test]
fn a_hundred_streams_get_every_event_or_a_gap_and_hardly_delay_starts() {
    const STARTS: u64 = 400;
    const STREAMS: usize = 100;
    let daemon = start_daemon();
    let run = || {
        let (begun, before) = (Instant::now(), procfs::wakeups(daemon.pid));
        for _ in 0..STARTS {
            daemon.start_process(&json!({"command": "true"}));
        }
        (begun.elapsed(), procfs::wakeups(daemon.pid).saturating_sub(before))
    };
    run();
    let (alone, wakeups_alone) = run();
    let ready = Barrier::new(STREAMS + 1);
    let (with_streams, wakeups) = std::thread::scope(|scope| {
        for _ in 0..STREAMS {
            scope.spawn(|| {
                // The ends of earlier processes may still come.
                let mut reader = daemon.events("", "").into_reader();
                ready.wait();
                let (mut line, mut last, mut seen) = (String::new(), 0, 0);
                let mut started = 0;
                while started < STARTS {
                    line.clear();
                    assert!(reader.read_line(&mut line).expect("the stream goes on") > 0);
                    if let Some(id) = line.strip_prefix("id: ") {
                        let id: u64 = id.trim().parse().expect("a number");
                        assert!(seen == 0 || id == last + 1, "event {id} follows {last}");
                        (last, seen) = (id, seen + 1);
                    } else if line.starts_with("event: gap") {
                        panic!("a gap although all events are kept");
                    } else if line.starts_with("event: process.started") {
                        started += 1;
                    }
                }
            });
        }
        ready.wait();
        run()
    });
    let figures = format!(
        "{STARTS} starts: {alone:?} and {wakeups_alone} wake-ups alone, {with_streams:?} and {wakeups} wake-ups with \
         {STREAMS} streams"
    );
    // The speed of a busy machine changes, so this only finds starts that wait for the streams.
    let factor = with_streams.as_secs_f64() / alone.max(run().0).as_secs_f64();
    assert!(factor < 4.0, "{figures}");
    // The pauses allow for about a thousand bursts a second, whatever the number of streams is.
    let wakeups_a_second = wakeups.saturating_sub(wakeups_alone) as f64 / with_streams.as_secs_f64();
    assert!(wakeups_a_second < 5_000.0, "{figures}");
    println!("{figures}");
}

#[test]
fn a_quiet_stream_gets_a_comment_after_15_s() {
    let daemon = start_daemon();
    let begun = Instant::now();
    let mut reader = daemon.events("", "").into_reader();
    let mut line = String::new();
    reader.read_line(&mut line).expect("the stream goes on");
    assert_eq!(line, ": keep-alive\n");
    let time = begun.elapsed();
    // The margin is for a busy machine.
    assert!(time >= Duration::from_secs(15) && time < Duration::from_secs(25), "{time:?}");
}

#[test]
fn an_event_after_a_quiet_time_is_sent_at_once_however_many_streams_there_are() {
    let daemon = start_daemon();
    let mut streams: Vec<EventStream> = (0..50).map(|_| daemon.events("", "")).collect();
    let time = |_| {
        daemon.wait_until_idle(Duration::from_millis(200));
        let begun = Instant::now();
        let pid = daemon.sh("exec sleep 60");
        for stream in &mut streams {
            while stream.next_frame().expect("an event").data["pid"] != pid {}
        }
        begun.elapsed()
    };
    check_times(Duration::from_millis(100), (0..10).map(time).collect());
}
