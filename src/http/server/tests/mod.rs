//! Tests of the server over real sockets, with a small handler in place of the API.

mod bodies;
mod eviction;
mod heads;
mod proxying;
mod responses;
mod streams;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

use tl_os::poll::{self, Events};

use crate::http::message::{ApiError, Request, Response, ResponseStream, Socket};
use crate::http::server::{Options, Server};

/// Time limit for everything that a test waits for; long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A server, and what its handler reports.
struct Fixture {
    server: Server,
    reports: Receiver<&'static str>,
    /// Lets a request for `/gate` go on.
    gate: Sender<()>,
}

fn fixture(options: Options) -> Fixture {
    let (report, reports) = unbounded();
    let (gate, opened) = unbounded();
    let handler = move |request: &mut Request<'_>| match request.path() {
        "/gate" => {
            let _ = report.send("holding");
            opened.recv_timeout(TIMEOUT).map_err(|_| ApiError::internal("the gate was not opened"))?;
            Ok(Response::empty(204))
        }
        _ => handle(request, &report),
    };
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), handler, options).unwrap();
    Fixture { server, reports, gate }
}

fn handle(request: &mut Request<'_>, report: &Sender<&'static str>) -> Result<Response, ApiError> {
    match request.path() {
        "/hello" => Ok(Response::new(200, "text/plain", "hello")),
        "/large" => Ok(Response::new(200, "text/plain", vec![b'x'; 16 << 20])),
        "/nothing" => Ok(Response::empty(204)),
        "/echo" => {
            let body = request.whole_body()?;
            Ok(Response::new(200, "text/plain", body.to_vec()))
        }
        "/count" => {
            let mut count = 0;
            while let Some(piece) = request.body_piece(64 << 10)? {
                assert!(piece.len() <= 64 << 10);
                count += piece.len();
            }
            Ok(Response::json(200, count.to_string()))
        }
        "/hold" => {
            let waker = request.waker()?;
            let _ = report.send("holding");
            let end = request.wait(&waker, None);
            let _ = report.send("gone");
            end.map(|_| Response::empty(204))
        }
        "/status" => {
            let status: u16 = request.query("status").unwrap().parse().unwrap();
            let stream = request.query("stream").is_some();
            let write = |body: &mut ResponseStream<'_>| body.write_all(b"body");
            Ok(if stream {
                Response::stream(status, "text/plain", None, write)
            } else {
                Response::new(status, "a/b", "body")
            })
        }
        "/announced" => {
            let [length, pieces, piece] = ["length", "pieces", "piece"].map(|name| request.query(name).unwrap());
            let (pieces, piece): (usize, usize) = (pieces.parse().unwrap(), piece.parse().unwrap());
            Ok(Response::stream(200, "text/plain", Some(length.parse().unwrap()), move |body| {
                (0..pieces).try_for_each(|_| body.write_all(&vec![b'x'; piece]))
            }))
        }
        "/pieces" => {
            let sizes = request.query("sizes").unwrap();
            let length = request.query("length").map(|length| length.parse().unwrap());
            Ok(Response::stream(200, "text/plain", length, move |body| {
                let sizes = sizes.split(',').map(|size| size.parse::<usize>().unwrap());
                sizes.enumerate().try_for_each(|(n, size)| body.write_all(&vec![b'a' + n as u8; size]))
            }))
        }
        "/pause" => {
            let report = report.clone();
            Ok(Response::events(move |events| {
                events.flush()?;
                let _ = report.send("streaming");
                let paused = events.pause(Duration::MAX);
                let _ = report.send("gone");
                paused
            }))
        }
        "/stopping" => {
            let report = report.clone();
            Ok(Response::upgrade("x", move |socket| {
                assert!(!socket.is_stopping());
                let _ = report.send("serving");
                let stop = (socket.stop_signal(), Events::READ);
                let _ = poll::wait([stop], Some(Instant::now() + TIMEOUT));
                assert!(socket.is_stopping());
                let _ = report.send("stopping");
            }))
        }
        "/invalid" => Ok(Response::empty(200).header("X", "a\r\nSet-Cookie: b")),
        "/upgrade" => Ok(Response::upgrade("echo", echo)),
        "/panic" => panic!("on purpose"),
        "/stream" => {
            let lines: usize = request.query("lines").unwrap().parse().unwrap();
            Ok(Response::events(move |stream| {
                for line in 0..lines {
                    writeln!(stream, "line {line}")?;
                }
                Ok(())
            }))
        }
        "/panic-early" => Ok(Response::events(|_| panic!("on purpose"))),
        "/panic-late" => Ok(Response::events(|stream| {
            stream.buffer().extend_from_slice(b"begun");
            stream.flush()?;
            panic!("on purpose")
        })),
        "/endless" => {
            let report = report.clone();
            Ok(Response::events(move |stream| {
                let _ = report.send("streaming");
                let ended = loop {
                    if let Err(error) = stream.write_all(&[b'x'; 1000]) {
                        break Err(error);
                    }
                };
                let _ = report.send("gone");
                ended
            }))
        }
        "/silent" => {
            let waker = request.waker()?;
            let report = report.clone();
            Ok(Response::events(move |stream| {
                stream.flush()?;
                let _ = report.send("streaming");
                let ended = stream.wait(&waker, None);
                let _ = report.send("gone");
                ended.map(drop)
            }))
        }
        path => Err(ApiError::no_route(path)),
    }
}

