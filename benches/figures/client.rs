//! A client of the API that costs little: requests are prepared, and responses are read into one buffer and not parsed
//! beyond their end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::{Value, json};

use crate::floors::read_some;
use crate::harness::{Daemon, TIMEOUT};

/// One connection that is kept alive.
pub struct Client {
    socket: TcpStream,
    host: String,
    token: String,
    response: Vec<u8>,
    block: Vec<u8>,
}

impl Client {
    pub fn new(daemon: &Daemon) -> Client {
        Client::connect(daemon.addr, &daemon.addr.to_string(), &daemon.token)
    }

    /// A client that sends `host` as the header `Host`, and `token` as the bearer token.
    pub fn connect(addr: SocketAddr, host: &str, token: &str) -> Client {
        let socket = TcpStream::connect(addr).expect("connect");
        socket.set_nodelay(true).expect("set TCP_NODELAY");
        socket.set_read_timeout(Some(TIMEOUT)).expect("set the timeout");
        let (host, token) = (host.to_owned(), token.to_owned());
        Client { socket, host, token, response: Vec::new(), block: vec![0; 64 << 10] }
    }

    /// A request, ready to be sent. `path` is below `/api/v1`; no body is sent for null.
    pub fn prepare(&self, method: &str, path: &str, body: &Value) -> Vec<u8> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (host, token, length) = (&self.host, &self.token, body.len());
        format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: \
             {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// Sends a request and reads the whole response; fails unless its status is `status`.
    pub fn exchange(&mut self, request: &[u8], status: &str) -> &[u8] {
        self.send(request);
        assert!(self.status() == status.as_bytes(), "{}", String::from_utf8_lossy(&self.response));
        &self.response
    }

    /// Sends a request whose response is known to be `length` bytes long, and reads the response.
    pub fn exchange_known(&mut self, request: &[u8], length: usize) -> &[u8] {
        self.socket.write_all(request).expect("send");
        let response = &mut self.block[..length];
        self.socket.read_exact(response).expect("receive");
        response
    }

    /// The status of the last response.
    fn status(&self) -> &[u8] {
        &self.response[9..12]
    }

    fn send(&mut self, request: &[u8]) {
        self.socket.write_all(request).expect("send");
        self.response.clear();
        while !is_complete(&self.response) {
            let got = read_some(&mut self.socket, &mut self.block);
            assert!(got > 0, "the connection ended within a response");
            self.response.extend_from_slice(&self.block[..got]);
        }
    }

    /// The request that runs `/bin/true` as the default user.
    pub fn run_true(&self) -> Vec<u8> {
        self.prepare("POST", "/processes/run", &json!({"command": "/bin/true"}))
    }

    /// The request that starts a process that stays.
    pub fn start_sleep(&self) -> Vec<u8> {
        self.prepare("POST", "/processes", &json!({"command": "/bin/sleep", "args": ["9000"]}))
    }

    /// Runs a program to its end; fails unless it exits with 0.
    pub fn run(&mut self, request: &[u8]) {
        let response = self.exchange(request, "200");
        assert!(find(response, b"\"exit_code\":0").is_some(), "{}", String::from_utf8_lossy(response));
    }

    /// Starts a process; its PID.
    pub fn start(&mut self, request: &[u8]) -> u64 {
        self.try_start(request).expect("the daemon accepts another process")
    }

    /// Starts a process; its PID, or none if as many processes run as the daemon accepts.
    fn try_start(&mut self, request: &[u8]) -> Option<u64> {
        self.send(request);
        if self.status() == b"429" {
            return None;
        }
        let response = &self.response;
        assert!(self.status() == b"201", "{}", String::from_utf8_lossy(response));
        let at = find(response, b"\"pid\":").expect("a PID") + 6;
        let digits = response[at..].iter().take_while(|byte| byte.is_ascii_digit());
        Some(digits.fold(0, |pid, byte| pid * 10 + u64::from(byte - b'0')))
    }

    /// Deletes a process.
    pub fn delete(&mut self, pid: u64) {
        let request = self.prepare("DELETE", &format!("/processes/{pid}"), &Value::Null);
        self.exchange(&request, "204");
    }
}

/// Starts processes that stay until `wanted` of them run, or as many as the daemon accepts, with eight clients. `pids` are
/// those that run already.
pub fn start_until(daemon: &Daemon, pids: &mut Vec<u64>, wanted: usize) {
    let each = wanted.saturating_sub(pids.len()).div_ceil(8);
    let missing = wanted.saturating_sub(pids.len());
    let started = std::thread::scope(|scope| {
        let start = |count: usize| {
            let mut client = Client::new(daemon);
            let request = client.start_sleep();
            (0..count).map_while(|_| client.try_start(&request)).collect::<Vec<u64>>()
        };
        let counts = (0..8).map(|thread| each.min(missing.saturating_sub(thread * each)));
        let threads: Vec<_> = counts.map(|count| scope.spawn(move || start(count))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect::<Vec<u64>>()
    });
    pids.extend(started);
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|window| window == word)
}

/// Whether a response with keep-alive has arrived as a whole.
fn is_complete(response: &[u8]) -> bool {
    let Some(head) = find(response, b"\r\n\r\n") else { return false };
    let (head, body) = (&response[..head], &response[head + 4..]);
    let name = b"content-length: ";
    let length = head.windows(name.len()).position(|window| window.eq_ignore_ascii_case(name));
    if let Some(at) = length {
        let digits = head[at + name.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        return body.len() >= digits.fold(0, |length, digit| length * 10 + usize::from(digit - b'0'));
    }
    // Without a length the response is chunked or, with 204, has no body.
    response.get(9..12) == Some(b"204")
        || body.ends_with(b"0\r\n\r\n") && (body.len() == 5 || body.ends_with(b"\r\n0\r\n\r\n"))
}
