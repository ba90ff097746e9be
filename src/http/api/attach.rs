//! `GET /pty/{session}/ws`: a WebSocket client attached to a terminal session.
//!
//! One loop sends the session's output to the client and the client's input to the terminal. Each direction has its own
//! limit: a client that reads too slowly is disconnected, and while 1 MiB of a client's input waits for the program,
//! nothing more is read from that client.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Bytes, Error as WsError, Message, WebSocket};

use crate::error::Error;
use crate::model::terminal_size::TerminalSize;
use crate::pending::Pending;
use crate::supervisor::{Attached, SessionKey};
use crate::terminal::Seen;
use tl_os::poll::{self, Events, Waker};

use crate::http::api::Api;
use crate::http::api::rejections::Rejection;
use crate::http::message::{ApiError, Request, Response, Socket};
use crate::http::ws::{
    self, Closure, FRAMES_PER_TURN, Handshake, Heartbeat, MAX_MESSAGE, PeerLiveness, STALL_TIMEOUT, StopWatch,
};

// First byte of each message (docs/api.md, Terminal sessions).
const DATA: u8 = 0x00;
const RESIZE: u8 = 0x01;
const READY: u8 = 0x02;
const EXIT: u8 = 0x03;

/// Maximum number of bytes of output in one message.
const BURST: usize = 64 << 10;

/// Maximum number of bytes of input that are given to the terminal at once.
const PIECE: usize = 16 << 10;

/// Number of bytes of input waiting for the program at which no more input is read from the client.
const MAX_INPUT: usize = 1 << 20;

/// Attaches the client, which must send the session's own token.
pub(crate) fn attach(api: &Api, request: &Request<'_>, session: &str) -> Result<Response, ApiError> {
    let sent = request.header("X-PTY-Token").map(|token| token.into_owned()).or_else(|| request.query("token"));
    let waker = request.waker()?;
    let attached = match sent {
        Some(token) => {
            let key = SessionKey { session_id: session.to_owned(), token };
            let attached = api.handle.attach(&key, waker.clone());
            if let Err(Error::InvalidToken) = attached {
                api.rejections.log(request, Rejection::WrongSessionToken);
            }
            Some(attached?)
        }
        None => api.handle.pty(session).map(|_| None)?,
    };
    let handshake = Handshake::new(request)?;
    let Some(attached) = attached else { return Err(Error::InvalidToken.into()) };
    Ok(handshake.accept(move |socket| {
        let mut client = TerminalClient::new(socket, attached, waker);
        let closure = client.run();
        client.close(closure);
    }))
}

/// A message of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ClientMessage<'m> {
    /// Input for the terminal.
    Input(&'m [u8]),
    /// The new size of the terminal.
    Resize(TerminalSize),
    /// The client is ready for output.
    Ready,
    /// Any other message, which is ignored.
    Unknown,
}

fn parse(message: &[u8]) -> ClientMessage<'_> {
    match message {
        [DATA, bytes @ ..] => ClientMessage::Input(bytes),
        &[RESIZE, c1, c2, r1, r2] => {
            let (cols, rows) = (u16::from_be_bytes([c1, c2]), u16::from_be_bytes([r1, r2]));
            ClientMessage::Resize(TerminalSize::new(rows.into(), cols.into()))
        }
        [READY, ..] => ClientMessage::Ready,
        _ => ClientMessage::Unknown,
    }
}

struct TerminalClient<'c> {
    ws: WebSocket<&'c mut Socket>,
    attached: Attached,
    waker: Arc<Waker>,
    /// Completed when the terminal has taken the last piece of input.
    writing: Option<Pending<()>>,
    /// Input that has not been given to the terminal.
    input: Vec<u8>,
    liveness: PeerLiveness,
    heartbeat: Heartbeat,
    stop: StopWatch,
    /// The socket may have more to read.
    readable: bool,
    /// Everything written has been sent.
    flushed: bool,
    /// Deadline for sending what has been written.
    flush_deadline: Option<Instant>,
}

