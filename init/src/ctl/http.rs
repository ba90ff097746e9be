//! A small blocking HTTP client: one connection for each request, and responses that are read as they arrive.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::error::{Error, sentence};
use super::json::Json;
use super::settings::Settings;

/// Maximum time for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Maximum time between two reads or two writes. Event streams have an event or a comment every 15 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Maximum length of a line of a response's head, or of the size of a chunk, in bytes.
const MAX_LINE: u64 = 64 << 10;

/// Maximum number of lines of a response's head.
const MAX_HEADERS: usize = 256;

/// Maximum length of a response that is read as a whole, in bytes.
const MAX_BODY: u64 = 1 << 30;

/// Maximum length of a line of an event stream, in bytes: JSON can make a line of 1 MiB six times as long.
const MAX_EVENT: u64 = 16 << 20;

/// A request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// The path below `/api/v1`, with the query.
    pub(crate) path: &'a str,
    pub(crate) body: &'a [u8],
    /// Ask for raw bytes instead of JSON.
    pub(crate) raw: bool,
    /// The response may come after any time.
    pub(crate) is_unbounded: bool,
    /// The header `Last-Event-ID`.
    pub(crate) last_event_id: Option<&'a str>,
}

/// A client of one daemon.
#[derive(Debug)]
pub(crate) struct Client {
    settings: Settings,
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Client {
        Client { settings }
    }

    /// The address of the API, for messages.
    pub(crate) fn url(&self) -> String {
        format!("http://{}{}", self.settings.url.host, self.settings.url.prefix)
    }

    /// Sends a request and reads the head of the response.
    ///
    /// # Errors
    /// A sentence that says what to do; that of the API if it answers with an error.
    pub(crate) fn send(&self, request: Request<'_>) -> Result<Response, Error> {
        let address = self.settings.url.address;
        let socket = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(|error| {
            let url = self.url();
            Error::local(format_args!(
                "no daemon answers at {url} ({error}); start tl-init, or give its address with --url"
            ))
        })?;
        let mut response = self.exchange(&socket, request).map_err(|error| self.broken(&error))?;
        // A redirection, as of a proxy that wants HTTPS, has done nothing.
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        Err(self.api_error(&mut response))
    }

    /// Sends a request, and returns the whole response.
    ///
    /// # Errors
    /// See [`Client::send`].
    pub(crate) fn fetch(&self, request: Request<'_>) -> Result<Vec<u8>, Error> {
        let response = self.send(request)?;
        let mut body = Vec::new();
        response.body.take(MAX_BODY).read_to_end(&mut body).map_err(|error| self.broken(&error))?;
        Ok(body)
    }

    /// Sends a request, and returns the whole response.
    ///
    /// # Errors
    /// See [`Client::send`].
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>, Error> {
        self.fetch(Request { method: "GET", path, ..Request::default() })
    }

