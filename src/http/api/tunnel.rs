//! `GET /tunnels/tcp`: a WebSocket that carries the bytes of a connection to a port of the loopback.
//!
//! A WebSocket ends in both directions at once, a connection does not: a Close from the client only means that it has
//! sent all. So this speaks in frames, of which tungstenite's WebSocket would send none after it. Each direction holds
//! one piece at a time and reads no more before it is gone.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::frame::{Frame, FrameSocket};
use tungstenite::{Bytes, Error as WsError};

use tl_os::poll::{self, Events};

use crate::http::message::request::Request;
use crate::http::message::response::Answer;
use crate::http::message::response_head::Problem;
use crate::http::ws;
use crate::http::ws::frames::{Incoming, Sequence};
use crate::http::ws::{BEAT, End, FRAMES, Handshake, LARGEST, Line, Wire};

/// The API's port as clients know it (section 12). Where we listen on another one, a proxy may stand there for us.
const API_PORT: u16 = 9501;

/// The most that one frame carries to the client.
const PIECE: usize = 128 << 10;

/// How long a service may take to accept. The kernel does it at once, unless the service's queue is full.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects before it accepts: where nobody listens there is no WebSocket.
pub(in crate::http) fn open(request: &Request<'_>) -> Result<Answer, Problem> {
    let port = port(request.query("port").as_deref())?;
    if port == API_PORT || request.local_port() == Some(port) {
        return Err(Problem::Invalid(format!("the query parameter `port`: {port} is this API's own")));
    }
    let handshake = Handshake::of(request)?;
    let service = connect(port)?;
    Ok(handshake.answer(move |socket| {
        let mut tunnel = Tunnel::new(Wire(socket), service);
        let end = tunnel.run();
        tunnel.part(end);
    }))
}

fn port(query: Option<&str>) -> Result<u16, Problem> {
    let digits = query.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let port = digits.and_then(|text| text.parse().ok()).filter(|port| *port != 0);
    port.ok_or_else(|| Problem::Invalid("the query parameter `port` must be a number from 1 to 65535".to_owned()))
}

