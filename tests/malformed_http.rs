//! Malformed and abusive requests: the daemon answers or closes, keeps its memory bounded, and serves other clients.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

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

/// Sends bytes and reads until the daemon closes the connection or the read times out.
fn send_raw(daemon: &Daemon, bytes: &[u8]) -> Vec<u8> {
    let mut socket = daemon.connect();
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut response = Vec::new();
    let _ = socket.read_to_end(&mut response);
    response
}

fn status_of(response: &[u8]) -> u16 {
    let head = String::from_utf8_lossy(response);
    head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0)
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
            let status = status_of(&send_raw(&daemon, request.as_bytes()));
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
        let mut response = Vec::new();
        let _ = socket.read_to_end(&mut response);
        // A reset can arrive before the response is read.
        assert!(
            response.is_empty() || [400, 431].contains(&status_of(&response)),
            "{}",
            String::from_utf8_lossy(&response)
        );
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
    for request in &requests {
        let shown = String::from_utf8_lossy(&request[..request.len().min(200)]).into_owned();
        let response = send_raw(&daemon, request);
        let status = status_of(&response);
        assert!([400, 413, 431, 501, 505].contains(&status), "{status} for {shown:?}");
        let text = String::from_utf8_lossy(&response);
        let (_, body) = text.split_once("\r\n\r\n").expect("a body");
        let body: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{text} for {shown:?}"));
        assert!(body["error"].is_string() && body["code"].is_string(), "{body} for {shown:?}");
    }
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..2048).map(|_| random.next_u64() as u8).collect();
        send_raw(&daemon, &bytes);
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
        send_raw(&daemon, &request.as_bytes()[..cut]);
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
    for mut drip in drips {
        let mut response = Vec::new();
        let _ = drip.read_to_end(&mut response);
        assert!(response.is_empty() || status_of(&response) == 408, "{}", String::from_utf8_lossy(&response));
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
    let mut reader = socket.try_clone().expect("duplicate the socket");
    const COUNT: usize = 300_000;
    let request = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n";
    std::thread::scope(|scope| {
        // The responses are not read at first, so the daemon must stop reading requests.
        let writer = scope.spawn(move || {
            let block = request.repeat(1000);
            for _ in 0..COUNT / 1000 {
                socket.write_all(&block)?;
            }
            socket.shutdown(std::net::Shutdown::Write)
        });
        for _ in 0..20 {
            assert_eq!(daemon.try_health(), Some(200));
            assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        }
        let mut answers = 0;
        let (mut buffer, mut carry) = (vec![0; 1 << 16], Vec::new());
        while let Ok(got @ 1..) = reader.read(&mut buffer) {
            carry.extend_from_slice(&buffer[..got]);
            answers += carry.windows(13).filter(|window| window == b"HTTP/1.1 200 ").count();
            // A match that spans two reads is counted with the second.
            carry.drain(..carry.len().saturating_sub(12));
        }
        // The daemon may answer all requests or close the connection.
        let _ = writer.join().expect("the writer");
        assert!(answers > 0);
        check_healthy(&daemon, &format!("after {answers} pipelined answers"));
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
