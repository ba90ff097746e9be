//! `GET /tunnels/tcp`: a WebSocket that carries the bytes of a TCP connection to a port on loopback.
//!
//! A closing frame from the client only means that the client has sent everything; the service may still send.
//! tungstenite's WebSocket would send nothing after a closing frame, so the tunnel reads and writes single frames. Each
//! direction holds one piece at a time, and reads the next one when that is written.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::frame::{Frame, FrameSocket};
use tungstenite::{Bytes, Error as WsError};

use tl_os::poll::{self, Events};

use crate::http::api::errors;
use crate::http::message::{ApiError, Request, Response, Socket};
use crate::http::ws;
use crate::http::ws::{
    Closure, FRAMES_PER_TURN, FrameKind, FrameReader, Handshake, MAX_MESSAGE, PING_INTERVAL, PeerLiveness, StopWatch,
    binary_frame,
};
use crate::metrics::METRICS;

/// The API's default port (docs/api.md, Tunnels). If the daemon listens on another port, a proxy that forwards to it
/// may listen on this one.
const API_PORT: u16 = 9501;

/// Maximum number of bytes of a frame to the client.
const PIECE: usize = 128 << 10;

/// How long a service may take to accept the connection. The kernel accepts at once, unless the service's queue is
/// full.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a tunnel. The connection to the service is made first: if nothing listens there, the response is a 502.
pub(crate) fn open(request: &Request<'_>) -> Result<Response, ApiError> {
    let port = port(request.query("port").as_deref())?;
    if port == API_PORT || request.local_port() == Some(port) {
        return Err(ApiError::invalid(format!("the query parameter `port`: {port} is this API's own port")));
    }
    let handshake = Handshake::new(request)?;
    let service = connect(port)?;
    Ok(handshake.accept(move |socket| {
        let _open = OpenTunnel::count();
        let mut tunnel = Tunnel::new(socket, service);
        let closure = tunnel.run();
        tunnel.close(closure);
    }))
}

fn port(query: Option<&str>) -> Result<u16, ApiError> {
    let digits = query.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let port = digits.and_then(|text| text.parse().ok()).filter(|port| *port != 0);
    port.ok_or_else(|| ApiError::invalid("the query parameter `port` must be a number from 1 to 65535"))
}

