//! A connection to a sandbox, with what was received on it and not used yet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use crate::proxy::answer::{self, Answer, Asked};
use crate::proxy::pool::DaemonKey;
use crate::proxy::stream::Stream;

/// First size of the buffer, in bytes: most heads of responses fit.
const FIRST_BUFFER: usize = 4 << 10;

/// Maximum length of the head of a response, in bytes; also the size of the buffer for a large body.
const MAX_BUFFER: usize = 64 << 10;

/// A connection to a sandbox.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) stream: Stream,
    /// For which sandbox it may be kept; None if it may not.
    pub(crate) key: Option<DaemonKey>,
    /// It was used for another request before.
    pub(crate) is_reused: bool,
    /// The bytes received and not used are at `start..end`.
    data: Vec<u8>,
    start: usize,
    end: usize,
}

/// Result of an attempt to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// More bytes are in the buffer.
    Bytes,
    /// Nothing has arrived.
    Nothing,
    /// The end of the stream.
    End,
}

impl Upstream {
    /// A connection on which nothing was received.
    pub(crate) fn new(stream: Stream, key: Option<DaemonKey>, is_reused: bool) -> Upstream {
        Upstream { stream, key, is_reused, data: Vec::new(), start: 0, end: 0 }
    }

    /// The bytes that were received and not used.
    pub(crate) fn buffered(&self) -> &[u8] {
        self.data.get(self.start..self.end).unwrap_or_default()
    }

    /// Drops the first `count` of these bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
    }

    /// Takes these bytes, and frees the buffer.
    pub(crate) fn take_buffered(&mut self) -> Vec<u8> {
        let bytes = self.buffered().to_vec();
        (self.data, self.start, self.end) = (Vec::new(), 0, 0);
        bytes
    }

    /// Whether the buffer is empty and large.
    pub(crate) fn is_large(&self) -> bool {
        self.start == self.end && self.data.len() > FIRST_BUFFER
    }

    /// Frees the buffer if it is empty and large: a stream that is silent holds little memory.
    pub(crate) fn release(&mut self) {
        if self.is_large() {
            (self.data, self.start, self.end) = (Vec::new(), 0, 0);
        }
    }

    /// Receives what has arrived.
    ///
    /// # Errors
    /// If the connection has failed, or the buffer is full.
    pub(crate) fn receive(&mut self) -> io::Result<Received> {
        self.make_room();
        let room = self.data.get_mut(self.end..).unwrap_or_default();
        if room.is_empty() {
            return Err(io::Error::other("the head of the response is too long"));
        }
        let room_length = room.len();
        Ok(match self.stream.read_now(room)? {
            None => Received::Nothing,
            Some(0) => Received::End,
            Some(read) => {
                self.end += read;
                // The body is large.
                if read == room_length && self.data.len() < MAX_BUFFER {
                    self.data.resize(self.data.len().saturating_mul(4).min(MAX_BUFFER), 0);
                }
                Received::Bytes
            }
        })
    }

    fn make_room(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        if self.end == self.data.len() && self.start > 0 {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.data.is_empty() {
            self.data.resize(FIRST_BUFFER, 0);
        }
    }

    /// Takes the head of the final response from the buffer. None while it is incomplete.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn take_answer(&mut self, asked: Asked) -> Result<Option<Answer>, String> {
        let Some((answer, length)) = answer::parse(self.buffered(), asked)? else { return Ok(None) };
        self.consume(length);
        Ok(Some(answer))
    }
}

impl AsFd for Upstream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
