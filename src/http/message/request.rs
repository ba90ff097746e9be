//! A request in the hands of its handler: the head, the body still in the socket, and a way to wait.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use tiny_http::Method;

use crate::error::Error;
use tl_os::allocator;
use tl_os::poll::Waker;

use crate::http::message::body::Body;
use crate::http::message::head::Head;
use crate::http::message::response_head::{Problem, out_of};
use crate::http::server::connections::Phase;
use crate::http::server::memory::Grant;
use crate::http::server::socket::{Socket, Woken};

/// A body that was read as a whole.
#[derive(Debug)]
pub(in crate::http) struct Whole {
    bytes: Vec<u8>,
    /// For what it has beyond the first piece.
    grant: Grant,
}

impl Deref for Whole {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A request whose body was not read yet.
#[derive(Debug)]
pub(in crate::http) struct Request<'c> {
    head: &'c Head,
    body: &'c mut Body,
    socket: &'c mut Socket,
    max_body: usize,
    /// Its thread is one in reserve.
    is_on_reserve: bool,
}

impl<'c> Request<'c> {
    /// `max_body` bounds what [`Request::whole_body`] reads.
    pub(in crate::http) fn new(
        head: &'c Head,
        body: &'c mut Body,
        socket: &'c mut Socket,
        max_body: usize,
        is_on_reserve: bool,
    ) -> Request<'c> {
        Request { head, body, socket, max_body, is_on_reserve }
    }

    /// The method, GET in place of HEAD: whoever answers need not know, the body is left out later.
    pub(in crate::http) fn method(&self) -> &'c Method {
        match &self.head.method {
            Method::Head => &Method::Get,
            method => method,
        }
    }

    /// Whether it is HEAD: the few who need know.
    pub(in crate::http) fn is_head(&self) -> bool {
        self.head.method == Method::Head
    }

    /// The path, percent-encoded still.
    pub(in crate::http) fn path(&self) -> &'c str {
        &self.head.path
    }

    /// The segments of the path; see [`Head::segments`].
    pub(in crate::http) fn segments(&self) -> Option<Vec<String>> {
        self.head.segments()
    }

    /// The first field of this name.
    pub(in crate::http) fn field<'n>(&self, name: &'n str) -> Option<Cow<'n, str>>
    where
        'c: 'n,
    {
        self.head.field(name)
    }

    /// The elements of the comma-separated list that all fields of this name make together; none without such a field.
    pub(in crate::http) fn list(&self, name: &str) -> Option<Vec<String>> {
        self.head.list(name)
    }

    /// Whether the client lists `media_type` in `Accept`.
    pub(in crate::http) fn accepts(&self, media_type: &str) -> bool {
        self.head.lists("Accept", media_type)
    }

    /// Whether the client asks to go on with this protocol on the same connection (RFC 9110, section 7.8).
    pub(in crate::http) fn upgrades_to(&self, protocol: &str) -> bool {
        let asks = self.head.lists("Connection", "upgrade") && self.head.lists("Upgrade", protocol);
        asks && !self.head.is_old && self.head.method == Method::Get
    }

    /// Whether there is no body.
    pub(in crate::http) fn is_bare(&self) -> bool {
        self.body.is_done()
    }

    /// Our own port, as the client sees it.
    pub(in crate::http) fn local_port(&self) -> Option<u16> {
        self.socket.local_port()
    }

    /// The first value of a parameter of the query.
    pub(in crate::http) fn query(&self, name: &str) -> Option<String> {
        self.head.query(name)
    }

    /// The same, where it need not be text.
    pub(in crate::http) fn query_bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.head.query_bytes(name)
    }

    /// How many bytes of the body are left, where the client has said so.
    pub(in crate::http) fn body_left(&self) -> Option<u64> {
        self.body.left()
    }

    /// Reads some of the body; 0 at its end.
    pub(in crate::http) fn read_body(&mut self, out: &mut [u8]) -> Result<usize, Problem> {
        self.body.read(self.socket, out)
    }

    /// The whole body.
    ///
    /// # Errors
    /// [`Problem::BodyTooLarge`] before any of it is read, where its length is announced; else those of reading.
    pub(in crate::http) fn whole_body(&mut self) -> Result<Whole, Problem> {
        let announced = self.body.left().map(|left| usize::try_from(left).unwrap_or(usize::MAX));
        if announced.is_some_and(|length| length > self.max_body) {
            return Err(Problem::BodyTooLarge(self.max_body));
        }
        // Nothing is executed yet: a client that is slow to send the rest may be asked to give way.
        if !self.socket.enter(Phase::Body) {
            return Err(Problem::Gone);
        }
        let whole = self.collect()?;
        if self.socket.enter(Phase::Busy) { Ok(whole) } else { Err(Problem::Gone) }
    }

    fn collect(&mut self) -> Result<Whole, Problem> {
        let mut whole = Whole { bytes: Vec::new(), grant: self.socket.bodies().grant() };
        while let Some(piece) = self.body_piece(16 << 10)? {
            let length = whole.bytes.len() + piece.len();
            if length > self.max_body {
                return Err(Problem::BodyTooLarge(self.max_body));
            }
            if whole.bytes.is_empty() {
                whole.bytes = piece;
                continue;
            }
            if whole.bytes.capacity() < length {
                let size = length.saturating_mul(2).min(self.max_body);
                let more = size.saturating_sub(whole.bytes.len());
                let full = || io::Error::from(ErrorKind::OutOfMemory);
                let granted = (allocator::has_margin() && whole.grant.grow_to(size)).then_some(()).ok_or_else(full);
                granted
                    .and_then(|()| Ok(whole.bytes.try_reserve_exact(more)?))
                    .map_err(|error| out_of("the request body", &error))?;
            }
            whole.bytes.extend_from_slice(&piece);
        }
        Ok(whole)
    }

    /// What the input of a run may take, until its command has read it.
    ///
    /// # Errors
    /// When all inputs together hold as much as they may.
    pub(in crate::http) fn hold_input(&self, bytes: usize) -> Result<Grant, Problem> {
        let mut grant = self.socket.inputs().grant();
        match grant.grow_to(bytes) {
            true => Ok(grant),
            false => Err(out_of("the input of the command", &ErrorKind::OutOfMemory.into())),
        }
    }

    /// Counts so many bytes of a directory's listing, for as long as the grant is held.
    ///
    /// # Errors
    /// When all listings together hold as much as they may.
    pub(in crate::http) fn hold_listing(&self, bytes: usize) -> Result<Grant, Problem> {
        let mut grant = self.socket.listings().grant();
        if grant.grow_to(bytes) {
            return Ok(grant);
        }
        Err(out_of("the listing of a directory", &ErrorKind::OutOfMemory.into()))
    }

    /// The next bytes of the body, at most `most`; none at its end.
    pub(in crate::http) fn body_piece(&mut self, most: usize) -> Result<Option<Vec<u8>>, Problem> {
        let left = self.body.left().and_then(|left| usize::try_from(left).ok());
        let mut piece = vec![0; left.map_or(most, |left| left.min(most))];
        let read = self.body.read(self.socket, &mut piece)?;
        piece.truncate(read);
        Ok((read > 0).then_some(piece))
    }

    /// Says that this request may take as long as it likes: only so many may do that at once.
    ///
    /// # Errors
    /// When there are as many.
    pub(in crate::http) fn begin_long(&mut self) -> Result<(), Problem> {
        if self.is_on_reserve {
            let why = "no thread can be started for a connection; only metadata, signals and DELETE are served";
            return Err(Problem::Refused(Error::out_of_resources(why)));
        }
        if self.socket.begin_long() {
            return Ok(());
        }
        let most = self.socket.most_long();
        let why = format!("{most} connections have streams, waits, tunnels, terminals or files, and more may not");
        Err(Problem::Refused(Error::out_of_resources(why)))
    }

    /// Says that this request starts something, which the threads in reserve have no time for.
    ///
    /// # Errors
    /// When this is one of them.
    pub(in crate::http) fn begin_start(&mut self) -> Result<(), Problem> {
        if self.is_on_reserve { self.begin_long() } else { Ok(()) }
    }

    /// A waker for [`Request::wait`].
    pub(in crate::http) fn waker(&self) -> Result<Arc<Waker>, Problem> {
        Ok(Arc::new(Waker::new().map_err(|error| out_of("an eventfd", &error))?))
    }

    /// Waits until `waker` is woken: true; or until the deadline: false.
    ///
    /// # Errors
    /// [`Problem::Gone`] when the client goes.
    pub(in crate::http) fn wait(&self, waker: &Waker, deadline: Option<Instant>) -> Result<bool, Problem> {
        match self.socket.wait_beside(waker, deadline) {
            Ok(Woken::Waker) => Ok(true),
            Ok(Woken::Deadline) => Ok(false),
            Ok(Woken::Gone) | Err(_) => Err(Problem::Gone),
        }
    }
}
