//! Malformed and abusive requests: the daemon answers or closes, keeps its memory bounded, and serves other clients.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Random, procfs, start_daemon, start_daemon_with};

const MAX_MEMORY_KIB: u64 = 32 * 1024;

/// Checks that the daemon answers health within 3 s, runs commands, and has never used more than 32 MiB.
fn check_healthy(daemon: &Daemon, after: &str) {
    let begun = Instant::now();
    assert_eq!(daemon.try_health(), Some(200), "{after}");
    assert!(begun.elapsed() < Duration::from_secs(3), "health took {:?} {after}", begun.elapsed());
    assert_eq!(daemon.run_sh("echo x").stdout(), "x", "{after}");
    let peak = procfs::kilobytes(daemon.pid, "VmHWM");
    assert!(peak < MAX_MEMORY_KIB, "{peak} kB {after}");
}

/// A response whose body is JSON of a known length.
struct Answer {
    status: u16,
    /// Whether it says that it is the last of its connection.
    closes: bool,
    body: Value,
}

impl Answer {
    /// Reads the next response; none at the end of the connection. One that is not complete is a failure.
    fn next(from: &mut impl BufRead) -> Option<Answer> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if from.read_line(&mut head).expect("a line of a head") == 0 {
                assert_eq!(head, "", "the connection ends within a head");
                return None;
            }
        }
        let field = |name: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(": "));
            fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
        };
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).expect(&head);
        let length = field("content-length").and_then(|length| length.parse().ok()).expect(&head);
        let mut body = vec![0; length];
        from.read_exact(&mut body).expect("the whole body");
        assert_eq!(field("content-type"), Some("application/json"), "{head}");
        let body = serde_json::from_slice(&body).unwrap_or_else(|_| panic!("not JSON: {head}"));
        Some(Answer { status, closes: field("connection") == Some("close"), body })
    }

    /// The only response of a connection, which is an error that ends it; none if there is no response.
    fn refusal(mut bytes: &[u8], request: &str) -> Option<(u16, String)> {
        let Answer { status, closes, body } = Answer::next(&mut bytes)?;
        assert!(closes && body["error"].is_string(), "{status} {body} for {request:?}");
        assert!(Answer::next(&mut bytes).is_none(), "a second response for {request:?}");
        Some((status, body["code"].as_str().expect("a code").to_owned()))
    }
}

/// Reads until the daemon ends the connection.
fn read_to_end(mut socket: TcpStream) -> Vec<u8> {
    let mut response = Vec::new();
    match socket.read_to_end(&mut response) {
        Ok(_) => {}
        // The daemon has not read all that was sent. What it has answered before arrives all the same.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the daemon does not end the connection: {error}"),
    }
    response
}

/// Sends bytes and the end of the request, and reads until the daemon ends the connection.
fn send_raw(daemon: &Daemon, bytes: &[u8]) -> Vec<u8> {
    let mut socket = daemon.connect();
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(Shutdown::Write);
    read_to_end(socket)
}

#[test]
fn a_huge_content_length_allocates_no_memory() {
    let daemon = start_daemon();
    let token = format!("Authorization: Bearer {}\r\n", daemon.token);
    for (path, auth, expected) in [
        ("/processes", "", 401),
        ("/processes", &*token, 413),
        ("/processes/run", &*token, 413),
        ("/processes/1/stdin", "", 401),
        ("/processes/1/stdin", &*token, 404),
        ("/nothing", &*token, 404),
        ("/health", "", 401),
    ] {
        for length in ["10000000000000", "18446744073709551615", "9223372036854775807"] {
            let request =
                format!("POST /api/v1{path} HTTP/1.1\r\nHost: x\r\n{auth}Content-Length: {length}\r\n\r\nabc");
            let (status, _) = Answer::refusal(&send_raw(&daemon, request.as_bytes()), &request).expect("a response");
            assert_eq!(status, expected, "{path} {length}");
        }
    }
    check_healthy(&daemon, "after announced bodies");
}

