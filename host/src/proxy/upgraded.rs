//! A connection after an upgrade: passes bytes on in both directions, without looking at them.
//!
//! Each direction holds one piece at a time and reads the next one when that is written. The bytes are copied. `splice(2)`
//! through a pipe, which copies nothing, carried only half as much between connections on one machine: it hands over
//! single pages, which the kernel then sends and receives one by one.
//!
//! When the proxy shuts down, the client of a WebSocket gets a closing frame; other connections just end.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use tl_os::poll::Events;
use tl_supervisor::http::message::Socket;

use crate::proxy::frames::{FrameBounds, GOING_AWAY};
use crate::proxy::numbers::OpenRequest;
use crate::proxy::pair::{Pair, Want};
use crate::proxy::stream::{self, Stream};

/// First size of the buffer of a direction, in bytes.
const FIRST_BUFFER: usize = 4 << 10;

/// Size of the buffer once a read has filled it: large enough that system calls cost little, and small enough to stay in
/// the cache of a processor.
const LARGE_BUFFER: usize = 64 << 10;

/// Number of pieces after which the other direction gets its turn.
const PIECES_PER_TURN: usize = 16;

/// How long a silent connection keeps its large buffers.
const KEEP_BUFFERS: Duration = Duration::from_secs(2);

/// When the proxy shuts down: how long it waits for the end of a frame, and then for the client to disconnect.
const STOP_GRACE: Duration = Duration::from_millis(200);

/// One of the two connections.
trait End: AsFd {
    /// Reads what has arrived: `Some(0)` at the end, None if nothing has arrived.
    fn read_now(&mut self, out: &mut [u8]) -> io::Result<Option<usize>>;
    /// Writes what there is room for. None if there is none.
    fn write_now(&mut self, bytes: &[u8]) -> io::Result<Option<usize>>;
    /// Tells the other side that nothing more will be written.
    fn end_writing(&mut self) -> io::Result<()>;
    /// Makes the close that follows a reset.
    fn reset_on_close(&self);
}

impl End for &mut Socket {
    fn read_now(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        stream::now(|| self.read(out))
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        stream::now(|| self.write(bytes))
    }

    fn end_writing(&mut self) -> io::Result<()> {
        self.shutdown_write()
    }

    fn reset_on_close(&self) {
        stream::reset_on_close(self);
    }
}

impl End for Stream {
    fn read_now(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        Stream::read_now(self, out)
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        Stream::write_now(self, bytes)
    }

    fn end_writing(&mut self) -> io::Result<()> {
        Stream::end_writing(self)
    }

    fn reset_on_close(&self) {
        Stream::reset_on_close(self);
    }
}

/// Passes bytes on until both directions have ended, or one connection has failed. `received` are the first bytes of the
/// sandbox.
pub(crate) fn pass_both_ways(
    client: &mut Socket,
    sandbox: Stream,
    received: Vec<u8>,
    is_web_socket: bool,
    open: &OpenRequest,
) {
    let mut connection = Connection {
        client,
        sandbox,
        to_sandbox: Direction::new(Vec::new(), None),
        to_client: Direction::new(received, is_web_socket.then(FrameBounds::default)),
        stop_at: None,
        pair: Pair::default(),
    };
    if let Err(error) = connection.run(open) {
        log::debug!("an upgraded connection has failed: {error}");
        connection.client.reset_on_close();
        connection.sandbox.reset_on_close();
    }
}

struct Connection<'c> {
    client: &'c mut Socket,
    sandbox: Stream,
    to_sandbox: Direction,
    to_client: Direction,
    /// When the connection ends at the latest, once the proxy shuts down.
    stop_at: Option<Instant>,
    pair: Pair,
}

