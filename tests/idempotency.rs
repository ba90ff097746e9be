//! `Idempotency-Key`: a request that is repeated starts nothing twice, and a run survives the loss of its connection for a
//! while (docs/api.md, Idempotency).

use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::faults::Lease;
use crate::harness::response::{CompletedRun, EventStream, Response, ResponseStream};
use crate::harness::{Daemon, TIMEOUT, pid_of, reset, skip_without_root, start_daemon, start_daemon_with, wait_until};

const REPLAYED: &str = "Idempotent-Replayed";

/// Time for which a run without clients is kept running.
const GRACE: Duration = Duration::from_secs(10);

const ENDPOINTS: [&str; 3] = ["/processes", "/processes/run", "/pty"];

/// Sends a POST with a key and reads the head of the response.
fn open(daemon: &Daemon, path: &str, key: &str, body: &Value) -> ResponseStream {
    daemon.open("POST", path, &format!("Idempotency-Key: {key}\r\n"), body.to_string().as_bytes())
}

/// Sends a POST with a key.
fn post(daemon: &Daemon, path: &str, key: &str, body: &Value) -> Response {
    open(daemon, path, key, body).into_response(path)
}

/// Whether the response says that it is that of an earlier request.
fn is_replayed(header: Option<&str>) -> bool {
    assert!(matches!(header, None | Some("true")), "{header:?}");
    header.is_some()
}

/// Starts a run with a key, or attaches to it.
fn open_run(daemon: &Daemon, key: &str, body: &Value) -> (bool, EventStream) {
    let response = open(daemon, "/processes/run", key, body).expect_status(200);
    (is_replayed(response.header(REPLAYED)), EventStream::new(response))
}

fn sh(script: &str) -> Value {
    json!({"command": "sh", "args": ["-c", script]})
}

/// The first `count` bytes of a stream of events, or all of it.
fn read(stream: EventStream, count: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.into_reader().take(count).read_to_end(&mut bytes).expect("the stream goes on");
    bytes
}

/// Number of lines of a file, to which each start of a command appends one.
fn starts(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

/// A file that every user may write to.
fn shared_file(daemon: &Daemon, name: &str) -> std::path::PathBuf {
    let file = daemon.scratch().join(name);
    std::fs::write(&file, "").expect("create the file");
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o666)).expect("open it for all");
    file
}

#[test]
fn a_repeated_start_answers_with_the_process_as_it_is_now() {
    let daemon = start_daemon();
    let body = json!({"command": "sh", "args": ["-c", "read x; exit 7"], "stdin_mode": "pipe"});
    let first = post(&daemon, "/processes", "k1", &body);
    assert!(!is_replayed(first.header(REPLAYED)));
    let first = first.expect(201);
    let repeat = post(&daemon, "/processes", "k1", &body);
    assert!(is_replayed(repeat.header(REPLAYED)));
    assert_eq!(repeat.expect(201), first);
    daemon.request("POST", &format!("/processes/{}/stdin", pid_of(&first)), Some(b"go\n")).expect(204);
    let ended = daemon.wait_for_end(pid_of(&first));
    let repeat = post(&daemon, "/processes", "k1", &body);
    assert!(is_replayed(repeat.header(REPLAYED)));
    let repeat = repeat.expect(201);
    assert_eq!((&repeat, &repeat["exit_code"]), (&ended, &json!(7)));
    // Another key, and no key, start another process. Keys differ in case.
    for response in [post(&daemon, "/processes", "K1", &body), daemon.post("/processes", &body)] {
        assert!(!is_replayed(response.header(REPLAYED)));
        assert_ne!(response.expect(201)["handle"], first["handle"]);
    }
    assert_eq!(daemon.list().len(), 3);
}

