//! The loop of one connection, on one thread: head, handler, response, and again.

use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiny_http::Method;

use tl_os::impersonation;
use tl_os::poll::Events;
use tl_os::thread;

use crate::http::connection::entry::Phase;
use crate::http::connection::socket::Socket;
use crate::http::connection::table::ConnectionGuard;
use crate::http::connection::wait::SendDeadline;
use crate::http::message::request_head::{self, RequestHead};
use crate::http::message::response::ResponseBody;
use crate::http::message::{ApiError, Body, Framing, Request, Response, ResponseStream, UnreadBody};
use crate::http::server::handler::Handler;
use crate::http::server::options::Options;

/// After an error, the connection is read from for at most this time and this many bytes before it is closed, so that
/// the client can read the error. The limit is above what the buffers of both sockets hold, which a client that uploads
/// has filled before it looks for a response.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 16 << 20);

/// Number of requests after which a connection looks whether the kernel has another one already. Looking costs a system
/// call, which short requests would feel; so many of them take much less than a time slice.
const LOOK_EVERY: u64 = 16;

/// Time after which a reserve thread gives up a connection whose request body has not arrived, or whose client has not
/// taken the response.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that is being served.
struct ConnectionLoop {
    socket: Socket,
    handler: Arc<dyn Handler>,
    options: Arc<Options>,
    /// On a reserve thread, the deadline for the only exchange of the connection.
    reserve_deadline: Option<Instant>,
}

/// Answers one short request of the connection, on a reserve thread.
pub(crate) fn serve_one(guard: ConnectionGuard, handler: Arc<dyn Handler>, options: Arc<Options>) {
    let reserve_deadline = Some(Instant::now() + RESERVE_TIMEOUT);
    let mut connection = ConnectionLoop { socket: Socket::new(guard), handler, options, reserve_deadline };
    connection.step_catching_panics(true);
}

/// Serves the connection until it ends.
pub(crate) fn serve(guard: ConnectionGuard, handler: Arc<dyn Handler>, options: Arc<Options>) {
    let mut connection = ConnectionLoop { socket: Socket::new(guard), handler, options, reserve_deadline: None };
    let mut answered: u64 = 0;
    while connection.step_catching_panics(answered == 0) {
        answered += 1;
        connection.let_others_run(answered.is_multiple_of(LOOK_EVERY));
    }
}

impl ConnectionLoop {
    /// Calls [`ConnectionLoop::step`]. A panic becomes a 500, if no response had begun.
    fn step_catching_panics(&mut self, is_first: bool) -> bool {
        // After a panic, nothing of the connection is used but the socket.
        if let Ok(again) = catch_unwind(AssertUnwindSafe(|| self.step(is_first))) {
            return again;
        }
        if !self.socket.response_begun() {
            self.refuse(&panicked());
        }
        false
    }

    /// Gives the CPU to other threads if the next request has already arrived. With hundreds of such connections, each
    /// would otherwise take a whole time slice of the scheduler in turn, and the acceptor would wait for seconds. The
    /// kernel is asked for bytes only if `looks`.
    fn let_others_run(&self, looks: bool) {
        if !self.socket.buffered().is_empty() || looks && self.socket.guard().has_bytes() {
            std::thread::yield_now();
        }
    }

    /// Waits for one request and answers it. Returns whether another may follow.
    fn step(&mut self, is_first: bool) -> bool {
        thread::fault_point();
        self.socket.begin_exchange();
        match self.next_head(is_first) {
            Ok(Some(head)) => self.exchange(&head),
            Ok(None) => false,
            Err(error) => {
                if !error.is_disconnected() {
                    self.refuse(&error);
                }
                false
            }
        }
    }

    /// Waits for a request and reads its head. None if the client has disconnected or been idle for too long, or if the
    /// connection was evicted.
    fn next_head(&mut self, is_first: bool) -> Result<Option<RequestHead>, ApiError> {
        if self.socket.is_stopping() {
            return Ok(None);
        }
        if !is_first && self.socket.buffered().is_empty() {
            self.socket.release();
            let deadline = Instant::now() + self.options.idle_timeout;
            if !self.socket.enter(Phase::Idle) || self.socket.wait(Events::READ, Some(deadline)).is_err() {
                return Ok(None);
            }
        }
        // A new connection has been in this phase since it was accepted.
        if !is_first && !self.socket.enter(Phase::Head) {
            return Ok(None);
        }
        let deadline = Instant::now() + self.options.head_timeout;
        let head = self.read_head(deadline)?;
        Ok(head.filter(|_| self.socket.enter(Phase::Busy)))
    }