fn connect(port: u16) -> Result<TcpStream, ApiError> {
    let (v4, v6) = (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    let connected = TcpStream::connect_timeout(&v4, CONNECT_TIMEOUT).or_else(|error| {
        // The first error says more: the second one may only mean that the machine has no IPv6.
        TcpStream::connect_timeout(&v6, CONNECT_TIMEOUT).map_err(|_| error)
    });
    let ready = connected.and_then(|stream| {
        // If nothing listens on the port, the kernel may connect from that very port, and so connect the socket to
        // itself.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    });
    ready.map_err(|error| errors::connection_refused(format!("no service accepts connections on port {port}: {error}")))
}

/// Counts a tunnel as open until it is dropped.
struct OpenTunnel;

impl OpenTunnel {
    fn count() -> OpenTunnel {
        METRICS.tunnels_opened.increment();
        OpenTunnel
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        METRICS.tunnels_closed.increment();
    }
}

/// Bytes on their way to the service.
#[derive(Debug, Default)]
struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

impl Outgoing {
    /// The bytes that have not been written.
    fn rest(&self) -> &[u8] {
        self.bytes.get(self.written..).unwrap_or_default()
    }
}

struct Tunnel<'c> {
    frames: FrameSocket<&'c mut Socket>,
    reader: FrameReader,
    service: TcpStream,
    to_service: Outgoing,
    /// The service accepts no more bytes.
    write_failed: bool,
    /// The client's closing frame, with its code and reason if it has given any: the client has sent everything.
    closed: Option<Option<CloseFrame>>,
    /// Everything written to the client has been sent.
    flushed: bool,
    /// Payload of the last ping that has not been answered.
    pong: Option<Bytes>,
    /// The client may have sent more frames than one turn has read.
    has_unread: bool,
    buffer: Box<[u8]>,
    liveness: PeerLiveness,
    next_ping: Instant,
    stop: StopWatch,
}

impl<'c> Tunnel<'c> {
    fn new(socket: &'c mut Socket, service: TcpStream) -> Tunnel<'c> {
        Tunnel {
            liveness: PeerLiveness::new(socket),
            frames: FrameSocket::new(socket),
            reader: FrameReader::default(),
            service,
            to_service: Outgoing::default(),
            write_failed: false,
            closed: None,
            flushed: true,
            pong: None,
            has_unread: false,
            buffer: vec![0; PIECE].into_boxed_slice(),
            next_ping: Instant::now() + PING_INTERVAL,
            stop: StopWatch::default(),
        }
    }

    /// Carries bytes until the WebSocket must end.
    fn run(&mut self) -> Closure {
        loop {
            let turn = self.turn().and_then(|()| self.wait());
            if let Err(closure) = turn {
                return closure;
            }
        }
    }

    fn turn(&mut self) -> Result<(), Closure> {
        self.flush()?;
        self.send()?;
        self.receive()?;
        self.flush()?;
        self.stop.check(self.frames.get_ref())?;
        self.check_liveness()
    }

    /// Reads from the service and writes to the client.
    fn send(&mut self) -> Result<(), Closure> {
        if !self.flushed {
            return Ok(());
        }
        match self.service.read(&mut self.buffer) {
            Ok(0) => Err(self.end_of_service()),
            Ok(count) => {
                let bytes = self.buffer.get(..count).unwrap_or_default();
                self.write(binary_frame(bytes))
            }
            Err(error) if ws::would_block(&error) => Ok(()),
            Err(error) => {
                Err(Closure::close(CloseCode::Error, format!("the connection to the service has failed: {error}")))
            }
        }
    }

    /// The service has sent everything. A client that has sent a closing frame gets its code and reason back.
    fn end_of_service(&self) -> Closure {
        match &self.closed {
            Some(Some(frame)) if frame.code.is_allowed() => Closure::close(frame.code, frame.reason.as_str()),
            _ => Closure::close(CloseCode::Normal, ""),
        }
    }

    /// Reads from the client and writes to the service, for a limited number of frames: a client that sends without a
    /// pause must not hold up the other direction.
    fn receive(&mut self) -> Result<(), Closure> {
        self.has_unread = false;
        for _ in 0..FRAMES_PER_TURN {
            self.write_to_service();
            if !self.to_service.rest().is_empty() || self.closed.is_some() {
                return Ok(());
            }
            let frame = match self.frames.read(Some(MAX_MESSAGE)) {
                Ok(Some(frame)) => frame,
                Err(WsError::Io(error)) if ws::would_block(&error) => return Ok(()),
                // Without a closing frame, what the client has sent may be incomplete.
                Ok(None) => return Err(Closure::Disconnected),
                Err(error) => return Err(Closure::from_error(&error)),
            };
            self.to_service.written = 0;
            self.to_service.bytes.clear();
            match self.reader.next(&frame, &mut self.to_service.bytes)? {
                FrameKind::Data | FrameKind::Pong => {}
                // An answer to the newest ping is enough for those before it (RFC 6455, section 5.5.3).
                FrameKind::Ping(payload) => self.pong = Some(payload),
                FrameKind::Close(frame) => {
                    self.closed = Some(frame);
                    // This fails only if the service has closed the connection already.
                    let _ = self.service.shutdown(Shutdown::Write);
                }
            }
        }
        self.has_unread = true;
        Ok(())
    }

    fn write_to_service(&mut self) {
        while !self.to_service.rest().is_empty() {
            if self.write_failed {
                self.to_service.written = self.to_service.bytes.len();
                return;
            }
            match self.service.write(self.to_service.rest()) {
                Ok(count) => self.to_service.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the service has sent before is still read.
                Err(_) => self.write_failed = true,
            }
        }
    }

    fn write(&mut self, frame: Frame) -> Result<(), Closure> {
        self.flushed = ws::is_flushed(self.frames.write(frame))?;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Closure> {
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

    /// Pings the client, so that its machine acknowledges something. Its program need not read, for any time.
    fn check_liveness(&mut self) -> Result<(), Closure> {
        let now = Instant::now();
        if now < self.next_ping {
            return Ok(());
        }
        let due = std::mem::replace(&mut self.next_ping, now + PING_INTERVAL);
        if self.liveness.is_lost(self.frames.get_ref(), due) {
            return Err(Closure::Disconnected);
        }
        if self.flushed {
            self.write(Frame::ping(Vec::new()))?;
        }
        Ok(())
    }

    /// Waits for the client, the service or the next ping.
    fn wait(&mut self) -> Result<(), Closure> {
        let blocked = !self.to_service.rest().is_empty();
        let mut client = match (&self.closed, blocked) {
            // The client has sent everything and waits for the rest of the output. `poll(2)` reports a client that has
            // closed both directions even if no event is asked for.
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
        let socket = self.frames.get_ref();
        let fds = [(socket.as_fd(), client), (self.service.as_fd(), service), self.stop.entry(socket)];
        let deadline = self.stop.limit(if self.has_unread { Instant::now() } else { self.next_ping });
        let [client, service, _] = poll::wait(fds, Some(deadline)).map_err(|_| Closure::Disconnected)?;
        // Reported although it was not asked for: both directions are closed.
        let is_closed = client.any(Events::GONE) && (self.closed.is_some() || blocked);
        if is_closed {
            return Err(Closure::Disconnected);
        }
        if !self.flushed && service.any(Events::GONE) && !service.any(Events::READ.and(Events::WRITE)) {
            // The connection to the service has failed while the client takes nothing. The error stays reported, so
            // another `poll` of both would return at once, again and again.
            return self.wait_for_client();
        }
        Ok(())
    }

    fn wait_for_client(&mut self) -> Result<(), Closure> {
        let socket = self.frames.get_ref();
        let fds = [(socket.as_fd(), Events::WRITE.and(Events::GONE)), self.stop.entry(socket)];
        match poll::wait(fds, Some(self.stop.limit(self.next_ping))) {
            Ok([client, _]) if !client.any(Events::GONE) => Ok(()),
            _ => Err(Closure::Disconnected),
        }
    }

    /// Closes both connections, and sends the closing frame.
    fn close(mut self, closure: Closure) {
        let Closure::Close(code, reason) = closure else { return };
        drop(self.service);
        let timeout = Closure::timeout(code);
        let deadline = Instant::now() + timeout;
        let frame = Frame::close(Some(ws::close_frame(code, &reason)));
        let mut flushed = ws::is_flushed(self.frames.write(frame));
        while let Ok(false) = flushed {
            if self.frames.get_ref().wait_writable(Some(deadline)).is_err() {
                return;
            }
            flushed = ws::is_flushed(self.frames.flush());
        }
        ws::linger(self.frames.get_mut(), timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_a_number_from_1_to_65535() {
        assert_eq!(port(Some("1")).unwrap(), 1);
        assert_eq!(port(Some("65535")).unwrap(), 65_535);
        for text in [None, Some(""), Some("0"), Some("65536"), Some("-1"), Some("+80"), Some("80x"), Some("1.5")] {
            assert!(port(text).unwrap_err().to_string().contains("`port`"), "{text:?}");
        }
    }
}