impl<'c> TerminalClient<'c> {
    fn new(socket: &'c mut Socket, attached: Attached, waker: Arc<Waker>) -> TerminalClient<'c> {
        let config = WebSocketConfig::default()
            .read_buffer_size(16 << 10)
            .write_buffer_size(0)
            // Bounds the pongs that wait for a client that pings and does not read.
            .max_write_buffer_size(4 * BURST)
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        TerminalClient {
            liveness: PeerLiveness::new(socket),
            ws: WebSocket::from_raw_socket(socket, Role::Server, Some(config)),
            attached,
            waker,
            writing: None,
            input: Vec::new(),
            heartbeat: Heartbeat::new(Instant::now()),
            stop: StopWatch::default(),
            readable: true,
            flushed: true,
            flush_deadline: None,
        }
    }

    /// Serves the client until the WebSocket must end.
    fn run(&mut self) -> Closure {
        loop {
            match self.turn() {
                Ok(()) => {}
                Err(closure) => return closure,
            }
        }
    }

    fn turn(&mut self) -> Result<(), Closure> {
        self.receive()?;
        self.write_input();
        self.flush()?;
        let more = self.send_output()?;
        // After the output: an end of the session goes first.
        self.stop.check(self.ws.get_ref())?;
        self.check_liveness()?;
        self.wait(more)
    }

    /// Reads the client's messages.
    fn receive(&mut self) -> Result<(), Closure> {
        let mut resized = None;
        let received = self.receive_messages(&mut resized);
        // Also if the client has disconnected right after it.
        if let Some(size) = resized {
            self.attached.resize(size);
        }
        received
    }

    fn receive_messages(&mut self, resized: &mut Option<TerminalSize>) -> Result<(), Closure> {
        for _ in 0..FRAMES_PER_TURN {
            if !self.readable || self.input.len() >= MAX_INPUT {
                break;
            }
            let message = match self.ws.read() {
                Ok(message) => message,
                Err(WsError::Io(error)) if ws::would_block(&error) => {
                    self.readable = false;
                    break;
                }
                Err(error) => return Err(Closure::from_error(&error)),
            };
            self.heartbeat.hear();
            match message {
                Message::Binary(bytes) => match parse(&bytes) {
                    ClientMessage::Input(bytes) => self.input.extend_from_slice(bytes),
                    // Of several sizes, only the last one counts.
                    ClientMessage::Resize(size) => *resized = Some(size),
                    ClientMessage::Ready => self.attached.viewer.ready(),
                    ClientMessage::Unknown => {}
                },
                Message::Close(_) => {
                    // tungstenite has queued the closing frame that answers it.
                    let _ = self.ws.flush();
                    return Err(Closure::Disconnected);
                }
                _ => {}
            }
            // tungstenite may have queued a pong.
            self.flushed = false;
        }
        Ok(())
    }

    /// Gives the input to the terminal, a piece at a time.
    fn write_input(&mut self) {
        while self.writing.as_ref().is_none_or(|writing| writing.try_take().is_some()) {
            self.writing = None;
            if self.input.is_empty() {
                // Frees the memory of a large paste.
                self.input.shrink_to(PIECE);
                return;
            }
            let piece = self.input.drain(..self.input.len().min(PIECE)).collect();
            let writing = self.attached.begin_type(piece);
            writing.set_waker(Arc::clone(&self.waker).into());
            self.writing = Some(writing);
        }
    }

    /// Sends new output, if the client has taken all earlier output. Returns whether there may be more.
    fn send_output(&mut self) -> Result<bool, Closure> {
        if !self.flushed {
            return self.check_viewer();
        }
        let mut message = Vec::with_capacity(1);
        message.push(DATA);
        match self.attached.viewer.read(BURST, &mut message) {
            Seen::Bytes => {
                self.write(message)?;
                // If the client has not taken all of it, the waker must be woken when it falls too far behind.
                if self.flushed { Ok(true) } else { self.check_viewer() }
            }
            Seen::Nothing => Ok(false),
            seen => {
                if let Seen::Ended(end) = seen {
                    let mut message = vec![EXIT];
                    message.extend(end.exit.shell_status().to_be_bytes());
                    self.write(message)?;
                }
                Err(closure(seen))
            }
        }
    }

    /// Checks that a client that is not ready for output may stay attached.
    fn check_viewer(&self) -> Result<bool, Closure> {
        match self.attached.viewer.check() {
            Seen::Nothing => Ok(false),
            seen => Err(closure(seen)),
        }
    }

    fn write(&mut self, message: Vec<u8>) -> Result<(), Closure> {
        self.flushed = ws::is_flushed(self.ws.write(Message::Binary(Bytes::from(message))))?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Closure> {
        if !self.flushed {
            self.flushed = ws::is_flushed(self.ws.flush())?;
        }
        if self.flushed {
            self.flush_deadline = None;
        }
        Ok(())
    }

    /// Whether no more input is read from the client for now.
    fn is_full(&self) -> bool {
        self.input.len() >= MAX_INPUT
    }

    /// Pings the client, and checks that it is alive and reads.
    fn check_liveness(&mut self) -> Result<(), Closure> {
        if self.is_full() {
            // The pong may be among the bytes that are not read for now.
            self.heartbeat.hear();
        }
        let now = Instant::now();
        if !self.flushed && *self.flush_deadline.get_or_insert(now + STALL_TIMEOUT) <= now {
            return Err(Closure::close(CloseCode::Policy, "too slow: what was sent was not read within 60 s"));
        }
        let due = self.heartbeat.next();
        if !self.heartbeat.is_due(now) {
            return Ok(());
        }
        if self.heartbeat.is_lost() || self.is_full() && self.liveness.is_lost(self.ws.get_ref(), due) {
            return Err(Closure::close(CloseCode::Policy, "no answer to pings"));
        }
        // A client that does not take what was sent before would not take a ping either.
        if self.flushed {
            self.flushed = ws::is_flushed(self.ws.write(Message::Ping(Bytes::new())))?;
        }
        Ok(())
    }

    /// Waits for the client, the session or the next ping.
    fn wait(&mut self, more: bool) -> Result<(), Closure> {
        let mut events = Events::NONE;
        if !self.is_full() {
            events = events.and(Events::READ);
        }
        if !self.flushed {
            events = events.and(Events::WRITE);
        }
        let has_unread = self.readable && !self.is_full();
        let deadline = match more && self.flushed || has_unread {
            true => Instant::now(),
            false => self.heartbeat.next().min(self.flush_deadline.unwrap_or(self.heartbeat.next())),
        };
        let socket = self.ws.get_ref();
        let fds = [(socket.as_fd(), events), (self.waker.as_fd(), Events::READ), self.stop.entry(socket)];
        let deadline = self.stop.limit(deadline);
        let [socket, waker, _] = poll::wait(fds, Some(deadline)).map_err(|_| Closure::Disconnected)?;
        if waker.any(Events::READ) {
            self.waker.clear();
        }
        self.readable |= socket.any(Events::READ.and(Events::GONE));
        // The client has closed both directions: the rest of its input is dropped.
        if self.is_full() && socket.any(Events::GONE) {
            return Err(Closure::Disconnected);
        }
        Ok(())
    }

    /// Reads the input that the client sent before it disconnected. A failed write to the client may have ended the
    /// loop before that input was read.
    fn receive_rest(&mut self) {
        self.readable = true;
        let mut more = true;
        while more {
            more = self.receive().is_ok() && self.readable && !self.is_full();
            self.write_input();
        }
    }

    /// Gives the last input to the terminal, for a limited time, and sends the closing frame.
    fn close(mut self, closure: Closure) {
        if closure == Closure::Disconnected {
            let deadline = Instant::now() + ws::CLOSE_TIMEOUT;
            self.receive_rest();
            while self.writing.is_some() && Instant::now() < deadline {
                let _ = poll::wait([(self.waker.as_fd(), Events::READ)], Some(deadline));
                self.waker.clear();
                self.write_input();
            }
        }
        // Detaches the client now; its connection may end later.
        drop(self.attached);
        let Closure::Close(code, reason) = closure else { return };
        log::debug!("closing the WebSocket of a terminal client: {code} {reason}");
        let timeout = Closure::timeout(code);
        let deadline = Instant::now() + timeout;
        let frame = ws::close_frame(code, &reason);
        let mut flushed = ws::is_flushed(self.ws.close(Some(frame)));
        while let Ok(false) = flushed {
            if self.ws.get_ref().wait_writable(Some(deadline)).is_err() || Instant::now() > deadline {
                return;
            }
            flushed = ws::is_flushed(self.ws.flush());
        }
        ws::linger(self.ws.get_mut(), timeout);
    }
}

/// How the WebSocket ends when the viewer has no more output for the client.
fn closure(seen: Seen) -> Closure {
    match seen {
        Seen::Behind => Closure::close(CloseCode::Policy, "too slow: output that was not read has been dropped"),
        Seen::Overdue => Closure::close(CloseCode::Policy, "not ready, and more was written than is kept"),
        Seen::Terminated => Closure::close(CloseCode::Away, "session terminated"),
        Seen::Ended(end) => Closure::close(CloseCode::Normal, format!("exit:{}", end.exit.shell_status())),
        Seen::Bytes | Seen::Nothing => Closure::Disconnected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_of_a_client_are_parsed() {
        for (message, right) in [
            (&b"\0"[..], ClientMessage::Input(b"")),
            (b"\0ls\n", ClientMessage::Input(b"ls\n")),
            (b"\x01\0\x78\0\x28", ClientMessage::Resize(TerminalSize { rows: 40, cols: 120 })),
            (b"\x01\0\0\0\0", ClientMessage::Resize(TerminalSize::default())),
            (b"\x01\xff\xff\xff\xff", ClientMessage::Resize(TerminalSize { rows: 500, cols: 1000 })),
            (b"\x01\0\x78\0", ClientMessage::Unknown),
            (b"\x01\0\x78\0\x28\0", ClientMessage::Unknown),
            (b"\x02", ClientMessage::Ready),
            (b"\x02x", ClientMessage::Ready),
            (b"\x03\0\0\0\0", ClientMessage::Unknown),
            (b"\xff", ClientMessage::Unknown),
            (b"", ClientMessage::Unknown),
        ] {
            assert_eq!(parse(message), right, "{message:?}");
        }
    }
}
