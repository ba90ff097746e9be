//! Connections that break, and clients that speak something else: resets at every stage, bodies that do not have the
//! announced length, TLS.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::baseline::{Baseline, while_serving};
use crate::harness::files::files;
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, TIMEOUT, pid_of, procfs, reset, start_daemon, start_daemon_with, wait_until};

/// Sends bytes on a new connection.
fn send(daemon: &Daemon, bytes: &[u8]) -> TcpStream {
    let mut socket = daemon.connect();
    socket.write_all(bytes).expect("send");
    socket
}

/// All statuses of the responses on a connection, until its end.
fn statuses(mut socket: TcpStream) -> Vec<String> {
    let mut text = Vec::new();
    let _ = socket.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text).into_owned();
    text.split("HTTP/1.1 ").skip(1).map(|response| response[..3].to_owned()).collect()
}

#[test]
fn connections_that_are_reset_before_they_are_accepted_leave_nothing() {
    let daemon = start_daemon();
    let baseline = Baseline::of(&daemon);
    let requests = [String::new(), daemon.request_head("GET", "/processes", ""), "GET /api/v1/hea".to_owned()];
    for _ in 0..3 {
        daemon.signal(Signal::SIGSTOP);
        wait_until(TIMEOUT, "the daemon is stopped", || {
            procfs::status(daemon.pid, "State").filter(|state| state.starts_with('T'))
        });
        // Fewer than the kernel's queue holds.
        for number in 0..600 {
            reset(send(&daemon, requests[number % requests.len()].as_bytes()));
        }
        daemon.signal(Signal::SIGCONT);
        while_serving(&daemon, || ());
    }
    baseline.check_restored(&daemon);
}

#[test]
fn connections_that_are_reset_within_a_body_start_and_change_nothing() {
    let daemon = start_daemon();
    let file = daemon.scratch().join("kept");
    std::fs::write(&file, "old").expect("write a file");
    let reader = daemon.start_process(&json!({"command": "cat", "stdin_mode": "pipe"}));
    let reader = pid_of(&reader);
    let stdin = format!("/processes/{reader}/stdin");
    // The log of the process is opened with its first line.
    daemon.request("POST", &stdin, Some(b"zero\n")).expect(204);
    daemon.wait_for_stdout(reader, &["zero"]);
    let baseline = Baseline::of(&daemon);
    let body = json!({"command": "sleep", "args": ["4820"]}).to_string();
    let length = format!("Content-Length: {}\r\n", body.len());
    let chunked = "Transfer-Encoding: chunked\r\n";
    let requests = [
        daemon.request_head("POST", "/processes", &length) + &body[..10],
        daemon.request_head("POST", "/processes", chunked) + "40\r\n{\"command\"",
        daemon.request_head("POST", "/processes/run", &length) + &body[..body.len() - 1],
        daemon.request_head("PUT", &files(&file, "&user=root"), "Content-Length: 100000\r\n") + &"x".repeat(50_000),
        daemon.request_head("PUT", &files(&file, "&user=root"), chunked) + "10000\r\nnew",
        daemon.request_head("POST", &stdin, "Content-Length: 100\r\n") + "one\n",
    ];
    while_serving(&daemon, || {
        for request in requests.iter().cycle().take(300) {
            reset(send(&daemon, request.as_bytes()));
        }
    });
    baseline.check_restored(&daemon);
    assert!(!daemon.list().iter().any(|info| info["command"] == "sleep"), "nothing was started");
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "old");
    let entries = std::fs::read_dir(daemon.scratch()).expect("the directory").count();
    assert_eq!(entries, 1, "no temporary file is left");
}

#[test]
fn streams_that_are_reset_end_their_runs_and_nothing_else() {
    let daemon = start_daemon();
    let pid = daemon.sh("while :; do echo tick; sleep 0.01; done");
    // The log of the process is opened with its first line.
    wait_until(TIMEOUT, "it writes", || daemon.lines(pid, "stdout").first().cloned());
    let baseline = Baseline::of(&daemon);
    let run = json!({"command": "sh", "args": ["-c", "echo up; exec sleep 4821"]}).to_string();
    while_serving(&daemon, || {
        for number in 0..200 {
            let stream = match number % 4 {
                0 => daemon.open("POST", "/processes/run", "", run.as_bytes()),
                _ => daemon.open("GET", &format!("/processes/{pid}/output/follow"), "", b""),
            };
            let mut stream = stream.expect_status(200);
            stream.read_exact(&mut [0; 10]).expect("the first event");
            reset(stream.into_socket());
        }
    });
    daemon.wait_until_gone(TIMEOUT, "sleep 4821");
    assert_eq!(daemon.info(pid)["status"], "running");
    baseline.check_restored(&daemon);
}