#[test]
fn a_repeated_start_of_a_managed_process_does_not_collide_with_its_own_name() {
    let daemon = start_daemon();
    let body = json!({"command": "sleep", "args": ["4230"], "name": "web", "restart": {"policy": "always"}});
    let first = post(&daemon, "/processes", "k", &body).expect(201);
    assert_eq!(post(&daemon, "/processes", "k", &body).expect(201)["handle"], first["handle"]);
    daemon.post("/processes", &body).expect_error(409, "NAME_IN_USE", "web");
    // The key belongs to the process and not to one of its runs.
    let restarted = daemon.post("/processes/web/restart", &json!({})).expect(200);
    let repeat = post(&daemon, "/processes", "k", &body).expect(201);
    assert_eq!((&repeat["handle"], &repeat["pid"]), (&first["handle"], &restarted["pid"]));
}

#[test]
fn a_repeated_request_for_a_terminal_gets_the_same_session_and_token() {
    let daemon = start_daemon();
    let body = json!({"command": "cat", "rows": 30});
    let first = post(&daemon, "/pty", "k", &body);
    assert!(!is_replayed(first.header(REPLAYED)));
    let first = first.expect(201);
    let repeat = post(&daemon, "/pty", "k", &body);
    assert!(is_replayed(repeat.header(REPLAYED)));
    assert_eq!(repeat.expect(201), first);
    assert_eq!(daemon.get("/pty").expect(200)["sessions"].as_array().map(Vec::len), Some(1));
    daemon.delete(&format!("/pty/{}", first["session_id"].as_str().expect("an id"))).expect(204);
    assert_eq!(post(&daemon, "/pty", "k", &body).expect(201), first, "an ended session is remembered for a minute");
}

#[test]
fn a_key_that_was_used_for_another_body_or_endpoint_is_refused_and_starts_nothing() {
    let daemon = start_daemon();
    let body = sh("exit 0");
    for (number, used) in ENDPOINTS.into_iter().enumerate() {
        let key = format!("k{number}");
        let first = open(&daemon, used, &key, &body);
        assert!(matches!(first.status, 200 | 201), "{used}: {}", first.status);
        drop(first.read_all());
        let known = (daemon.list().len(), daemon.get("/pty").expect(200)["sessions"].as_array().map(Vec::len));
        for other in ENDPOINTS {
            if other != used {
                let response = post(&daemon, other, &key, &body);
                response.expect_error(422, "IDEMPOTENCY_KEY_REUSED", "`Idempotency-Key`");
            }
        }
        // Even a field that means nothing makes another body.
        for body in [sh("exit 1"), json!({"command": "sh", "args": ["-c", "exit 0"], "x": 1})] {
            post(&daemon, used, &key, &body).expect_error(422, "IDEMPOTENCY_KEY_REUSED", &format!("{key:?}"));
        }
        let after = (daemon.list().len(), daemon.get("/pty").expect(200)["sessions"].as_array().map(Vec::len));
        assert_eq!(after, known);
    }
}

#[test]
fn a_malformed_key_is_refused_and_starts_nothing() {
    let daemon = start_daemon();
    let body = sh("exit 0").to_string();
    let long = "k".repeat(256);
    let keys: [&[u8]; 10] =
        [b"", b"   ", long.as_bytes(), b"a b", b"a\tb", b"a\x01b", b"a\x1bb", b"a\x7f", b"\xc3\xa9", b"\xff"];
    for path in ENDPOINTS {
        for key in keys {
            let framing = format!("Content-Length: {}\r\nConnection: close\r\nIdempotency-Key: ", body.len());
            let head = daemon.request_head("POST", path, &framing);
            let head = head.strip_suffix("\r\n").expect("a blank line");
            let request = [head.as_bytes(), key, b"\r\n\r\n", body.as_bytes()].concat();
            let response = ResponseStream::send(daemon.connect(), &request).into_response(path);
            response.expect_error(400, "INVALID_REQUEST", "`Idempotency-Key`");
        }
        let twice = "Idempotency-Key: a\r\nIDEMPOTENCY-KEY: a\r\n";
        let response = daemon.open("POST", path, twice, body.as_bytes()).into_response(path);
        response.expect_error(400, "INVALID_REQUEST", "`Idempotency-Key`: the header must be sent once");
    }
    assert_eq!(daemon.list(), [Value::Null; 0]);
    assert_eq!(daemon.get("/pty").expect(200), json!({"sessions": []}));
    let longest = "~".repeat(255);
    for key in [longest.as_str(), "!", "a,b;c=\"d\""] {
        assert_eq!(post(&daemon, "/processes", key, &sh("exit 0")).status, 201);
    }
}

