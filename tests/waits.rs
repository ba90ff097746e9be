//! Waits for a condition of a process (docs/api.md, Process control). Waits for a port of any process are in `ports`.

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::harness::response::{Response, ResponseStream};
use crate::harness::{
    Daemon, TIMEOUT, check_times, pid_of, procfs, reserve_closed_port, reset, start_daemon, start_daemon_with,
    tcp_service, wait_until, wait_until_still,
};

/// A process that writes to stdout what it reads, except that lines with a `!` at the beginning are commands of a shell.
fn start_echo(daemon: &Daemon) -> u64 {
    let script = r#"while read -r line; do case "$line" in !*) eval "${line#!}";; *) echo "$line";; esac; done"#;
    pid_of(&daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"})))
}

fn write(daemon: &Daemon, pid: u64, text: &str) {
    daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(text.as_bytes())).expect(204);
}

fn wait(daemon: &Daemon, process: impl std::fmt::Display, query: &str) -> Value {
    daemon.get(&format!("/processes/{process}/wait?{query}")).expect(200)
}

/// Number of requests that wait for something: each has an eventfd.
fn waiting_requests(daemon: &Daemon) -> usize {
    procfs::descriptors(daemon.pid).iter().filter(|(_, target)| target.contains("eventfd")).count()
}

/// Begins a wait, and returns when the daemon waits.
fn begin(daemon: &Daemon, process: impl std::fmt::Display, query: &str) -> TcpStream {
    let still = Duration::from_millis(20);
    let before = wait_until_still(still, "earlier requests have ended", || waiting_requests(daemon));
    let socket = daemon.send_get(&format!("/processes/{process}/wait?{query}"));
    wait_until(TIMEOUT, "the wait has begun", || (waiting_requests(daemon) > before).then_some(()));
    socket
}

fn answer(socket: TcpStream) -> Value {
    let response = ResponseStream::read(socket).expect("a response").expect_status(200).into_response("the wait");
    Response::expect(&response, 200)
}

/// Checks the answer of a wait for a line.
fn check_line(answer: &Value, line: impl Into<Value>) {
    let line = line.into();
    assert_eq!((&answer["met"], &answer["line"]), (&json!(!line.is_null()), &line), "{answer}");
    assert!(answer["process"]["handle"].is_u64(), "{answer}");
}

#[test]
fn a_wait_for_the_end_is_met_when_the_process_has_ended() {
    let daemon = start_daemon();
    let pid = start_echo(&daemon);
    let running = wait(&daemon, pid, "for=end&timeout=0");
    assert_eq!(running, json!({"met": false, "process": daemon.info(pid)}));
    let waiting = begin(&daemon, pid, "for=end");
    write(&daemon, pid, "!exit 7\n");
    let ended = answer(waiting);
    assert_eq!(ended, json!({"met": true, "process": daemon.info(pid)}));
    assert_eq!(ended["process"]["exit_code"], 7);
    assert_eq!(wait(&daemon, pid, "for=end"), ended);
    assert_eq!(wait(&daemon, pid, ""), ended["process"], "without a condition, the answer is the process");
}

#[test]
fn a_line_is_found_in_what_is_kept_and_in_what_comes() {
    let daemon = start_daemon();
    let pid = start_echo(&daemon);
    write(&daemon, pid, "one is here\n!echo two is here >&2\nthree\n");
    daemon.wait_for_stdout(pid, &["one is here", "three"]);
    for (query, line) in [
        ("contains=is+here&stream=stdout", json!("one is here")),
        ("contains=is%20here&stream=stderr", json!("two is here")),
        ("contains=thr", json!("three")),
        ("contains=three&stream=stderr&timeout=0.05", Value::Null),
        ("contains=here%20three&timeout=0.05", Value::Null),
        ("contains=Three&timeout=0", Value::Null),
    ] {
        check_line(&wait(&daemon, pid, &format!("for=line&{query}")), line);
    }
    let both = begin(&daemon, pid, "for=line&contains=late");
    let stderr = begin(&daemon, pid, "for=line&contains=late&stream=stderr");
    write(&daemon, pid, "not yet\nlate 1\n");
    check_line(&answer(both), "late 1");
    write(&daemon, pid, "!echo late 2 >&2\n");
    check_line(&answer(stderr), "late 2");
}