#[test]
fn an_endless_head_is_refused() {
    let daemon = start_daemon();
    for start in ["GET /api/v1/health HTTP/1.1\r\nX-Long: ", "GET /", "", "GET /api/v1/health HTTP/1.1\r\n"] {
        let mut socket = daemon.connect();
        let filler = if start.ends_with("\r\n") { b"A: b\r\n".repeat(1000) } else { vec![b'a'; 64 * 1024] };
        let _ = socket.write_all(start.as_bytes());
        let mut sent = 0;
        while sent < 100 << 20 && socket.write_all(&filler).is_ok() {
            sent += filler.len();
        }
        assert!(sent < 64 << 20, "the daemon accepted {sent} bytes of {start:?}");
        let refusal = Answer::refusal(&read_to_end(socket), start);
        assert_eq!(refusal, Some((431, "HEAD_TOO_LARGE".to_owned())), "{start:?}");
    }
    check_healthy(&daemon, "after endless heads");
}

#[test]
fn malformed_requests_get_an_error_in_json() {
    let daemon = start_daemon();
    let auth = format!("Authorization: Bearer {}", daemon.token);
    let requests: Vec<Vec<u8>> = vec![
        b"\0\0\0\0\0\0\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n".to_vec(),
        b"garbage\r\n\r\n".to_vec(),
        b"GET\r\n\r\n".to_vec(),
        b"GET /api/v1/health\r\n\r\n".to_vec(),
        b"GET /api/v1/health HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /api/v1/health HTTP/2.0\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /api/v1/health HTTP/1.1\r\nno colon\r\n\r\n".to_vec(),
        b"GET /api/v1/health HTTP/1.1\r\nBad Name: x\r\n\r\n".to_vec(),
        b"GET /api/v1/health HTTP/1.1\r\nX: \x01\r\n\r\n".to_vec(),
        format!("POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nContent-Length: x\r\n\r\n").into_bytes(),
        format!("POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nContent-Length: -5\r\n\r\n").into_bytes(),
        format!("POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nContent-Length: 99999999999999999999999\r\n\r\n")
            .into_bytes(),
        format!("POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}x")
            .into_bytes(),
        format!(
            "POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{{}}"
        )
        .into_bytes(),
        format!("POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nTransfer-Encoding: gzip\r\n\r\n{{}}").into_bytes(),
        format!("POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").into_bytes(),
        format!(
            "POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"
        )
        .into_bytes(),
        format!("POST /api/v1/processes HTTP/1.1\r\n{auth}\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n").into_bytes(),
    ];
    let invalid = Some((400, "INVALID_REQUEST".to_owned()));
    for request in &requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        assert_eq!(Answer::refusal(&send_raw(&daemon, request), &shown), invalid, "{shown:?}");
    }
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..2048).map(|_| random.next_u64() as u8).collect();
        assert_eq!(Answer::refusal(&send_raw(&daemon, &bytes), "random bytes"), invalid, "{bytes:?}");
    }
    assert_eq!(daemon.list().len(), 0, "nothing was started");
    check_healthy(&daemon, "after malformed requests");
}

#[test]
fn a_truncated_request_starts_nothing() {
    let daemon = start_daemon();
    let body = json!({"command": "sleep", "args": ["4800"]}).to_string();
    let head = daemon.request_head("POST", "/processes", &format!("Content-Length: {}\r\n", body.len()));
    let request = head + &body;
    for cut in (0..request.len()).step_by(7) {
        let refusal = Answer::refusal(&send_raw(&daemon, &request.as_bytes()[..cut]), &request[..cut]);
        let expected = (cut > 0).then(|| (400, "INVALID_REQUEST".to_owned()));
        assert_eq!(refusal, expected, "{cut} bytes");
    }
    assert_eq!(daemon.list().len(), 0);
    check_healthy(&daemon, "after truncated requests");
}