    /// Parses JSON of the API.
    ///
    /// # Errors
    /// A sentence if it is none.
    pub(crate) fn parse<'a>(&self, json: &'a [u8]) -> Result<Json<'a>, Error> {
        let parsed = Json::object(json);
        parsed.ok_or_else(|| Error::local(format_args!("{} is not a tl-init: its response is not JSON", self.url())))
    }

    /// The error for a connection that broke.
    pub(crate) fn broken(&self, error: &io::Error) -> Error {
        let url = self.url();
        match error.kind() {
            io::ErrorKind::WouldBlock => {
                Error::local(format_args!("{url} has neither sent nor taken anything for {} s", IDLE_TIMEOUT.as_secs()))
            }
            io::ErrorKind::UnexpectedEof => Error::local(format_args!("{url} has closed the connection early")),
            _ => Error::local(format_args!("the connection to {url} is broken: {error}")),
        }
    }

    fn exchange(&self, socket: &TcpStream, request: Request<'_>) -> io::Result<Response> {
        socket.set_read_timeout((!request.is_unbounded).then_some(IDLE_TIMEOUT))?;
        socket.set_write_timeout(Some(IDLE_TIMEOUT))?;
        let url = &self.settings.url;
        let mut bytes = Vec::with_capacity(1024 + request.body.len());
        write!(bytes, "{} {}/api/v1{} HTTP/1.1\r\nHost: {}\r\n", request.method, url.prefix, request.path, url.host)?;
        if let Some(token) = &self.settings.token {
            write!(bytes, "Authorization: Bearer {token}\r\n")?;
        }
        if let Some(id) = request.last_event_id {
            write!(bytes, "Last-Event-ID: {id}\r\n")?;
        }
        let accept = if request.raw { "Accept: application/octet-stream\r\n" } else { "" };
        write!(bytes, "{accept}Connection: close\r\nContent-Length: {}\r\n\r\n", request.body.len())?;
        bytes.extend_from_slice(request.body);
        let mut out = socket;
        // The daemon may answer before it has read the whole request, and then close the connection.
        let sent = out.write_all(&bytes);
        match Response::read(socket.try_clone()?) {
            Err(_) if sent.is_err() => Err(sent.err().unwrap_or_else(|| io::ErrorKind::Other.into())),
            response => response,
        }
    }

    fn api_error(&self, response: &mut Response) -> Error {
        let status = response.status;
        let mut body = Vec::new();
        let _ = (&mut response.body).take(MAX_LINE).read_to_end(&mut body);
        let (code, text) = match Json::object(&body) {
            Some(json) => (json.get("code").text(), json.get("error").text()),
            None => Default::default(),
        };
        let message = match (status, code.as_str()) {
            (401, _) => self.unauthorized(),
            (_, "") => {
                sentence(format_args!("{} is not a tl-init: it answers with the HTTP status {status}", self.url()))
            }
            (_, "NOT_FOUND") => sentence(format_args!("{text}; `tlctl ps --all` lists the processes")),
            _ => text.leak(),
        };
        Error::Api { code: code.leak(), message }
    }

    fn unauthorized(&self) -> &'static str {
        let url = self.url();
        match (&self.settings.token, &self.settings.token_file) {
            (Some(_), Some(file)) => sentence(format_args!(
                "{url} refuses the token in {}; name the right file with --token-file",
                file.display()
            )),
            (None, Some(file)) => sentence(format_args!(
                "{url} requires a token, and there is no file {}; name one with --token-file",
                file.display()
            )),
            (_, None) => sentence(format_args!("{url} requires a token; name its file with --token-file")),
        }
    }
}

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    status: u16,
    pub(crate) body: Body,
}

impl Response {
    fn read(socket: TcpStream) -> io::Result<Response> {
        let mut socket = BufReader::with_capacity(64 << 10, socket);
        let first = read_line(&mut socket)?;
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|text| text.parse().ok());
        let Some(status) = status else { return Err(malformed("the response is not HTTP")) };
        let mut framing = Framing::ToEnd;
        for _ in 0..MAX_HEADERS {
            let line = read_line(&mut socket)?;
            let Some((name, value)) = line.split_once(':') else {
                if line.is_empty() {
                    let framing = if matches!(status, 204 | 304) { Framing::Left(0) } else { framing };
                    return Ok(Response { status, body: Body { socket, framing, is_last: false } });
                }
                return Err(malformed("a line of the response's head has no colon"));
            };
            if name.eq_ignore_ascii_case("transfer-encoding") {
                framing = Framing::Chunk(0);
            } else if name.eq_ignore_ascii_case("content-length") && matches!(framing, Framing::ToEnd) {
                let length = value.trim().parse().map_err(|_| malformed("the length of the response is no number"))?;
                framing = Framing::Left(length);
            }
        }
        Err(malformed("the head of the response is too long"))
    }
}

/// What delimits a body.
#[derive(Debug)]
enum Framing {
    /// The end of the connection.
    ToEnd,
    /// Its length: this many bytes are left.
    Left(u64),
    /// Chunks: this many bytes of the current one are left.
    Chunk(u64),
}

/// The body of a response.
#[derive(Debug)]
pub(crate) struct Body {
    socket: BufReader<TcpStream>,
    framing: Framing,
    /// The last chunk was read.
    is_last: bool,
}

