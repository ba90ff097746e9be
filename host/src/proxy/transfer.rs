//! Passes the body of a response on, piece by piece as it arrives.
//!
//! If the client has not sent its whole request yet, the rest of that is passed on meanwhile, and nothing waits for one
//! direction alone: a client may read the response only when it has sent everything.

use std::io::{self, Write};
use std::time::Instant;

use tl_supervisor::http::message::{ChunkedDecoder, Response, ResponseStream};

use crate::proxy::answer::{Answer, AnswerFraming};
use crate::proxy::exchange::{Exchange, ended_early};
use crate::proxy::pair::Want;
use crate::proxy::upstream::{Received, Upstream};

/// Size of the pieces that a chunked body is decoded into.
const PIECE: usize = 16 << 10;

/// Number of pieces after which the other direction gets its turn.
const PIECES_PER_TURN: usize = 16;

/// The response to the client.
pub(crate) fn respond(exchange: Exchange, answer: Answer) -> Response {
    let keeps_open = answer.keeps_open;
    let empty = Response::empty(answer.status);
    let response = answer.headers.into_iter().fold(empty, |response, (name, value)| response.header(name, value));
    if answer.framing == AnswerFraming::None {
        let is_head = exchange.asked.is_head;
        exchange.keep_connection(keeps_open);
        // A response to HEAD announces a body that it does not have: the server never asks for it.
        let announces = is_head || answer.announced.is_some_and(|length| length > 0);
        return if announces { response.with_stream(answer.announced, |_| Err(ended_early())) } else { response };
    }
    let length = if let AnswerFraming::Length(length) = answer.framing { Some(length) } else { None };
    let is_whole = exchange.pump.is_read();
    let response = response.with_stream(length, move |stream| {
        Transfer { exchange, body: Body::new(answer.framing), keeps_open, is_duplex: !is_whole }.run(stream)
    });
    // The client's body has not been read to its end: it is passed on meanwhile.
    if is_whole { response } else { response.duplex() }
}

/// What is left of the body.
#[derive(Debug)]
enum Body {
    Length(u64),
    Chunked(Box<Chunks>),
    Close,
}

/// A chunked body.
#[derive(Debug, Default)]
struct Chunks {
    decoder: ChunkedDecoder,
    /// The bytes that were decoded and not passed on are at `from..to`.
    piece: Vec<u8>,
    from: usize,
    to: usize,
}

impl Body {
    fn new(framing: AnswerFraming) -> Body {
        match framing {
            AnswerFraming::None => Body::Length(0),
            AnswerFraming::Length(length) => Body::Length(length),
            AnswerFraming::Chunked => Body::Chunked(Box::default()),
            AnswerFraming::Close => Body::Close,
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Body::Length(left) => *left == 0,
            Body::Chunked(chunks) => chunks.decoder.is_done() && chunks.from == chunks.to,
            Body::Close => false,
        }
    }

    /// The bytes to pass on of those that were received.
    ///
    /// # Errors
    /// If they are malformed.
    fn next<'b>(&'b mut self, upstream: &'b mut Upstream) -> io::Result<&'b [u8]> {
        match self {
            Body::Length(left) => {
                let bytes = upstream.buffered();
                Ok(bytes.get(..usize::try_from(*left).unwrap_or(usize::MAX)).unwrap_or(bytes))
            }
            Body::Close => Ok(upstream.buffered()),
            Body::Chunked(chunks) => chunks.next(upstream),
        }
    }

    /// The first `count` of these bytes were passed on.
    fn consume(&mut self, upstream: &mut Upstream, count: usize) {
        match self {
            Body::Length(left) => {
                *left = left.saturating_sub(count as u64);
                upstream.consume(count);
            }
            Body::Close => upstream.consume(count),
            Body::Chunked(chunks) => chunks.from = chunks.to.min(chunks.from + count),
        }
    }

    /// Frees the buffer if it is empty.
    fn release(&mut self) {
        if let Body::Chunked(chunks) = self
            && chunks.from == chunks.to
        {
            chunks.piece = Vec::new();
        }
    }
}

impl Chunks {
    fn next(&mut self, upstream: &mut Upstream) -> io::Result<&[u8]> {
        while self.from == self.to && !upstream.buffered().is_empty() && !self.decoder.is_done() {
            self.piece.resize(PIECE, 0);
            let (taken, given) = self.decoder.decode(upstream.buffered(), &mut self.piece).map_err(io::Error::other)?;
            upstream.consume(taken);
            (self.from, self.to) = (0, given);
        }
        Ok(self.piece.get(self.from..self.to).unwrap_or_default())
    }
}