impl Connection<'_> {
    /// # Errors
    /// If a connection has failed, rather than ended.
    fn run(&mut self, open: &OpenRequest) -> io::Result<()> {
        loop {
            let to_sandbox = self.to_sandbox.advance(&mut self.client, &mut self.sandbox)?;
            let to_client = self.to_client.advance(&mut self.sandbox, &mut self.client)?;
            open.received(std::mem::take(&mut self.to_sandbox.passed));
            open.sent(std::mem::take(&mut self.to_client.passed));
            if (to_sandbox, to_client) == (Want::Nothing, Want::Nothing) {
                return Ok(());
            }
            if self.must_stop() {
                self.say_goodbye();
                return Ok(());
            }
            self.wait(to_sandbox, to_client)?;
        }
    }

    /// Whether the proxy shuts down, and the client has whole frames.
    fn must_stop(&mut self) -> bool {
        if !self.client.is_stopping() {
            return false;
        }
        let now = Instant::now();
        let at = *self.stop_at.get_or_insert(now + STOP_GRACE);
        self.to_client.is_between_frames() || now >= at
    }

    /// Sends the closing frame, and waits a moment for the client to disconnect: what it still sends would turn the close
    /// into a reset, which may discard what is on its way to it.
    fn say_goodbye(&mut self) {
        if self.to_client.frames.as_ref().is_some_and(|frames| !frames.has_closed())
            && self.to_client.is_between_frames()
        {
            // If there is no room for so few bytes, the client does not read.
            let _ = self.client.write_now(GOING_AWAY);
        }
        if self.client.end_writing().is_err() {
            return;
        }
        let (until, mut dropped) = (Instant::now() + STOP_GRACE, [0; FIRST_BUFFER]);
        while Instant::now() < until {
            match self.client.read_now(&mut dropped) {
                Ok(Some(1..)) => {}
                Ok(None) => drop(self.client.wait_readable(Some(until))),
                Ok(Some(0)) | Err(_) => return,
            }
        }
    }

    fn wait(&mut self, to_sandbox: Want, to_client: Want) -> io::Result<()> {
        let is_large = self.to_sandbox.is_large() || self.to_client.is_large();
        let mut deadline = is_large.then(|| Instant::now() + KEEP_BUFFERS);
        if to_sandbox == Want::Turn || to_client == Want::Turn {
            deadline = Some(Instant::now());
        }
        let stop = match self.stop_at {
            None => Some((self.client.stop_signal(), Events::READ)),
            Some(at) => {
                deadline = Some(deadline.map_or(at, |deadline| deadline.min(at)));
                None
            }
        };
        let client = (self.client.as_fd(), Want::events(to_sandbox, to_client));
        let sandbox = (self.sandbox.as_fd(), Want::events(to_client, to_sandbox));
        let [client, sandbox] = self.pair.wait([client, sandbox], stop, deadline)?;
        // Without an end of the output to it, only a reset does that.
        if client.any(Events::BROKEN) && !self.to_client.has_ended {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        // What the sandbox has sent before is still passed on.
        if sandbox.any(Events::BROKEN) {
            self.to_sandbox.fail();
        }
        if client == Events::NONE && sandbox == Events::NONE && to_sandbox != Want::Turn && to_client != Want::Turn {
            self.to_sandbox.release();
            self.to_client.release();
        }
        Ok(())
    }
}

/// One direction.
#[derive(Debug)]
struct Direction {
    /// The bytes that were read and not written are at `from..to`.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    /// The source has sent everything.
    source_ended: bool,
    /// The destination was told so, or takes no more.
    has_ended: bool,
    /// Bytes written since the counters were updated.
    passed: usize,
    /// The frames that were written, towards the client of a WebSocket.
    frames: Option<FrameBounds>,
}

impl Direction {
    fn new(held: Vec<u8>, frames: Option<FrameBounds>) -> Direction {
        let to = held.len();
        Direction { buffer: held, from: 0, to, source_ended: false, has_ended: false, passed: 0, frames }
    }

    /// Whether nothing is held, and whole frames have passed, if there are frames.
    fn is_between_frames(&self) -> bool {
        self.from == self.to && self.frames.as_ref().is_none_or(FrameBounds::is_between_frames)
    }

    fn is_large(&self) -> bool {
        self.from == self.to && self.buffer.len() > FIRST_BUFFER
    }

    /// Frees the buffer if it is empty.
    fn release(&mut self) {
        if self.from == self.to {
            (self.buffer, self.from, self.to) = (Vec::new(), 0, 0);
        }
    }

    /// The destination takes no more.
    fn fail(&mut self) {
        self.has_ended = true;
        self.from = self.to;
        self.release();
    }

    /// Passes on what there is, and room for.
    ///
    /// # Errors
    /// If the source has failed.
    fn advance(&mut self, from: &mut impl End, to: &mut impl End) -> io::Result<Want> {
        for _ in 0..PIECES_PER_TURN {
            if self.has_ended {
                return Ok(Want::Nothing);
            }
            match self.write(to) {
                Ok(true) => {}
                Ok(false) => return Ok(Want::Room),
                Err(error) => {
                    log::debug!("the other side of an upgraded connection takes no more: {error}");
                    self.fail();
                    from.reset_on_close();
                    continue;
                }
            }
            if self.source_ended {
                // This fails only if the connection has failed, which the other direction sees.
                let _ = to.end_writing();
                self.has_ended = true;
                self.release();
            } else if !self.read(from)? {
                if !self.is_large() {
                    self.release();
                }
                return Ok(Want::Read);
            }
        }
        Ok(Want::Turn)
    }

    /// Writes what is held. Returns whether that was all.
    fn write(&mut self, to: &mut impl End) -> io::Result<bool> {
        while self.from < self.to {
            let rest = self.buffer.get(self.from..self.to).unwrap_or_default();
            let Some(count) = to.write_now(rest)? else { return Ok(false) };
            if let Some(frames) = &mut self.frames {
                frames.pass(rest.get(..count).unwrap_or_default());
            }
            self.from += count;
            self.passed += count;
        }
        Ok(true)
    }

    /// Reads one piece. Returns whether anything was there. Nothing is held before.
    fn read(&mut self, from: &mut impl End) -> io::Result<bool> {
        let was_filled = self.to == FIRST_BUFFER && self.buffer.len() == FIRST_BUFFER;
        let size = if was_filled { LARGE_BUFFER } else { FIRST_BUFFER };
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
        (self.from, self.to) = (0, 0);
        let Some(count) = from.read_now(&mut self.buffer)? else { return Ok(false) };
        self.to = count;
        self.source_ended = count == 0;
        Ok(true)
    }
}
