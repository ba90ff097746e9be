//! Far more connections than the daemon serves at once: idle ones, halves of requests, followers that never read.

use std::io::ErrorKind::{ConnectionReset, WouldBlock};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::harness::baseline::{Baseline, scaled, while_serving};
use crate::harness::{Daemon, pid_of, procfs, skip, start_daemon, start_daemon_with};

/// Raises the descriptor limit of the test process to its maximum. Returns whether that allows `connections`; the test
/// is skipped if not.
fn has_descriptors(connections: u64) -> bool {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("our limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raise our limit");
    // Other tests of this process have connections at the same time.
    let is_enough = hard >= connections + 1_000;
    if !is_enough {
        skip(&format!("{connections} descriptors"));
    }
    is_enough
}

/// Opens this many connections and sends `bytes` on each.
fn connect_all(daemon: &Daemon, count: usize, bytes: &[u8]) -> Vec<TcpStream> {
    let open = |_| {
        let mut client = daemon.connect();
        // The daemon may have closed it already, because others wait.
        let _ = client.write_all(bytes);
        client
    };
    (0..count).map(open).collect()
}

fn check_peak(daemon: &Daemon, most_mib: u64) {
    let peak = procfs::kilobytes(daemon.pid, "VmHWM");
    assert!(peak < most_mib << 10, "{peak} KiB");
}

#[test]
fn ten_thousand_idle_connections_are_closed_for_new_ones() {
    if !has_descriptors(10_000) {
        return;
    }
    let daemon = start_daemon();
    let baseline = Baseline::of(&daemon);
    let idle = while_serving(&daemon, || connect_all(&daemon, 10_000, b""));
    while_serving(&daemon, || assert_eq!(daemon.run_sh("echo x").stdout(), "x"));
    check_peak(&daemon, 64);
    drop(idle);
    baseline.check_restored(&daemon);
}

#[test]
fn two_thousand_half_sent_heads_delay_no_other_client() {
    if !has_descriptors(2_000) {
        return;
    }
    let daemon = start_daemon();
    let baseline = Baseline::of(&daemon);
    for length in [20, 5_000, 60_000] {
        let head = format!("GET /api/v1/info HTTP/1.1\r\nX: {}", "x".repeat(length));
        let halves = while_serving(&daemon, || connect_all(&daemon, 2_000, head.as_bytes()));
        while_serving(&daemon, || assert_eq!(daemon.run_sh("echo x").stdout(), "x"));
        drop(halves);
    }
    check_peak(&daemon, 64);
    baseline.check_restored(&daemon);
}

/// Sends requests on `count` connections without waiting for a response, and connects again when one ends.
fn request_without_pause(daemon: &Daemon, count: usize, is_over: &AtomicBool) {
    let block = "GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1_000);
    let connect = || {
        let client = daemon.connect();
        client.set_nonblocking(true).expect("a socket that does not block");
        (client, 0)
    };
    let mut clients: Vec<(TcpStream, usize)> = (0..count).map(|_| connect()).collect();
    let (mut buffer, deadline) = (vec![0; 1 << 20], Instant::now() + Duration::from_secs(30));
    while !is_over.load(Ordering::Relaxed) && Instant::now() < deadline {
        for (client, sent) in &mut clients {
            let read =
                client.read(&mut buffer).and_then(|read| if read > 0 { Ok(0) } else { Err(ConnectionReset.into()) });
            let written = client.write(&block.as_bytes()[*sent..]);
            *sent = (*sent + written.as_ref().unwrap_or(&0)) % block.len();
            if [read, written].into_iter().flat_map(Result::err).any(|error| error.kind() != WouldBlock) {
                (*client, *sent) = connect();
            }
        }
    }
}

#[test]
fn clients_that_never_wait_for_a_response_delay_no_other() {
    let daemon = start_daemon_with(&["--max-connections", "16"]);
    let baseline = Baseline::of(&daemon);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| request_without_pause(&daemon, 100, &is_over));
        // Most of them are not served at first: they wait in the kernel's queue.
        while_serving(&daemon, || (0..20).for_each(|_| assert_eq!(daemon.run_sh("echo x").stdout(), "x")));
        is_over.store(true, Ordering::Relaxed);
    });
    baseline.check_restored(&daemon);
}

/// With one connection left for short requests, each silent client would delay all that come after it by 100 ms if the
/// time that it has waited in the kernel's queue did not count.
#[test]
fn clients_that_send_nothing_delay_no_other_when_one_connection_is_left() {
    let daemon = start_daemon_with(&["--max-processes", "100", "--max-connections", "8"]);
    let baseline = Baseline::of(&daemon);
    let pid = pid_of(&daemon.start_process(&json!({"command": "sh", "args": ["-c", "echo up; exec sleep 4810"]})));
    let streams: Vec<_> = (0..7)
        .map(|_| {
            let mut events = daemon.follow(pid, "stdout");
            assert_eq!(events.next_frame().expect("a frame").data["line"], "up");
            events
        })
        .collect();
    for bytes in ["", "GET /api/v1/health HTTP/1.1\r\nX: half"] {
        let silent = connect_all(&daemon, 300, bytes.as_bytes());
        let begun = Instant::now();
        assert_eq!(daemon.try_health(), Some(200));
        let took = begun.elapsed();
        eprintln!("served after {took:?}, with 300 clients before it that have sent {bytes:?}");
        assert!(took < Duration::from_secs(5), "{took:?} {bytes:?}");
        drop(silent);
    }
    drop(streams);
    assert_eq!(daemon.open("DELETE", &format!("/processes/{pid}"), "Connection: close\r\n", b"").status, 204);
    baseline.check_restored(&daemon);
}

