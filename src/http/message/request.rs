//! A request as its handler sees it: the head, the body that is still in the socket, and a way to wait.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiny_http::Method;

use tl_os::allocator;
use tl_os::poll::Waker;

use crate::http::connection::entry::Phase;
use crate::http::connection::memory::MemoryGrant;
use crate::http::connection::socket::Socket;
use crate::http::connection::table::ConnectionCounts;
use crate::http::connection::wait::Wakeup;
use crate::http::message::body::Body;
use crate::http::message::error::ApiError;
use crate::http::message::request_head::RequestHead;

/// Bytes that are read at once of a body that is wanted as a whole.
const PIECE: usize = 16 << 10;

/// A request body that was read as a whole.
#[derive(Debug)]
pub struct BodyBytes {
    bytes: Vec<u8>,
    /// Memory beyond the first piece, of the pool that all connections share.
    grant: MemoryGrant,
}

impl Deref for BodyBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A request. Its body is read from the connection when the handler asks for it.
///
/// ```
/// use tl_supervisor::http::message::{ApiError, Request, Response};
///
/// fn greet(request: &mut Request<'_>) -> Result<Response, ApiError> {
///     match (request.method(), request.path()) {
///         ("GET", "/hello") => {
///             let name = request.query("name").unwrap_or_else(|| "world".to_owned());
///             Ok(Response::new(200, "text/plain", format!("hello, {name}\n")))
///         }
///         ("POST", "/length") => {
///             let length = request.whole_body()?.len();
///             Ok(Response::new(200, "text/plain", length.to_string()))
///         }
///         (_, path) => Err(ApiError::no_route(path)),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Request<'c> {
    head: &'c RequestHead,
    body: &'c mut Body,
    socket: &'c mut Socket,
    /// Maximum number of bytes that `whole_body` reads.
    max_body: usize,
    /// The request is handled by a reserve thread, which serves short requests only.
    is_on_reserve: bool,
    /// What is told how the exchange ends, and the label for it.
    observer: Option<(&'static dyn ExchangeObserver, usize)>,
}

/// Is told how an exchange, of a request and its response, ends. `label` is that of [`Request::observe`].
pub(crate) trait ExchangeObserver: fmt::Debug + Sync {
    /// A response is about to be sent; None if the client has disconnected before that.
    fn answered(&self, label: usize, status: Option<u16>);

    /// The response has been sent, this long after the head of the request was read.
    fn ended(&self, label: usize, took: Duration);
}

