//! Clients whose machine has become unreachable: the connection does not end, and nothing is acknowledged.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tungstenite::{Message, WebSocket};

use crate::harness::faults::cut_off;
use crate::harness::websocket::{Session, Terminal, client_frame};
use crate::harness::{Daemon, TIMEOUT, procfs, start_daemon, tcp_service, wait_until};

fn wait_for_end(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

fn send_without_end(mut stream: TcpStream) {
    while stream.write(&[0; 1 << 16]).is_ok() {}
}

/// Neither reads nor sends for longer than the test takes.
fn stand_still(stream: TcpStream) {
    std::thread::sleep(Duration::from_secs(300));
    drop(stream);
}

/// Writes until the connection accepts no more data for 1 s.
fn fill(socket: &mut TcpStream, bytes: &[u8]) {
    socket.set_write_timeout(Some(Duration::from_secs(1))).expect("a limit");
    while socket.write_all(bytes).is_ok() {}
}

/// Waits until no more data arrives at a client that does not read.
fn wait_until_full(socket: &TcpStream) {
    let port = socket.local_addr().expect("local address").port();
    let mut last = (0, Instant::now());
    wait_until(TIMEOUT, "the receive buffer is full", || {
        let now = procfs::unread_bytes(port);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (now > 0 && last.1.elapsed() > Duration::from_secs(1)).then_some(())
    });
}

fn clients(daemon: &Daemon, session: &Session) -> u64 {
    daemon.pty_info(session)["client_count"].as_u64().expect("a count")
}

/// A client that becomes unreachable, with what shows that the daemon has dropped it.
enum Lost {
    Tunnel(&'static str, WebSocket<TcpStream>, u16),
    Terminal(&'static str, Terminal, Session),
}

impl Lost {
    fn socket(&self) -> &TcpStream {
        match self {
            Lost::Tunnel(_, socket, _) => socket.get_ref(),
            Lost::Terminal(_, terminal, _) => terminal.socket.get_ref(),
        }
    }

    fn is_found(&self, daemon: &Daemon) -> bool {
        match self {
            Lost::Tunnel(_, _, port) => !procfs::has_connection_to(*port),
            Lost::Terminal(_, _, session) => clients(daemon, session) == 0,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Lost::Tunnel(name, ..) | Lost::Terminal(name, ..) => name,
        }
    }
}

fn tunnel(daemon: &Daemon, name: &'static str, serve: fn(TcpStream)) -> Lost {
    let port = tcp_service(serve);
    Lost::Tunnel(name, daemon.tunnel(port), port)
}

fn terminal(daemon: &Daemon, name: &'static str, script: &str) -> Lost {
    let session = daemon.pty_sh(script);
    Lost::Terminal(name, daemon.watch(&session), session)
}

/// Whether the kernel can send window probes often enough (Linux 6.15).
fn kernel_asks_often() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

#[test]
fn unreachable_clients_are_dropped_within_90_s_and_slow_ones_are_kept() {
    let daemon = start_daemon();
    daemon.get("/pty").expect(200);
    let before = daemon.threads_and_descriptors();
    let mut all = vec![
        tunnel(&daemon, "a quiet tunnel", wait_for_end),
        tunnel(&daemon, "a tunnel to a service that reads nothing", stand_still),
        tunnel(&daemon, "a tunnel whose client has sent all", stand_still),
        terminal(&daemon, "a quiet terminal", "sleep 4760"),
        terminal(&daemon, "a terminal whose program reads nothing", "stty raw -echo; sleep 4760"),
        terminal(
            &daemon,
            "a terminal that shows too much",
            "stty raw -echo; echo up; read -r line; head -c 6000000 /dev/zero; sleep 4760",
        ),
    ];
    if kernel_asks_often() {
        all.push(tunnel(&daemon, "a tunnel whose client reads nothing", send_without_end));
    }
    for lost in &mut all {
        match lost {
            Lost::Tunnel("a tunnel to a service that reads nothing", socket, _) => {
                fill(socket.get_mut(), &client_frame(0x82, &[0; 1 << 20]));
            }
            Lost::Tunnel("a tunnel whose client has sent all", socket, _) => {
                socket.get_mut().write_all(&client_frame(0x88, b"")).expect("a Close");
            }
            Lost::Terminal("a terminal whose program reads nothing", terminal, _) => {
                fill(terminal.socket.get_mut(), &client_frame(0x82, &[0; 1 << 19]));
            }
            Lost::Terminal("a terminal that shows too much", terminal, _) => {
                terminal.expect("up");
                terminal.type_in("go\n");
                wait_until_full(lost.socket());
            }
            Lost::Tunnel("a tunnel whose client reads nothing", ..) => wait_until_full(lost.socket()),
            _ => {}
        }
    }
    let mut paused = tunnel(&daemon, "one whose client is there and reads nothing", send_without_end);
    wait_until_full(paused.socket());
    all.iter().for_each(|lost| cut_off(lost.socket()));
    let begun = Instant::now();
    let mut left: Vec<&Lost> = all.iter().collect();
    wait_until(Duration::from_secs(180), "all are found out", || {
        left.retain(|lost| {
            if !lost.is_found(&daemon) {
                return true;
            }
            let took = begun.elapsed();
            eprintln!("{}: {took:?}", lost.name());
            // The contract says 90 s; the margin is for a busy machine.
            assert!(took < Duration::from_secs(100), "{}: {took:?}", lost.name());
            false
        });
        std::thread::sleep(Duration::from_millis(50));
        left.is_empty().then_some(())
    });
    assert!(!paused.is_found(&daemon), "it is there");
    if let Lost::Tunnel(_, socket, _) = &mut paused {
        let mut bytes = 0;
        while bytes < 20_000_000 {
            if let Message::Binary(piece) = socket.read().expect("the tunnel goes on") {
                bytes += piece.len();
            }
        }
    }
    drop(paused);
    for lost in &all {
        if let Lost::Terminal(_, _, session) = lost {
            daemon.delete(&format!("/pty/{}", session.id)).expect(204);
        }
    }
    daemon.wait_until_released(before);
}
