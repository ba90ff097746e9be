//! `GET /pty/{id}/ws`: a client at a terminal session.
//!
//! One loop shows what the session has written and passes on what the client types. Each direction has a bound of its
//! own: a client that does not read loses its place in the session's output and is told to go; one that types more than
//! the program takes is not read from for a while.

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

use crate::http::api::routes::Api;
use crate::http::message::request::Request;
use crate::http::message::response::Answer;
use crate::http::message::response_head::Problem;
use crate::http::ws;
use crate::http::ws::{Beat, End, FRAMES, Handshake, LARGEST, Line, STUCK, Wire};

// The first byte of each message.
const DATA: u8 = 0x00;
const RESIZE: u8 = 0x01;
const READY: u8 = 0x02;
const EXIT: u8 = 0x03;

/// The most that is shown in one message.
const BURST: usize = 64 << 10;

/// As much is handed to the terminal at once.
const PIECE: usize = 16 << 10;

/// What a client may have typed ahead of the program.
const TYPED_AHEAD: usize = 1 << 20;

/// Attaches the client, which has the session's own token.
pub(in crate::http) fn attach(api: &Api, request: &Request<'_>, session: &str) -> Result<Answer, Problem> {
    let sent = request.field("X-PTY-Token").map(|token| token.into_owned()).or_else(|| request.query("token"));
    let waker = request.waker()?;
    let attached = match sent {
        Some(token) => {
            let key = SessionKey { session_id: session.to_owned(), token };
            Some(api.handle.attach(&key, waker.clone())?)
        }
        None => api.handle.pty(session).map(|_| None)?,
    };
    let handshake = Handshake::of(request)?;
    let Some(attached) = attached else { return Err(Error::InvalidToken.into()) };
    Ok(handshake.answer(move |socket| {
        let mut client = Client::new(Wire(socket), attached, waker);
        let end = client.run();
        client.part(end);
    }))
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said<'m> {
    Typed(&'m [u8]),
    Resized(TerminalSize),
    Ready,
    /// Nothing that we know.
    Noise,
}

fn said(message: &[u8]) -> Said<'_> {
    match message {
        [DATA, bytes @ ..] => Said::Typed(bytes),
        &[RESIZE, c1, c2, r1, r2] => {
            let (cols, rows) = (u16::from_be_bytes([c1, c2]), u16::from_be_bytes([r1, r2]));
            Said::Resized(TerminalSize::new(rows.into(), cols.into()))
        }
        [READY, ..] => Said::Ready,
        _ => Said::Noise,
    }
}

struct Client<'c> {
    ws: WebSocket<Wire<'c>>,
    attached: Attached,
    waker: Arc<Waker>,
    typing: Option<Pending<()>>,
    typed: Vec<u8>,
    line: Line,
    beat: Beat,
    /// The socket may have more to read.
    readable: bool,
    /// All that was written has left.
    flushed: bool,
    /// Until when what has not has to.
    flush_by: Option<Instant>,
}

