//! The body of a request: read piece by piece, with a deadline for each, and never further than its end.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use crate::http::message::chunked::Decoder;
use crate::http::message::head::{Framing, Head};
use crate::http::message::response_head::Problem;
use crate::http::server::socket::{Patience, Socket};

/// As much of a chunked body as is buffered, at most.
const BUFFER: usize = 64 << 10;

/// What a handler did not read is read after it only when it is there already and no longer than this.
const DISCARD: usize = 64 << 10;

/// A body that is being read.
#[derive(Debug)]
pub(in crate::http) struct Body {
    rest: Rest,
    /// The client waits for a word before it sends.
    expects_continue: bool,
    idle: Duration,
    /// No piece of it is waited for after this.
    until: Option<Instant>,
}

#[derive(Debug)]
enum Rest {
    Length(u64),
    Chunks(Decoder),
}

impl Body {
    /// The body that follows `head`; `idle` is how long to wait for any of it, and `until` for all of it.
    ///
    /// # Errors
    /// When its end is not certain.
    pub(in crate::http) fn of(head: &Head, idle: Duration, until: Option<Instant>) -> Result<Body, Problem> {
        let rest = match head.framing()? {
            Framing::None => Rest::Length(0),
            Framing::Length(length) => Rest::Length(length),
            Framing::Chunked => Rest::Chunks(Decoder::new()),
        };
        Ok(Body { rest, expects_continue: head.expects_continue(), idle, until })
    }

    /// Whether all of it was read.
    pub(in crate::http) fn is_done(&self) -> bool {
        match &self.rest {
            Rest::Length(left) => *left == 0,
            Rest::Chunks(decoder) => decoder.is_done(),
        }
    }

    /// How many bytes are left, where the client has said so.
    pub(in crate::http) fn left(&self) -> Option<u64> {
        match &self.rest {
            Rest::Length(left) => Some(*left),
            Rest::Chunks(_) => None,
        }
    }

    /// Reads some of it; 0 at its end, and when `out` is empty.
    ///
    /// # Errors
    /// [`Problem::TimedOut`] when none of it comes for the idle time; [`Problem::Malformed`] when it ends early or its
    /// chunks are not chunks; [`Problem::Gone`] when the client has gone.
    pub(in crate::http) fn read(&mut self, socket: &mut Socket, out: &mut [u8]) -> Result<usize, Problem> {
        if self.is_done() || out.is_empty() {
            return Ok(0);
        }
        self.invite(socket)?;
        loop {
            let deadline = Instant::now() + self.idle;
            let deadline = Some(self.until.map_or(deadline, |until| until.min(deadline)));
            match &mut self.rest {
                Rest::Length(left) => {
                    let most = usize::try_from(*left).unwrap_or(usize::MAX).min(out.len());
                    let read = socket.read(out.get_mut(..most).unwrap_or_default(), deadline).map_err(slow)?;
                    *left -= read as u64;
                    return if read == 0 { Err(ended()) } else { Ok(read) };
                }
                Rest::Chunks(decoder) => {
                    if socket.buffered().is_empty() && socket.fill(BUFFER, deadline).map_err(slow)? == 0 {
                        return Err(ended());
                    }
                    let given = decode(decoder, socket, out)?;
                    if given > 0 || decoder.is_done() {
                        return Ok(given);
                    }
                }
            }
        }
    }

    /// Says `100 Continue` to a client that waits for it.
    fn invite(&mut self, socket: &mut Socket) -> Result<(), Problem> {
        let expected = std::mem::take(&mut self.expects_continue);
        if expected && socket.buffered().is_empty() {
            socket.invite(b"HTTP/1.1 100 Continue\r\n\r\n", Patience::For(self.idle)).map_err(|_| Problem::Gone)?;
        }
        Ok(())
    }

    /// Drops what is left, if little is and all of it is there: only then the connection can be used again.
    pub(in crate::http) fn discard_ready(&mut self, socket: &mut Socket) -> bool {
        if self.is_done() {
            return true;
        }
        if self.expects_continue || self.left().is_some_and(|left| left > DISCARD as u64) {
            return false;
        }
        let mut dropped = 0;
        while dropped <= DISCARD {
            if socket.buffered().is_empty() && !matches!(socket.fill_now(BUFFER), Ok(1..)) {
                return false;
            }
            dropped += socket.buffered().len();
            match &mut self.rest {
                Rest::Length(left) => {
                    let here = socket.buffered().len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    socket.consume(here);
                    *left -= here as u64;
                }
                Rest::Chunks(decoder) => {
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

fn decode(decoder: &mut Decoder, socket: &mut Socket, out: &mut [u8]) -> Result<usize, Problem> {
    let (taken, given) =
        decoder.decode(socket.buffered(), out).map_err(|sentence| Problem::Malformed(sentence.to_owned()))?;
    socket.consume(taken);
    Ok(given)
}

fn slow(error: io::Error) -> Problem {
    match error.kind() {
        ErrorKind::TimedOut => Problem::TimedOut("the rest of the body"),
        _ => Problem::Gone,
    }
}

fn ended() -> Problem {
    Problem::Malformed("the body ended before the end that its head announced".to_owned())
}