#[test]
fn a_line_that_is_written_in_parts_is_one_line() {
    let daemon = start_daemon();
    let pid = start_echo(&daemon);
    let waiting = begin(&daemon, pid, "for=line&contains=port%2080");
    write(&daemon, pid, "!printf 'listening on po'\n");
    wait_until(TIMEOUT, "the first part", || (daemon.raw_output(pid, "stdout").len() == 15).then_some(()));
    write(&daemon, pid, "!printf 'rt 80'; printf '80\\n'\n");
    check_line(&answer(waiting), "listening on port 8080");
}

#[test]
fn a_prompt_counts_as_a_line_when_nothing_more_comes() {
    let daemon = start_daemon();
    let pid = start_echo(&daemon);
    let waiting = begin(&daemon, pid, "for=line&contains=login:&timeout=50");
    write(&daemon, pid, "!printf 'machine login: '\n");
    check_line(&answer(waiting), "machine login: ");
    check_line(&wait(&daemon, pid, "for=line&contains=machine"), "machine login: ");
}

#[test]
fn invalid_utf_8_and_very_long_lines_are_searched() {
    let daemon = start_daemon();
    let script = r"import sys
out = sys.stdout.buffer
out.write(b'\xff\xfe caf\xc3\xa9\n')
out.write(b'a' * 20000 + b'middle' + b'b' * 20000 + b'\n')
out.write(b'x' * ((1 << 20) - 3) + b'across' + b'y' * (1 << 20) + b'end\n')
";
    let pid = pid_of(&daemon.start_process(&json!({"command": "python3", "args": ["-c", script]})));
    daemon.wait_for_end(pid);
    check_line(&wait(&daemon, pid, "for=line&contains=caf%C3%A9"), "\u{fffd}\u{fffd} café");
    check_line(&wait(&daemon, pid, "for=line&contains=%EF%BF%BD%20c"), "\u{fffd}\u{fffd} café");
    for text in ["amiddleb", "xacrossy", "yend"] {
        let met = wait(&daemon, pid, &format!("for=line&contains={text}"));
        let line = met["line"].as_str().unwrap_or_else(|| panic!("{text}: {met}"));
        assert!(line.contains(text) && line.len() <= 16 << 10, "{text}: {} bytes", line.len());
    }
    check_line(&wait(&daemon, pid, "for=line&contains=yx"), Value::Null);
}

#[test]
fn a_wait_goes_on_where_output_is_dropped_from_the_log() {
    let daemon = start_daemon_with(&["--log-limit", "65536"]);
    let pid = start_echo(&daemon);
    let waiting = begin(&daemon, pid, "for=line&contains=the%20end");
    write(&daemon, pid, "!head -c 3000000 /dev/zero | tr '\\0' 'z' | fold -w 100; echo\nthe end\n");
    check_line(&answer(waiting), "the end");
    check_line(&wait(&daemon, pid, "for=line&contains=the%20end"), "the end");
    assert_eq!(daemon.get(&format!("/processes/{pid}/stdout?tail=1")).expect(200)["truncated"], true);
}

#[test]
fn the_end_of_a_process_ends_waits_for_what_cannot_come_any_more() {
    let daemon = start_daemon();
    let pid = start_echo(&daemon);
    let waiting = ["for=line&contains=never", "for=port&port=1", "for=line&contains=last"]
        .map(|query| begin(&daemon, pid, query));
    write(&daemon, pid, "!echo last; exit 0\n");
    let [line, port, last] = waiting.map(answer);
    check_line(&line, Value::Null);
    check_line(&last, "last");
    let info = daemon.info(pid);
    assert_eq!(port, json!({"met": false, "port": null, "process": info}));
    for query in ["for=line&contains=never", "for=port&port=1"] {
        assert_eq!(wait(&daemon, pid, query)["met"], false);
    }
    check_line(&wait(&daemon, pid, "for=line&contains=last"), "last");
}

#[test]
fn a_wait_goes_on_across_restarts_of_a_managed_process() {
    let daemon = start_daemon();
    let count = daemon.scratch().join("count");
    let script = format!(
        "echo x >>{count}; printf \"run $(wc -l <{count})\"; [ $(wc -l <{count}) -lt 3 ] && exit 1; exec sleep 6010",
        count = count.display()
    );
    let restart = json!({"policy": "always", "initial_backoff_ms": 1});
    daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "name": "web", "restart": restart}));
    check_line(&wait(&daemon, "web", "for=line&contains=run%203"), "run 3");
    let waiting = begin(&daemon, "web", "for=line&contains=run%204");
    daemon.post("/processes/web/restart", &json!({})).expect(200);
    check_line(&answer(waiting), "run 4");
    let waiting = begin(&daemon, "web", "for=end");
    daemon.delete("/processes/web").expect(204);
    assert_eq!(answer(waiting)["met"], true);
}

