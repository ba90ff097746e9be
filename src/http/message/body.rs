//! The body of a request: read piece by piece, with a deadline for each piece, and never beyond its end.

use std::io::{self, ErrorKind, Read};
use std::time::{Duration, Instant};

use tl_os::poll::Events;

use crate::http::connection::socket::Socket;
use crate::http::connection::wait::SendDeadline;
use crate::http::message::chunked::Decoder;
use crate::http::message::error::ApiError;
use crate::http::message::request_head::{BodyFraming, RequestHead};
use crate::http::message::stream::UnreadBody;

/// Maximum number of buffered bytes of a chunked body.
const MAX_BUFFERED: usize = 64 << 10;

/// Bytes of a body that the handler did not read are dropped, and the connection used again, only if they have already
/// arrived and are at most this many.
const MAX_DISCARDED: usize = 64 << 10;

/// A body that is being read.
#[derive(Debug)]
pub(crate) struct Body {
    state: State,
    /// The client waits for `100 Continue` before it sends the body.
    expects_continue: bool,
    /// Maximum time between two pieces.
    idle_timeout: Duration,
    /// Deadline for the whole body.
    deadline: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// A body with this many bytes left.
    Length(u64),
    /// A chunked body.
    Chunked(Decoder),
}

impl Body {
    /// The body that follows `head`.
    ///
    /// # Errors
    /// 400 if its end is uncertain.
    pub(crate) fn new(head: &RequestHead, idle_timeout: Duration, deadline: Option<Instant>) -> Result<Body, ApiError> {
        let state = match head.framing()? {
            BodyFraming::None => State::Length(0),
            BodyFraming::Length(length) => State::Length(length),
            BodyFraming::Chunked => State::Chunked(Decoder::new()),
        };
        Ok(Body { state, expects_continue: head.expects_continue(), idle_timeout, deadline })
    }

    /// Whether the whole body has been read.
    pub(crate) fn is_done(&self) -> bool {
        match &self.state {
            State::Length(left) => *left == 0,
            State::Chunked(decoder) => decoder.is_done(),
        }
    }

    /// Number of bytes not yet read, unless the body is chunked.
    pub(crate) fn remaining(&self) -> Option<u64> {
        match &self.state {
            State::Length(left) => Some(*left),
            State::Chunked(_) => None,
        }
    }

    /// Reads some bytes. Returns 0 at the end of the body, or if `out` is empty.
    ///
    /// # Errors
    /// 408 if nothing arrives for the idle timeout; 400 if the body ends early or a chunk is malformed;
    /// [`ApiError::disconnected`].
    pub(crate) fn read(&mut self, socket: &mut Socket, out: &mut [u8]) -> Result<usize, ApiError> {
        loop {
            if let Some(read) = self.read_now(socket, out)? {
                return Ok(read);
            }
            let idle = Instant::now() + self.idle_timeout;
            let deadline = Some(self.deadline.map_or(idle, |deadline| deadline.min(idle)));
            socket.wait(Events::READ, deadline).map_err(read_error)?;
        }
    }

    /// Like [`Body::read`], but returns None instead of waiting.
    ///
    /// # Errors
    /// As for [`Body::read`], except 408.
    pub(crate) fn read_now(&mut self, socket: &mut Socket, out: &mut [u8]) -> Result<Option<usize>, ApiError> {
        if self.is_done() || out.is_empty() {
            return Ok(Some(0));
        }
        self.send_continue(socket)?;
        loop {
            match &mut self.state {
                State::Length(left) => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len());
                    let out = out.get_mut(..most).unwrap_or_default();
                    let Some(read) = arrived(socket.read(out))? else { return Ok(None) };
                    *left -= read as u64;
                    return if read == 0 { Err(ended_early()) } else { Ok(Some(read)) };
                }
                State::Chunked(decoder) => {
                    if socket.buffered().is_empty() {
                        match arrived(socket.fill_now(MAX_BUFFERED))? {
                            None => return Ok(None),
                            Some(0) => return Err(ended_early()),
                            Some(_) => {}
                        }
                    }
                    let given = decode(decoder, socket, out)?;
                    if given > 0 || decoder.is_done() {
                        return Ok(Some(given));
                    }
                }
            }
        }
    }

    /// The final response begins: `100 Continue` must not follow it.
    pub(crate) fn forgo_continue(&mut self) {
        self.expects_continue = false;
    }

    /// Sends `100 Continue` to a client that waits for it.
    fn send_continue(&mut self, socket: &mut Socket) -> Result<(), ApiError> {
        let expected = std::mem::take(&mut self.expects_continue);
        if expected && socket.buffered().is_empty() {
            let deadline = SendDeadline::Stalled(self.idle_timeout);
            let sent = socket.send_interim(b"HTTP/1.1 100 Continue\r\n\r\n", deadline);
            sent.map_err(|_| ApiError::disconnected())?;
        }
        Ok(())
    }

    /// Drops the unread bytes of the body if they are few and all have arrived. Returns whether the connection can be
    /// used for another request.
    pub(crate) fn discard_received(&mut self, socket: &mut Socket) -> bool {
        if self.is_done() {
            return true;
        }
        if self.expects_continue || self.remaining().is_some_and(|left| left > MAX_DISCARDED as u64) {
            return false;
        }
        let mut dropped = 0;
        while dropped <= MAX_DISCARDED {
            if socket.buffered().is_empty() && !matches!(socket.fill_now(MAX_BUFFERED), Ok(1..)) {
                return false;
            }
            dropped += socket.buffered().len();
            match &mut self.state {
                State::Length(left) => {
                    let here = socket.buffered().len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    socket.consume(here);
                    *left -= here as u64;
                }
                State::Chunked(decoder) => {
                    let mut scratch = [0; 512];
                    while !socket.buffered().is_empty() && !decoder.is_done() {
                        if decode(decoder, socket, &mut scratch).is_err() {
                            return false;
                        }
                    }
                }
            }
            if self.is_done() {
                return true;
            }
        }
        false
    }
}

impl UnreadBody for Body {
    fn read_now(&mut self, socket: &mut Socket, out: &mut [u8]) -> io::Result<Option<usize>> {
        Body::read_now(self, socket, out).map_err(|error| io::Error::other(error.to_string()))
    }
}

fn decode(decoder: &mut Decoder, socket: &mut Socket, out: &mut [u8]) -> Result<usize, ApiError> {
    let (taken, given) = decoder.decode(socket.buffered(), out).map_err(ApiError::malformed)?;
    socket.consume(taken);
    Ok(given)
}

/// None if nothing has arrived yet.
fn arrived(read: io::Result<usize>) -> Result<Option<usize>, ApiError> {
    match read {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        result => result.map(Some).map_err(read_error),
    }
}

fn read_error(error: io::Error) -> ApiError {
    match error.kind() {
        ErrorKind::TimedOut => ApiError::timed_out("the rest of the body"),
        _ => ApiError::disconnected(),
    }
}

fn ended_early() -> ApiError {
    ApiError::malformed("the body ended before the end that its head announced")
}
