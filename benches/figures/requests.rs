//! Figures of short requests: runs, and `GET /health`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::json;

use crate::harness::Daemon;
use crate::harness::response::ResponseStream;
use crate::measure::{percentiles, rate, row, spawn_true, timed};

/// A client that sends one request repeatedly on one connection.
pub struct Client {
    socket: Option<TcpStream>,
    request: Vec<u8>,
    expected: &'static [u8],
}

impl Client {
    fn new(daemon: &Daemon, method: &str, path: &str, body: &str, expected: &'static [u8]) -> Client {
        let socket = daemon.connect();
        socket.set_nodelay(true).expect("set TCP_NODELAY");
        let request = daemon.request_head(method, path, &format!("Content-Length: {}\r\n", body.len())) + body;
        Client { socket: Some(socket), request: request.into_bytes(), expected }
    }

    /// A client that runs `/bin/true` as the default user.
    pub fn run_true(daemon: &Daemon) -> Client {
        let body = json!({"command": "/bin/true"}).to_string();
        Client::new(daemon, "POST", "/processes/run", &body, b"\"exit_code\":0")
    }

    /// A client that asks for the health of the daemon.
    fn get_health(daemon: &Daemon) -> Client {
        Client::new(daemon, "GET", "/health", "", b"true")
    }

    pub fn send(&mut self) {
        let socket = self.socket.take().expect("the connection");
        let mut stream = ResponseStream::send(socket, &self.request);
        let mut body = Vec::new();
        stream.read_to_end(&mut body).expect("the whole body");
        let found = body.windows(self.expected.len()).any(|window| window == self.expected);
        assert!(found, "{}", String::from_utf8_lossy(&body));
        self.socket = Some(stream.into_socket());
    }
}

/// Latency of a run with one client; the floor is [`spawn_true`].
pub fn latency(daemon: &Daemon) {
    let mut client = Client::run_true(daemon);
    timed(200, || client.send());
    let ours = percentiles(timed(2_000, || client.send()));
    let floor = percentiles(timed(2_000, spawn_true));
    for (name, (ours, floor)) in ["p50", "p90", "p99"].into_iter().zip(ours.into_iter().zip(floor)) {
        row(&format!("run /bin/true, {name}, ms"), ours, Some(floor));
    }
}

/// Runs per second with eight clients; the floor is [`spawn_true`] on eight threads.
pub fn throughput(daemon: &Daemon) {
    let clients = (0..8).map(|_| Client::run_true(daemon));
    let ours = rate(8_000, clients.map(|mut client| move || client.send()).collect());
    let floor = rate(8_000, vec![spawn_true; 8]);
    row("runs per second, 8 clients", ours, Some(floor));
}

/// Latency and rate of `GET /health`; the floor is one small message each way over the loopback.
pub fn health(daemon: &Daemon) {
    let echo = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let addr = echo.local_addr().expect("local address");
    std::thread::spawn(move || {
        for socket in echo.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut socket, mut buffer) = (socket, [0; 512]);
                while let Ok(got @ 1..) = socket.read(&mut buffer) {
                    let _ = socket.write_all(&buffer[..got]);
                }
            });
        }
    });
    let round_trip = || {
        let mut socket = TcpStream::connect(addr).expect("connect");
        socket.set_nodelay(true).expect("set TCP_NODELAY");
        let mut buffer = [0; 128];
        move || {
            socket.write_all(&buffer).expect("send");
            socket.read_exact(&mut buffer).expect("receive");
        }
    };
    let mut client = Client::get_health(daemon);
    timed(1_000, || client.send());
    let ours = percentiles(timed(20_000, || client.send()));
    let floor = percentiles(timed(20_000, round_trip()));
    row("health, p50, ms", ours[0], Some(floor[0]));
    let clients = (0..8).map(|_| Client::get_health(daemon));
    let ours = rate(80_000, clients.map(|mut client| move || client.send()).collect());
    let floor = rate(80_000, (0..8).map(|_| round_trip()).collect());
    row("health, requests per second, 8 clients", ours, Some(floor));
}
