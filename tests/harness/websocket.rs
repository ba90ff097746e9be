//! A WebSocket client with the handshake of tungstenite, which the daemon does not use, over a blocking socket.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tungstenite::{Error, HandshakeError, Message, WebSocket};

use super::response::ResponseStream;
use super::{Daemon, Response, TIMEOUT, wait_until};

/// Header lines of a WebSocket handshake.
pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Opens a WebSocket at `path` below `/api/v1`; the error is the status of the response that refused it.
pub fn try_open(daemon: &Daemon, path: &str, headers: &[(&str, &str)]) -> Result<WebSocket<TcpStream>, u16> {
    let mut request = format!("ws://{}/api/v1{path}", daemon.addr).into_client_request().expect("a request");
    for (name, value) in headers {
        let name: tungstenite::http::HeaderName = name.parse().expect("a name");
        request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a value"));
    }
    let config = WebSocketConfig::default().max_frame_size(None).max_message_size(None);
    match tungstenite::client::client_with_config(request, daemon.connect(), Some(config)) {
        Ok((socket, response)) => {
            assert!(!response.headers().contains_key("sec-websocket-extensions"), "no extension is negotiated");
            Ok(socket)
        }
        Err(HandshakeError::Failure(Error::Http(response))) => Err(response.status().as_u16()),
        Err(error) => panic!("{path}: {error}"),
    }
}

