//! Clients that request much data and do not read it: the memory for each of them is bounded, whatever the length of
//! lines and output.

use std::net::TcpStream;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::harness::{Daemon, pid_of, procfs, start_daemon_with};

const MIB: u64 = 1 << 20;

/// Memory that the daemon may use for one client, in KiB: its buffers (docs/api.md, Limits), its thread, and overhead
/// of the allocator.
const KIB_PER_CLIENT: u64 = 256;

/// Sends each request on a connection of its own and waits for the first byte of the response, without reading it.
fn connect_without_reading(daemon: &Daemon, requests: &[String]) -> Vec<TcpStream> {
    let open = |request: &String| {
        let mut stream = daemon.connect();
        // A small receive buffer, so that little of the response fits into the kernel.
        setsockopt(&stream, sockopt::RcvBuf, &4096).expect("set the buffer size");
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("send the request");
        stream
    };
    let streams: Vec<TcpStream> = requests.iter().map(open).collect();
    for stream in &streams {
        assert_eq!(stream.peek(&mut [0]).expect("the beginning of a response"), 1);
    }
    streams
}

/// Largest resident size of the daemon since its start, in KiB.
fn peak_memory(daemon: &Daemon) -> u64 {
    procfs::kilobytes(daemon.pid, "VmHWM")
}

#[test]
fn memory_per_client_is_bounded_for_long_lines_that_grow_when_escaped() {
    let daemon = start_daemon_with(&[]);
    // In JSON each control character takes six bytes, and each invalid byte three.
    let text = |byte: &str| format!("head -c {MIB} /dev/zero | tr '\\0' '{byte}'");
    let pids = ["\\1", "\\377"].map(|byte| daemon.sh(&format!("{}; echo", text(byte))));
    pids.iter().for_each(|pid| assert_eq!(daemon.wait_for_end(*pid)["exit_code"], 0));
    let right = json!({"pid": pids[0], "lines": ["\u{1}".repeat(MIB as usize)], "line_count": 1});
    assert!(daemon.get(&format!("/processes/{}/stdout", pids[0])).expect(200) == right);
    let right = "\u{fffd}".repeat(MIB as usize);
    assert!(daemon.follow(pids[1], "stdout").all_lines() == [right.as_str()]);
    let mut requests = Vec::new();
    for pid in pids {
        for _ in 0..50 {
            requests.push(daemon.request_head("GET", &format!("/processes/{pid}/stdout/follow"), ""));
            requests.push(daemon.request_head("GET", &format!("/processes/{pid}/output"), ""));
        }
    }
    for _ in 0..50 {
        let body = json!({"command": "sh", "args": ["-c", text("\\1")]}).to_string();
        let head = format!("Content-Length: {}\r\n", body.len());
        let request = daemon.request_head("GET", "/processes/run", &head).replacen("GET", "POST", 1);
        requests.push(request + &body);
    }
    let before = peak_memory(&daemon);
    let clients = connect_without_reading(&daemon, &requests);
    daemon.wait_until_idle(Duration::from_millis(200));
    let grown = peak_memory(&daemon).saturating_sub(before);
    assert!(grown < KIB_PER_CLIENT * clients.len() as u64, "{} clients take {grown} KiB", clients.len());
}

#[test]
fn memory_per_client_is_bounded_for_large_commands() {
    let daemon = start_daemon_with(&[]);
    // Arguments of 100 kB each: the kernel accepts at most 128 KiB per argument.
    let args: Vec<String> = (0..9).map(|n| format!("{n}").repeat(100_000)).collect();
    let start = json!({"command": "true", "args": args});
    let pids: Vec<u64> = (0..12).map(|_| pid_of(&daemon.start_process(&start))).collect();
    pids.iter().for_each(|pid| assert_eq!(daemon.wait_for_end(*pid)["args"], json!(args)));
    let listed = daemon.list();
    assert!(listed.len() == pids.len() && listed.iter().all(|process| process["args"] == json!(args)));
    let mut requests = Vec::new();
    for _ in 0..100 {
        requests.push(daemon.request_head("GET", &format!("/processes/{}", pids[0]), ""));
        requests.push(daemon.request_head("GET", "/processes", ""));
    }
    let before = peak_memory(&daemon);
    let clients = connect_without_reading(&daemon, &requests);
    daemon.wait_until_idle(Duration::from_millis(200));
    let grown = peak_memory(&daemon).saturating_sub(before);
    assert!(grown < KIB_PER_CLIENT * clients.len() as u64, "{} clients take {grown} KiB", clients.len());
}