fn connect(port: u16) -> Result<TcpStream, Problem> {
    let (four, six) = (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    let connected = TcpStream::connect_timeout(&four, PATIENCE).or_else(|error| {
        // What the first says tells more than that the machine has no IPv6.
        TcpStream::connect_timeout(&six, PATIENCE).map_err(|_| error)
    });
    let ready = connected.and_then(|stream| {
        // Where nobody listens, the kernel may choose the very port to connect from, and join the socket to itself.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    ready.map_err(|error| Problem::ConnectionRefused(format!("no service takes connections on port {port}: {error}")))
}

/// What is on its way to the service.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

impl Outgoing {
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }
}

struct Tunnel<'c> {
    frames: FrameSocket<Wire<'c>>,
    sequence: Sequence,
    service: TcpStream,
    to_service: Outgoing,
    /// The service takes no more.
    deaf: bool,
    /// The client has sent all, with these words.
    closed: Option<Option<CloseFrame>>,
    /// All that was written to the client has left.
    flushed: bool,
    /// What is to be answered to the last ping.
    pong: Option<Bytes>,
    /// The client may have sent more than one turn has taken.
    unheard: bool,
    buffer: Box<[u8]>,
    line: Line,
    beat: Instant,
}

impl<'c> Tunnel<'c> {
    fn new(wire: Wire<'c>, service: TcpStream) -> Tunnel<'c> {
        let line = Line::new(wire.0);
        Tunnel {
            line,
            frames: FrameSocket::new(wire),
            sequence: Sequence::default(),
            service,
            to_service: Outgoing::default(),
            deaf: false,
            closed: None,
            flushed: true,
            pong: None,
            unheard: false,
            buffer: vec![0; PIECE].into_boxed_slice(),
            beat: Instant::now() + BEAT,
        }
    }

    fn run(&mut self) -> End {
        loop {
            let turn = self.turn().and_then(|()| self.wait());
            if let Err(end) = turn {
                return end;
            }
        }
    }

    fn turn(&mut self) -> Result<(), End> {
        self.flush()?;
        self.send()?;
        self.receive()?;
        self.flush()?;
        self.keep_time()
    }

    /// From the service to the client.
    fn send(&mut self) -> Result<(), End> {
        if !self.flushed {
            return Ok(());
        }
        match self.service.read(&mut self.buffer) {
            Ok(0) => Err(self.at_its_end()),
            Ok(count) => {
                let bytes = self.buffer.get(..count).unwrap_or_default();
                self.write(Incoming::frame(bytes))
            }
            Err(error) if ws::is_later(&error) => Ok(()),
            Err(error) => Err(End::close(CloseCode::Error, format!("the service has broken off: {error}"))),
        }
    }

    /// The service has sent all: the client is told in its own words where it has closed before.
    fn at_its_end(&self) -> End {
        match &self.closed {
            Some(Some(frame)) if frame.code.is_allowed() => End::close(frame.code, frame.reason.as_str()),
            _ => End::close(CloseCode::Normal, ""),
        }
    }

    /// From the client to the service, for one turn: the other direction must not wait for a client that sends on.
    fn receive(&mut self) -> Result<(), End> {
        self.unheard = false;
        for _ in 0..FRAMES {
            self.pass_on();
            if !self.to_service.rest().is_empty() || self.closed.is_some() {
                return Ok(());
            }
            let frame = match self.frames.read(Some(LARGEST)) {
                Ok(Some(frame)) => frame,
                Err(WsError::Io(error)) if ws::is_later(&error) => return Ok(()),
                // Without a Close it has not sent all: nothing of this can be completed.
                Ok(None) => return Err(End::Gone),
                Err(error) => return Err(End::of(&error)),
            };
            self.to_service.written = 0;
            self.to_service.bytes.clear();
            match self.sequence.next(&frame, &mut self.to_service.bytes)? {
                Incoming::Bytes | Incoming::Pong => {}
                // The newest is answer enough for those before it (RFC 6455, section 5.5.3).
                Incoming::Ping(payload) => self.pong = Some(payload),
                Incoming::Close(words) => {
                    self.closed = Some(words);
                    // Gone already is as good.
                    let _ = self.service.shutdown(Shutdown::Write);
                }
            }
        }
        self.unheard = true;
        Ok(())
    }

    fn pass_on(&mut self) {
        while !self.to_service.rest().is_empty() {
            if self.deaf {
                self.to_service.written = self.to_service.bytes.len();
                return;
            }
            match self.service.write(self.to_service.rest()) {
                Ok(count) => self.to_service.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What it has said before is read still.
                Err(_) => self.deaf = true,
            }
        }
    }

    fn write(&mut self, frame: Frame) -> Result<(), End> {
        self.flushed = ws::is_flushed(self.frames.write(frame))?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), End> {
        if !self.flushed {
            self.flushed = ws::is_flushed(self.frames.flush())?;
        }
        if self.flushed
            && let Some(payload) = self.pong.take()
        {
            self.write(Frame::pong(payload))?;
        }
        Ok(())
    }

    /// A ping makes the client's machine answer, though not its program: that may wait for as long as it likes.
    fn keep_time(&mut self) -> Result<(), End> {
        let now = Instant::now();
        if now < self.beat {
            return Ok(());
        }
        self.beat = now + BEAT;
        if self.line.is_lost(self.frames.get_ref().0) {
            return Err(End::Gone);
        }
        if self.flushed {
            self.write(Frame::ping(Vec::new()))?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<(), End> {
        let blocked = !self.to_service.rest().is_empty();
        let mut client = match (&self.closed, blocked) {
            // It waits for the rest, and may have closed its half; that it has gone is reported unasked.
            (Some(_), _) => Events::NONE,
            (None, true) => Events::NONE,
            (None, false) => Events::READ,
        };
        let mut service = Events::NONE;
        if self.flushed {
            service = service.and(Events::READ);
        } else {
            client = client.and(Events::WRITE);
        }
        if blocked {
            service = service.and(Events::WRITE);
        }
        let fds = [(self.frames.get_ref().0.as_fd(), client), (self.service.as_fd(), service)];
        let deadline = if self.unheard { Instant::now() } else { self.beat };
        let [client, service] = poll::wait(fds, Some(deadline)).map_err(|_| End::Gone)?;
        // Reported though nobody asked: no direction is open any more.
        let is_gone = client.any(Events::GONE) && (self.closed.is_some() || blocked);
        if is_gone {
            return Err(End::Gone);
        }
        if !self.flushed && service.any(Events::GONE) && !service.any(Events::READ.and(Events::WRITE)) {
            // The service has broken off while the client takes nothing: what it said last can wait, but not in a loop.
            return self.wait_for_client();
        }
        Ok(())
    }

    fn wait_for_client(&mut self) -> Result<(), End> {
        let fds = [(self.frames.get_ref().0.as_fd(), Events::WRITE.and(Events::GONE))];
        match poll::wait(fds, Some(self.beat)) {
            Ok([client]) if !client.any(Events::GONE) => Ok(()),
            _ => Err(End::Gone),
        }
    }

    /// Closes both connections, with a word to the client where it is there.
    fn part(mut self, end: End) {
        let End::Close(code, reason) = end else { return };
        drop(self.service);
        let patience = ws::patience(code);
        let deadline = Instant::now() + patience;
        let frame = Frame::close(Some(ws::close_frame(code, &reason)));
        let mut flushed = ws::is_flushed(self.frames.write(frame));
        while let Ok(false) = flushed {
            if self.frames.get_ref().0.wait(Events::WRITE, Some(deadline)).is_err() {
                return;
            }
            flushed = ws::is_flushed(self.frames.flush());
        }
        ws::part(self.frames.get_mut().0, patience);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(port(Some("1")).unwrap(), 1);
        assert_eq!(port(Some("65535")).unwrap(), 65_535);
        for text in [None, Some(""), Some("0"), Some("65536"), Some("-1"), Some("+80"), Some("80x"), Some("1.5")] {
            assert!(port(text).unwrap_err().to_string().contains("`port`"), "{text:?}");
        }
    }
}
