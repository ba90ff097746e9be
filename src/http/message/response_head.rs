//! Prints the head of a response.
//!
//! tiny_http prints status line, date, length and headers into a buffer, never into the socket. It is never given a
//! body: it would read a body of unknown length into memory for an HTTP/1.0 client. It drops `Connection` and
//! `Upgrade` and does not support every framing, so this module adds these to what it has printed.

use std::borrow::Cow;
use std::io::{self, Write};

use tiny_http::{HTTPVersion, Header, StatusCode};

/// Headers that the server sets itself. A handler's values for them are ignored, except `Upgrade` in a 426.
const SET_BY_SERVER: [&str; 6] =
    ["Connection", "Content-Length", "Keep-Alive", "Trailer", "Transfer-Encoding", "Upgrade"];

/// How the client finds the end of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// By `Content-Length`, in bytes.
    Length(usize),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection: the only framing of HTTP/1.0 for a body of unknown length.
    Close,
}

/// Status and headers of a response.
#[derive(Clone, Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    headers: Vec<(Cow<'static, str>, Vec<u8>)>,
}

impl ResponseHead {
    /// A head without headers.
    pub(crate) fn new(status: u16) -> ResponseHead {
        ResponseHead { status, headers: Vec::new() }
    }

    /// Adds a header.
    pub(crate) fn add(&mut self, name: Cow<'static, str>, value: Vec<u8>) {
        self.headers.push((name, value));
    }

    /// The first header with this name.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let found = self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name));
        found.map(|(_, value)| &**value)
    }

    /// Whether HTTP allows a response with this status to have a body.
    pub(crate) fn may_have_body(&self) -> bool {
        !matches!(self.status, 100..=199 | 204 | 304)
    }

    /// Prints the head. `server` is the value of `Server`, unless the handler has set one.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a header that HTTP does not allow: it could end the head and begin a body. Also
    /// for a status below 200, which announces another response, and for one that does not have three digits.
    pub(crate) fn print(&self, server: &str, framing: Framing, close: bool) -> io::Result<Vec<u8>> {
        if !(200..=999).contains(&self.status) {
            return Err(invalid(format!("{} is not the status of a final response", self.status)));
        }
        let length = match framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::Close => None,
        };
        let mut headers = Vec::with_capacity(self.headers.len() + 1);
        if self.get("Server").is_none() {
            headers.push(ascii("Server", server.as_bytes())?);
        }
        // tiny_http takes no value outside of ASCII.
        let mut others = Vec::new();
        for (name, value) in &self.headers {
            check(name, value)?;
            if SET_BY_SERVER.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                continue;
            }
            if value.is_ascii() { headers.push(ascii(name, value)?) } else { line(&mut others, name, value) }
        }
        let mut head = Vec::with_capacity(512);
        tiny_http::Response::new(StatusCode(self.status), headers, io::empty(), length, None)
            .with_chunked_threshold(usize::MAX)
            .raw_print(&mut head, HTTPVersion(1, 1), &[], true, None)?;
        // The framing is the last header that it prints. A response without a body has none (RFC 9110, section 8.6).
        head.truncate(head.len().saturating_sub(2));
        if !self.may_have_body() || framing == Framing::Close {
            let last = head.strip_suffix(b"\r\n").and_then(|lines| memchr::memrchr(b'\n', lines));
            head.truncate(last.map_or(0, |at| at + 1));
        }
        head.extend_from_slice(&others);
        // A 426 names the protocol that the client must ask for, and `Upgrade` belongs to the connection (RFC 9110,
        // sections 7.8 and 15.5.22).
        let protocol = self.get("Upgrade").filter(|_| self.status == 426);
        if let Some(protocol) = protocol {
            line(&mut head, "Upgrade", protocol);
        }
        match (protocol, close) {
            (Some(_), true) => line(&mut head, "Connection", b"Upgrade, close"),
            (Some(_), false) => line(&mut head, "Connection", b"Upgrade"),
            (None, true) => line(&mut head, "Connection", b"close"),
            (None, false) => {}
        }
        head.extend_from_slice(b"\r\n");
        Ok(head)
    }

    /// Prints the head of a 101, by which the connection changes to `protocol`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a header that HTTP does not allow.
    pub(crate) fn print_upgrade(&self, server: &str, protocol: &str) -> io::Result<Vec<u8>> {
        check("Upgrade", protocol.as_bytes())?;
        let mut head = Vec::with_capacity(256);
        write!(head, "HTTP/1.1 {} {}\r\n", self.status, StatusCode(self.status).default_reason_phrase())?;
        if self.get("Server").is_none() {
            line(&mut head, "Server", server.as_bytes());
        }
        line(&mut head, "Upgrade", protocol.as_bytes());
        line(&mut head, "Connection", b"Upgrade");
        for (name, value) in &self.headers {
            check(name, value)?;
            if !SET_BY_SERVER.iter().any(|own| own.eq_ignore_ascii_case(name)) {
                line(&mut head, name, value);
            }
        }
        head.extend_from_slice(b"\r\n");
        Ok(head)
    }
}