#[test]
fn a_wait_for_health_is_met_when_a_probe_has_succeeded() {
    let daemon = start_daemon();
    let is_healthy = Arc::new(AtomicBool::new(false));
    let answers = Arc::clone(&is_healthy);
    let service = tcp_service(move |mut stream| {
        let status = if answers.load(Ordering::SeqCst) { "200 Yes" } else { "500 No" };
        let _ = write!(stream, "HTTP/1.0 {status}\r\n\r\n");
    });
    let check = json!({
        "type": "http", "port": service, "initial_delay_ms": 0, "interval_ms": 10, "timeout_ms": 20_000,
        "failure_threshold": 1_000_000,
    });
    daemon.start_process(&json!({"command": "sleep", "args": ["6011"], "name": "web", "health_check": check}));
    let unmet = wait(&daemon, "web", "for=healthy&timeout=0.1");
    assert_eq!((&unmet["met"], &unmet["process"]["managed"]["health_status"]), (&json!(false), &json!("starting")));
    let waiting = begin(&daemon, "web", "for=healthy");
    is_healthy.store(true, Ordering::SeqCst);
    let met = answer(waiting);
    assert_eq!((&met["met"], &met["process"]["managed"]["health_status"]), (&json!(true), &json!("healthy")));
    assert_eq!(wait(&daemon, "web", "for=healthy")["met"], true);
    daemon.delete("/processes/web").expect(204);
    assert_eq!(wait(&daemon, "web", "for=healthy")["met"], false, "a process that has ended is not healthy");
}

#[test]
fn a_wait_for_a_port_is_met_by_the_tree_of_the_process_only() {
    let daemon = start_daemon();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let foreign = listener.local_addr().expect("an address").port();
    let pid = start_echo(&daemon);
    let unmet = wait(&daemon, pid, &format!("for=port&port={foreign}&timeout=0.3"));
    assert_eq!((&unmet["met"], &unmet["port"]), (&json!(false), &Value::Null));
    let (port, _reserved) = reserve_closed_port();
    let waiting = begin(&daemon, pid, &format!("for=port&port={port}"));
    // The port is reserved at 127.0.0.1, and free at other addresses.
    let server = "import socket, sys, time; s = socket.socket(); s.bind((\"127.0.0.2\", int(sys.argv[1]))); \
                  s.listen(); time.sleep(6012)";
    write(&daemon, pid, &format!("!(setsid python3 -c '{server}' {port} &)\n"));
    let met = answer(waiting);
    assert_eq!((&met["met"], &met["port"]["port"]), (&json!(true), &json!(port)));
    assert_eq!(met["port"]["handle"], met["process"]["handle"]);
    assert_eq!(wait(&daemon, pid, &format!("for=port&port={port}&timeout=0"))["met"], true);
}

#[test]
fn the_end_of_a_server_that_leaves_its_port_to_a_child_does_not_hide_the_port() {
    let daemon = start_daemon();
    let server = "import os, socket, sys, time; sys.stdin.readline(); s = socket.create_server(('127.0.0.2', int(sys.argv[1])))\n\
                  if os.fork(): os._exit(0)\n\
                  time.sleep(6014)";
    // Most of these ends come between two looks of the daemon at the ports.
    for _ in 0..5 {
        let (port, _reserved) = reserve_closed_port();
        let args = json!(["-c", server, port.to_string()]);
        let pid = pid_of(&daemon.start_process(&json!({"command": "python3", "args": args, "stdin_mode": "pipe"})));
        let waiting = begin(&daemon, pid, &format!("for=port&port={port}"));
        write(&daemon, pid, "\n");
        let met = answer(waiting);
        assert_eq!((&met["met"], &met["port"]["port"]), (&json!(true), &json!(port)), "{met}");
        assert_eq!(met["port"]["handle"], met["process"]["handle"]);
        daemon.wait_for_end(pid);
    }
}

