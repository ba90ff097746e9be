//! A raw HTTP client.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::{AUTH, TIMEOUT};

pub(super) struct Client {
    pub(super) stream: TcpStream,
    /// What was read and not used.
    pub(super) buffer: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// The value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(super) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The code of an error.
    pub(super) fn code(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        json["code"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    pub(super) fn connect(addr: SocketAddr) -> Client {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    pub(super) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a request with the API key.
    pub(super) fn request(&mut self, method: &str, host: &str, target: &str, headers: &str, body: &str) -> Reply {
        self.send_request(method, host, target, headers, body);
        if method == "HEAD" { self.head() } else { self.reply() }
    }

    pub(super) fn send_request(&mut self, method: &str, host: &str, target: &str, headers: &str, body: &str) {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{AUTH}{headers}{length}\r\n{body}"));
    }

    pub(super) fn get(&mut self, host: &str, target: &str) -> Reply {
        self.request("GET", host, target, "", "")
    }

    /// Reads more into the buffer. Returns false at the end.
    pub(super) fn fill(&mut self) -> bool {
        let mut piece = [0; 65536];
        let read = self.stream.read(&mut piece).unwrap();
        self.buffer.extend_from_slice(&piece[..read]);
        read > 0
    }

    /// Reads a head.
    pub(super) fn head(&mut self) -> Reply {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|part| part == b"\r\n\r\n") {
                let rest = self.buffer.split_off(at + 4);
                let head = String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap();
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return Reply { status, head, body: Vec::new() };
            }
            assert!(self.fill(), "the connection ended within a head: {:?}", String::from_utf8_lossy(&self.buffer));
        }
    }

    /// Reads a response.
    pub(super) fn reply(&mut self) -> Reply {
        let mut reply = self.head();
        if matches!(reply.status, 101 | 204 | 304) {
            return reply;
        }
        reply.body = match (reply.header("Content-Length"), reply.header("Transfer-Encoding")) {
            (Some(length), None) => self.take(length.parse().unwrap()),
            (None, Some("chunked")) => self.chunks(),
            (None, None) => {
                while self.fill() {}
                std::mem::take(&mut self.buffer)
            }
            both => panic!("{both:?}"),
        };
        reply
    }

    /// Reads exactly so many bytes.
    pub(super) fn take(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.fill(), "{} of {length} bytes", self.buffer.len());
        }
        let rest = self.buffer.split_off(length);
        std::mem::replace(&mut self.buffer, rest)
    }

    fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.buffer.windows(2).position(|part| part == b"\r\n") {
                let line = self.take(at + 2);
                return String::from_utf8(line).unwrap().trim_end().to_owned();
            }
            assert!(self.fill(), "the connection ended within a line");
        }
    }

    /// Reads one chunk; empty for the last one.
    pub(super) fn chunk(&mut self) -> Vec<u8> {
        let length = usize::from_str_radix(&self.line(), 16).unwrap();
        let chunk = self.take(length);
        assert_eq!(self.line(), "");
        chunk
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk();
            if chunk.is_empty() {
                return body;
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// Whether the connection has ended, by an end or a reset, after what is in the buffer.
    pub(super) fn is_cut(&mut self) -> bool {
        let mut piece = [0; 65536];
        loop {
            match self.stream.read(&mut piece) {
                Ok(0) => return true,
                Ok(read) => self.buffer.extend_from_slice(&piece[..read]),
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    }
}