impl<'c> Request<'c> {
    /// The request with this head, whose body is read from `socket`.
    pub(crate) fn new(
        head: &'c RequestHead,
        body: &'c mut Body,
        socket: &'c mut Socket,
        max_body: usize,
        is_on_reserve: bool,
    ) -> Request<'c> {
        Request { head, body, socket, max_body, is_on_reserve, observer: None }
    }

    /// The method. A HEAD request has the method `GET`: the server leaves the body out of the response.
    #[must_use]
    pub fn method(&self) -> &'c str {
        match &self.head.method {
            Method::Head => Method::Get.as_str(),
            method => method.as_str(),
        }
    }

    /// Whether the method is HEAD.
    #[must_use]
    pub fn is_head(&self) -> bool {
        self.head.method == Method::Head
    }

    /// The path, percent-encoded.
    #[must_use]
    pub fn path(&self) -> &'c str {
        &self.head.path
    }

    /// The segments of the path between its slashes, percent-decoded. None if one of them is then not UTF-8.
    #[must_use]
    pub fn segments(&self) -> Option<Vec<String>> {
        self.head.segments()
    }

    /// The query as it was sent: what follows the `?`, or nothing.
    #[must_use]
    pub fn query_string(&self) -> &'c str {
        &self.head.query
    }

    /// Path and query together, exactly as they were sent: what a proxy passes on.
    #[must_use]
    pub fn target(&self) -> String {
        self.head.target()
    }

    /// The first value of a parameter of the query, which is form-encoded.
    #[must_use]
    pub fn query(&self, name: &str) -> Option<String> {
        self.head.query(name)
    }

    /// The first value of a parameter of the query, as the bytes that it encodes. They need not be UTF-8.
    #[must_use]
    pub fn query_bytes(&self, name: &str) -> Option<Vec<u8>> {
        self.head.query_bytes(name)
    }

    /// All headers, in the order in which they were sent.
    pub fn headers(&self) -> impl Iterator<Item = (&'c str, &'c [u8])> + use<'c> {
        self.head.headers()
    }

    /// The first header with this name. Bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<Cow<'c, str>> {
        self.head.header(name)
    }

    /// The elements of the comma-separated list that all headers with this name make together. None if there is no such
    /// header.
    #[must_use]
    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        self.head.list(name)
    }

    /// Whether `Accept` lists this media type.
    #[must_use]
    pub fn accepts(&self, media_type: &str) -> bool {
        self.head.lists("Accept", media_type)
    }

    /// Whether the client asks to change to this protocol (RFC 9110, section 7.8).
    #[must_use]
    pub fn upgrades_to(&self, protocol: &str) -> bool {
        let asks = self.head.lists("Connection", "upgrade") && self.head.lists("Upgrade", protocol);
        asks && !self.head.is_http_1_0 && self.head.method == Method::Get
    }

    /// Whether the body is empty, or has been read to its end.
    #[must_use]
    pub fn is_body_done(&self) -> bool {
        self.body.is_done()
    }

    /// Number of bytes of the body that have not been read. None if the body is chunked.
    #[must_use]
    pub fn body_remaining(&self) -> Option<u64> {
        self.body.remaining()
    }

    /// Reads some of the body into `out`. Returns 0 at its end.
    ///
    /// # Errors
    /// Return it from the handler: 408 if nothing arrives for the idle timeout, 400 if the body is malformed or ends
    /// early, or the client has disconnected.
    pub fn read_body(&mut self, out: &mut [u8]) -> Result<usize, ApiError> {
        self.body.read(self.socket, out)
    }

    /// Reads what has arrived of the body into `out`, without waiting: `Some(0)` at its end, None if nothing has arrived. To
    /// wait, `poll(2)` the request for reading.
    ///
    /// # Errors
    /// Return it from the handler: 400 if the body is malformed or ends early, or the client has disconnected.
    pub fn read_body_now(&mut self, out: &mut [u8]) -> Result<Option<usize>, ApiError> {
        self.body.read_now(self.socket, out)
    }

    /// Reads the whole body, which is held in memory.
    ///
    /// # Errors
    /// Return it from the handler: 413 if the body is longer than the limit, 503 if all connections together hold too
    /// much, or an error of [`Request::read_body`].
    pub fn whole_body(&mut self) -> Result<BodyBytes, ApiError> {
        let announced = self.body.remaining().map(|left| usize::try_from(left).unwrap_or(usize::MAX));
        if announced.is_some_and(|length| length > self.max_body) {
            return Err(ApiError::body_too_large(self.max_body));
        }
        // Nothing is executed yet: a client that is slow to send the rest may be evicted.
        if !self.socket.enter(Phase::Body) {
            return Err(ApiError::disconnected());
        }
        let body = self.collect()?;
        if self.socket.enter(Phase::Busy) { Ok(body) } else { Err(ApiError::disconnected()) }
    }

    fn collect(&mut self) -> Result<BodyBytes, ApiError> {
        let mut body = BodyBytes { bytes: Vec::new(), grant: self.socket.bodies().grant() };
        while let Some(piece) = self.body_piece(PIECE)? {
            let length = body.bytes.len() + piece.len();
            if length > self.max_body {
                return Err(ApiError::body_too_large(self.max_body));
            }
            if body.bytes.is_empty() {
                body.bytes = piece;
                continue;
            }
            if body.bytes.capacity() < length {
                let size = length.saturating_mul(2).min(self.max_body);
                body.grow_to(size).map_err(|error| ApiError::out_of("the request body", &error))?;
            }
            body.bytes.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// Reads at most `most` bytes of the body. None at its end.
    pub(crate) fn body_piece(&mut self, most: usize) -> Result<Option<Vec<u8>>, ApiError> {
        let left = self.body.remaining().and_then(|left| usize::try_from(left).ok());
        let mut piece = vec![0; left.map_or(most, |left| left.min(most))];
        let read = self.body.read(self.socket, &mut piece)?;
        piece.truncate(read);
        Ok((read > 0).then_some(piece))
    }

    /// Declares that the request may take arbitrarily long: call it before you stream, wait, or serve an upgrade.
    ///
    /// Such requests may occupy all but an eighth of the connections, so that short requests are always served.
    ///
    /// # Errors
    /// 503 if the maximum is reached, or if the machine is out of threads and a reserve thread handles this request.
    pub fn begin_long(&mut self) -> Result<(), ApiError> {
        self.require_own_thread()?;
        if self.socket.begin_long() {
            return Ok(());
        }
        Err(too_many_long(self.socket.guard().max_long_requests(), "execute long requests"))
    }

    /// Declares that the request starts a program, which takes as long as `/etc/passwd` does to be read, and then up to
    /// 5 s. Starts may occupy half of the connections that long requests leave.
    ///
    /// # Errors
    /// 503 if the maximum is reached, or on a reserve thread.
    pub(crate) fn begin_start(&mut self) -> Result<(), ApiError> {
        self.require_own_thread()?;
        if self.socket.begin_start() {
            return Ok(());
        }
        Err(too_many_long(self.socket.guard().max_starts(), "execute long requests or start processes"))
    }

    /// Refuses the request if a reserve thread handles it: such a thread serves short requests only.
    ///
    /// # Errors
    /// 503 on a reserve thread.
    pub(crate) fn require_own_thread(&self) -> Result<(), ApiError> {
        if self.is_on_reserve {
            return Err(ApiError::unavailable(
                "the machine is out of resources: no thread can be started for this connection, so only short requests \
                 are served",
            ));
        }
        Ok(())
    }

    /// Has `observer` told how the exchange ends.
    pub(crate) fn observe(&mut self, observer: &'static dyn ExchangeObserver, label: usize) {
        self.observer = Some((observer, label));
    }

    /// The observer of this exchange, and the label for it.
    pub(crate) fn observer(&self) -> Option<(&'static dyn ExchangeObserver, usize)> {
        self.observer
    }

    /// The numbers of connections of the server.
    pub(crate) fn connection_counts(&self) -> ConnectionCounts {
        self.socket.guard().counts()
    }

    /// The address of the client, or of the proxy that has passed the request on. None if the system does not say.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.socket.guard().stream().peer_addr().ok()
    }

    /// The port to which the client has connected.
    pub(crate) fn local_port(&self) -> Option<u16> {
        self.socket.local_port()
    }

    /// A waker for [`Request::wait`].
    pub(crate) fn waker(&self) -> Result<Arc<Waker>, ApiError> {
        Ok(Arc::new(Waker::new().map_err(|error| ApiError::out_of("an eventfd", &error))?))
    }

    /// Waits until `waker` is woken (true) or the deadline has passed (false).
    ///
    /// # Errors
    /// [`ApiError::disconnected`] when the client disconnects.
    pub(crate) fn wait(&self, waker: &Waker, deadline: Option<Instant>) -> Result<bool, ApiError> {
        match self.socket.wait_for_waker(waker, deadline) {
            Ok(Wakeup::Waker) => Ok(true),
            Ok(Wakeup::Deadline) => Ok(false),
            Ok(Wakeup::Disconnected) | Err(_) => Err(ApiError::disconnected()),
        }
    }
}

fn too_many_long(max: usize, what: &str) -> ApiError {
    ApiError::unavailable(format!(
        "the machine is out of resources: {max} connections {what}, which is the limit; end one first"
    ))
}

impl BodyBytes {
    /// Makes room for `size` bytes in all.
    fn grow_to(&mut self, size: usize) -> io::Result<()> {
        if !allocator::has_margin() || !self.grant.grow_to(size) {
            return Err(ErrorKind::OutOfMemory.into());
        }
        Ok(self.bytes.try_reserve_exact(size.saturating_sub(self.bytes.len()))?)
    }
}

/// The socket, to wait with `poll(2)` for the client's disconnection, or for more of the body after
/// [`Request::read_body_now`], beside other descriptors. Do not read from it or write to it.
impl AsFd for Request<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