/// Sends a GET with these header lines, and returns the response to a handshake that is refused.
pub fn upgrade_response(daemon: &Daemon, path: &str, headers: &str) -> Response {
    let request = format!("GET /api/v1{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
    ResponseStream::send(daemon.connect(), request.as_bytes()).into_response(path)
}

/// A terminal session.
#[derive(Clone, Debug)]
pub struct Session {
    pub id: String,
    pub token: String,
}

impl Daemon {
    pub fn open_pty(&self, body: &Value) -> Session {
        let response = self.post("/pty", body).expect(201);
        let text =
            |field: &str| response[field].as_str().unwrap_or_else(|| panic!("no {field} in {response}")).to_owned();
        let session = Session { id: text("session_id"), token: text("token") };
        assert!(session.id.len() >= 22 && session.id.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{session:?}");
        assert!(session.token.len() == 64 && session.token.bytes().all(|byte| byte.is_ascii_hexdigit()), "{session:?}");
        session
    }

    /// A session of `sh -c script`.
    pub fn pty_sh(&self, script: &str) -> Session {
        self.open_pty(&json!({"command": "sh", "args": ["-c", script]}))
    }

    pub fn pty_info(&self, session: &Session) -> Value {
        let info = self.get(&format!("/pty/{}", session.id)).expect(200);
        assert!(info.get("token").is_none() && !info.to_string().contains(&session.token), "{info}");
        info
    }

    /// Number of clients that are attached to a session.
    pub fn client_count(&self, session: &Session) -> u64 {
        self.pty_info(session)["client_count"].as_u64().expect("a count")
    }

    /// Waits until exactly `count` clients are attached to a session.
    pub fn wait_for_clients(&self, deadline: Duration, session: &Session, count: u64) {
        wait_until(deadline, &format!("{count} clients are attached"), || {
            (self.client_count(session) == count).then_some(())
        });
    }

    /// Waits until a session has ended.
    pub fn wait_for_session_end(&self, session: &Session) {
        wait_until(TIMEOUT, "the session ends", || (self.pty_info(session)["is_alive"] == false).then_some(()));
    }

    /// Attaches to a session with its own token, without READY.
    pub fn attach(&self, session: &Session) -> Terminal {
        let path = format!("/pty/{}/ws", session.id);
        let socket = try_open(self, &path, &[("X-PTY-Token", &session.token)]).expect("attached");
        Terminal { socket, output: Vec::new(), seen: 0 }
    }

    /// Attaches to a session and sends READY.
    pub fn watch(&self, session: &Session) -> Terminal {
        let mut terminal = self.attach(session);
        terminal.ready();
        terminal
    }

    /// Opens a tunnel to a port.
    pub fn tunnel(&self, port: u16) -> WebSocket<TcpStream> {
        let bearer = format!("Bearer {}", self.token);
        try_open(self, &format!("/tunnels/tcp?port={port}"), &[("Authorization", &bearer)]).expect("a tunnel")
    }
}

/// How the connection of a client to a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionEnd {
    /// Exit code of the EXIT message; none if none came.
    pub exit: Option<i32>,
    /// Code and reason of the Close; none if it had no payload.
    pub close: Option<(u16, String)>,
}

impl SessionEnd {
    /// The end of a session whose leader has exited with this code.
    pub fn exited(code: i32) -> SessionEnd {
        SessionEnd { exit: Some(code), close: Some((1000, format!("exit:{code}"))) }
    }
}

/// A client of a terminal session.
pub struct Terminal {
    pub socket: WebSocket<TcpStream>,
    /// All output so far.
    pub output: Vec<u8>,
    /// Length of the output that [`Terminal::expect`] has consumed.
    seen: usize,
}

impl Terminal {
    fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.socket.send(Message::binary([&[opcode], payload].concat())).expect("send");
    }

    pub fn ready(&mut self) {
        self.send(2, b"");
    }

    pub fn type_in(&mut self, text: impl AsRef<[u8]>) {
        self.send(0, text.as_ref());
    }

    pub fn resize(&mut self, rows: u16, cols: u16) {
        self.send(1, &[cols.to_be_bytes(), rows.to_be_bytes()].concat());
    }

    /// Reads one message; returns the payload of a Close.
    fn read_message(&mut self, exit: &mut Option<i32>) -> Option<Option<(u16, String)>> {
        match self.socket.read() {
            Ok(Message::Binary(bytes)) => match &bytes[..] {
                [0, bytes @ ..] => {
                    assert!(exit.is_none(), "output after EXIT");
                    self.output.extend_from_slice(bytes);
                }
                [3, code @ ..] => *exit = Some(i32::from_be_bytes(code.try_into().expect("four bytes"))),
                other => panic!("unexpected message: {other:?}"),
            },
            Ok(Message::Ping(_)) => {}
            Ok(Message::Close(words)) => {
                let words = words.map(|CloseFrame { code, reason }| (code.into(), reason.as_str().to_owned()));
                return Some(words);
            }
            Ok(other) => panic!("unexpected message: {other:?}"),
            Err(error) => panic!("{error} after {:?}", self.tail()),
        }
        None
    }

    fn tail(&self) -> String {
        let from = self.output.len().saturating_sub(300);
        String::from_utf8_lossy(&self.output[from..]).into_owned()
    }

    /// Reads until `text` appears in the output after the previously expected text; returns the output in between.
    pub fn expect(&mut self, text: &str) -> String {
        let begun = Instant::now();
        let mut from = self.seen;
        loop {
            let new = &self.output[from..];
            if let Some(at) = new.windows(text.len()).position(|window| window == text.as_bytes()) {
                let before = String::from_utf8_lossy(&self.output[self.seen..from + at]).into_owned();
                self.seen = from + at + text.len();
                return before;
            }
            // The part that was searched is not searched again.
            from = self.seen.max((self.output.len() + 1).saturating_sub(text.len()));
            assert!(begun.elapsed() < TIMEOUT, "no {text:?} in {:?}", self.tail());
            let ended = self.read_message(&mut None);
            assert!(ended.is_none(), "{ended:?} before {text:?} in {:?}", self.tail());
        }
    }

    /// Types a line and waits until `text` appears; returns the output before it.
    pub fn ask(&mut self, line: &str, text: &str) -> String {
        self.type_in(format!("{line}\n"));
        self.expect(text)
    }

    /// Reads until the connection ends.
    pub fn wait_for_end(&mut self) -> SessionEnd {
        let mut exit = None;
        loop {
            if let Some(close) = self.read_message(&mut exit) {
                // Sends the answering Close and waits for the end of the connection.
                while self.socket.read().is_ok() {}
                return SessionEnd { exit, close };
            }
        }
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Closes the WebSocket and waits for the answering Close.
    pub fn disconnect(mut self) {
        self.socket.close(None).expect("close");
        loop {
            match self.socket.read() {
                Ok(_) => {}
                Err(Error::ConnectionClosed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// The bytes of one frame of a client, masked. `first` holds the FIN bit and the opcode.
pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    let mask = [0x5a, 0xa5, 0x11, 0xee];
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// Sends raw bytes on the connection of a WebSocket; returns the code that the server closes with.
pub fn close_code_after(mut socket: WebSocket<TcpStream>, bytes: &[u8]) -> Option<u16> {
    // The server may close before all bytes are sent.
    let _ = socket.get_mut().write_all(bytes);
    loop {
        match socket.read() {
            Ok(Message::Close(words)) => return words.map(|words| words.code.into()),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// Reads a connection to its end; returns the number of bytes.
pub fn read_to_end(mut socket: &TcpStream, time: Duration) -> io::Result<usize> {
    socket.set_read_timeout(Some(time))?;
    let (mut all, mut buffer) = (0, [0; 1 << 16]);
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok(all),
            count => all += count,
        }
    }
}