#[test]
fn bodies_longer_or_shorter_than_announced_start_nothing_twice_and_nothing_half() {
    let daemon = start_daemon();
    let baseline = Baseline::of(&daemon);
    let start = json!({"command": "true"}).to_string();
    let head = |headers: &str| daemon.request_head("POST", "/processes", headers);
    let length = |length: usize| head(&format!("Content-Length: {length}\r\n"));
    let ask = |request: String| {
        let socket = send(&daemon, request.as_bytes());
        socket.shutdown(Shutdown::Write).expect("end the request");
        statuses(socket)
    };
    let count = || daemon.list().len();
    let before = count();
    // Shorter: the body never becomes complete.
    assert_eq!(ask(length(start.len() + 1) + &start), ["400"]);
    assert_eq!(ask(length(1_000) + &start), ["400"]);
    assert_eq!(ask(head("Transfer-Encoding: chunked\r\n") + &format!("{:x}\r\n{start}\r\n", start.len())), ["400"]);
    assert_eq!(ask(head("Transfer-Encoding: chunked\r\n") + &format!("ff\r\n{start}")), ["400"]);
    // Cut in the middle: no JSON.
    assert_eq!(ask(length(5) + &start)[0], "400");
    assert_eq!(count(), before, "nothing was started");
    // Longer: what follows the body is not a request.
    assert_eq!(ask(length(start.len()) + &start + "garbage\r\n\r\n"), ["201", "400"]);
    let chunk = format!("{:x}\r\n{start}\r\n0\r\n\r\n", start.len());
    assert_eq!(ask(head("Transfer-Encoding: chunked\r\n") + &chunk + "garbage\r\n\r\n"), ["201", "400"]);
    assert_eq!(count(), before + 2, "each was started once");
    // Both lengths, in both orders: a proxy in front might take the other one.
    for both in
        ["Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n"]
    {
        assert_eq!(ask(head(both) + &chunk), ["400"], "{both}");
    }
    for bad in ["", "x", "-1", "0x10", "1 0", "+1", "10000000000000000", " 1", "1;"] {
        let statuses = ask(head("Transfer-Encoding: chunked\r\n") + &format!("{bad}\r\n{{\r\n0\r\n\r\n"));
        assert_eq!(statuses, ["400"], "{bad:?}");
    }
    for bad in ["2\r\n{}x\r\n0\r\n\r\n", "2\r\n{}\n0\r\n\r\n", "2\r\n{}\r\n0\r\nno trailer\r\n\r\n"] {
        assert_eq!(ask(head("Transfer-Encoding: chunked\r\n") + bad), ["400"], "{bad:?}");
    }
    assert_eq!(count(), before + 2);
    baseline.check_restored(&daemon);
}

/// Prints a ClientHello of TLS 1.3.
const CLIENT_HELLO: &str = "
import ssl, sys
incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname='sandbox.example.org')
try:
    client.do_handshake()
except ssl.SSLWantReadError:
    sys.stdout.buffer.write(outgoing.read())
";

#[test]
fn a_tls_client_is_refused_at_once() {
    let hello = Command::new("python3").args(["-c", CLIENT_HELLO]).output().expect("run python3").stdout;
    assert!(hello.starts_with(b"\x16\x03") && hello.len() > 100, "{hello:?}");
    let daemon = start_daemon_with(&["--head-secs", "3600"]);
    let baseline = Baseline::of(&daemon);
    while_serving(&daemon, || {
        for _ in 0..100 {
            let begun = Instant::now();
            let response = ResponseStream::read(send(&daemon, &hello)).expect("a response").into_response("TLS");
            response.expect_error(400, "INVALID_REQUEST", "");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
    });
    baseline.check_restored(&daemon);
}
