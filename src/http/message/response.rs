//! What a handler hands back: a whole reply, or a stream that it writes itself.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use tl_os::poll::Waker;

use crate::http::json;
use crate::http::message::response_head::{Ending, Reply};
use crate::http::server::socket::{Departure, Patience, Socket, Woken};

/// A burst of a stream: as much as is gathered for one write.
pub(in crate::http) const BURST: usize = 64 << 10;

/// More than this is given back after a large line.
const LARGEST_BUFFER: usize = 4 * BURST;

/// Room for the size line of a chunk: eight digits and CRLF.
const SIZE_LINE: usize = 10;

/// Writes the body of a stream. An error ends the connection without the last chunk, so that the client can tell.
pub(in crate::http) type Writer = Box<dyn FnOnce(&mut Stream<'_>) -> io::Result<()>>;

const JSON: &str = "application/json";

/// An answer.
pub(in crate::http) enum Answer {
    /// All of it.
    Whole(Reply),
    /// Its head, and who writes the rest.
    Streamed {
        /// The head.
        reply: Reply,
        /// How long the body is, where that is known. The writer fails if it has less.
        length: Option<u64>,
        /// What to do when the client does not read; none: as with an answer that is not streamed.
        patience: Option<Patience>,
        /// Writes the body; never called for HEAD.
        write: Writer,
    },
    /// The connection is a WebSocket from here on.
    Upgraded {
        /// The head, as it is sent.
        head: Vec<u8>,
        /// Has the connection to itself, until it ends.
        serve: Box<dyn FnOnce(&mut Socket)>,
    },
}

impl Answer {
    /// Server-sent events, for as long as the client is there.
    pub(in crate::http) fn events(write: impl FnOnce(&mut Stream<'_>) -> io::Result<()> + 'static) -> Answer {
        // A proxy in front must pass each event on as it comes: nginx gathers answers that do not say so.
        let reply = Reply::new(200)
            .with("Content-Type", "text/event-stream")
            .with("Cache-Control", "no-cache, no-transform")
            .with("X-Accel-Buffering", "no");
        Answer::Streamed { reply, length: None, patience: Some(Patience::WhileThere), write: Box::new(write) }
    }

    /// A body of unknown length that has an end.
    pub(in crate::http) fn download(
        content_type: &str,
        write: impl FnOnce(&mut Stream<'_>) -> io::Result<()> + 'static,
    ) -> Answer {
        let reply = Reply::new(200).with("Content-Type", content_type);
        Answer::Streamed { reply, length: None, patience: Some(Patience::ForEver), write: Box::new(write) }
    }

    /// JSON that `more` makes a burst at a time, and says when that was the last: there can be any amount of it. What is no
    /// more than one burst has a length and goes in one write.
    ///
    /// # Errors
    /// What `more` says of the first burst, before anything is sent.
    pub(in crate::http) fn in_bursts(
        patience: Option<Patience>,
        mut more: impl FnMut(&mut Vec<u8>) -> io::Result<bool> + 'static,
    ) -> io::Result<Answer> {
        let mut begun = Vec::new();
        if more(&mut begun)? {
            return Ok(Reply::bytes(200, JSON, begun).into());
        }
        let write = move |stream: &mut Stream<'_>| {
            stream.buffer().extend_from_slice(&begun);
            drop(begun);
            loop {
                stream.flush()?;
                if more(stream.buffer())? {
                    return Ok(());
                }
            }
        };
        let reply = Reply::new(200).with("Content-Type", JSON);
        Ok(Answer::Streamed { reply, length: None, patience, write: Box::new(write) })
    }

    /// `value` as JSON. A long one is written in bursts, and never held as a whole.
    pub(in crate::http) fn json(status: u16, value: impl Serialize + 'static) -> Answer {
        let length = match json::length(&value) {
            Ok(length) if length > BURST as u64 => length,
            _ => return Reply::json(status, &value).into(),
        };
        let reply = Reply::new(status).with("Content-Type", JSON);
        let write = move |stream: &mut Stream<'_>| Ok(serde_json::to_writer(stream, &value)?);
        Answer::Streamed { reply, length: Some(length), patience: None, write: Box::new(write) }
    }

    /// A body of this length.
    pub(in crate::http) fn measured(
        reply: Reply,
        length: u64,
        write: impl FnOnce(&mut Stream<'_>) -> io::Result<()> + 'static,
    ) -> Answer {
        Answer::Streamed { reply, length: Some(length), patience: Some(Patience::ForEver), write: Box::new(write) }
    }

    /// The status.
    pub(in crate::http) fn status(&self) -> u16 {
        match self {
            Answer::Whole(reply) | Answer::Streamed { reply, .. } => reply.status(),
            Answer::Upgraded { .. } => 101,
        }
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Answer {
        Answer::Whole(reply)
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Answer").field(&self.status()).finish()
    }
}

/// The body of an answer on its way out, one chunk and one write for each [`Stream::flush`].
#[derive(Debug)]
pub(in crate::http) struct Stream<'c> {
    socket: &'c mut Socket,
    /// The head, while it was not sent; room for a size line; the payload.
    buffer: Vec<u8>,
    head: usize,
    payload: usize,
    chunked: bool,
    patience: Patience,
}

impl<'c> Stream<'c> {
    /// `head` goes out with the first flush.
    pub(in crate::http) fn new(
        socket: &'c mut Socket,
        head: Vec<u8>,
        ending: Ending,
        patience: Patience,
    ) -> Stream<'c> {
        let chunked = ending == Ending::Chunked;
        let mut stream = Stream { socket, buffer: head, head: 0, payload: 0, chunked, patience };
        stream.begin_chunk();
        stream
    }

    fn begin_chunk(&mut self) {
        self.head = self.buffer.len();
        self.payload = self.head + if self.chunked { SIZE_LINE } else { 0 };
        self.buffer.resize(self.payload, 0);
    }

    /// What is to be sent is appended here.
    pub(in crate::http) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Whether so much is gathered that it should be flushed.
    pub(in crate::http) fn is_burst(&self) -> bool {
        self.buffer.len() >= self.payload + BURST
    }

    /// Sends what is gathered.
    ///
    /// # Errors
    /// When the client has gone.
    pub(in crate::http) fn flush(&mut self) -> io::Result<()> {
        let from = self.end_chunk();
        self.send(from)
    }

    /// Sends what is gathered and the end of the body.
    ///
    /// # Errors
    /// When the client has gone.
    pub(in crate::http) fn finish(mut self) -> io::Result<()> {
        let from = self.end_chunk();
        if self.chunked {
            self.buffer.extend_from_slice(b"0\r\n\r\n");
        }
        self.send(from)
    }

    /// Frames the gathered payload as one chunk; where in the buffer that which is to be sent begins.
    fn end_chunk(&mut self) -> usize {
        let length = self.buffer.len() - self.payload;
        if !self.chunked {
            return 0;
        }
        if length == 0 {
            // An empty chunk would be the last one.
            self.buffer.truncate(self.head);
            return 0;
        }
        let size = format!("{length:x}\r\n");
        let at = self.payload - size.len();
        if let Some(room) = self.buffer.get_mut(at..self.payload) {
            room.copy_from_slice(size.as_bytes());
        }
        self.buffer.extend_from_slice(b"\r\n");
        // The head is the shorter one to move up to the size line.
        self.buffer.copy_within(..self.head, at - self.head);
        at - self.head
    }

    fn send(&mut self, from: usize) -> io::Result<()> {
        let sent = self.socket.send(self.buffer.get(from..).unwrap_or_default(), self.patience);
        self.buffer.clear();
        self.buffer.shrink_to(LARGEST_BUFFER);
        self.begin_chunk();
        sent
    }

    /// Gives back the memory of the buffer, if nothing is in it: nothing was to be sent for a while.
    pub(in crate::http) fn release(&mut self) {
        if self.head == 0 && self.buffer.len() == self.payload {
            self.buffer = Vec::new();
            self.begin_chunk();
        }
    }

    /// Whether the client has gone, asked in the course of work that takes a while. One that has closed its half may have
    /// closed all of it: what is sent to it now tells.
    pub(in crate::http) fn is_gone(&mut self) -> bool {
        match self.socket.departure() {
            Departure::None => false,
            Departure::Half if matches!(self.patience, Patience::ForEver) => self.flush().is_err(),
            Departure::Half | Departure::Whole => true,
        }
    }

    /// Waits for a while.
    ///
    /// # Errors
    /// When the client goes.
    pub(in crate::http) fn pause(&self, time: Duration) -> io::Result<()> {
        match self.socket.wait_for_its_end(Instant::now() + time)? {
            Woken::Gone => Err(ErrorKind::ConnectionAborted.into()),
            Woken::Waker | Woken::Deadline => Ok(()),
        }
    }

    /// Waits until `waker` is woken: true; or until the deadline: false.
    ///
    /// # Errors
    /// When the client goes.
    pub(in crate::http) fn wait(&self, waker: &Waker, deadline: Option<Instant>) -> io::Result<bool> {
        match self.socket.wait_beside(waker, deadline)? {
            Woken::Waker => Ok(true),
            Woken::Deadline => Ok(false),
            Woken::Gone => Err(ErrorKind::ConnectionAborted.into()),
        }
    }
}

impl Write for Stream<'_> {
    /// Takes a burst at most, however much there is: a large piece must not be held twice.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.get(..BURST).unwrap_or(bytes);
        self.buffer.extend_from_slice(taken);
        if self.is_burst() {
            Stream::flush(self)?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Stream::flush(self)
    }
}
