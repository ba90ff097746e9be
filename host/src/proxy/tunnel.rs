//! Reaches a port of a sandbox through its daemon: for a program that listens on loopback only, and for an engine whose
//! containers have no address that can be reached from here.
//!
//! The daemon carries the bytes of one connection in the binary frames of a WebSocket (docs/api.md, Tunnels). A thread
//! translates between that and a socket pair, so that the rest of the proxy sees an ordinary stream.

use std::io::{self, ErrorKind};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame, FrameSocket};
use tungstenite::{Bytes, Error as WsError};

use tl_os::poll::{self, Events};
use tl_os::thread;

use crate::proxy::answer::Asked;
use crate::proxy::connect::{ConnectError, connect};
use crate::proxy::pair::Pair;
use crate::proxy::stream::{self, Stream, TunnelFailure};
use crate::proxy::upstream::{Received, Upstream};

/// Bytes that are put into one frame.
const PIECE: usize = 32 << 10;

/// Maximum length of a frame of the daemon.
const MAX_FRAME: usize = 1 << 20;

/// Number of pieces after which the other direction gets its turn.
const PIECES_PER_TURN: usize = 16;

/// The key of the handshake. It keeps caches from answering, and there is none between the proxy and the daemon.
const HANDSHAKE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// The client has disconnected meanwhile.
    #[error("the client has disconnected")]
    ClientGone,
    /// Nothing listens on the port.
    #[error("no program accepts connections on the port")]
    Refused,
    /// The daemon cannot be reached, or answers something else.
    #[error("{0}")]
    Failed(String),
}

impl From<ConnectError> for TunnelError {
    fn from(error: ConnectError) -> TunnelError {
        match error {
            ConnectError::ClientGone => TunnelError::ClientGone,
            ConnectError::Failed(error) => TunnelError::Failed(error.to_string()),
        }
    }
}

/// Opens a tunnel to a port. `client` is watched meanwhile.
pub(crate) fn open(
    daemon: SocketAddr,
    token: &str,
    port: u16,
    client: &impl AsFd,
    deadline: Instant,
) -> Result<Stream, TunnelError> {
    let connection = connect(daemon, client, deadline)?;
    let head = format!(
        "GET /api/v1/tunnels/tcp?port={port} HTTP/1.1\r\nHost: {daemon}\r\nAuthorization: Bearer {token}\r\n\
         Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {HANDSHAKE_KEY}\r\n\r\n"
    );
    let mut upstream = Upstream::new(Stream::Tcp(connection), None, false);
    let failed = |error: io::Error| TunnelError::Failed(error.to_string());
    // A new connection has room for so few bytes.
    if upstream.stream.write_now(head.as_bytes()).map_err(failed)? != Some(head.len()) {
        return Err(TunnelError::Failed("the daemon does not take the request".to_owned()));
    }
    await_upgrade(&mut upstream, client, deadline)?;
    let received = upstream.take_buffered();
    let Stream::Tcp(connection) = upstream.stream else { return Err(TunnelError::Refused) };
    start(connection, received).map_err(failed)
}

fn await_upgrade(upstream: &mut Upstream, client: &impl AsFd, deadline: Instant) -> Result<(), TunnelError> {
    let failed = |what: &str| TunnelError::Failed(what.to_owned());
    loop {
        if let Some(answer) =
            upstream.take_answer(Asked { is_head: false, upgrade: true }).map_err(TunnelError::Failed)?
        {
            return match answer.status {
                101 => Ok(()),
                502 => Err(TunnelError::Refused),
                status => Err(TunnelError::Failed(format!("the daemon answers a tunnel with the status {status}"))),
            };
        }
        match upstream.receive().map_err(|error| TunnelError::Failed(error.to_string()))? {
            Received::Bytes => continue,
            Received::End => return Err(failed("the daemon has closed the connection")),
            Received::Nothing => {}
        }
        let fds = [(upstream.as_fd(), Events::READ), (client.as_fd(), Events::NONE)];
        let [ready, client] =
            poll::wait(fds, Some(deadline)).map_err(|error| TunnelError::Failed(error.to_string()))?;
        if client.any(Events::BROKEN) {
            return Err(TunnelError::ClientGone);
        }
        if ready == Events::NONE {
            return Err(failed("the daemon does not answer in time"));
        }
    }
}

fn start(connection: TcpStream, received: Vec<u8>) -> io::Result<Stream> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let failure = Arc::new(TunnelFailure::default());
    let mut translation = Translation {
        frames: FrameSocket::from_partially_read(connection, received),
        near: far,
        failure: Arc::clone(&failure),
        to_near: Bytes::new(),
        is_flushed: true,
        near_ended: false,
        daemon_ended: false,
        pair: Pair::default(),
        pong: None,
    };
    let run = move || {
        if let Err(error) = translation.run() {
            log::debug!("a tunnel has failed: {error}");
            translation.failure.set();
        }
        Ok(())
    };
    // A panic drops the socket pair, as a failure does.
    let of_panic = Arc::clone(&failure);
    thread::spawn("proxy-tunnel", run, move || of_panic.set())?;
    Ok(Stream::Tunnel(near, failure))
}

