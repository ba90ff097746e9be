//! Answers as a test sees them: whole ones, and streams of events read byte by byte off a socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

/// A whole answer.
pub struct Reply {
    pub what: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn read(what: &str, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Reply {
        let answer = answer.unwrap_or_else(|error| panic!("{what}: {error}"));
        let headers = answer
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let status = answer.status().as_u16();
        let body = answer.into_body().into_with_config().limit(u64::MAX).read_to_vec();
        let body = body.unwrap_or_else(|error| panic!("{what}: body: {error}"));
        Reply { what: what.to_owned(), status, headers, body }
    }

    /// The body, which has this status; null where there is none.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.what, String::from_utf8_lossy(&self.body));
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}: not JSON: {}", self.what, String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// An error as the contract has it: status, code, and a sentence that says `needle`.
    pub fn expect_error(&self, status: u16, code: &str, needle: &str) {
        let what = format!("{}: {} {}", self.what, self.status, String::from_utf8_lossy(&self.body));
        assert_eq!(self.status, status, "{what}");
        let body = self.json();
        assert_eq!(body["code"], code, "{what}");
        let sentence = body["error"].as_str().unwrap_or_else(|| panic!("no sentence: {what}"));
        assert!(sentence.contains(needle), "no {needle:?} in the sentence: {what}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{what}");
        for ours_not in ["SANDBOX_", "AUTH_SERVICE"] {
            assert!(!code.starts_with(ours_not), "a code of the hosted proxy: {what}");
        }
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

enum Framing {
    /// Bytes left of this chunk; none: the last one was read.
    Chunked(Option<u64>),
    Length(u64),
    ToTheEnd,
}

/// An answer whose head has been read and whose body is still to come.
pub struct Stream {
    socket: BufReader<TcpStream>,
    framing: Framing,
    pub status: u16,
    pub headers: Vec<(String, String)>,
}

impl Stream {
    /// Sends `request` and reads the head of the answer.
    pub fn send(mut socket: TcpStream, request: &[u8]) -> Stream {
        // A daemon that refuses early may close before it has read all; its answer is what counts.
        let _ = socket.write_all(request);
        Stream::read(socket).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    /// The same, with none where the daemon does not answer.
    pub fn try_send(mut socket: TcpStream, request: &str) -> Option<Stream> {
        socket.write_all(request.as_bytes()).ok()?;
        Stream::read(socket).ok()
    }

    /// Reads the head of an answer to what was sent already.
    pub fn read(socket: TcpStream) -> io::Result<Stream> {
        let mut socket = BufReader::with_capacity(1 << 16, socket);
        let first = read_line(&mut socket)?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not an answer: {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = read_line(&mut socket)?;
            let Some((key, value)) = line.split_once(':') else { break };
            headers.push((key.to_owned(), value.trim().to_owned()));
        }
        let framing = if header(&headers, "transfer-encoding").is_some_and(|value| value == "chunked") {
            Framing::Chunked(Some(0))
        } else if let Some(length) = header(&headers, "content-length") {
            Framing::Length(length.parse().map_err(io::Error::other)?)
        } else {
            Framing::ToTheEnd
        };
        Ok(Stream { socket, framing, status, headers })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn expect_status(self, status: u16) -> Stream {
        if self.status == status {
            return self;
        }
        let got = self.status;
        panic!("{got} instead of {status}: {}", String::from_utf8_lossy(&self.read_all()));
    }

    /// The rest of the body.
    pub fn read_all(mut self) -> Vec<u8> {
        let mut body = Vec::new();
        self.read_to_end(&mut body).expect("the whole body");
        body
    }

    /// The whole of it as a [`Reply`].
    pub fn into_reply(self, what: &str) -> Reply {
        let (status, headers) = (self.status, self.headers.clone());
        Reply { what: what.to_owned(), status, headers, body: self.read_all() }
    }

    /// What a next request on this connection would be sent through.
    pub fn into_socket(self) -> TcpStream {
        self.socket.into_inner()
    }

    fn next_chunk(&mut self) -> io::Result<u64> {
        let mut line = read_line(&mut self.socket)?;
        if line.is_empty() {
            // The end of the chunk before.
            line = read_line(&mut self.socket)?;
        }
        let size = u64::from_str_radix(&line, 16).map_err(|_| io::Error::other(format!("a chunk of {line:?}")))?;
        if size == 0 {
            read_line(&mut self.socket)?;
        }
        Ok(size)
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked(Some(0)) = self.framing {
            let size = self.next_chunk()?;
            self.framing = Framing::Chunked((size > 0).then_some(size));
        }
        let left = match &mut self.framing {
            Framing::Chunked(None) => return Ok(0),
            Framing::ToTheEnd => return self.socket.read(into),
            Framing::Chunked(Some(left)) | Framing::Length(left) => left,
        };
        if *left == 0 {
            return Ok(0);
        }
        let most = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let got = self.socket.read(&mut into[..most])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        *left -= got as u64;
        Ok(got)
    }
}

fn read_line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    if from.read_until(b'\n', &mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    while line.last().is_some_and(|byte| b"\r\n".contains(byte)) {
        line.pop();
    }
    String::from_utf8(line).map_err(io::Error::other)
}

/// One frame of an event stream.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    pub event: String,
    pub id: String,
    pub data: Value,
}

/// The frames of an event stream, in order.
pub struct Events {
    body: BufReader<Stream>,
    /// Comment frames seen so far.
    pub comments: usize,
}

impl Events {
    pub fn new(stream: Stream) -> Events {
        assert_eq!(stream.header("content-type").map(|value| &value[..17]), Some("text/event-stream"));
        Events { body: BufReader::with_capacity(1 << 16, stream), comments: 0 }
    }

    /// The next frame; none at the end of the body.
    pub fn next_frame(&mut self) -> Option<Frame> {
        let mut frame = Frame::default();
        let mut seen = false;
        loop {
            let mut line = Vec::new();
            if self.body.read_until(b'\n', &mut line).expect("the stream goes on") == 0 {
                assert!(!seen, "the stream ended within a frame: {frame:?}");
                return None;
            }
            line.pop();
            let line = std::str::from_utf8(&line).expect("a stream is UTF-8");
            match line.split_once(':').map(|(key, rest)| (key, rest.trim_start())) {
                None if line.is_empty() && seen => return Some(frame),
                None => assert!(line.is_empty(), "not a line of a frame: {line:?}"),
                Some(("", _)) => self.comments += 1,
                Some(("data", data)) => {
                    frame.data = serde_json::from_str(data).unwrap_or_else(|_| panic!("not JSON: {data:?}"));
                    seen = true;
                }
                Some(("event", event)) => event.clone_into(&mut frame.event),
                Some(("id", id)) => id.clone_into(&mut frame.id),
                Some(_) => panic!("not a field that we send: {line:?}"),
            }
        }
    }

    /// Everything up to `eof`, which is the last frame.
    pub fn until_eof(self) -> Vec<Frame> {
        self.with_eof().0
    }

    /// The same, and the `id` of `eof`.
    pub fn with_eof(mut self) -> (Vec<Frame>, String) {
        let mut frames = Vec::new();
        while let Some(frame) = self.next_frame() {
            if frame.event == "eof" {
                assert_eq!(frame.data, serde_json::json!({}), "eof carries nothing");
                assert!(!frame.id.is_empty(), "eof without an id");
                assert!(self.next_frame().is_none(), "something after eof");
                return (frames, frame.id);
            }
            frames.push(frame);
        }
        panic!("the stream ended without eof after {frames:?}");
    }

    /// The lines of everything up to `eof`, nothing of which is a gap.
    pub fn all_lines(self) -> Vec<String> {
        let frames = self.until_eof();
        frames
            .into_iter()
            .map(|frame| {
                assert_eq!(frame.event, "output", "{frame:?}");
                assert!(frame.data["timestamp"].is_u64(), "without it clients drop the line: {frame:?}");
                assert!(!frame.id.is_empty(), "{frame:?}");
                text(&frame.data)
            })
            .collect()
    }

    /// The raw stream behind it, for tests that read faster than frames can be parsed.
    pub fn into_reader(self) -> BufReader<Stream> {
        self.body
    }
}

fn text(data: &Value) -> String {
    data["line"].as_str().unwrap_or_else(|| panic!("no line in {data}")).to_owned()
}

/// A run to completion, as its stream told it.
#[derive(Debug)]
pub struct Run {
    pub first: Value,
    pub events: Vec<Value>,
    pub last: Value,
}

impl Run {
    /// Reads the stream to its end and checks what every run promises.
    pub fn collect(mut stream: Events) -> Run {
        let first = stream.next_frame().expect("a first event").data;
        for field in ["handle", "pid", "started_at"] {
            assert!(first[field].is_u64(), "no {field} in the first event: {first}");
        }
        let mut events = Vec::new();
        let last = loop {
            let frame = stream.next_frame().unwrap_or_else(|| panic!("no last event after {events:?}"));
            let event = frame.data;
            if frame.event == "gap" {
                assert!(event["lost_bytes"].is_u64(), "{event}");
                continue;
            }
            if event.get("line").is_none() {
                break event;
            }
            assert!(event["timestamp"].is_u64(), "without it clients drop the line: {event}");
            assert!(event["stream"] == "stdout" || event["stream"] == "stderr", "{event}");
            events.push(event);
        };
        assert!(stream.next_frame().is_none(), "something after the last event {last}");
        assert!(last["exit_code"].is_u64() != last["signal"].is_u64(), "exactly one of the two: {last}");
        assert!(last["oom_killed"].is_boolean() && last["reason"].is_string(), "{last}");
        assert!(last.get("pid").is_none() && last.get("started_at").is_none(), "taken for the first: {last}");
        Run { first, events, last }
    }

    pub fn pid(&self) -> u64 {
        self.first["pid"].as_u64().unwrap_or_default()
    }

    pub fn code(&self) -> Option<u64> {
        self.last["exit_code"].as_u64()
    }

    /// The lines of one stream.
    pub fn lines(&self, stream: &str) -> Vec<String> {
        self.events.iter().filter(|event| event["stream"] == stream).map(text).collect()
    }

    /// What the run wrote to stdout, where it succeeded.
    pub fn stdout(&self) -> String {
        assert_eq!(self.code(), Some(0), "{:?} {}", self.lines("stderr"), self.last);
        self.lines("stdout").join("\n")
    }
}
