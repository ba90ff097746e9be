//! Passes the body of a response on, piece by piece as it arrives.

use std::io::{self, Write};

use tl_supervisor::http::message::{ChunkedDecoder, Response, ResponseStream};

use crate::proxy::answer::{Answer, AnswerFraming};
use crate::proxy::exchange::{Exchange, ended_early};
use crate::proxy::pump::Want;
use crate::proxy::upstream::Received;

/// Size of the pieces that a chunked body is decoded into.
const PIECE: usize = 16 << 10;

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
        Transfer { exchange, body: Body::new(answer.framing), keeps_open }.run(stream)
    });
    // The client's body has not been read to its end: it is passed on meanwhile.
    if is_whole { response } else { response.duplex() }
}

/// What is left of the body.
#[derive(Debug)]
enum Body {
    Length(u64),
    Chunked(ChunkedDecoder, Box<[u8]>),
    Close,
}

impl Body {
    fn new(framing: AnswerFraming) -> Body {
        match framing {
            AnswerFraming::None => Body::Length(0),
            AnswerFraming::Length(length) => Body::Length(length),
            AnswerFraming::Chunked => Body::Chunked(ChunkedDecoder::new(), Box::default()),
            AnswerFraming::Close => Body::Close,
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Body::Length(left) => *left == 0,
            Body::Chunked(decoder, _) => decoder.is_done(),
            Body::Close => false,
        }
    }
}

struct Transfer {
    exchange: Exchange,
    body: Body,
    keeps_open: bool,
}

impl Transfer {
    fn run(mut self, stream: &mut ResponseStream<'_>) -> io::Result<()> {
        let passed = self.pass_all(stream);
        if let Err(error) = &passed {
            log::debug!("a response was cut off: {error}");
            // What has arrived is passed on. Without its end, the client notices that the rest is missing.
            let _ = stream.flush();
            return passed;
        }
        self.exchange.keep_connection(self.keeps_open);
        Ok(())
    }

    fn pass_all(&mut self, stream: &mut ResponseStream<'_>) -> io::Result<()> {
        loop {
            self.pass_buffered(stream)?;
            if self.body.is_done() {
                return Ok(());
            }
            match self.exchange.upstream.receive()? {
                Received::Bytes => {}
                Received::End if matches!(self.body, Body::Close) => {
                    self.keeps_open = false;
                    return Ok(());
                }
                Received::End => return Err(ended_early()),
                Received::Nothing => {
                    // An event must not wait for the next one.
                    stream.flush()?;
                    if let Body::Chunked(_, piece) = &mut self.body {
                        *piece = Box::default();
                    }
                    self.wait(stream)?;
                    continue;
                }
            }
            if !self.exchange.pump.is_read() {
                self.exchange.pass(stream).map_err(other)?;
            }
        }
    }

    fn wait(&mut self, stream: &mut ResponseStream<'_>) -> io::Result<()> {
        let want =
            if self.exchange.pump.is_finished() { Want::Nothing } else { self.exchange.pass(stream).map_err(other)? };
        self.exchange.wait(stream, want, None).map(drop).map_err(other)
    }

    /// Passes on what was received.
    fn pass_buffered(&mut self, stream: &mut ResponseStream<'_>) -> io::Result<()> {
        let upstream = &mut self.exchange.upstream;
        loop {
            let bytes = upstream.buffered();
            if bytes.is_empty() || self.body.is_done() {
                return Ok(());
            }
            let (taken, given) = match &mut self.body {
                Body::Length(left) => {
                    let bytes = bytes.get(..usize::try_from(*left).unwrap_or(usize::MAX)).unwrap_or(bytes);
                    stream.write_all(bytes)?;
                    *left -= bytes.len() as u64;
                    (bytes.len(), bytes.len())
                }
                Body::Close => {
                    stream.write_all(bytes)?;
                    (bytes.len(), bytes.len())
                }
                Body::Chunked(decoder, piece) => {
                    if piece.is_empty() {
                        *piece = vec![0; PIECE].into_boxed_slice();
                    }
                    let (taken, given) = decoder.decode(bytes, piece).map_err(io::Error::other)?;
                    stream.write_all(piece.get(..given).unwrap_or_default())?;
                    (taken, given)
                }
            };
            upstream.consume(taken);
            self.exchange.open.sent(given);
        }
    }
}

fn other(error: tl_supervisor::http::message::ApiError) -> io::Error {
    io::Error::other(error.to_string())
}
