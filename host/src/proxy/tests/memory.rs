//! Memory: large bodies in flat memory, and idle WebSockets.
//!
//! These tests measure this process, in which other tests may run meanwhile: their limits leave room for that. `make bench`
//! measures the program.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::daemon::host_and_daemon;
use super::{AUTH, Host, read_head, tcp_service, wait_until};

/// Resident memory of this process, in KiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn large_files_pass_in_flat_memory() {
    const LENGTH: usize = 256 << 20;
    const PIECE: usize = 1 << 20;
    let (host, daemon) = host_and_daemon();
    let target = format!("/api/v1/files?path={}", daemon.path("large").display());
    let mut client = host.connect();
    let piece = vec![b'x'; PIECE];
    let (before, mut most) = (resident(), 0);
    client.send(format!("PUT {target} HTTP/1.1\r\nHost: env\r\n{AUTH}Content-Length: {LENGTH}\r\n\r\n"));
    for _ in 0..LENGTH / PIECE {
        client.send(&piece);
        most = most.max(resident());
    }
    assert!(client.reply().status < 300);
    assert_eq!(fs::metadata(daemon.path("large")).unwrap().len(), LENGTH as u64);
    client.send_request("GET", "env", &target, "", "");
    assert_eq!(client.head().header("Content-Length"), Some("268435456"));
    let mut left = LENGTH - std::mem::take(&mut client.buffer).len();
    let mut into = vec![0; PIECE];
    while left > 0 {
        let read = client.stream.read(&mut into).unwrap();
        assert!(read > 0 && into[..read].iter().all(|byte| *byte == b'x'));
        left -= read;
        most = most.max(resident());
    }
    let grown = most.saturating_sub(before);
    assert!(grown < 200 << 10, "grown by {grown} KiB");
}

#[test]
fn a_thousand_idle_web_sockets_take_little_memory() {
    const COUNT: usize = 1000;
    let open = std::sync::Arc::new(AtomicUsize::new(0));
    let (kept, of_server) = (std::sync::Arc::new(Mutex::new(Vec::new())), std::sync::Arc::clone(&open));
    let keep = std::sync::Arc::clone(&kept);
    let addr = tcp_service(move |mut stream| {
        read_head(&stream);
        let head = b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        stream.write_all(head).unwrap();
        keep.lock().unwrap().push(stream);
        of_server.fetch_add(1, SeqCst);
    });
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    let before = resident();
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..COUNT {
        let mut client = host.connect();
        let upgrade =
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n";
        assert_eq!(client.request("GET", "env.local", "/", upgrade, "").status, 101);
        clients.push(client.stream);
    }
    wait_until("all are open", || open.load(SeqCst) == COUNT && host.numbers.read().open_upgraded == COUNT as u64);
    let grown = resident().saturating_sub(before);
    // Each of them still works, both ways.
    let mut servers = kept.lock().unwrap();
    for client in &mut clients {
        client.write_all(b"ping").unwrap();
    }
    for server in servers.iter_mut() {
        server.read_exact(&mut [0; 4]).unwrap();
        server.write_all(b"pong").unwrap();
    }
    for client in &mut clients {
        client.read_exact(&mut [0; 4]).unwrap();
    }
    // The goal is 40 MiB. Ten times as much, because other tests of this process run at the same time.
    assert!(grown < 400 << 10, "{grown} KiB");
}