#[test]
fn slow_heads_delay_no_other_client_and_time_out() {
    let daemon = start_daemon_with(&["--head-secs", "2"]);
    let mut drips: Vec<TcpStream> = (0..200).map(|_| daemon.connect()).collect();
    let text = b"GET /api/v1/health HTTP/1.1\r\nX-Slow: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n\r\n";
    let begun = Instant::now();
    let mut bytes = text.iter().copied();
    // At one byte per 100 ms the head is incomplete after 2 s.
    while begun.elapsed() < Duration::from_secs(3) {
        let byte = bytes.next().expect("a head that takes longer than 3 s");
        for drip in &mut drips {
            let _ = drip.write_all(&[byte]);
        }
        assert_eq!(daemon.try_health(), Some(200));
        std::thread::sleep(Duration::from_millis(100));
    }
    for drip in drips {
        let refusal = Answer::refusal(&read_to_end(drip), "a slow head");
        assert_eq!(refusal, Some((408, "REQUEST_TIMEOUT".to_owned())));
    }
    check_healthy(&daemon, "after slow heads");
}

#[test]
fn a_head_that_does_not_arrive_in_time_is_408() {
    let daemon = start_daemon_with(&["--head-secs", "1"]);
    let mut socket = daemon.connect();
    socket.write_all(b"GET /api/v1/health HT").expect("a part of a head");
    let response = ResponseStream::read(socket).expect("a response").into_response("half a head");
    response.expect_error(408, "REQUEST_TIMEOUT", "");
}

#[test]
fn unread_pipelined_requests_delay_no_other_client() {
    let daemon = start_daemon();
    let mut socket = daemon.connect();
    let mut reader = BufReader::new(socket.try_clone().expect("duplicate the socket"));
    const COUNT: usize = 300_000;
    // The answer to one in a hundred requests has its number: it names a process that does not exist.
    let numbered = |number: usize| number.is_multiple_of(100);
    let health = daemon.request_head("GET", "/health", &format!("X-Fill: {}\r\n", "x".repeat(64)));
    std::thread::scope(|scope| {
        // The responses are not read at first, so the daemon must stop reading requests.
        let writer = scope.spawn(|| {
            for first in (0..COUNT).step_by(100) {
                let head = daemon.request_head("GET", &format!("/processes/{}", 1_000_000 + first), "");
                socket.write_all((head + &health.repeat(99)).as_bytes()).expect("the daemon reads on");
            }
            socket.shutdown(Shutdown::Write).expect("end the requests");
        });
        for _ in 0..20 {
            assert_eq!(daemon.try_health(), Some(200));
            assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        }
        assert!(!writer.is_finished(), "the daemon has read {COUNT} requests although no response is read");
        for number in 0..COUNT {
            let Answer { status, closes, body } = Answer::next(&mut reader).expect("a response to each request");
            let is_right = match numbered(number) {
                true => {
                    status == 404
                        && body["error"].as_str().is_some_and(|error| error.contains(&(1_000_000 + number).to_string()))
                }
                false => status == 200 && body == json!({"healthy": true}),
            };
            assert!(is_right && !closes, "{status} {body} to request {number}");
        }
        assert!(Answer::next(&mut reader).is_none(), "one response to each request");
        writer.join().expect("the writer");
        check_healthy(&daemon, "after pipelined requests");
    });
}

#[test]
fn requests_are_served_while_streams_hold_their_share_of_connections() {
    let daemon = start_daemon_with(&["--max-connections", "8"]);
    // Six streams hold connections; the remaining ones serve all other requests in turn.
    let start = json!({"command": "sh", "args": ["-c", "echo up; exec sleep 4801"]});
    let streams: Vec<_> = (0..6)
        .map(|_| {
            let pid = daemon.start_process(&start)["pid"].as_u64().expect("a PID");
            let mut events = daemon.follow(pid, "stdout");
            assert_eq!(events.next_frame().expect("a frame").data["line"], "up");
            events
        })
        .collect();
    for _ in 0..50 {
        let idle = daemon.connect();
        assert_eq!(daemon.try_health(), Some(200));
        drop(idle);
    }
    drop(streams);
    check_healthy(&daemon, "after streams have held six of eight connections");
}