impl<'c> Client<'c> {
    fn new(wire: Wire<'c>, attached: Attached, waker: Arc<Waker>) -> Client<'c> {
        let config = WebSocketConfig::default()
            .read_buffer_size(16 << 10)
            .write_buffer_size(0)
            // A client that pings and does not read gets the newest pong, and no more than this waits for it.
            .max_write_buffer_size(4 * BURST)
            .max_message_size(Some(LARGEST))
            .max_frame_size(Some(LARGEST));
        let line = Line::new(wire.0);
        Client {
            line,
            ws: WebSocket::from_raw_socket(wire, Role::Server, Some(config)),
            attached,
            waker,
            typing: None,
            typed: Vec::new(),
            beat: Beat::new(Instant::now()),
            readable: true,
            flushed: true,
            flush_by: None,
        }
    }

    fn run(&mut self) -> End {
        loop {
            match self.turn() {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    fn turn(&mut self) -> Result<(), End> {
        self.listen()?;
        self.pass_on();
        self.flush()?;
        let more = self.show()?;
        self.keep_time()?;
        self.wait(more)
    }

    /// Takes what the client sends.
    fn listen(&mut self) -> Result<(), End> {
        let mut resized = None;
        for _ in 0..FRAMES {
            if !self.readable || self.typed.len() >= TYPED_AHEAD {
                break;
            }
            let message = match self.ws.read() {
                Ok(message) => message,
                Err(WsError::Io(error)) if ws::is_later(&error) => {
                    self.readable = false;
                    break;
                }
                Err(error) => return Err(End::of(&error)),
            };
            self.beat.hear();
            match message {
                Message::Binary(bytes) => match said(&bytes) {
                    Said::Typed(bytes) => self.typed.extend_from_slice(bytes),
                    // Only the last of many counts.
                    Said::Resized(window) => resized = Some(window),
                    Said::Ready => self.attached.viewer.ready(),
                    Said::Noise => {}
                },
                Message::Close(_) => {
                    // The answer to it is waiting to be sent.
                    let _ = self.ws.flush();
                    return Err(End::Gone);
                }
                _ => {}
            }
            // A pong may be waiting to be sent.
            self.flushed = false;
        }
        if let Some(window) = resized {
            self.attached.resize(window);
        }
        Ok(())
    }

    /// Hands what was typed to the terminal, a piece at a time.
    fn pass_on(&mut self) {
        while self.typing.as_ref().is_none_or(|typing| typing.try_take().is_some()) {
            self.typing = None;
            if self.typed.is_empty() {
                // A large paste is over.
                self.typed.shrink_to(PIECE);
                return;
            }
            let piece = self.typed.drain(..self.typed.len().min(PIECE)).collect();
            let typing = self.attached.begin_type(piece);
            typing.set_waker(Arc::clone(&self.waker).into());
            self.typing = Some(typing);
        }
    }

    /// Shows what is new, if the client has taken what was shown before; whether there may be more.
    fn show(&mut self) -> Result<bool, End> {
        if !self.flushed {
            return self.glance();
        }
        let mut message = Vec::with_capacity(1);
        message.push(DATA);
        match self.attached.viewer.look(BURST, &mut message) {
            Seen::Bytes => {
                self.write(message)?;
                // Where it does not take all of it, only a glance has the waker woken when it is too far behind.
                if self.flushed { Ok(true) } else { self.glance() }
            }
            Seen::Nothing => Ok(false),
            seen => {
                if let Seen::Ended(end) = seen {
                    let mut message = vec![EXIT];
                    message.extend(end.exit.shell_status().to_be_bytes());
                    self.write(message)?;
                }
                Err(farewell(seen))
            }
        }
    }

    /// Whether a client that takes nothing more just now may stay.
    fn glance(&self) -> Result<bool, End> {
        match self.attached.viewer.glance() {
            Seen::Nothing => Ok(false),
            seen => Err(farewell(seen)),
        }
    }

    fn write(&mut self, message: Vec<u8>) -> Result<(), End> {
        self.flushed = ws::is_flushed(self.ws.write(Message::Binary(Bytes::from(message))))?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), End> {
        if !self.flushed {
            self.flushed = ws::is_flushed(self.ws.flush())?;
        }
        if self.flushed {
            self.flush_by = None;
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.typed.len() >= TYPED_AHEAD
    }

    fn keep_time(&mut self) -> Result<(), End> {
        if self.is_full() {
            // An answer to a ping may be among what is not read.
            self.beat.hear();
        }
        let now = Instant::now();
        if !self.flushed && *self.flush_by.get_or_insert(now + STUCK) <= now {
            return Err(End::close(CloseCode::Policy, "too slow: what was sent was not read within 60 s"));
        }
        if !self.beat.is_due(now) {
            return Ok(());
        }
        if self.beat.is_over() || self.is_full() && self.line.is_lost(self.ws.get_ref().0) {
            return Err(End::close(CloseCode::Policy, "no answer to pings"));
        }
        // To one that does not take what it is sent a ping would only be more of that.
        if self.flushed {
            self.flushed = ws::is_flushed(self.ws.write(Message::Ping(Bytes::new())))?;
        }
        Ok(())
    }

    /// Waits for the client, the session or the next ping.
    fn wait(&mut self, more: bool) -> Result<(), End> {
        let mut events = Events::NONE;
        if !self.is_full() {
            events = events.and(Events::READ);
        }
        if !self.flushed {
            events = events.and(Events::WRITE);
        }
        let unheard = self.readable && !self.is_full();
        let deadline = match more && self.flushed || unheard {
            true => Instant::now(),
            false => self.beat.at().min(self.flush_by.unwrap_or(self.beat.at())),
        };
        let fds = [(self.ws.get_ref().0.as_fd(), events), (self.waker.as_fd(), Events::READ)];
        let [socket, waker] = poll::wait(fds, Some(deadline)).map_err(|_| End::Gone)?;
        if waker.any(Events::READ) {
            self.waker.clear();
        }
        self.readable |= socket.any(Events::READ.and(Events::GONE));
        // With both directions closed there is nobody to type for either.
        if self.is_full() && socket.any(Events::GONE) {
            return Err(End::Gone);
        }
        Ok(())
    }

    /// Takes what the client has sent before it went: writing to it may have failed before that was read.
    fn hear_the_last(&mut self) {
        self.readable = true;
        let mut more = true;
        while more {
            more = self.listen().is_ok() && self.readable && !self.is_full();
            self.pass_on();
        }
    }

    /// Sees to it that what the client typed last is taken, though not for ever, and tells it why it has to go.
    fn part(mut self, end: End) {
        if end == End::Gone {
            let deadline = Instant::now() + ws::FAREWELL;
            self.hear_the_last();
            while self.typing.is_some() && Instant::now() < deadline {
                let _ = poll::wait([(self.waker.as_fd(), Events::READ)], Some(deadline));
                self.waker.clear();
                self.pass_on();
            }
        }
        // It is detached from here on, whenever it goes.
        drop(self.attached);
        let End::Close(code, reason) = end else { return };
        log::debug!("a terminal client is told to go: {code} {reason}");
        let patience = ws::patience(code);
        let deadline = Instant::now() + patience;
        let frame = ws::close_frame(code, &reason);
        let mut flushed = ws::is_flushed(self.ws.close(Some(frame)));
        while let Ok(false) = flushed {
            if self.ws.get_ref().0.wait(Events::WRITE, Some(deadline)).is_err() || Instant::now() > deadline {
                return;
            }
            flushed = ws::is_flushed(self.ws.flush());
        }
        ws::part(self.ws.get_mut().0, patience);
    }
}

/// What a client is told that has seen its last.
fn farewell(seen: Seen) -> End {
    match seen {
        Seen::Behind => End::close(CloseCode::Policy, "too slow: output that was not read has been dropped"),
        Seen::Overdue => End::close(CloseCode::Policy, "not ready, and more was written than is kept"),
        Seen::Terminated => End::close(CloseCode::Away, "session terminated"),
        Seen::Ended(end) => End::close(CloseCode::Normal, format!("exit:{}", end.exit.shell_status())),
        Seen::Bytes | Seen::Nothing => End::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says() {
        for (message, right) in [
            (&b"\0"[..], Said::Typed(b"")),
            (b"\0ls\n", Said::Typed(b"ls\n")),
            (b"\x01\0\x78\0\x28", Said::Resized(TerminalSize { rows: 40, cols: 120 })),
            (b"\x01\0\0\0\0", Said::Resized(TerminalSize::default())),
            (b"\x01\xff\xff\xff\xff", Said::Resized(TerminalSize { rows: 500, cols: 1000 })),
            (b"\x01\0\x78\0", Said::Noise),
            (b"\x01\0\x78\0\x28\0", Said::Noise),
            (b"\x02", Said::Ready),
            (b"\x02x", Said::Ready),
            (b"\x03\0\0\0\0", Said::Noise),
            (b"\xff", Said::Noise),
            (b"", Said::Noise),
        ] {
            assert_eq!(said(message), right, "{message:?}");
        }
    }
}