#[test]
fn simultaneous_requests_with_one_key_start_one_process() {
    let daemon = start_daemon();
    let file = shared_file(&daemon, "starts");
    for round in 0..5 {
        let (key, body) = (format!("k{round}"), sh(&format!("echo {round} >> {}; seq 100", file.display())));
        let streams: Vec<(bool, Vec<u8>)> = std::thread::scope(|scope| {
            let requests: Vec<_> = (0..12)
                .map(|_| {
                    scope.spawn(|| {
                        let (replayed, stream) = open_run(&daemon, &key, &body);
                        (replayed, read(stream, u64::MAX))
                    })
                })
                .collect();
            requests.into_iter().map(|request| request.join().expect("a client")).collect()
        });
        assert_eq!(streams.iter().filter(|(replayed, _)| !replayed).count(), 1, "only one has started it");
        assert!(streams.iter().all(|(_, bytes)| *bytes == streams[0].1), "all streams have the same bytes");
        assert_eq!(starts(&file), round + 1);
    }
}

/// Number of processes that run or are being started.
fn running(daemon: &Daemon) -> Value {
    daemon.get("/info").expect(200)["running_processes"].take()
}

/// Sends one request with a key and three repetitions while the program, a script, cannot be read; their responses.
fn send_while_the_exec_hangs(daemon: &Daemon, path: &str, script: &Path, body: &Value) -> Vec<ResponseStream> {
    let lease = Lease::take(script);
    std::thread::scope(|scope| {
        let request = || scope.spawn(|| (open(daemon, path, "k", body), Instant::now()));
        let first = request();
        wait_until(TIMEOUT, "the start is in progress", || (running(daemon) == 1).then_some(()));
        let repeats = [request(), request(), request()];
        // A different request with the key does not wait.
        post(daemon, path, "k", &sh("exit 0")).expect_error(422, "IDEMPOTENCY_KEY_REUSED", "k");
        assert_eq!(running(daemon), 1);
        let released = Instant::now();
        drop(lease);
        let requests = std::iter::once(first).chain(repeats);
        let answers = requests.map(|request| request.join().expect("a client"));
        answers
            .map(|(response, at)| {
                assert!(at > released, "it was answered before the outcome of the start was known");
                response
            })
            .collect()
    })
}

#[test]
fn a_request_waits_for_the_one_that_it_repeats() {
    if skip_without_root() {
        return;
    }
    for path in ["/processes", "/processes/run"] {
        let daemon = start_daemon();
        let script = daemon.script("slow", "#!/bin/sh\necho ran\n");
        let responses = send_while_the_exec_hangs(&daemon, path, &script, &json!({"command": script}));
        let replayed = responses.iter().filter(|response| is_replayed(response.header(REPLAYED))).count();
        assert_eq!(replayed, 3, "{path}");
        for response in responses {
            assert!(matches!(response.status, 200 | 201), "{path}: {}", response.status);
            if path == "/processes/run" {
                assert_eq!(CompletedRun::collect(EventStream::new(response)).stdout(), "ran");
            }
        }
        assert_eq!(daemon.list().len(), 1);
    }
}

