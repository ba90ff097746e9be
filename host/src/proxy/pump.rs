//! Sends the head of a request and its body to the sandbox, a piece at a time: the next piece is read from the client when
//! the sandbox has taken the one before.

use std::io;

use tl_supervisor::http::message::{ApiError, Request, ResponseStream};

use crate::proxy::pair::Want;
use crate::proxy::stream::Stream;

/// Maximum number of bytes of the body that are held.
const PIECE: usize = 64 << 10;

/// Length of the line that begins a chunk: six hexadecimal digits and CRLF.
const SIZE_LINE: usize = 8;

/// Number of pieces after which the other direction gets its turn.
const PIECES_PER_TURN: usize = 16;

/// Where the body comes from: a request that is being handled, or one whose response has begun.
pub(crate) trait BodySource {
    /// See [`Request::read_body_now`].
    fn read_now(&mut self, out: &mut [u8]) -> Result<Option<usize>, ApiError>;
}

impl BodySource for Request<'_> {
    fn read_now(&mut self, out: &mut [u8]) -> Result<Option<usize>, ApiError> {
        self.read_body_now(out)
    }
}

impl BodySource for ResponseStream<'_> {
    fn read_now(&mut self, out: &mut [u8]) -> Result<Option<usize>, ApiError> {
        self.read_body_now(out).map_err(|error| ApiError::invalid(error.to_string()))
    }
}

/// A request on its way to the sandbox.
#[derive(Debug)]
pub(crate) struct Pump {
    /// The bytes to send are at `from..to`.
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    is_chunked: bool,
    /// Number of bytes of the body that have not been read, if that is known.
    remaining: Option<u64>,
    /// The body has been read to its end.
    is_read: bool,
    /// The beginning of the body was looked for, to be sent together with the head.
    has_tried: bool,
    has_begun: bool,
    /// The sandbox takes no more.
    failed: bool,
    /// Bytes of the body that were read.
    received: usize,
}

impl Pump {
    /// A request that begins with `head`. `remaining` is the length of its body; None if that is chunked.
    pub(crate) fn new(head: Vec<u8>, remaining: Option<u64>) -> Pump {
        let to = head.len();
        Pump {
            buffer: head,
            from: 0,
            to,
            is_chunked: remaining.is_none(),
            remaining,
            is_read: remaining == Some(0),
            has_tried: false,
            has_begun: false,
            failed: false,
            received: 0,
        }
    }

    /// Whether anything was sent.
    pub(crate) fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Whether everything was sent.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_read && self.from == self.to && !self.failed
    }

    /// Whether the client has sent its whole request.
    pub(crate) fn is_read(&self) -> bool {
        self.is_read
    }

    /// Number of bytes of the body that have been read since the last call.
    pub(crate) fn take_received(&mut self) -> usize {
        std::mem::take(&mut self.received)
    }

    /// Passes on what there is, and room for.
    ///
    /// # Errors
    /// An error of the client's body. That of the sandbox is seen when its response is read.
    pub(crate) fn pass(&mut self, source: &mut impl BodySource, to: &Stream) -> Result<Want, ApiError> {
        for _ in 0..PIECES_PER_TURN {
            // The beginning of the body is often there already: it is sent together with the head.
            if !self.is_read && !self.failed && (self.from == self.to || !self.has_tried) {
                self.has_tried = true;
                self.fill(source)?;
                if self.from == self.to && !self.is_read {
                    return Ok(Want::Read);
                }
            }
            if self.failed || self.from == self.to {
                self.buffer = Vec::new();
                (self.from, self.to) = (0, 0);
                return Ok(Want::Nothing);
            }
            match self.write(to) {
                Ok(true) => {}
                Ok(false) => return Ok(Want::Room),
                Err(error) => {
                    log::debug!("the sandbox takes no more of a request: {error}");
                    self.failed = true;
                }
            }
        }
        Ok(Want::Turn)
    }

    fn write(&mut self, to: &Stream) -> io::Result<bool> {
        let rest = self.buffer.get(self.from..self.to).unwrap_or_default();
        let Some(written) = to.write_now(rest)? else { return Ok(false) };
        self.has_begun = true;
        self.from += written;
        Ok(true)
    }

    /// Reads one piece of the body behind what is to be sent, and frames it.
    fn fill(&mut self, source: &mut impl BodySource) -> Result<(), ApiError> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        }
        let overhead = if self.is_chunked { SIZE_LINE } else { 0 };
        let most = self.remaining.map_or(PIECE, |left| usize::try_from(left).unwrap_or(PIECE).min(PIECE));
        let at = self.to + overhead;
        // Room for the end of the chunk too.
        let needed = at + most + 2;
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
        let read = source.read_now(self.buffer.get_mut(at..at + most).unwrap_or_default())?;
        let Some(read) = read else { return Ok(()) };
        self.received += read;
        self.remaining = self.remaining.map(|left| left.saturating_sub(read as u64));
        self.is_read = read == 0 || self.remaining == Some(0);
        if !self.is_chunked {
            self.to += read;
        } else if read == 0 {
            self.put(self.to, b"0\r\n\r\n");
            self.to += 5;
        } else {
            self.put(self.to, format!("{read:06x}\r\n").as_bytes());
            self.put(at + read, b"\r\n");
            self.to = at + read + 2;
        }
        Ok(())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(room) = self.buffer.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    }
}