/// Sends heads without end until the deadline, on one connection after the other; returns the number of bytes.
fn send_heads_without_end(daemon: &Daemon, start: &str, end: Instant) -> usize {
    let filler = if start.ends_with("\r\n") { b"A: b\r\n".repeat(10_000) } else { vec![b'a'; 64 << 10] };
    let mut sent = 0;
    while Instant::now() < end {
        let mut socket = daemon.connect();
        let _ = socket.write_all(start.as_bytes());
        while Instant::now() < end && socket.write_all(&filler).is_ok() {
            sent += filler.len();
        }
    }
    sent
}

#[test]
fn heads_without_end_in_parallel_use_bounded_memory() {
    let daemon = start_daemon();
    let baseline = Baseline::of(&daemon);
    let end = Instant::now() + scaled(Duration::from_secs(2), Duration::from_secs(60));
    let starts = ["GET /api/v1/health HTTP/1.1\r\nX-Long: ", "GET /", "", "GET /api/v1/health HTTP/1.1\r\n"];
    let sent: usize = while_serving(&daemon, || {
        std::thread::scope(|scope| {
            let senders = starts.map(|start| scope.spawn(|| send_heads_without_end(&daemon, start, end)));
            senders.into_iter().map(|sender| sender.join().expect("a sender")).sum()
        })
    });
    eprintln!("{} MiB of heads", sent >> 20);
    assert!(sent > 8 << 20, "{sent}");
    check_peak(&daemon, 64);
    baseline.check_restored(&daemon);
}

#[test]
fn connections_in_a_row_leave_nothing_behind() {
    let daemon = start_daemon();
    let baseline = Baseline::of(&daemon);
    let count = scaled(5_000, 100_000);
    let begun = Instant::now();
    for number in 0..count {
        assert_eq!(daemon.try_health(), Some(200), "connection {number}");
    }
    eprintln!("{count} connections in {:?}", begun.elapsed());
    check_peak(&daemon, 32);
    baseline.check_restored(&daemon);
}

/// A follower that never reads, with a small receive buffer, so that little of the response fits into the kernel.
fn follow_without_reading(daemon: &Daemon, pid: u64) -> TcpStream {
    let mut socket = daemon.connect();
    setsockopt(&socket, sockopt::RcvBuf, &4096).expect("set the buffer size");
    let head = daemon.request_head("GET", &format!("/processes/{pid}/output/follow"), "");
    socket.write_all(head.as_bytes()).expect("send the request");
    socket
}

#[test]
fn five_hundred_followers_that_never_read_delay_neither_writer_nor_clients() {
    if !has_descriptors(1_000) {
        return;
    }
    let daemon = start_daemon_with(&["--log-limit", "8388608"]);
    let baseline = Baseline::of(&daemon);
    // 24 MB, which is more than the log keeps: followers that do not read miss most of it.
    let script = "echo up; read x; seq 1 3000000; echo done >&2; exec sleep 4811";
    let process = daemon.start_process(&json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"}));
    let pid = pid_of(&process);
    daemon.wait_for_stdout(pid, &["up"]);
    let followers: Vec<TcpStream> = (0..500).map(|_| follow_without_reading(&daemon, pid)).collect();
    for follower in &followers {
        assert_eq!(follower.peek(&mut [0]).expect("the beginning of a response"), 1);
    }
    while_serving(&daemon, || {
        daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"go\n")).expect(204);
        let mut stderr = daemon.follow(pid, "stderr");
        assert_eq!(stderr.next_frame().expect("the end of the output").data["line"], "done");
        assert_eq!(daemon.run_sh("echo x").stdout(), "x");
    });
    // 256 KiB for the buffers of each, and the rest of the daemon.
    check_peak(&daemon, 500 / 4 + 32);
    drop(followers);
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    baseline.check_restored(&daemon);
}

/// Bodies that arrive byte by byte have no time limit of their own; they end when another client needs the connection.
#[test]
fn bodies_that_arrive_byte_by_byte_delay_no_other_client() {
    let daemon = start_daemon_with(&["--max-connections", "8"]);
    let baseline = Baseline::of(&daemon);
    let head = daemon.request_head("POST", "/processes", "Content-Length: 100000\r\n");
    let mut slow = connect_all(&daemon, 16, head.as_bytes());
    let is_over = Barrier::new(2);
    std::thread::scope(|scope| {
        let drip = scope.spawn(|| {
            for _ in 0..20 {
                slow.iter_mut().for_each(|client| drop(client.write_all(b" ")));
                std::thread::sleep(Duration::from_millis(50));
            }
            is_over.wait();
        });
        while_serving(&daemon, || is_over.wait());
        drip.join().expect("the slow clients");
    });
    for mut client in slow {
        let _ = client.shutdown(std::net::Shutdown::Write);
        let mut response = Vec::new();
        let _ = client.read_to_end(&mut response);
        let text = String::from_utf8_lossy(&response);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400") || text.starts_with("HTTP/1.1 408"), "{text}");
    }
    let listing = daemon.open("GET", "/processes", "Connection: close\r\n", b"").into_response("GET /processes").json();
    assert_eq!(listing["processes"].as_array().map(Vec::len), Some(1), "only the run of the baseline: {listing}");
    baseline.check_restored(&daemon);
}
