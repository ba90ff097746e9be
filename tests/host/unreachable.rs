//! A side of the proxy does not answer or vanishes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::harness::{Host, TIMEOUT, start_host, start_host_alone, wait_until};

/// A connection to the proxy, on which this head of a request was sent.
fn send_head(host: &Host, sandbox: &str, line: &str, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(host.proxy.trim_start_matches("http://")).expect("connect to the proxy");
    let key = &host.key;
    write!(stream, "{line} HTTP/1.1\r\nHost: {sandbox}.local\r\nAuthorization: Bearer {key}\r\n{headers}\r\n").unwrap();
    stream
}

/// Ends a connection in both directions at once.
fn reset(stream: TcpStream) {
    setsockopt(&stream.as_fd(), sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 }).expect("set SO_LINGER");
}

fn wait_for_open_requests(host: &Host, count: u64) {
    let open = || host.metric("tl_host_proxy_requests_open");
    wait_until(&format!("{count} open requests"), || (open() == count).then_some(()));
}

#[test]
fn of_an_upload_whose_client_vanishes_nothing_is_left() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    host.shell(&id, "mkdir /tmp/d; echo old >/tmp/d/old");
    // The whole connection, its sending direction only, and without a word to the other side.
    for end in ["close", "end of sending", "reset"] {
        for file in ["new", "old"] {
            let line = format!("PUT /api/v1/files?path=/tmp/d/{file}");
            let mut upload = send_head(&host, &id, &line, "Content-Length: 10000000\r\n");
            upload.write_all(&[b'x'; 1_000_000]).unwrap();
            let passed = || host.metric("tl_host_proxy_bytes_total{direction=\"to_sandbox\"}");
            wait_until("the upload to reach the sandbox", || (passed() >= 1_000_000).then_some(()));
            match end {
                "close" => drop(upload),
                "end of sending" => {
                    upload.shutdown(Shutdown::Write).unwrap();
                    let mut answer = String::new();
                    upload.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
                    let _ = upload.read_to_string(&mut answer);
                    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
                }
                _ => reset(upload),
            }
            wait_for_open_requests(&host, 0);
            let only_old = || (host.shell(&id, "ls -A /tmp/d; cat /tmp/d/old") == "old\nold").then_some(());
            wait_until(&format!("{file} to be as before, after {end}"), only_old);
        }
    }
}

#[test]
fn a_sandbox_whose_network_is_down_is_503_until_it_is_up() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    let link = |state: &str| {
        let net = format!("--net=/proc/{}/ns/net", host.init_pid(&id));
        let done = Command::new("nsenter").args([&net, "ip", "link", "set", "eth0", state]).status();
        assert!(done.expect("run nsenter").success());
    };
    link("down");
    let begin = Instant::now();
    let answer = host.ask("PUT", &id, "/files?path=/tmp/file", "text");
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("SANDBOX_UNREACHABLE")), "{answer:?}");
    assert!(begin.elapsed() < Duration::from_secs(35), "{:?}", begin.elapsed());
    // The engine is asked for this, and the sandbox as such runs.
    assert_eq!(host.request("GET", &format!("/sandboxes/{id}"), None).body["status"], "running");
    link("up");
    wait_until("the sandbox to be reached", || {
        (host.ask("PUT", &id, "/files?path=/tmp/file", "text").status == 204).then_some(())
    });
}