#[test]
fn all_requests_get_the_error_of_a_failed_start_and_the_next_one_starts_anew() {
    if skip_without_root() {
        return;
    }
    for path in ["/processes", "/processes/run"] {
        let daemon = start_daemon();
        let script = daemon.script("broken", "#!/no/such/interpreter\n");
        for response in send_while_the_exec_hangs(&daemon, path, &script, &json!({"command": script})) {
            assert_eq!(response.header(REPLAYED), None);
            response.into_response(path).expect_error(400, "NOT_EXECUTABLE", "broken");
        }
        post(&daemon, path, "k", &json!({"command": script})).expect_error(400, "NOT_EXECUTABLE", "broken");
        // The key is free, even for another request.
        let script = daemon.script("broken", "#!/bin/sh\nexit 0\n");
        let response = open(&daemon, path, "k", &json!({"command": script}));
        assert!(matches!(response.status, 200 | 201) && !is_replayed(response.header(REPLAYED)), "{path}");
        post(&daemon, "/pty", "t", &json!({"command": "/no/such/program"})).expect_error(
            400,
            "COMMAND_NOT_FOUND",
            "such",
        );
        assert!(!is_replayed(post(&daemon, "/pty", "t", &json!({"command": "cat"})).header(REPLAYED)));
    }
}

#[test]
fn a_repetition_is_answered_although_nothing_more_can_be_started() {
    let daemon = start_daemon_with(&["--max-processes", "1", "--max-pty-sessions", "1"]);
    let body = json!({"command": "sleep", "args": ["4233"]});
    for (path, code) in [("/processes", "TOO_MANY_PROCESSES"), ("/pty", "TOO_MANY_SESSIONS")] {
        let key = path.trim_start_matches('/');
        let first = post(&daemon, path, key, &body).expect(201);
        daemon.post(path, &body).expect_error(429, code, "");
        let repeat = post(&daemon, path, key, &body);
        assert!(is_replayed(repeat.header(REPLAYED)));
        assert_eq!(repeat.expect(201), first);
        // A key that was refused is free.
        post(&daemon, path, "other", &body).expect_error(429, code, "");
        post(&daemon, path, "other", &sh("exit 0")).expect_error(429, code, "");
    }
}

#[test]
fn a_key_is_forgotten_with_its_process() {
    let daemon = start_daemon_with(&["--keep-ended", "2"]);
    let body = sh("echo x");
    let first = CompletedRun::collect(open_run(&daemon, "k", &body).1);
    let (replayed, stream) = open_run(&daemon, "k", &body);
    assert!(replayed && CompletedRun::collect(stream).first == first.first);
    for _ in 0..3 {
        daemon.run_sh("exit 0");
    }
    wait_until(TIMEOUT, "the process is forgotten", || {
        daemon.list().iter().all(|info| info["handle"] != first.first["handle"]).then_some(())
    });
    // Even a different request may use the key now.
    let (replayed, stream) = open_run(&daemon, "k", &sh("echo y"));
    assert!(!replayed);
    assert_eq!(CompletedRun::collect(stream).stdout(), "y");
}

#[test]
fn the_input_of_a_run_is_fed_once() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let script = daemon.script("slow", "#!/bin/sh\nexec wc -c\n");
    // More than a pipe holds, so that the input is still being written when the repetitions are answered.
    let input = "line\n".repeat(50_000);
    let body = json!({"command": script, "stdin": input});
    let responses = send_while_the_exec_hangs(&daemon, "/processes/run", &script, &body);
    let streams = responses.into_iter().map(|response| CompletedRun::collect(EventStream::new(response)).stdout());
    assert_eq!(streams.collect::<Vec<_>>(), vec![input.len().to_string(); 4]);
    let (replayed, stream) = open_run(&daemon, "k", &body);
    assert!(replayed && CompletedRun::collect(stream).stdout() == input.len().to_string());
}

