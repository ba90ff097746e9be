//! The body of a streamed response.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use tl_os::poll::Waker;

use crate::http::connection::socket::Socket;
use crate::http::connection::wait::{PeerState, SendDeadline, Wakeup};
use crate::http::message::response_head::Framing;

/// Bytes that are collected for one write to the socket.
pub(crate) const BURST: usize = 64 << 10;

/// A piece of at least this many bytes is sent from where it is, together with what was collected before it. A smaller
/// one is collected, because to copy it costs less than another send.
const LARGE_PIECE: usize = BURST / 4;

/// Capacity of the buffer, in bytes, above which it is freed after a large piece.
const MAX_KEPT_BUFFER: usize = 4 * BURST;

/// Bytes reserved for the size line of a chunk: eight digits and CRLF.
const SIZE_LINE: usize = 10;

/// The body of a request that has not been read to its end when the response begins.
pub(crate) trait UnreadBody: fmt::Debug {
    /// Reads what has arrived into `out`: `Some(0)` at the end, None if nothing has arrived.
    fn read_now(&mut self, socket: &mut Socket, out: &mut [u8]) -> io::Result<Option<usize>>;
}

/// The body of a response while it is written.
///
/// Bytes that are [written](Write) are collected, and sent once there are 64 KiB, with a piece of at least 16 KiB, or by
/// [`ResponseStream::flush`]. Each send is one chunk, and one system call if the client keeps up.
#[derive(Debug)]
pub struct ResponseStream<'c> {
    socket: &'c mut Socket,
    /// The body of the request, if the response is [duplex](crate::http::message::Response::duplex).
    body: Option<&'c mut dyn UnreadBody>,
    /// The head, until it is sent; room for a size line; the payload.
    buffer: Vec<u8>,
    /// Where the head ends.
    head: usize,
    /// Where the payload begins.
    payload: usize,
    chunked: bool,
    /// The bytes of the buffer from here on are framed, and [`ResponseStream::write_now`] or
    /// [`ResponseStream::flush_now`] has found no room for them. Nothing is collected until they are sent.
    unsent: Option<usize>,
    /// [`ResponseStream::end_now`] has framed the end of the body.
    has_ended: bool,
    /// Number of bytes of the announced length that have not been sent. None if no length was announced.
    remaining: Option<usize>,
    deadline: SendDeadline,
}

