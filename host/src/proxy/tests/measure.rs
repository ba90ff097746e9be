//! Figures, printed: `cargo test --release --package tl-host measure -- --ignored --nocapture --test-threads 1`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::client::Client;
use super::daemon::{Daemon, host_and_daemon};
use super::{Host, memory, read_head, tcp_service};

fn request(method: &str, target: &str, token: &str, more: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: env.local\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
}

/// The address and the token, directly and through the proxy.
fn both(host: &Host, daemon: &Daemon) -> [(&'static str, SocketAddr, String); 2] {
    [("direct", daemon.addr, daemon.token.clone()), ("proxy", host.server.local_addr(), super::KEY.to_owned())]
}

fn p50(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "prints figures"]
fn measure_runs() {
    let (host, daemon) = host_and_daemon();
    let body = r#"{"command":"true"}"#;
    let mut times = [Vec::new(), Vec::new()];
    let mut gets = [Vec::new(), Vec::new()];
    let mut clients = both(&host, &daemon).map(|(_, addr, token)| (Client::connect(addr), token));
    // Alternating, so that whatever else the machine does meets both.
    for _ in 0..500 {
        for (index, (client, token)) in clients.iter_mut().enumerate() {
            let more = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
            let run = request("POST", "/api/v1/processes/run", token, &more) + body;
            let begun = Instant::now();
            client.send(run);
            assert_eq!(client.reply().status, 200);
            times[index].push(begun.elapsed());
            let begun = Instant::now();
            client.send(request("GET", "/api/v1/health", token, ""));
            assert_eq!(client.reply().status, 200);
            gets[index].push(begun.elapsed());
        }
    }
    let [direct, proxy] = times.map(p50);
    println!("run `true`, p50 of 500: direct {direct:?}, proxy {proxy:?}, added {:?}", proxy.saturating_sub(direct));
    let [direct, proxy] = gets.map(p50);
    println!("GET /health, p50 of 500: direct {direct:?}, proxy {proxy:?}, added {:?}", proxy.saturating_sub(direct));
}

fn mib_per_second(length: usize, time: Duration) -> f64 {
    length as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

#[test]
#[ignore = "prints figures"]
fn measure_files() {
    const LENGTH: usize = 256 << 20;
    let (host, daemon) = host_and_daemon();
    let target = format!("/api/v1/files?path={}", daemon.path("large").display());
    let piece = vec![b'x'; 1 << 20];
    for round in 0..3 {
        for (name, addr, token) in both(&host, &daemon) {
            let mut client = Client::connect(addr);
            let begun = Instant::now();
            client.send(request("PUT", &target, &token, &format!("Content-Length: {LENGTH}\r\n")));
            (0..LENGTH / piece.len()).for_each(|_| client.send(&piece));
            assert!(client.reply().status < 300);
            let up = mib_per_second(LENGTH, begun.elapsed());
            let begun = Instant::now();
            client.send(request("GET", &target, &token, ""));
            assert_eq!(client.head().status, 200);
            let (mut left, mut into) = (LENGTH - client.buffer.len(), vec![0; 1 << 20]);
            while left > 0 {
                left -= client.stream.read(&mut into).unwrap();
            }
            let down = mib_per_second(LENGTH, begun.elapsed());
            println!("256 MiB file, round {round}, {name}: upload {up:.0} MiB/s, download {down:.0} MiB/s");
        }
    }
}

#[test]
#[ignore = "prints figures"]
fn measure_tunnels() {
    const LENGTH: usize = 512 << 20;
    let service = tcp_service(|mut stream| {
        let piece = vec![b'x'; 1 << 20];
        (0..LENGTH / piece.len()).for_each(|_| stream.write_all(&piece).unwrap());
    });
    let (host, daemon) = host_and_daemon();
    let target = format!("/api/v1/tunnels/tcp?port={}", service.port());
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for round in 0..3 {
        for (name, addr, token) in both(&host, &daemon) {
            let mut client = Client::connect(addr);
            let begun = Instant::now();
            client.send(request("GET", &target, &token, upgrade));
            assert_eq!(client.head().status, 101);
            // Payload and headers of frames.
            let read = drain(&client.stream) + client.buffer.len();
            assert!(read >= LENGTH);
            println!("tunnel, round {round}, {name}: {:.0} MiB/s", mib_per_second(LENGTH, begun.elapsed()));
        }
    }
}

/// Reads to the end, or to the closing frame, after which the server waits for the client.
fn drain(mut stream: &TcpStream) -> usize {
    let (mut total, mut into) = (0, vec![0; 1 << 20]);
    loop {
        let read = stream.read(&mut into).unwrap();
        total += read;
        if read == 0 || into[..read].ends_with(b"\x88\x02\x03\xe8") {
            return total;
        }
    }
}

#[test]
#[ignore = "prints figures"]
fn measure_upgraded_bytes() {
    const LENGTH: usize = 1 << 30;
    let addr = tcp_service(|mut stream| {
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 101 x\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").unwrap();
        let piece = vec![b'x'; 1 << 20];
        (0..LENGTH / piece.len()).for_each(|_| stream.write_all(&piece).unwrap());
    });
    let host = Host::start();
    host.add("env", addr, super::KEY, &[]);
    for round in 0..3 {
        for (name, addr) in [("direct", addr), ("proxy", host.server.local_addr())] {
            let mut client = Client::connect(addr);
            let begun = Instant::now();
            client.send(request("GET", "/", super::KEY, "Connection: Upgrade\r\nUpgrade: x\r\n"));
            assert_eq!(client.head().status, 101);
            assert_eq!(drain(&client.stream) + client.buffer.len(), LENGTH);
            println!("raw bytes, round {round}, {name}: {:.0} MiB/s", mib_per_second(LENGTH, begun.elapsed()));
        }
    }
}

#[test]
#[ignore = "prints figures"]
fn measure_idle_web_sockets() {
    println!("1,000 idle WebSockets: {} KiB", memory::idle_web_sockets(1000));
}