/// Sends back what the client sends, up to its end.
fn echo(socket: &mut Socket) {
    let mut bytes = [0; 64];
    loop {
        match socket.read(&mut bytes) {
            Ok(0) => return,
            Ok(count) => assert_eq!(socket.write(&bytes[..count]).unwrap(), count),
            Err(_) => socket.wait_readable(None).unwrap(),
        }
    }
}

impl Fixture {
    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.server.local_addr()).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, read: Vec::new() }
    }

    /// Sends `bytes` on a connection of its own and closes the sending direction. Returns everything that is answered.
    fn all(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        client.send(bytes);
        client.rest()
    }

    #[track_caller]
    fn expect(&self, report: &'static str) {
        assert_eq!(self.reports.recv_timeout(TIMEOUT).ok(), Some(report));
    }
}

struct Client {
    stream: TcpStream,
    /// Bytes that were read and are not part of a response that was returned.
    read: Vec<u8>,
}

struct Received {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    fn get(&mut self, path: &str) -> Received {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        self.response()
    }

    /// Reads the next response, by its own framing.
    #[track_caller]
    fn response(&mut self) -> Received {
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break self.read.drain(..end + 4).collect::<Vec<_>>();
            }
            self.more();
        };
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let header = |name: &str| {
            let line = head.lines().find(|line| line.to_lowercase().starts_with(name));
            line.map(|line| line.split_once(": ").unwrap().1.to_owned())
        };
        let body = if header("transfer-encoding: ").is_some() {
            self.chunks()
        } else {
            let length = header("content-length: ").map_or(0, |length| length.parse().unwrap());
            self.take(length)
        };
        Received { status, head, body }
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let line = loop {
                if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                    break self.take(end + 1);
                }
                self.more();
            };
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim_end(), 16).unwrap();
            let chunk = self.take(size + 2);
            assert!(chunk.ends_with(b"\r\n"));
            body.extend_from_slice(&chunk[..size]);
            if size == 0 {
                return body;
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            self.more();
        }
        self.read.drain(..count).collect()
    }

    #[track_caller]
    fn more(&mut self) {
        let mut piece = vec![0; 64 << 10];
        let count = self.stream.read(&mut piece).unwrap();
        assert!(count > 0, "the connection ended after {:?}", String::from_utf8_lossy(&self.read));
        self.read.extend_from_slice(&piece[..count]);
    }

    /// Reads everything up to the end of the connection.
    #[track_caller]
    fn until_end(&mut self) -> String {
        let mut all = std::mem::take(&mut self.read);
        self.stream.read_to_end(&mut all).unwrap();
        String::from_utf8(all).unwrap()
    }

    /// Waits for the end of a connection that is closed without a response: by a reset, if bytes were not read.
    #[track_caller]
    fn expect_no_response(&mut self) {
        let mut all = Vec::new();
        match self.stream.read_to_end(&mut all) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        assert_eq!((&self.read, &all), (&Vec::new(), &Vec::new()));
    }

    /// Closes the sending direction, and reads everything up to the end of the connection.
    #[track_caller]
    fn rest(&mut self) -> String {
        let _ = self.stream.shutdown(Shutdown::Write);
        self.until_end()
    }
}

/// The code of an error response, which must have a sentence too.
fn code(response: &Received) -> String {
    let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert!(body["error"].as_str().is_some_and(|sentence| !sentence.is_empty()));
    body["code"].as_str().unwrap().to_owned()
}
