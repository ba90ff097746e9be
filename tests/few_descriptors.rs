//! A daemon that may open few descriptors, until processes and connections have taken all: each request is answered.

use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

use crate::harness::baseline::{Baseline, EVICTION_GRACE, while_serving};
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Options, TIMEOUT, pid_of, wait_until};

/// A request on a connection of its own; its status and its code.
fn ask(daemon: &Daemon, method: &str, path: &str, body: &str) -> (u16, String) {
    let headers = format!("Connection: close\r\nContent-Length: {}\r\n", body.len());
    let request = daemon.request_head(method, path, &headers) + body;
    let begun = Instant::now();
    let response = wait_until(TIMEOUT, "a response", || {
        let sent = ResponseStream::try_send(daemon.connect(), &request);
        // A client that sends nothing for so long may be disconnected.
        assert!(sent.is_some() || begun.elapsed() >= EVICTION_GRACE, "{method} {path} is not answered");
        sent
    });
    let response = response.into_response(path);
    let code = if response.body.is_empty() { String::new() } else { response.json()["code"].to_string() };
    (response.status, code)
}

/// Starts processes until the daemon refuses; their PIDs.
fn start_processes(daemon: &Daemon) -> Vec<u64> {
    let body = json!({"command": "sleep", "args": ["4830"], "stdin_mode": "pipe"}).to_string();
    let mut started = Vec::new();
    loop {
        let response =
            daemon.open("POST", "/processes", "Connection: close\r\n", body.as_bytes()).into_response("start");
        match response.status {
            201 => started.push(pid_of(&response.json())),
            503 => break response.expect_error(503, "OUT_OF_RESOURCES", ""),
            _ => break response.expect_error(429, "TOO_MANY_PROCESSES", &started.len().to_string()),
        }
    }
    started
}

/// Follows the output of a process on more and more connections until the daemon refuses.
fn follow_until_refused(daemon: &Daemon, pid: u64) -> Vec<ResponseStream> {
    let mut streams = Vec::new();
    loop {
        let stream = daemon.open("GET", &format!("/processes/{pid}/output/follow"), "", b"");
        if stream.status != 200 {
            stream.into_response("follow").expect_error(503, "OUT_OF_RESOURCES", "connections");
            return streams;
        }
        streams.push(stream);
    }
}

/// Takes all descriptors with processes and connections, checks that each request gets an answer, and ends them.
fn exhaust(descriptors: u64, processes: usize, connections: usize) {
    let daemon = Options::default().max_descriptors(descriptors).start();
    let limits = format!("RLIMIT_NOFILE is {descriptors}: at most {processes} processes and {connections} connections");
    assert!(daemon.log().contains(&limits), "{}", daemon.log());
    let baseline = Baseline::of(&daemon);
    for _ in 0..2 {
        let (started, streams) = while_serving(&daemon, || {
            let started = start_processes(&daemon);
            assert_eq!(started.len(), processes);
            let streams = follow_until_refused(&daemon, started[0]);
            (started, streams)
        });
        assert!(streams.len() > connections / 2, "{} streams", streams.len());
        // As many clients again that send nothing.
        let idle: Vec<TcpStream> = (0..descriptors).map(|_| daemon.connect()).collect();
        while_serving(&daemon, || {
            assert_eq!(ask(&daemon, "GET", "/processes", "").0, 200);
            let (status, code) = ask(&daemon, "POST", "/processes", r#"{"command": "true"}"#);
            assert!([429, 503].contains(&status), "{status} {code}");
            assert_eq!(
                ask(&daemon, "POST", "/processes/run", r#"{"command": "true"}"#),
                (503, r#""OUT_OF_RESOURCES""#.into())
            );
            let signal = ask(&daemon, "POST", &format!("/processes/{}/signal", started[0]), r#"{"signal": 18}"#);
            assert_eq!(signal.0, 200);
        });
        drop((idle, streams));
        for pid in started {
            assert_eq!(ask(&daemon, "DELETE", &format!("/processes/{pid}"), "").0, 204);
        }
        wait_until(TIMEOUT, "a run works again", || {
            (ask(&daemon, "POST", "/processes", r#"{"command": "true"}"#).0 == 201).then_some(())
        });
        baseline.check_restored(&daemon);
    }
}

#[test]
fn every_request_is_answered_when_256_descriptors_are_taken() {
    exhaust(256, 32, 8);
}

#[test]
fn every_request_is_answered_when_1024_descriptors_are_taken() {
    exhaust(1_024, 160, 40);
}