struct Transfer {
    exchange: Exchange,
    body: Body,
    keeps_open: bool,
    /// The client has not sent its whole request when the response begins.
    is_duplex: bool,
}

impl Transfer {
    fn run(mut self, stream: &mut ResponseStream<'_>) -> io::Result<()> {
        let passed = self.pass_all(stream);
        if let Err(error) = &passed {
            log::debug!("a response was cut off: {error}");
            // What has arrived is passed on. Without its end, the client notices that the rest is missing.
            let _ = self.flush(stream);
            return passed;
        }
        self.exchange.keep_connection(self.keeps_open);
        Ok(())
    }

    fn pass_all(&mut self, stream: &mut ResponseStream<'_>) -> io::Result<()> {
        loop {
            let to_client = self.pass_response(stream)?;
            if to_client == Want::Nothing && !self.is_duplex {
                return Ok(());
            }
            let is_sent = self.exchange.pump.is_finished();
            let to_sandbox = if is_sent { Want::Nothing } else { self.exchange.pass(stream).map_err(other)? };
            // A program that has answered may still read the rest of the request.
            if to_client == Want::Nothing && (to_sandbox == Want::Nothing || self.exchange.sandbox_ended) {
                return Ok(());
            }
            if to_client != Want::Turn && to_sandbox != Want::Turn {
                self.wait(stream, to_sandbox, to_client)?;
            }
        }
    }

    fn wait(&mut self, stream: &ResponseStream<'_>, to_sandbox: Want, to_client: Want) -> io::Result<()> {
        let awaits_request = to_sandbox == Want::Read || to_client == Want::Nothing;
        let watches = self.exchange.watch.has_limit() && !awaits_request;
        let limit = match (awaits_request, watches) {
            (true, _) => Some(Instant::now() + self.exchange.idle),
            (false, true) => self.exchange.watch.next_look(),
            (false, false) => None,
        };
        if self.exchange.wait(stream, to_sandbox, to_client, limit).map_err(other)? {
            self.exchange.watch.progress();
        } else if awaits_request {
            return Err(timed_out("the rest of the request's body"));
        } else if watches {
            self.exchange.watch.look().map_err(|_| timed_out("the rest of the response"))?;
        }
        Ok(())
    }

    /// Passes on what there is of the response, and room for. Returns what to wait for.
    fn pass_response(&mut self, stream: &mut ResponseStream<'_>) -> io::Result<Want> {
        for _ in 0..PIECES_PER_TURN {
            if !self.pass_buffered(stream)? {
                return Ok(Want::Room);
            }
            if self.body.is_done() {
                let is_sent = !self.is_duplex || stream.end_now()?;
                return Ok(if is_sent { Want::Nothing } else { Want::Room });
            }
            match self.exchange.upstream.receive()? {
                Received::Bytes => {}
                Received::End if matches!(self.body, Body::Close) => {
                    (self.keeps_open, self.exchange.sandbox_ended) = (false, true);
                    self.body = Body::Length(0);
                }
                Received::End => return Err(ended_early()),
                Received::Nothing => {
                    // An event must not wait for the next one.
                    let is_sent = self.flush(stream)?;
                    self.body.release();
                    return Ok(if is_sent { Want::Read } else { Want::Room });
                }
            }
        }
        Ok(Want::Turn)
    }

    /// Passes on what was received. Returns whether the client had room for all of it.
    fn pass_buffered(&mut self, stream: &mut ResponseStream<'_>) -> io::Result<bool> {
        let upstream = &mut self.exchange.upstream;
        loop {
            let bytes = self.body.next(upstream)?;
            if bytes.is_empty() {
                return Ok(true);
            }
            let written = if self.is_duplex { stream.write_now(bytes)? } else { stream.write(bytes).map(Some)? };
            let Some(count) = written else { return Ok(false) };
            self.body.consume(upstream, count);
            self.exchange.open.sent(count);
        }
    }

    /// Sends what is collected. Returns whether that was all.
    fn flush(&self, stream: &mut ResponseStream<'_>) -> io::Result<bool> {
        if self.is_duplex { stream.flush_now() } else { stream.flush().map(|()| true) }
    }
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} did not arrive in time"))
}

fn other(error: tl_supervisor::http::message::ApiError) -> io::Error {
    io::Error::other(error.to_string())
}
