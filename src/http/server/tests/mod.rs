//! The connection layer over real sockets, with a small service in place of the API.

mod bodies;
mod crowds;
mod heads;
mod streams;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::http::message::request::Request;
use crate::http::message::response::Answer;
use crate::http::message::response_head::{Problem, Reply};
use crate::http::{Options, Server};

/// Longer than anything takes that is not broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server, and what its handlers report.
struct Fixture {
    server: Server,
    reports: Receiver<&'static str>,
}

fn fixture(options: Options) -> Fixture {
    let (report, reports) = unbounded();
    let service = Arc::new(move |request: &mut Request<'_>| serve(request, &report));
    let server = Server::serve(SocketAddr::from(([127, 0, 0, 1], 0)), service, options).unwrap();
    Fixture { server, reports }
}

fn serve(request: &mut Request<'_>, report: &Sender<&'static str>) -> Result<Answer, Problem> {
    match request.path() {
        "/hello" => Ok(Reply::bytes(200, "text/plain", b"hello".to_vec()).into()),
        "/large" => Ok(Reply::bytes(200, "text/plain", vec![b'x'; 16 << 20]).into()),
        "/nothing" => Ok(Reply::no_content().into()),
        "/echo" => {
            let body = request.whole_body()?;
            Ok(Reply::bytes(200, "text/plain", body.to_vec()).into())
        }
        "/count" => {
            let mut count = 0;
            while let Some(piece) = request.body_piece(64 << 10)? {
                assert!(piece.len() <= 64 << 10);
                count += piece.len();
            }
            Ok(Reply::json(200, &count).into())
        }
        "/hold" => {
            let waker = request.waker()?;
            let _ = report.send("holding");
            let end = request.wait(&waker, None);
            let _ = report.send("gone");
            end.map(|_| Reply::no_content().into())
        }
        "/panic" => panic!("on purpose"),
        "/stream" => {
            let lines: usize = request.query("lines").unwrap().parse().unwrap();
            Ok(Answer::events(move |stream| {
                for line in 0..lines {
                    writeln!(stream, "line {line}")?;
                }
                Ok(())
            }))
        }
        "/panic-early" => Ok(Answer::events(|_| panic!("on purpose"))),
        "/panic-late" => Ok(Answer::events(|stream| {
            stream.buffer().extend_from_slice(b"begun");
            stream.flush()?;
            panic!("on purpose")
        })),
        "/endless" => {
            let report = report.clone();
            Ok(Answer::events(move |stream| {
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
            Ok(Answer::events(move |stream| {
                stream.flush()?;
                let _ = report.send("streaming");
                let ended = stream.wait(&waker, None);
                let _ = report.send("gone");
                ended.map(drop)
            }))
        }
        path => Err(Problem::NoRoute(path.to_owned())),
    }
}

impl Fixture {
    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.server.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, read: Vec::new() }
    }

    /// Sends `bytes` on a connection of its own and says that this is all; everything that is answered.
    fn all(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut client = self.connect();
        client.send(bytes);
        client.rest()
    }

    #[track_caller]
    fn expect(&self, report: &'static str) {
        assert_eq!(self.reports.recv_timeout(PATIENCE).ok(), Some(report));
    }
}

struct Client {
    stream: TcpStream,
    /// Read, and not part of an answer that was returned.
    read: Vec<u8>,
}

struct Answered {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    fn get(&mut self, path: &str) -> Answered {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        self.answer()
    }

    /// The next answer, by its own framing.
    #[track_caller]
    fn answer(&mut self) -> Answered {
        let head = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break self.read.drain(..end + 4).collect::<Vec<_>>();
            }
            self.more();
        };
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let field = |name: &str| {
            let line = head.lines().find(|line| line.to_lowercase().starts_with(name));
            line.map(|line| line.split_once(": ").unwrap().1.to_owned())
        };
        let body = if field("transfer-encoding: ").is_some() {
            self.chunks()
        } else {
            let length = field("content-length: ").map_or(0, |length| length.parse().unwrap());
            self.take(length)
        };
        Answered { status, head, body }
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

    /// Everything up to the end of the connection.
    #[track_caller]
    fn until_end(&mut self) -> String {
        let mut all = std::mem::take(&mut self.read);
        self.stream.read_to_end(&mut all).unwrap();
        String::from_utf8(all).unwrap()
    }

    /// Waits for the end of a connection that is closed without an answer, by a reset where bytes were not read.
    #[track_caller]
    fn ends_unanswered(&mut self) {
        let mut all = Vec::new();
        match self.stream.read_to_end(&mut all) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        assert_eq!((&self.read, &all), (&Vec::new(), &Vec::new()));
    }

    /// Everything up to the end of the connection, having said that nothing more is sent.
    #[track_caller]
    fn rest(&mut self) -> String {
        let _ = self.stream.shutdown(Shutdown::Write);
        self.until_end()
    }
}

fn code(answer: &Answered) -> String {
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(body["error"].as_str().is_some_and(|sentence| !sentence.is_empty()));
    body["code"].as_str().unwrap().to_owned()
}