#[test]
fn a_daemon_that_is_stopped_answers_when_it_goes_on_and_holds_up_nobody_else() {
    let Some(host) = start_host(&[]) else { return };
    let (stopped, other) = (host.create(json!({})), host.create(json!({})));
    let daemon = host.init_pid(&stopped);
    kill(daemon, Signal::SIGSTOP).unwrap();
    let mut waiting = send_head(&host, &stopped, "GET /api/v1/info", "Connection: close\r\n");
    let gives_up = send_head(&host, &stopped, "GET /api/v1/info", "");
    wait_for_open_requests(&host, 2);
    assert_eq!(host.ask("GET", &other, "/info", "").status, 200);
    assert_eq!(host.request("GET", &format!("/sandboxes/{stopped}"), None).body["status"], "running");
    // One that only closes may still read: it is answered when the daemon goes on.
    reset(gives_up);
    wait_for_open_requests(&host, 1);
    kill(daemon, Signal::SIGCONT).unwrap();
    let mut answer = String::new();
    waiting.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // It can be ended as well.
    kill(daemon, Signal::SIGSTOP).unwrap();
    assert_eq!(host.request("DELETE", &format!("/sandboxes/{stopped}"), None).status, 200);
    assert_eq!(host.containers(), [format!("tl-{other}")]);
}

#[test]
fn a_suspended_sandbox_that_a_slow_engine_does_not_resume_is_503_and_later_works() {
    let Some(host) = start_host_alone(None) else { return };
    let id = host.create(json!({ "name": "env" }));
    assert_eq!(host.post("/sandboxes/env/suspend?wait_ms=30000").status, 200);
    host.podman().freeze_service();
    let begin = Instant::now();
    let answer = host.ask("GET", &id, "/info", "");
    assert!(begin.elapsed() < Duration::from_secs(35), "{:?}", begin.elapsed());
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("ENGINE_UNAVAILABLE")), "{answer:?}");
    host.podman().thaw_service();
    wait_until("the sandbox to be reached", || (host.ask("GET", &id, "/info", "").status == 200).then_some(()));
}

#[test]
fn a_run_with_a_key_whose_client_vanishes_is_attached_to_again() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    let body = json!({ "command": "sh", "args": ["-c", "echo begun; read x </tmp/fifo; echo done"] }).to_string();
    host.shell(&id, "mkfifo /tmp/fifo");
    let open = || {
        let headers = format!("Idempotency-Key: a;b=\"c\"\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        let mut stream = send_head(&host, &id, "POST /api/v1/processes/run", &headers);
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        stream
    };
    let read_until_begun = |stream: &mut TcpStream| {
        let mut bytes = Vec::new();
        while !String::from_utf8_lossy(&bytes).contains("\"begun\"") {
            let mut some = [0; 4096];
            let count = stream.read(&mut some).unwrap();
            assert!(count > 0, "the response ends: {}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&some[..count]);
        }
        String::from_utf8(bytes).unwrap()
    };
    let first_event =
        |response: &str| response.lines().find(|line| line.starts_with("data: ")).expect("the first event").to_owned();
    let mut lost = open();
    let first = read_until_begun(&mut lost);
    assert!(!first.to_lowercase().contains("idempotent-replayed"), "{first}");
    reset(lost);
    wait_for_open_requests(&host, 0);
    let mut again = open();
    let mut response = read_until_begun(&mut again);
    host.shell(&id, "echo go >/tmp/fifo");
    again.read_to_string(&mut response).unwrap();
    assert!(response.to_lowercase().contains("idempotent-replayed: true\r\n"), "{response}");
    assert_eq!(first_event(&response), first_event(&first));
    assert!(response.contains("\"done\"") && response.contains("\"exit_code\":0"), "{response}");
}

#[test]
fn events_are_resumed_through_the_proxy() {
    let Some(host) = start_host(&[]) else { return };
    let id = host.create(json!({}));
    host.shell(&id, "true");
    let events = |last_id: &str| {
        let headers = format!("Last-Event-ID: {last_id}\r\nConnection: close\r\n");
        let mut stream = send_head(&host, &id, "GET /api/v1/events?follow=false", &headers);
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    };
    let all = events("0");
    let ids: Vec<&str> = all.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert!(ids.len() >= 2 && !all.contains("event: gap"), "{all}");
    let rest = events(ids[0]);
    assert!(rest.contains(&format!("id: {}\n", ids[1])) && !rest.contains(ids[0]), "{rest}");
    assert!(events("1").contains("event: gap\ndata: {\"lost\":0}\n"));
}
