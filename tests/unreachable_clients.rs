//! Clients whose machine has become unreachable: the connection does not end, and nothing is acknowledged.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use tungstenite::{Message, WebSocket};

use crate::harness::faults::cut_off;
use crate::harness::websocket::{Session, Terminal, client_frame};
use crate::harness::{Daemon, TIMEOUT, procfs, start_daemon, tcp_service, wait_until};
use crate::stopped_daemon::StoppedDaemon;

fn read_to_end(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

fn send_forever(mut stream: TcpStream) {
    while stream.write(&[0; 1 << 16]).is_ok() {}
}

/// Neither reads nor sends for longer than the test takes.
fn do_nothing(stream: TcpStream) {
    std::thread::sleep(Duration::from_secs(300));
    drop(stream);
}

/// Writes until the connection accepts no more data for 1 s.
fn fill_send_buffer(socket: &mut TcpStream, bytes: &[u8]) {
    socket.set_write_timeout(Some(Duration::from_secs(1))).expect("set the timeout");
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

/// A client that becomes unreachable, with what shows that the daemon has dropped it.
enum Unreachable {
    Tunnel(&'static str, WebSocket<TcpStream>, u16),
    Terminal(&'static str, Terminal, Session),
}

impl Unreachable {
    fn socket(&self) -> &TcpStream {
        match self {
            Unreachable::Tunnel(_, socket, _) => socket.get_ref(),
            Unreachable::Terminal(_, terminal, _) => terminal.socket.get_ref(),
        }
    }

    fn is_dropped(&self, daemon: &Daemon) -> bool {
        match self {
            Unreachable::Tunnel(_, _, port) => !procfs::has_connection_to(*port),
            Unreachable::Terminal(_, _, session) => daemon.client_count(session) == 0,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Unreachable::Tunnel(name, ..) | Unreachable::Terminal(name, ..) => name,
        }
    }
}

fn tunnel(daemon: &Daemon, name: &'static str, serve: fn(TcpStream)) -> Unreachable {
    let port = tcp_service(serve);
    Unreachable::Tunnel(name, daemon.tunnel(port), port)
}

fn terminal(daemon: &Daemon, name: &'static str, script: &str) -> Unreachable {
    let session = daemon.pty_sh(script);
    Unreachable::Terminal(name, daemon.watch(&session), session)
}

/// Whether the kernel can send window probes often enough (Linux 6.15).
fn kernel_probes_often() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(15))
}

/// One client of each kind whose loss the daemon must notice.
fn all_kinds(daemon: &Daemon) -> Vec<Unreachable> {
    let print_much = "stty raw -echo; echo up; read -r line; head -c 6000000 /dev/zero; sleep 4760";
    let mut all = vec![
        tunnel(daemon, "a silent tunnel", read_to_end),
        tunnel(daemon, "a tunnel to a service that reads nothing", do_nothing),
        tunnel(daemon, "a tunnel whose client has sent a Close", do_nothing),
        terminal(daemon, "a silent terminal", "sleep 4760"),
        terminal(daemon, "a terminal whose program reads nothing", "stty raw -echo; sleep 4760"),
        terminal(daemon, "a terminal with a backlog", print_much),
    ];
    if kernel_probes_often() {
        all.push(tunnel(daemon, "a tunnel whose client reads nothing", send_forever));
    }
    all
}

/// Brings the connection into the state that its name describes.
fn prepare(client: &mut Unreachable) {
    match client {
        Unreachable::Tunnel("a tunnel to a service that reads nothing", socket, _) => {
            fill_send_buffer(socket.get_mut(), &client_frame(0x82, &[0; 1 << 20]));
        }
        Unreachable::Tunnel("a tunnel whose client has sent a Close", socket, _) => {
            socket.get_mut().write_all(&client_frame(0x88, b"")).expect("send a Close");
        }
        Unreachable::Terminal("a terminal whose program reads nothing", terminal, _) => {
            fill_send_buffer(terminal.socket.get_mut(), &client_frame(0x82, &[0; 1 << 19]));
        }
        Unreachable::Terminal("a terminal with a backlog", terminal, _) => {
            terminal.expect("up");
            terminal.type_in("go\n");
            wait_until_full(client.socket());
        }
        Unreachable::Tunnel("a tunnel whose client reads nothing", ..) => wait_until_full(client.socket()),
        _ => {}
    }
}

/// Waits until the daemon has dropped all clients, each within 90 s.
fn wait_until_dropped(daemon: &Daemon, clients: &[Unreachable]) {
    let begun = Instant::now();
    let mut left: Vec<&Unreachable> = clients.iter().collect();
    wait_until(Duration::from_secs(240), "all unreachable clients are dropped", || {
        left.retain(|client| {
            if !client.is_dropped(daemon) {
                return true;
            }
            let took = begun.elapsed();
            eprintln!("{}: {took:?}", client.name());
            // The limit is 90 s; the margin is for a busy machine.
            assert!(took < Duration::from_secs(150), "{}: {took:?}", client.name());
            false
        });
        std::thread::sleep(Duration::from_millis(50));
        left.is_empty().then_some(())
    });
}

#[test]
fn unreachable_clients_are_dropped_within_90_s_and_slow_ones_and_those_of_a_stopped_daemon_are_kept() {
    // Both take more than a minute: so they are one test.
    let stopped = StoppedDaemon::start();
    let daemon = start_daemon();
    daemon.get("/pty").expect(200);
    let before = daemon.threads_and_descriptors();
    let mut all = all_kinds(&daemon);
    all.iter_mut().for_each(prepare);
    let mut slow = tunnel(&daemon, "a reachable client that reads nothing", send_forever);
    wait_until_full(slow.socket());
    all.iter().for_each(|client| cut_off(client.socket()));
    wait_until_dropped(&daemon, &all);
    stopped.check_nothing_is_lost();
    assert!(!slow.is_dropped(&daemon), "the slow client is kept");
    if let Unreachable::Tunnel(_, socket, _) = &mut slow {
        let mut bytes = 0;
        while bytes < 20_000_000 {
            if let Message::Binary(piece) = socket.read().expect("a message") {
                bytes += piece.len();
            }
        }
    }
    drop(slow);
    for client in &all {
        if let Unreachable::Terminal(_, _, session) = client {
            daemon.delete(&format!("/pty/{}", session.id)).expect(204);
        }
    }
    daemon.wait_until_released(before);
}