fn line(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

/// Refuses a value of the header `Server` that no head could be printed with.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`].
pub(crate) fn check_server_name(name: &str) -> io::Result<()> {
    check("Server", name.as_bytes())?;
    ascii("Server", name.as_bytes()).map(drop)
}

/// Refuses what is not a token as a name, and control characters in a value (RFC 9110, sections 5.1 and 5.5).
fn check(name: &str, value: &[u8]) -> io::Result<()> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
    if !name.is_empty() && name.bytes().all(is_token) && value.iter().all(is_text) {
        return Ok(());
    }
    let value = String::from_utf8_lossy(value);
    Err(invalid(format!("not a valid header: {name:?}: {value:?}")))
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

fn ascii(name: &str, value: &[u8]) -> io::Result<Header> {
    let not_ascii = |()| invalid(format!("not a header in ASCII: {name:?}: {:?}", String::from_utf8_lossy(value)));
    Header::from_bytes(name.as_bytes(), value).map_err(not_ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&'static str, &str)]) -> ResponseHead {
        let mut head = ResponseHead::new(status);
        headers.iter().for_each(|(name, value)| head.add((*name).into(), (*value).into()));
        head
    }

    fn printed(head: &ResponseHead, framing: Framing, close: bool) -> String {
        let head = String::from_utf8(head.print("test", framing, close).unwrap()).unwrap();
        head.lines().filter(|line| !line.starts_with("Date: ")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_head_says_how_the_body_is_framed() {
        let json = head(200, &[("Content-Type", "application/json")]);
        let begin = "HTTP/1.1 200 OK\nServer: test\nContent-Type: application/json\n";
        assert_eq!(printed(&json, Framing::Length(4), false), format!("{begin}Content-Length: 4\n"));
        assert_eq!(printed(&json, Framing::Length(1 << 40), false), format!("{begin}Content-Length: 1099511627776\n"));
        assert_eq!(printed(&json, Framing::Chunked, false), format!("{begin}Transfer-Encoding: chunked\n"));
        assert_eq!(printed(&json, Framing::Close, true), format!("{begin}Connection: close\n"));
        for framing in [Framing::Length(0), Framing::Length(5), Framing::Chunked, Framing::Close] {
            assert_eq!(printed(&head(204, &[]), framing, false), "HTTP/1.1 204 No Content\nServer: test\n");
            assert_eq!(printed(&head(304, &[]), framing, false), "HTTP/1.1 304 Not Modified\nServer: test\n");
        }
    }

    #[test]
    fn only_a_final_status_of_three_digits_is_printed() {
        for status in [0, 99, 100, 101, 199, 1000, u16::MAX] {
            let error = head(status, &[]).print("test", Framing::Length(0), false).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{status}");
        }
    }

    #[test]
    fn a_426_names_the_protocol_to_ask_for() {
        let required = head(426, &[("Upgrade", "websocket")]);
        let begin = "HTTP/1.1 426 Upgrade Required\nServer: test\nContent-Length: 0\nUpgrade: websocket\nConnection: ";
        assert_eq!(printed(&required, Framing::Length(0), false), format!("{begin}Upgrade\n"));
        assert_eq!(printed(&required, Framing::Length(0), true), format!("{begin}Upgrade, close\n"));
        let other = head(404, &[("Upgrade", "websocket")]);
        assert!(!printed(&other, Framing::Length(0), false).contains("Upgrade"));
    }

    #[test]
    fn a_handler_may_set_the_server_name_but_not_the_framing() {
        let odd = [("content-length", "7"), ("Connection", "x"), ("Transfer-Encoding", "gzip"), ("server", "other")];
        let right = "HTTP/1.1 507 Insufficient Storage\nserver: other\nContent-Length: 0\nX: é\n";
        let mut odd = head(507, &odd);
        odd.add("X".into(), "é".into());
        assert_eq!(printed(&odd, Framing::Length(0), false), right);
    }

    #[test]
    fn a_header_cannot_end_the_head() {
        for (name, value) in [("X", "a\r\nY: b"), ("X\r\nY", "b"), ("X", "a\nb"), ("", "a"), ("X Y", "a"), ("X", "\0")]
        {
            let head = head(200, &[(name, value)]);
            assert!(head.print("test", Framing::Chunked, false).is_err(), "{name:?} {value:?}");
            assert!(head.print_upgrade("test", "x").is_err(), "{name:?} {value:?}");
        }
    }

    #[test]
    fn an_upgrade_names_the_protocol() {
        let head = head(101, &[("Sec-WebSocket-Accept", "x=")]);
        let right = "HTTP/1.1 101 Switching Protocols\r\nServer: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                     Sec-WebSocket-Accept: x=\r\n\r\n";
        assert_eq!(String::from_utf8(head.print_upgrade("test", "websocket").unwrap()).unwrap(), right);
    }
}