#[test]
fn output_that_the_log_has_dropped_is_a_gap_in_a_repeated_stream() {
    let daemon = start_daemon_with(&["--log-limit", "100000"]);
    let body = sh("seq 200000");
    let first = CompletedRun::collect(open_run(&daemon, "k", &body).1);
    let (replayed, mut stream) = open_run(&daemon, "k", &body);
    assert!(replayed);
    assert_eq!(stream.next_frame().expect("the first event").data, first.first);
    let gap = stream.next_frame().expect("a gap");
    assert!(gap.event == "gap" && gap.data["lost_bytes"].as_u64() > Some(1_000_000), "{gap:?}");
    let rest: Vec<Value> = std::iter::from_fn(|| stream.next_frame()).map(|frame| frame.data).collect();
    assert_eq!(rest[rest.len() - 2]["line"], "200000");
    assert_eq!(rest[rest.len() - 1], first.last);
}

#[test]
fn a_client_that_comes_back_within_5_s_gets_the_whole_stream_byte_for_byte() {
    let daemon = start_daemon();
    let file = shared_file(&daemon, "starts");
    // Goes on for longer than the grace after the connection is lost. Not UTF-8, both streams, and a line that is cut.
    let script = format!(
        "echo x >> {}; for i in $(seq 14); do seq $i 2000; printf '\\377\\n'; echo err$i >&2; sleep 1; done; printf end",
        file.display()
    );
    let body = sh(&script);
    let (replayed, stream) = open_run(&daemon, "k", &body);
    assert!(!replayed);
    let mut reader = stream.into_reader();
    let mut begin = vec![0; 10_000];
    reader.read_exact(&mut begin).expect("the stream has begun");
    reset(reader.into_inner().into_socket());
    let lost = Instant::now();
    // The daemon notices the loss only after the moment at which this test knows of it.
    wait_until(TIMEOUT, "3 s pass", || (lost.elapsed() > Duration::from_secs(3)).then_some(()));
    let (replayed, stream) = open_run(&daemon, "k", &body);
    assert!(replayed);
    // Another one that goes ends nothing while the first is there.
    let (replayed, third) = open_run(&daemon, "k", &body);
    assert!(replayed);
    reset(third.into_reader().into_inner().into_socket());
    let whole = read(stream, u64::MAX);
    assert!(lost.elapsed() > GRACE, "the run was too short to show anything");
    assert!(whole.starts_with(&begin), "the stream is not the same from its beginning");
    let after_end = read(open_run(&daemon, "k", &body).1, u64::MAX);
    assert!(whole == after_end, "the stream is not the same after the end");
    let text = String::from_utf8(whole).expect("UTF-8");
    let lines = text.matches("\"line\":").count();
    assert_eq!(lines, (1..=14).map(|i| 2000 - i + 1 + 2).sum::<usize>() + 1);
    assert!(text.ends_with("{\"exit_code\":0,\"signal\":null,\"oom_killed\":false,\"reason\":\"exited\"}\n\n"));
    assert_eq!(starts(&file), 1);
}

/// A tree with a process that has left the session of its leader.
const TREE: &str = "setsid sleep 4231 & echo begun; sleep 4231";

/// Waits until the tree of [`TREE`] is gone, and checks that it was killed when the grace after `lost` was over.
fn check_killed_after_the_grace(daemon: &Daemon, lost: Instant) {
    let mut seen = lost;
    let gone = wait_until(TIMEOUT, "the tree is gone", || {
        let left = daemon.pids_executing("sleep 4231");
        if left.len() == 2 {
            seen = Instant::now();
        }
        left.is_empty().then(Instant::now)
    });
    assert!(gone - lost >= GRACE, "killed after {:?}", gone - lost);
    // The margin is for a busy machine.
    assert!(seen - lost < GRACE + Duration::from_secs(10), "whole after {:?}", seen - lost);
}