/// One tunnel.
struct Translation {
    frames: FrameSocket<TcpStream>,
    near: UnixStream,
    failure: Arc<TunnelFailure>,
    /// Payload of the daemon that is not written yet.
    to_near: Bytes,
    /// The daemon has taken all frames that were written.
    is_flushed: bool,
    /// The near side has ended its output, and the daemon was told.
    near_ended: bool,
    /// The program has ended its output.
    daemon_ended: bool,
    pair: Pair,
    /// The payload of a ping that is not answered yet.
    pong: Option<Bytes>,
}

impl Translation {
    /// Carries bytes until the program has ended its output, or the near side is gone.
    fn run(&mut self) -> io::Result<()> {
        loop {
            let mut again = self.send()?;
            again |= self.receive()?;
            if self.daemon_ended && self.to_near.is_empty() {
                // The daemon waits for the answer to its closing frame.
                let _ = self.close();
                return self.near.shutdown(Shutdown::Both);
            }
            if !self.wait(again)? {
                return Ok(());
            }
        }
    }

    /// Passes on what the near side has written. Returns whether there may be more.
    fn send(&mut self) -> io::Result<bool> {
        for _ in 0..PIECES_PER_TURN {
            if !self.is_flushed {
                self.is_flushed = is_flushed(self.frames.flush())?;
            }
            if !self.is_flushed {
                return Ok(false);
            }
            if let Some(payload) = self.pong.take() {
                self.write(Frame::pong(payload))?;
                continue;
            }
            if self.near_ended || self.daemon_ended {
                return Ok(false);
            }
            let mut piece = vec![0; PIECE];
            let Some(read) = stream::now(|| io::Read::read(&mut &self.near, &mut piece))? else { return Ok(false) };
            if read == 0 {
                self.near_ended = true;
                self.close()?;
            } else {
                piece.truncate(read);
                self.write(Frame::message(piece, OpCode::Data(Data::Binary), true))?;
            }
        }
        Ok(true)
    }

    /// Passes on what the daemon has sent. Returns whether there may be more.
    fn receive(&mut self) -> io::Result<bool> {
        for _ in 0..PIECES_PER_TURN {
            while !self.to_near.is_empty() {
                match stream::now(|| io::Write::write(&mut &self.near, &self.to_near))? {
                    None => return Ok(false),
                    Some(count) => drop(self.to_near.split_to(count)),
                }
            }
            if self.daemon_ended {
                return Ok(false);
            }
            let frame = match self.frames.read(Some(MAX_FRAME)) {
                Ok(Some(frame)) => frame,
                Ok(None) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(WsError::Io(error)) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(io::Error::other(error)),
            };
            match frame.header().opcode {
                OpCode::Data(Data::Binary | Data::Continue) => self.to_near = frame.into_payload(),
                OpCode::Control(Control::Ping) => self.pong = Some(frame.into_payload()),
                OpCode::Control(Control::Close) => self.end(&frame.into_payload())?,
                _ => {}
            }
        }
        Ok(true)
    }

    /// The daemon has closed the tunnel: with 1000, or the code that it was sent, if the program has ended its output.
    fn end(&mut self, payload: &[u8]) -> io::Result<()> {
        self.daemon_ended = true;
        match payload.first_chunk::<2>().map(|code| CloseCode::from(u16::from_be_bytes(*code))) {
            Some(CloseCode::Normal) => Ok(()),
            code => Err(io::Error::other(format!("the daemon has closed it with {code:?}"))),
        }
    }

    fn close(&mut self) -> io::Result<()> {
        self.write(Frame::close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() })))
    }

    fn write(&mut self, mut frame: Frame) -> io::Result<()> {
        // A client's frames are masked, so that a web page cannot choose the bytes that a proxy sees. There is no proxy
        // here: a mask of zeros costs nothing.
        frame.header_mut().mask = Some([0; 4]);
        self.is_flushed = is_flushed(self.frames.write(frame))?;
        Ok(())
    }

    /// Waits for either side. Returns false if the near side is gone.
    fn wait(&mut self, again: bool) -> io::Result<bool> {
        let (mut of_daemon, mut of_near) = (Events::NONE, Events::NONE);
        if self.to_near.is_empty() {
            of_daemon = of_daemon.and(Events::READ);
        } else {
            of_near = of_near.and(Events::WRITE);
        }
        if !self.is_flushed {
            of_daemon = of_daemon.and(Events::WRITE);
        } else if !self.near_ended {
            of_near = of_near.and(Events::READ);
        }
        let connections = [(self.frames.get_ref().as_fd(), of_daemon), (self.near.as_fd(), of_near)];
        let [_, near] = self.pair.wait(connections, None, again.then(Instant::now))?;
        // Only a close does this: the end of its output alone does not.
        Ok(!near.any(Events::BROKEN))
    }
}

/// Whether everything that was written has been sent.
fn is_flushed(result: Result<(), WsError>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(WsError::Io(error)) if error.kind() == ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(io::Error::other(error)),
    }
}