    fn read_head(&mut self, deadline: Instant) -> Result<Option<RequestHead>, ApiError> {
        let limit = self.options.max_head;
        // Each parse starts from the first byte, so a head that arrives byte by byte is not parsed for each byte.
        let (mut scanned, mut parse_at) = (0, 1);
        loop {
            if scanned == 0 {
                self.skip_blank_lines();
            }
            let bytes = self.socket.buffered();
            if ends_within(bytes, scanned) || bytes.len() >= parse_at {
                if let Some((head, length)) = request_head::parse(bytes)? {
                    if length > limit {
                        return Err(too_large(limit));
                    }
                    self.socket.consume(length);
                    self.socket.release_large();
                    return Ok(Some(head));
                }
                parse_at = bytes.len() * 2;
            }
            if bytes.len() >= limit {
                return Err(too_large(limit));
            }
            scanned = bytes.len();
            let filled = match self.socket.fill_now(limit) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.socket.guard().await_head();
                    let waited = self.socket.wait(Events::READ, Some(deadline));
                    // Before the bytes are read: a client that has just sent them is not evicted for its silence.
                    self.socket.guard().head_continues();
                    waited.and_then(|()| self.socket.fill(limit, Some(deadline)))
                }
                result => result,
            };
            match filled {
                Ok(0) if scanned == 0 => return Ok(None),
                Ok(0) => return Err(ApiError::malformed("the connection ended within the request head")),
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::TimedOut => return Err(ApiError::timed_out("the request head")),
                    ErrorKind::OutOfMemory => return Err(ApiError::out_of("the request head", &error)),
                    _ => return Ok(None),
                },
            }
        }
    }

    /// Skips empty lines before a request, which some clients send (RFC 9112, section 2.2).
    fn skip_blank_lines(&mut self) {
        let blank = self.socket.buffered().iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.socket.consume(blank);
    }

    /// Handles one request. Returns whether another may follow.
    fn exchange(&mut self, head: &RequestHead) -> bool {
        let (begun, is_on_reserve) = (Instant::now(), self.reserve_deadline.is_some());
        let mut body = match Body::new(head, self.options.idle_timeout, self.reserve_deadline) {
            Ok(body) => body,
            Err(error) => {
                self.refuse(&error);
                return false;
            }
        };
        let mut request = Request::new(head, &mut body, &mut self.socket, self.options.max_body, is_on_reserve);
        // A panic of the handler becomes an error here, so that the observer is told of it.
        let handled = catch_unwind(AssertUnwindSafe(|| self.handler.handle(&mut request)));
        let handled = handled.unwrap_or_else(|_| Err(panicked().close())).and_then(|response| {
            // The handler need not have declared that the request is long.
            if response.body.is_long() { request.require_own_thread().map(|()| response) } else { Ok(response) }
        });
        let observer = request.observer();
        let (response, ends) = match handled {
            Ok(response) => (response, false),
            Err(error) if error.is_disconnected() => {
                observer.inspect(|(observer, label)| observer.answered(*label, None));
                return false;
            }
            Err(error) => (error.to_response(), error.ends_connection()),
        };
        log::debug!("{} {} {}", head.method, head.path, response.status());
        let is_duplex = matches!(response.body, ResponseBody::Stream { is_duplex: true, .. });
        let complete = !ends && !is_duplex && body.discard_received(&mut self.socket);
        let is_upgrade = matches!(response.body, ResponseBody::Upgrade { .. });
        let ends_now = self.socket.is_stopping() || self.socket.guard().is_crowded();
        let reuse = complete && !is_on_reserve && head.keeps_alive() && !is_upgrade && !ends_now;
        // Before the response, so that a client that has it finds it counted.
        observer.inspect(|(observer, label)| observer.answered(*label, Some(response.status())));
        let responded = catch_unwind(AssertUnwindSafe(|| self.respond(response, head, &mut body, !reuse)));
        observer.inspect(|(observer, label)| observer.ended(*label, begun.elapsed()));
        match responded.unwrap_or_else(|panic| resume_unwind(panic)) {
            Ok(()) if !complete => self.linger(),
            Ok(()) => return reuse && !impersonation::restore_failed(),
            Err(error) if error.kind() == ErrorKind::InvalidInput && !self.socket.response_begun() => {
                log::error!("{} {}: the response cannot be sent: {error}", head.method, head.path);
                self.refuse(&ApiError::internal(
                    "internal error: the response is not valid; the daemon's log says more",
                ));
            }
            Err(error) => log::debug!("{} {}: {error}", head.method, head.path),
        }
        false
    }

    fn respond(&mut self, response: Response, request: &RequestHead, rest: &mut Body, close: bool) -> io::Result<()> {
        let (head, server) = (response.head, &self.options.server_name);
        let head_only = request.method == Method::Head || !head.may_have_body();
        match response.body {
            ResponseBody::Bytes(body) => {
                let mut bytes = head.print(server, Framing::Length(body.len()), close)?;
                if !head_only {
                    bytes.extend_from_slice(&body);
                }
                self.socket.send(&bytes, self.send_deadline())
            }
            ResponseBody::Stream { length, deadline, write, is_duplex } => {
                let framing = match length.map(usize::try_from) {
                    Some(Ok(length)) => Framing::Length(length),
                    _ if request.is_http_1_0 => Framing::Close,
                    _ => Framing::Chunked,
                };
                let printed = head.print(server, framing, close)?;
                if head_only {
                    return self.socket.send(&printed, self.send_deadline());
                }
                let deadline = deadline.unwrap_or(self.send_deadline());
                rest.forgo_continue();
                let rest = is_duplex.then_some(rest as &mut dyn UnreadBody);
                let mut stream = ResponseStream::new(&mut self.socket, printed, framing, deadline).with_body(rest);
                write(&mut stream)?;
                stream.finish()
            }
            ResponseBody::Upgrade { protocol, serve } => {
                let printed = head.print_upgrade(server, &protocol)?;
                self.socket.send(&printed, self.send_deadline())?;
                self.socket.release();
                serve(&mut self.socket);
                Ok(())
            }
        }
    }

    /// Answers a request whose end is unknown, or that could not be handled, and ends the connection.
    fn refuse(&mut self, error: &ApiError) {
        log::debug!("request refused: {error}");
        let bytes = print_whole(&self.options.server_name, error);
        if self.socket.send(&bytes, self.send_deadline()).is_ok() {
            self.linger();
        }
    }

    fn linger(&mut self) {
        let (time, bytes) = LINGER;
        let time = if self.reserve_deadline.is_some() { time / 10 } else { time };
        self.socket.linger(time, Duration::ZERO, bytes);
    }

    fn send_deadline(&self) -> SendDeadline {
        self.reserve_deadline.map_or(SendDeadline::Stalled(self.options.idle_timeout), SendDeadline::At)
    }
}

/// The bytes of an error response that ends the connection.
pub(crate) fn print_whole(server_name: &str, error: &ApiError) -> Vec<u8> {
    let response = error.to_response();
    let ResponseBody::Bytes(body) = response.body else { return Vec::new() };
    // Only an invalid header cannot be printed, and no error of the server itself has one.
    let framing = Framing::Length(body.len());
    let mut bytes = response.head.print(server_name, framing, true).unwrap_or_default();
    bytes.extend_from_slice(&body);
    bytes
}

fn panicked() -> ApiError {
    ApiError::internal("internal error: the request could not be handled; the daemon's log says more")
}

/// Whether the empty line that ends a head is in the bytes after the first `scanned`.
fn ends_within(bytes: &[u8], scanned: usize) -> bool {
    let from = scanned.saturating_sub(2);
    let new = bytes.get(from..).unwrap_or_default();
    memchr::memchr_iter(b'\n', new).any(|at| matches!(new.get(at + 1..), Some([b'\n', ..] | [b'\r', b'\n', ..])))
}

fn too_large(limit: usize) -> ApiError {
    ApiError::head_too_large(&format!("be at most {limit} bytes long"))
}
