//! Responses of the API: complete ones, and event streams that are read from the socket as they arrive.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use serde_json::Value;

use super::openapi::Described;

/// Number of events of a stream that are compared with the description of the API.
const CHECKED_EVENTS: usize = 100;

/// A complete response.
pub struct Response {
    /// The request, for messages of failed assertions.
    pub request: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn read(request: &str, result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Response {
        let response = result.unwrap_or_else(|error| panic!("{request}: {error}"));
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        let status = response.status().as_u16();
        let body = response.into_body().into_with_config().limit(u64::MAX).read_to_vec();
        let body = body.unwrap_or_else(|error| panic!("{request}: body: {error}"));
        Response { request: request.to_owned(), status, headers, body }
    }

    /// Fails if the response is not as the description of the API says.
    pub fn check(&self, described: Described) {
        let checked = described.check_headers(&self.headers);
        let checked = checked.and_then(|()| described.check_body(self.header("content-type"), &self.body));
        checked.unwrap_or_else(|error| {
            panic!("{}: {} differs from docs/openapi.json: {error}", self.request, self.status)
        });
    }

    /// The JSON body, null if it is empty; fails unless the status is this one.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}: {}", self.request, String::from_utf8_lossy(&self.body));
        if self.body.is_empty() { Value::Null } else { self.json() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}: not JSON: {}", self.request, String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Checks an error response: its status, its code, and a sentence that contains `needle`.
    pub fn expect_error(&self, status: u16, code: &str, needle: &str) {
        let what = format!("{}: {} {}", self.request, self.status, String::from_utf8_lossy(&self.body));
        assert_eq!(self.status, status, "{what}");
        let body = self.json();
        assert_eq!(body["code"], code, "{what}");
        let sentence = body["error"].as_str().unwrap_or_else(|| panic!("no sentence: {what}"));
        assert!(sentence.contains(needle), "no {needle:?} in the sentence: {what}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{what}");
        for reserved in ["SANDBOX_", "AUTH_SERVICE"] {
            assert!(!code.starts_with(reserved), "a code of the hosted proxy: {what}");
        }
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

enum Framing {
    /// Bytes left of the current chunk; none once the last chunk has been read.
    Chunked(Option<u64>),
    Length(u64),
    UntilClose,
}

/// A response whose head has been read and whose body has not.
pub struct ResponseStream {
    socket: BufReader<TcpStream>,
    framing: Framing,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// What the description of the API says, if the request is known.
    described: Option<Described>,
}

impl ResponseStream {
    /// Sends `request` and reads the head of the response.
    pub fn send(mut socket: TcpStream, request: &[u8]) -> ResponseStream {
        // A daemon that refuses a request early may close before it has read all of it; only its response counts.
        let _ = socket.write_all(request);
        let response = ResponseStream::read(socket).unwrap_or_else(|error| panic!("no response: {error}"));
        let described = Described::find_for(request, response.status);
        ResponseStream { described, ..response }
    }

    /// Sends `request` and reads the head of the response; none if the daemon does not respond.
    pub fn try_send(mut socket: TcpStream, request: &str) -> Option<ResponseStream> {
        socket.write_all(request.as_bytes()).ok()?;
        ResponseStream::read(socket).ok()
    }

    /// Reads the head of the response to a request that was sent before.
    pub fn read(socket: TcpStream) -> io::Result<ResponseStream> {
        let mut socket = BufReader::with_capacity(1 << 16, socket);
        let first = read_line(&mut socket)?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not a response: {first:?}")))?;
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
            Framing::UntilClose
        };
        Ok(ResponseStream { socket, framing, status, headers, described: None })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn expect_status(self, status: u16) -> ResponseStream {
        if self.status == status {
            return self;
        }
        let got = self.status;
        panic!("{got} instead of {status}: {}", String::from_utf8_lossy(&self.read_all()));
    }

    /// Reads the rest of the body.
    pub fn read_all(mut self) -> Vec<u8> {
        let mut body = Vec::new();
        self.read_to_end(&mut body).expect("the whole body");
        body
    }

    /// Reads the rest of the body and returns the whole [`Response`].
    pub fn into_response(self, request: &str) -> Response {
        let (status, headers, described) = (self.status, self.headers.clone(), self.described);
        let response = Response { request: request.to_owned(), status, headers, body: self.read_all() };
        if let Some(described) = described {
            response.check(described);
        }
        response
    }

    /// The connection, for the next request.
    pub fn into_socket(self) -> TcpStream {
        self.socket.into_inner()
    }

    fn next_chunk(&mut self) -> io::Result<u64> {
        let mut line = read_line(&mut self.socket)?;
        if line.is_empty() {
            // The line end after the previous chunk.
            line = read_line(&mut self.socket)?;
        }
        let size =
            u64::from_str_radix(&line, 16).map_err(|_| io::Error::other(format!("not a chunk size: {line:?}")))?;
        if size == 0 {
            read_line(&mut self.socket)?;
        }
        Ok(size)
    }
}

impl Read for ResponseStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if let Framing::Chunked(Some(0)) = self.framing {
            let size = self.next_chunk()?;
            self.framing = Framing::Chunked((size > 0).then_some(size));
        }
        let left = match &mut self.framing {
            Framing::Chunked(None) => return Ok(0),
            Framing::UntilClose => return self.socket.read(into),
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

/// An event stream, read frame by frame.
pub struct EventStream {
    body: BufReader<ResponseStream>,
    /// Number of comment frames read so far.
    pub comments: usize,
    described: Option<Described>,
    /// Number of events read so far.
    events: usize,
}

impl EventStream {
    pub fn new(stream: ResponseStream) -> EventStream {
        let described = stream.described;
        if let Some(described) = described {
            described.check_headers(&stream.headers).unwrap_or_else(|error| panic!("an event stream: {error}"));
        }
        assert_eq!(stream.header("content-type").map(|value| &value[..17]), Some("text/event-stream"));
        EventStream { body: BufReader::with_capacity(1 << 16, stream), comments: 0, described, events: 0 }
    }

    /// Reads the next frame; none at the end of the body.
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
                None if line.is_empty() && seen => {
                    self.check(&frame);
                    return Some(frame);
                }
                None => assert!(line.is_empty(), "not a line of a frame: {line:?}"),
                Some(("", _)) => self.comments += 1,
                Some(("data", data)) => {
                    frame.data = serde_json::from_str(data).unwrap_or_else(|_| panic!("not JSON: {data:?}"));
                    seen = true;
                }
                Some(("event", event)) => event.clone_into(&mut frame.event),
                Some(("id", id)) => id.clone_into(&mut frame.id),
                Some(_) => panic!("unexpected field: {line:?}"),
            }
        }
    }

    /// Compares a frame with the description of the API. Of the lines, only the first [`CHECKED_EVENTS`].
    fn check(&mut self, frame: &Frame) {
        self.events += 1;
        let Some(described) = self.described else { return };
        if self.events <= CHECKED_EVENTS || frame.data.get("line").is_none() {
            let checked = described.check_event(&frame.event, &frame.data);
            checked.unwrap_or_else(|error| panic!("it differs from docs/openapi.json: {error}"));
        }
    }

    /// Reads all frames up to `eof`, which must be the last one.
    pub fn until_eof(self) -> Vec<Frame> {
        self.with_eof().0
    }

    /// Reads all frames up to `eof`, which must be the last one; also returns the `id` of `eof`.
    pub fn with_eof(mut self) -> (Vec<Frame>, String) {
        let mut frames = Vec::new();
        while let Some(frame) = self.next_frame() {
            if frame.event == "eof" {
                assert_eq!(frame.data, serde_json::json!({}), "eof carries nothing");
                assert!(!frame.id.is_empty(), "eof without an id");
                assert!(self.next_frame().is_none(), "a frame after eof");
                return (frames, frame.id);
            }
            frames.push(frame);
        }
        panic!("the stream ended without eof after {frames:?}");
    }

    /// Reads all lines up to `eof`; fails if there is a gap.
    pub fn all_lines(self) -> Vec<String> {
        let frames = self.until_eof();
        frames
            .into_iter()
            .map(|frame| {
                assert_eq!(frame.event, "output", "{frame:?}");
                assert!(frame.data["timestamp"].is_u64(), "clients drop a line without a timestamp: {frame:?}");
                assert!(!frame.id.is_empty(), "{frame:?}");
                text(&frame.data)
            })
            .collect()
    }

    /// The raw body, for tests that read faster than frames can be parsed.
    pub fn into_reader(self) -> BufReader<ResponseStream> {
        self.body
    }
}

fn text(data: &Value) -> String {
    data["line"].as_str().unwrap_or_else(|| panic!("no line in {data}")).to_owned()
}

/// The events of a run that has ended.
#[derive(Debug)]
pub struct CompletedRun {
    pub first: Value,
    pub events: Vec<Value>,
    pub last: Value,
}

impl CompletedRun {
    /// Reads the stream to its end and checks what holds for every run (docs/api.md, Run).
    pub fn collect(mut stream: EventStream) -> CompletedRun {
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
            assert!(event["timestamp"].is_u64(), "clients drop a line without a timestamp: {event}");
            assert!(event["stream"] == "stdout" || event["stream"] == "stderr", "{event}");
            events.push(event);
        };
        assert!(stream.next_frame().is_none(), "a frame after the last event {last}");
        assert!(last["exit_code"].is_u64() != last["signal"].is_u64(), "exactly one of exit_code and signal: {last}");
        assert!(last["oom_killed"].is_boolean() && last["reason"].is_string(), "{last}");
        assert!(
            last.get("pid").is_none() && last.get("started_at").is_none(),
            "clients take it for the first event: {last}"
        );
        CompletedRun { first, events, last }
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

    /// Stdout of the run; fails unless it exited with 0.
    pub fn stdout(&self) -> String {
        assert_eq!(self.code(), Some(0), "{:?} {}", self.lines("stderr"), self.last);
        self.lines("stdout").join("\n")
    }
}