impl<'c> ResponseStream<'c> {
    /// A body whose `head` is sent with the first flush.
    pub(crate) fn new(
        socket: &'c mut Socket,
        head: Vec<u8>,
        framing: Framing,
        deadline: SendDeadline,
    ) -> ResponseStream<'c> {
        let chunked = framing == Framing::Chunked;
        let remaining = if let Framing::Length(length) = framing { Some(length) } else { None };
        let (body, buffer) = (None, head);
        let (head, payload, unsent, has_ended) = (0, 0, None, false);
        let mut stream =
            ResponseStream { socket, body, buffer, head, payload, chunked, unsent, has_ended, remaining, deadline };
        stream.begin_chunk();
        stream
    }

    /// The stream with the body of the request.
    pub(crate) fn with_body(self, body: Option<&'c mut dyn UnreadBody>) -> ResponseStream<'c> {
        ResponseStream { body, ..self }
    }

    /// Reads what has arrived of the rest of the request's body, without waiting: `Some(0)` at its end, None if nothing has
    /// arrived. At its end at once unless the response is [duplex](crate::http::message::Response::duplex).
    ///
    /// # Errors
    /// If the body is malformed or ends early, or the client has disconnected.
    pub fn read_body_now(&mut self, out: &mut [u8]) -> io::Result<Option<usize>> {
        match &mut self.body {
            Some(body) => body.read_now(self.socket, out),
            None => Ok(Some(0)),
        }
    }

    fn begin_chunk(&mut self) {
        self.head = self.buffer.len();
        self.payload = self.head + if self.chunked { SIZE_LINE } else { 0 };
        self.buffer.resize(self.payload, 0);
    }

    /// The buffer, to which the payload is appended.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Whether at least one burst is collected, which must be flushed.
    pub(crate) fn is_burst(&self) -> bool {
        self.buffer.len() >= self.payload + BURST
    }

    /// Sends what is collected.
    ///
    /// # Errors
    /// If the client has disconnected.
    pub fn flush(&mut self) -> io::Result<()> {
        self.send_unsent()?;
        let from = self.end_chunk(0)?;
        self.send(from)
    }

    /// Collects bytes like [`write`](Write::write), and sends without waiting. Returns how many it has taken, at most
    /// 64 KiB; None if there is no room for what was collected before. `poll(2)` the stream for writing then, and call this
    /// again: what was not sent goes first.
    ///
    /// For a [duplex](crate::http::message::Response::duplex) response: while the client does not read, the rest of its
    /// request can be read.
    ///
    /// # Errors
    /// If the client has disconnected, or the body would become longer than its announced length.
    ///
    /// ```
    /// use tl_supervisor::http::message::Response;
    ///
    /// let response = Response::empty(200).with_stream(Some(3), |stream| {
    ///     // There is always room for the first bytes.
    ///     assert_eq!(stream.write_now(b"abc")?, Some(3));
    ///     stream.flush_now().map(drop)
    /// });
    /// assert_eq!(response.duplex().status(), 200);
    /// ```
    pub fn write_now(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        if !self.send_unsent_now()? {
            return Ok(None);
        }
        let taken = bytes.get(..BURST).unwrap_or(bytes);
        self.check_length(taken.len())?;
        self.buffer.extend_from_slice(taken);
        if self.is_burst() {
            self.flush_now()?;
        }
        Ok(Some(taken.len()))
    }

    /// Sends what is collected, without waiting. Returns whether everything was sent; `poll(2)` the stream for writing if
    /// not. See [`ResponseStream::write_now`].
    ///
    /// # Errors
    /// If the client has disconnected.
    pub fn flush_now(&mut self) -> io::Result<bool> {
        if self.unsent.is_none() {
            self.unsent = Some(self.end_chunk(0)?);
        }
        self.send_unsent_now()
    }

    /// Ends the body, and sends what is collected without waiting. Returns whether everything was sent. Nothing may be
    /// written afterwards, but the rest of the request can still be read. See [`ResponseStream::write_now`].
    ///
    /// # Errors
    /// If the client has disconnected, or the body is shorter than its announced length.
    pub fn end_now(&mut self) -> io::Result<bool> {
        if !self.send_unsent_now()? {
            return Ok(false);
        }
        if !self.has_ended {
            let from = self.end_chunk(0)?;
            self.end_body()?;
            self.unsent = Some(from);
        }
        self.send_unsent_now()
    }

    /// Sends what [`ResponseStream::write_now`] has left over.
    fn send_unsent(&mut self) -> io::Result<()> {
        match self.unsent.take() {
            Some(from) => self.send(from),
            None => Ok(()),
        }
    }

    /// As [`ResponseStream::send_unsent`], without waiting. Returns whether nothing is left.
    fn send_unsent_now(&mut self) -> io::Result<bool> {
        while let Some(from) = self.unsent {
            let rest = self.buffer.get(from..).unwrap_or_default();
            if rest.is_empty() {
                self.unsent = None;
                self.end_send(Ok(()))?;
            } else {
                let Some(sent) = self.socket.send_now(rest)? else { return Ok(false) };
                self.unsent = Some(from + sent);
            }
        }
        Ok(true)
    }

    /// Sends what is collected and `piece`, as one chunk.
    fn send_with(&mut self, piece: &[u8]) -> io::Result<()> {
        let from = self.end_chunk(piece.len())?;
        let collected = self.buffer.get(from..).unwrap_or_default();
        let end: &[u8] = if self.chunked { b"\r\n" } else { b"" };
        let mut slices = [collected, piece, end].map(IoSlice::new);
        let sent = self.socket.send_slices(&mut slices, self.deadline);
        self.end_send(sent)
    }

    /// Sends what is collected, and the end of the body.
    ///
    /// # Errors
    /// If the client has disconnected, or the body is shorter than its announced length: a client would take the next
    /// response for the rest of this one.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.send_unsent()?;
        if self.has_ended {
            return Ok(());
        }
        let from = self.end_chunk(0)?;
        self.end_body()?;
        self.send(from)
    }

    /// Appends the end of the body to the buffer.
    fn end_body(&mut self) -> io::Result<()> {
        if let Some(missing @ 1..) = self.remaining {
            return Err(wrong_length(format!("the body is {missing} bytes shorter than its announced length")));
        }
        if self.chunked {
            self.buffer.extend_from_slice(b"0\r\n\r\n");
        }
        self.has_ended = true;
        Ok(())
    }

    /// Checks that so many more bytes fit into the announced length.
    fn check_length(&self, more: usize) -> io::Result<()> {
        if self.remaining.is_some_and(|remaining| self.collected() + more > remaining) {
            Err(too_long())
        } else {
            Ok(())
        }
    }

    /// Frames the collected payload as one chunk. Returns where in the buffer the bytes to send begin. If `more` is not 0,
    /// the caller sends that many bytes and the end of the chunk after those of the buffer.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the body is longer than its announced length.
    fn end_chunk(&mut self, more: usize) -> io::Result<usize> {
        let length = self.collected() + more;
        if let Some(remaining) = &mut self.remaining {
            *remaining = remaining.checked_sub(length).ok_or_else(too_long)?;
        }
        if !self.chunked {
            return Ok(0);
        }
        if length == 0 {
            // An empty chunk would end the body.
            self.buffer.truncate(self.head);
            return Ok(0);
        }
        let size = format!("{length:x}\r\n");
        let at = self.payload - size.len();
        if let Some(room) = self.buffer.get_mut(at..self.payload) {
            room.copy_from_slice(size.as_bytes());
        }
        if more == 0 {
            self.buffer.extend_from_slice(b"\r\n");
        }
        // The head moves up to the size line.
        self.buffer.copy_within(..self.head, at - self.head);
        Ok(at - self.head)
    }

    /// Number of bytes of the payload that have been collected.
    fn collected(&self) -> usize {
        self.buffer.len() - self.payload
    }

    fn send(&mut self, from: usize) -> io::Result<()> {
        let sent = self.socket.send(self.buffer.get(from..).unwrap_or_default(), self.deadline);
        self.end_send(sent)
    }

    fn end_send(&mut self, sent: io::Result<()>) -> io::Result<()> {
        self.buffer.clear();
        self.buffer.shrink_to(MAX_KEPT_BUFFER);
        self.begin_chunk();
        sent
    }

    /// Frees the buffer if it is empty. Call it for a stream that has been silent for a while.
    pub(crate) fn release(&mut self) {
        if self.head == 0 && self.buffer.len() == self.payload {
            self.buffer = Vec::new();
            self.begin_chunk();
        }
    }

    /// Whether the client has disconnected. Check it during long work that has nothing to send yet.
    ///
    /// May send what is collected: a client that has closed its sending direction may still receive, which only sending
    /// can tell.
    pub fn is_disconnected(&mut self) -> bool {
        match self.socket.peer_state() {
            PeerState::Connected => false,
            PeerState::HalfClosed if matches!(self.deadline, SendDeadline::Never) => self.flush().is_err(),
            PeerState::HalfClosed | PeerState::Closed => true,
        }
    }

    /// Waits for `time`; without a limit if no clock can hold the time at which that ends.
    ///
    /// # Errors
    /// When the client disconnects.
    pub fn pause(&self, time: Duration) -> io::Result<()> {
        match self.socket.wait_for_disconnect(Instant::now().checked_add(time))? {
            Wakeup::Disconnected => Err(ErrorKind::ConnectionAborted.into()),
            Wakeup::Waker | Wakeup::Deadline => Ok(()),
        }
    }

    /// Waits until `waker` is woken (true) or the deadline has passed (false).
    ///
    /// # Errors
    /// When the client disconnects.
    pub(crate) fn wait(&self, waker: &Waker, deadline: Option<Instant>) -> io::Result<bool> {
        match self.socket.wait_for_waker(waker, deadline)? {
            Wakeup::Waker => Ok(true),
            Wakeup::Deadline => Ok(false),
            Wakeup::Disconnected => Err(ErrorKind::ConnectionAborted.into()),
        }
    }
}

impl Write for ResponseStream<'_> {
    /// Takes at most 64 KiB, so that a large piece is not held twice. Fails with [`ErrorKind::InvalidInput`], and takes
    /// nothing, if the body would become longer than its announced length.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.get(..BURST).unwrap_or(bytes);
        self.send_unsent()?;
        self.check_length(taken.len())?;
        if taken.len() >= LARGE_PIECE {
            self.send_with(taken)?;
            return Ok(taken.len());
        }
        self.buffer.extend_from_slice(taken);
        if self.is_burst() {
            ResponseStream::flush(self)?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        ResponseStream::flush(self)
    }
}

fn too_long() -> io::Error {
    wrong_length("the body is longer than its announced length".to_owned())
}

fn wrong_length(message: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, message)
}

/// The socket, to wait with `poll(2)` for the client's disconnection, for more of the body after
/// [`ResponseStream::read_body_now`], or for room after [`ResponseStream::write_now`], beside other descriptors. Do not read from it or write to it.
impl AsFd for ResponseStream<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