impl Body {
    /// The next event of an event stream, or a comment, which has no data; none at the end of the response.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) fn next_event(&mut self) -> io::Result<Option<Event>> {
        let mut event = Event::default();
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            // The end of the response inside of an event means that the connection broke; chunks show that too.
            if (&mut *self).take(MAX_EVENT).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            let line = bytes.trim_ascii_end();
            if line.is_empty() {
                return Ok(Some(event));
            }
            if let Some(data) = line.strip_prefix(b"data: ") {
                event.data = data.to_vec();
            } else if let Some(name) = line.strip_prefix(b"event: ") {
                event.name = String::from_utf8_lossy(name).into_owned();
            }
        }
    }

    /// Sets the maximum time until something is received.
    ///
    /// # Errors
    /// When the time is 0.
    pub(crate) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket.get_ref().set_read_timeout(Some(timeout.min(IDLE_TIMEOUT)))
    }

    /// Begins the next chunk, if the current one is at its end.
    fn begin_chunk(&mut self) -> io::Result<()> {
        if self.is_last || !matches!(self.framing, Framing::Chunk(0)) {
            return Ok(());
        }
        let mut line = read_line(&mut self.socket)?;
        // Each chunk but the first is preceded by the line end of the one before.
        if line.is_empty() {
            line = read_line(&mut self.socket)?;
        }
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| malformed("the size of a chunk is no number"))?;
        self.is_last = size == 0;
        self.framing = Framing::Chunk(size);
        Ok(())
    }
}

impl BufRead for Body {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.begin_chunk()?;
        let left = match self.framing {
            Framing::ToEnd => u64::MAX,
            Framing::Left(left) | Framing::Chunk(left) => left,
        };
        if left == 0 {
            return Ok(&[]);
        }
        let buffer = self.socket.fill_buf()?;
        if buffer.is_empty() && left != u64::MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        Ok(buffer.get(..most).unwrap_or_default())
    }

    fn consume(&mut self, count: usize) {
        self.socket.consume(count);
        if let Framing::Left(left) | Framing::Chunk(left) = &mut self.framing {
            *left = left.saturating_sub(count as u64);
        }
    }
}

impl Read for Body {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(out)?;
        self.consume(count);
        Ok(count)
    }
}

/// An event of an event stream.
#[derive(Debug, Default)]
pub(crate) struct Event {
    /// Its name; empty if it has none.
    pub(crate) name: String,
    /// Its JSON; empty for a comment.
    pub(crate) data: Vec<u8>,
}

/// Reads a line, without its end.
fn read_line(socket: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    socket.take(MAX_LINE).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// A part of a path, percent-encoded.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'.' => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// The body of a response that is sent byte by byte, or the kind of the error.
    fn read(response: &'static str) -> Result<String, io::ErrorKind> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let sender = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_nodelay(true).unwrap();
            for byte in response.bytes() {
                // The reader may have refused the response.
                let _ = socket.write_all(&[byte]);
            }
        });
        let result = Response::read(TcpStream::connect(address).unwrap()).and_then(|mut response| {
            let mut text = String::new();
            response.body.read_to_string(&mut text).map(|_| text)
        });
        sender.join().unwrap();
        result.map_err(|error| error.kind())
    }

    #[test]
    fn bodies_end_by_length_by_chunks_or_with_the_connection() {
        use io::ErrorKind::{InvalidData, UnexpectedEof};
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (response, right) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc", Ok("ab")),
            ("HTTP/1.1 204 No Content\r\n\r\nabc", Ok("")),
            ("HTTP/1.0 200 OK\r\n\r\nabc", Ok("abc")),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", Err(UnexpectedEof)),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nabc", Err(InvalidData)),
            ("HTTP/1.1 200 OK\r\n", Err(UnexpectedEof)),
            ("SSH-2.0-x\r\n", Err(InvalidData)),
            ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", Err(InvalidData)),
        ] {
            assert_eq!(read(response), right.map(str::to_owned), "{response}");
        }
        for (chunks, right) in [
            ("3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", Ok("abcde")),
            ("0\r\n\r\n", Ok("")),
            ("3\r\nabc\r\n", Err(UnexpectedEof)),
            ("3\r\nab", Err(UnexpectedEof)),
            ("x\r\n", Err(InvalidData)),
        ] {
            let response = format!("{chunked}{chunks}").leak();
            assert_eq!(read(response), right.map(str::to_owned), "{chunks}");
        }
    }

    #[test]
    fn a_part_of_a_path_is_encoded() {
        assert_eq!(encode("web-1_a.b~"), "web-1_a.b~");
        assert_eq!(encode("a b/%ü"), "a%20b%2F%25%C3%BC");
    }
}
