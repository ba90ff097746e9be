//! One connection, one thread: head, handler, answer, and again.

use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tiny_http::Method;

use crate::error::Error;
use tl_os::impersonation;
use tl_os::poll::Events;

use crate::http::Options;
use crate::http::message::body::Body;
use crate::http::message::head;
use crate::http::message::head::Head;
use crate::http::message::request::Request;
use crate::http::message::response::{Answer, Stream};
use crate::http::message::response_head::{Ending, Problem, Reply, out_of};
use crate::http::server::connections::{Phase, Seated};
use crate::http::server::socket::{Patience, Socket};

/// Answers requests, on many threads at once.
pub(in crate::http) type Service = Arc<dyn Fn(&mut Request<'_>) -> Result<Answer, Problem> + Send + Sync>;

/// What a client that is told to go may still send, and for how long, so that it gets to read why: more than fits into the
/// buffers of both sockets, which a client that uploads has filled before it looks.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 16 << 20);

/// How long a thread in reserve has for the body of a request, and then for sending the answer.
const LONGEST_RESERVED: Duration = Duration::from_secs(5);

/// A connection being served.
pub(in crate::http) struct Connection {
    socket: Socket,
    service: Service,
    options: Arc<Options>,
    /// By when its exchange has to be over, where its thread is one in reserve.
    reserved_until: Option<Instant>,
}

impl Connection {
    /// Answers one short request of the connection in `seat`, on a thread in reserve.
    pub(in crate::http) fn serve_one(seat: Seated, service: Service, options: Arc<Options>) {
        let reserved_until = Some(Instant::now() + LONGEST_RESERVED);
        let mut connection = Connection { socket: Socket::new(seat), service, options, reserved_until };
        connection.step_guarded(true);
    }

    /// Serves the connection in `seat` until it ends.
    pub(in crate::http) fn serve(seat: Seated, service: Service, options: Arc<Options>) {
        let mut connection = Connection { socket: Socket::new(seat), service, options, reserved_until: None };
        let mut first = true;
        while connection.step_guarded(first) {
            first = false;
        }
    }

    /// The same as [`Connection::step`], with a panic as an answer.
    fn step_guarded(&mut self, first: bool) -> bool {
        // Nothing of a connection is used after its panic but the socket.
        if let Ok(again) = catch_unwind(AssertUnwindSafe(|| self.step(first))) {
            return again;
        }
        if !self.socket.answered() {
            let why = "the request could not be handled; the log says more";
            self.refuse(&Problem::Refused(Error::internal(why)));
        }
        false
    }

    /// Waits for one request and answers it; whether another may follow.
    fn step(&mut self, first: bool) -> bool {
        self.socket.begin_exchange();
        match self.next_head(first) {
            Ok(Some(head)) => self.exchange(&head),
            Ok(None) | Err(Problem::Gone) => false,
            Err(problem) => {
                self.refuse(&problem);
                false
            }
        }
    }

    /// Waits for a request and reads its head; none when the client has gone, has been idle for too long, or has to go.
    fn next_head(&mut self, first: bool) -> Result<Option<Head>, Problem> {
        if self.socket.stopping() {
            return Ok(None);
        }
        if !first && self.socket.buffered().is_empty() {
            self.socket.release();
            let deadline = Instant::now() + self.options.idle_timeout;
            if !self.socket.enter(Phase::Idle) || self.socket.wait(Events::READ, Some(deadline)).is_err() {
                return Ok(None);
            }
        }
        // A new connection is in this phase since it was accepted.
        if !first && !self.socket.enter(Phase::Head) {
            return Ok(None);
        }
        let deadline = Instant::now() + self.options.head_timeout;
        let head = self.read_head(deadline)?;
        Ok(head.filter(|_| self.socket.enter(Phase::Busy)))
    }

    fn read_head(&mut self, deadline: Instant) -> Result<Option<Head>, Problem> {
        let limit = self.options.max_head;
        // A parse starts from the beginning, so one byte at a time must not mean one parse each.
        let (mut scanned, mut parse_at) = (0, 1);
        loop {
            if scanned == 0 {
                self.skip_blank_lines();
            }
            let bytes = self.socket.buffered();
            if ends_within(bytes, scanned) || bytes.len() >= parse_at {
                if let Some((head, length)) = head::parse(bytes)? {
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
            match self.socket.fill(limit, Some(deadline)) {
                Ok(0) if scanned == 0 => return Ok(None),
                Ok(0) => return Err(Problem::Malformed("the request head has no end".to_owned())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::TimedOut => return Err(Problem::TimedOut("the request head")),
                Err(error) if error.kind() == ErrorKind::OutOfMemory => return Err(out_of("the request head", &error)),
                Err(_) => return Ok(None),
            }
        }
    }

    /// Lines that a client sent too many of before its request (RFC 9112, section 2.2).
    fn skip_blank_lines(&mut self) {
        let blank = self.socket.buffered().iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        self.socket.consume(blank);
    }

    fn exchange(&mut self, head: &Head) -> bool {
        let is_on_reserve = self.reserved_until.is_some();
        let mut body = match Body::of(head, self.options.idle_timeout, self.reserved_until) {
            Ok(body) => body,
            Err(problem) => {
                self.refuse(&problem);
                return false;
            }
        };
        let mut request = Request::new(head, &mut body, &mut self.socket, self.options.max_body, is_on_reserve);
        let (answer, ends) = match (self.service)(&mut request) {
            Ok(answer) => (answer, false),
            Err(Problem::Gone) => return false,
            Err(problem) => (problem.reply().into(), problem.ends_connection()),
        };
        log::debug!("{} {} {}", head.method, head.path, answer.status());
        let complete = !ends && body.discard_ready(&mut self.socket);
        let upgraded = matches!(answer, Answer::Upgraded { .. });
        let reuse = complete && !is_on_reserve && head.keeps_alive() && !upgraded && !self.socket.stopping();
        match self.answer(answer, head, !reuse) {
            Ok(()) if !complete => self.linger(),
            Ok(()) => return reuse && !impersonation::restore_failed(),
            Err(error) => log::debug!("{} {}: {error}", head.method, head.path),
        }
        false
    }

    fn answer(&mut self, answer: Answer, head: &Head, close: bool) -> io::Result<()> {
        let head_only = head.method == Method::Head;
        match answer {
            Answer::Whole(reply) => self.send_whole(&reply, head_only, close),
            Answer::Streamed { reply, length, patience, write } => {
                let ending = match length.map(usize::try_from) {
                    Some(Ok(length)) => Ending::Length(length),
                    _ if head.is_old => Ending::Close,
                    _ => Ending::Chunked,
                };
                let printed = reply.head(ending, close)?;
                if head_only {
                    return self.socket.send(&printed, self.patience());
                }
                let patience = patience.unwrap_or(self.patience());
                let mut stream = Stream::new(&mut self.socket, printed, ending, patience);
                write(&mut stream)?;
                stream.finish()
            }
            Answer::Upgraded { head, serve } => {
                self.socket.send(&head, self.patience())?;
                serve(&mut self.socket);
                Ok(())
            }
        }
    }

    /// Answers what is no request, or one that cannot be delimited, and ends the connection.
    fn refuse(&mut self, problem: &Problem) {
        log::debug!("refused: {problem}");
        if self.send_whole(&problem.reply(), false, true).is_ok() {
            self.linger();
        }
    }

    fn linger(&mut self) {
        let (time, bytes) = LINGER;
        let time = if self.reserved_until.is_some() { time / 10 } else { time };
        self.socket.linger(time, Duration::ZERO, bytes);
    }

    fn send_whole(&mut self, reply: &Reply, head_only: bool, close: bool) -> io::Result<()> {
        let mut bytes = reply.head(Ending::Length(reply.body.len()), close)?;
        if !head_only {
            bytes.extend_from_slice(&reply.body);
        }
        self.socket.send(&bytes, self.patience())
    }

    fn patience(&self) -> Patience {
        self.reserved_until.map_or(Patience::For(self.options.idle_timeout), Patience::Until)
    }
}

/// Whether an empty line, and with it the head, ends in the bytes after the first `scanned`.
fn ends_within(bytes: &[u8], scanned: usize) -> bool {
    let from = scanned.saturating_sub(2);
    let new = bytes.get(from..).unwrap_or_default();
    memchr::memchr_iter(b'\n', new).any(|at| matches!(new.get(at + 1..), Some([b'\n', ..] | [b'\r', b'\n', ..])))
}

fn too_large(limit: usize) -> Problem {
    Problem::HeadTooLarge(format!("{limit} bytes long"))
}