#[test]
fn a_run_is_killed_10_s_after_the_last_of_its_streams_has_gone() {
    let daemon = start_daemon();
    let body = sh(TREE);
    let open = |daemon| {
        let (_, mut stream) = open_run(daemon, "k", &body);
        let first = stream.next_frame().expect("the first event").data;
        assert_eq!(stream.next_frame().expect("a line").data["line"], "begun");
        (first, stream)
    };
    let ((first, a), (again, b)) = (open(&daemon), open(&daemon));
    assert_eq!(first, again);
    daemon.wait_for_processes("sleep 4231", 2);
    drop(a);
    let begun = Instant::now();
    // The other stream is there, so nothing ends.
    wait_until(TIMEOUT, "more than the grace passes", || {
        assert_eq!(daemon.pids_executing("sleep 4231").len(), 2);
        (begun.elapsed() > GRACE + Duration::from_secs(1)).then_some(())
    });
    let lost = Instant::now();
    drop(b);
    check_killed_after_the_grace(&daemon, lost);
    // What it was can still be asked for, and nothing is started again.
    let (replayed, stream) = open_run(&daemon, "k", &body);
    let run = CompletedRun::collect(stream);
    assert!(replayed && run.first == first && run.lines("stdout") == ["begun"], "{run:?}");
    assert_eq!((&run.last["signal"], &run.last["reason"]), (&json!(9), &json!("signaled")));
    assert_eq!(daemon.list().len(), 1);
}

#[test]
fn a_run_whose_client_goes_before_the_answer_is_killed_after_10_s() {
    let daemon = start_daemon();
    let body = sh(TREE).to_string();
    let head = daemon.request_head(
        "POST",
        "/processes/run",
        &format!("Idempotency-Key: k\r\nContent-Length: {}\r\n", body.len()),
    );
    let mut socket = daemon.connect();
    socket.write_all((head + &body).as_bytes()).expect("send the request");
    let lost = Instant::now();
    reset(socket);
    daemon.wait_for_processes("sleep 4231", 2);
    check_killed_after_the_grace(&daemon, lost);
}

#[test]
fn a_run_gets_its_input_although_its_client_has_gone_before_the_answer() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let script = daemon.script("slow", "#!/bin/sh\ncat\n");
    let body = json!({"command": script, "stdin": "hello\n"});
    let text = body.to_string();
    let lease = Lease::take(&script);
    let head = daemon.request_head(
        "POST",
        "/processes/run",
        &format!("Idempotency-Key: k\r\nContent-Length: {}\r\n", text.len()),
    );
    let mut socket = daemon.connect();
    socket.write_all((head + &text).as_bytes()).expect("send the request");
    wait_until(TIMEOUT, "the start is in progress", || (running(&daemon) == 1).then_some(()));
    reset(socket);
    let run = std::thread::scope(|scope| {
        let repeat = scope.spawn(|| open_run(&daemon, "k", &body));
        drop(lease);
        let (replayed, stream) = repeat.join().expect("a client");
        assert!(replayed);
        CompletedRun::collect(stream)
    });
    assert_eq!(run.stdout(), "hello");
}

#[test]
fn the_end_of_a_run_is_no_departure_of_its_clients() {
    let daemon = start_daemon();
    // What the run leaves behind is kept, as without a key.
    let body = sh("sleep 4232 >/dev/null 2>&1 & echo x");
    assert_eq!(CompletedRun::collect(open_run(&daemon, "k", &body).1).stdout(), "x");
    let begun = Instant::now();
    // The run can end before the process that it leaves behind has executed its program.
    daemon.wait_for_processes("sleep 4232", 1);
    wait_until(TIMEOUT, "more than the grace passes", || {
        assert_eq!(daemon.pids_executing("sleep 4232").len(), 1);
        (begun.elapsed() > GRACE + Duration::from_secs(2)).then_some(())
    });
}

#[test]
fn a_run_without_a_key_is_killed_at_once_when_its_client_goes() {
    let daemon = start_daemon();
    let mut stream = daemon.open_run(&sh(TREE));
    stream.next_frame().expect("the first event");
    daemon.wait_for_processes("sleep 4231", 2);
    let lost = Instant::now();
    drop(stream);
    daemon.wait_until_gone(Duration::from_secs(8), "4231");
    assert!(lost.elapsed() < GRACE);
}