#[test]
fn bad_conditions_are_refused_and_name_the_field() {
    let daemon = start_daemon();
    let pid = daemon.sh("exec sleep 6013");
    let long = "x".repeat(8193);
    for (query, field) in [
        ("for=", "`for`"),
        ("for=ready", "`for`"),
        ("for=healthy", "`for`"),
        ("for=line", "`contains`"),
        ("for=line&contains=", "`contains`"),
        ("for=line&contains=a%0Ab", "`contains`"),
        (&format!("for=line&contains={long}"), "`contains`"),
        ("for=line&contains=a&stream=both", "`stream`"),
        ("contains=a", "`contains`"),
        ("for=end&port=80", "`port`"),
        ("for=port", "`port`"),
        ("for=port&port=0", "`port`"),
        ("for=port&port=70000", "`port`"),
        ("for=port&port=-1", "`port`"),
        ("for=end&timeout=-1", "`timeout`"),
    ] {
        daemon.get(&format!("/processes/{pid}/wait?{query}")).expect_error(400, "INVALID_REQUEST", field);
    }
    check_line(&wait(&daemon, pid, &format!("for=line&contains={}&timeout=0", "x".repeat(8192))), Value::Null);
    let endless = format!("/processes/{pid}/wait?for=line&contains={}", "x".repeat(1 << 20));
    let response = ResponseStream::read(daemon.send_get(&endless)).expect("a response");
    assert!(response.status == 431, "{}", response.status);
    daemon.get("/processes/none/wait?for=end").expect_error(404, "NOT_FOUND", "none");
}

#[test]
fn many_clients_wait_for_the_same_line_and_vanished_ones_leave_nothing() {
    let daemon = start_daemon();
    let pid = start_echo(&daemon);
    let before = daemon.threads_and_descriptors();
    let query = |n: usize| format!("/processes/{pid}/wait?for=line&contains=go%20{}", n % 2);
    let vanishing: Vec<TcpStream> = (0..50).map(|n| daemon.send_get(&query(n))).collect();
    wait_until(TIMEOUT, "all wait", || (daemon.threads_and_descriptors().0 >= before.0 + 50).then_some(()));
    for (n, socket) in vanishing.into_iter().enumerate() {
        if n % 2 == 0 { reset(socket) } else { drop(socket) }
    }
    daemon.wait_until_released(before);
    let waiting: Vec<TcpStream> = (0..100).map(|n| daemon.send_get(&query(n))).collect();
    write(&daemon, pid, "no\ngo 0\ngo 1\n");
    for (n, socket) in waiting.into_iter().enumerate() {
        check_line(&answer(socket), format!("go {}", n % 2));
    }
}

#[test]
fn a_process_that_writes_without_end_does_not_hold_a_wait_beyond_its_timeout() {
    let daemon = start_daemon_with(&["--log-limit", "1048576"]);
    let pid = daemon.sh("exec yes");
    let begun = Instant::now();
    check_line(&wait(&daemon, pid, "for=line&contains=no&timeout=0.5"), Value::Null);
    assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
    let before = daemon.threads_and_descriptors();
    drop(begin(&daemon, pid, "for=line&contains=no"));
    daemon.wait_until_released(before);
}

#[test]
fn a_wait_does_not_hold_up_a_shutdown() {
    let mut daemon = start_daemon();
    let pid = start_echo(&daemon);
    let waiting = ["for=line&contains=x", "for=end", "for=port&port=1"].map(|query| begin(&daemon, pid, query));
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let begun = Instant::now();
    daemon.wait_for_exit(TIMEOUT);
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    drop(waiting);
}

/// The goal is a median of 2 ms.
#[test]
fn a_wait_is_answered_soon_after_the_line_was_written() {
    let daemon = start_daemon();
    let script =
        "import time\nfor n in range(1000000):\n print('mark', n, '', time.time_ns(), flush=True)\n time.sleep(.02)";
    let pid = pid_of(&daemon.start_process(&json!({"command": "python3", "args": ["-c", script]})));
    let mut next = 5;
    let times: Vec<Duration> = (0..50)
        .map(|_| {
            let met = wait(&daemon, pid, &format!("for=line&contains=mark%20{next}%20"));
            let now = SystemTime::UNIX_EPOCH.elapsed().expect("the time");
            let line = met["line"].as_str().expect("a line");
            let written: u64 = line.rsplit(' ').next().expect("a time").parse().expect("a number");
            let last = daemon.get(&format!("/processes/{pid}/stdout?tail=1")).expect(200)["lines"][0].clone();
            let last: u64 =
                last.as_str().expect("a line").split(' ').nth(1).expect("a number").parse().expect("a number");
            next = last + 3;
            now.saturating_sub(Duration::from_nanos(written))
        })
        .collect();
    let mut sorted = times.clone();
    sorted.sort();
    println!("from the write of a line to the answer: median {:?}, worst {:?}", sorted[25], sorted[49]);
    check_times(Duration::from_millis(20), times);
}
