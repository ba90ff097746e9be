//! One request and its response.
//!
//! The thread of the client's connection does everything, and waits for both connections at once: for room at the sandbox
//! and more of the body while it sends the request, and all the time for the response, which may begin before the request
//! has ended. If the client disconnects, the connection to the sandbox is closed. If the client only ends its sending
//! direction, the sandbox is told just that, and decides itself what it means.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tl_os::poll::Events;
use tl_supervisor::http::message::{ApiError, Request};

use crate::proxy::answer::{Answer, Asked};
use crate::proxy::numbers::OpenRequest;
use crate::proxy::pair::{Pair, Want};
use crate::proxy::pool::Pool;
use crate::proxy::pump::{BodySource, Pump};
use crate::proxy::stream::Stream;
use crate::proxy::upstream::{Received, Upstream};
use crate::proxy::watch::{Silence, Watch};

/// How long a silent connection keeps a large buffer.
const KEEP_BUFFER: Duration = Duration::from_secs(2);

/// A request that is being passed on, and the response to it.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) upstream: Upstream,
    pub(crate) pump: Pump,
    pub(crate) asked: Asked,
    pub(crate) open: OpenRequest,
    pub(crate) pool: Arc<Pool>,
    /// The client has ended its sending direction, and the sandbox was told.
    pub(crate) is_half_closed: bool,
    /// The sandbox has ended its output.
    pub(crate) sandbox_ended: bool,
    pub(crate) watch: Watch,
    /// Maximum time between two pieces of the request's body.
    pub(crate) idle: Duration,
    pub(crate) pair: Pair,
}

/// Why there is no response.
#[derive(Debug)]
pub(crate) enum ExchangeError {
    /// The client has disconnected, or its body is wrong.
    Client(ApiError),
    /// The connection has ended before anything of the response arrived.
    Nothing(String),
    /// What has arrived is no response, or only the beginning of one.
    Garbage(String),
    /// Nothing has arrived, and nothing is expected any more.
    Silence(Silence),
}

impl Exchange {
    /// Passes the request on until the head of the response is there.
    pub(crate) fn await_answer(&mut self, request: &mut Request<'_>) -> Result<Answer, ExchangeError> {
        loop {
            // First: a sandbox that refuses a body closes the connection, and then sending fails.
            if let Some(answer) = self.receive_head()? {
                return Ok(answer);
            }
            let want = self.pass(request).map_err(ExchangeError::Client)?;
            let limit = if want == Want::Read { Some(Instant::now() + self.idle) } else { self.watch.next_look() };
            let happened = self.wait(request, want, Want::Read, limit).map_err(ExchangeError::Client)?;
            if happened || want == Want::Turn {
                self.watch.progress();
            } else if want == Want::Read {
                return Err(ExchangeError::Client(body_timed_out()));
            } else if self.watch.next_look().is_some_and(|at| at <= Instant::now())
                && let Err(silence) = self.watch.look()
            {
                // The look may have taken a moment.
                return self.receive_head()?.ok_or(ExchangeError::Silence(silence));
            }
        }
    }

    fn receive_head(&mut self) -> Result<Option<Answer>, ExchangeError> {
        loop {
            let had = self.upstream.buffered().len();
            let ended = |why: String| if had == 0 { ExchangeError::Nothing(why) } else { ExchangeError::Garbage(why) };
            match self.upstream.receive() {
                Ok(Received::Nothing) => return Ok(None),
                Ok(Received::Bytes) => {}
                Ok(Received::End) => return Err(ended("the connection has ended".to_owned())),
                Err(error) => return Err(ended(error.to_string())),
            }
            if let Some(answer) = self.upstream.take_answer(self.asked).map_err(ExchangeError::Garbage)? {
                return Ok(Some(answer));
            }
        }
    }

    /// Passes on what there is of the request.
    pub(crate) fn pass(&mut self, source: &mut impl BodySource) -> Result<Want, ApiError> {
        let want = self.pump.pass(source, &self.upstream.stream)?;
        self.open.received(self.pump.take_received());
        Ok(want)
    }

    /// Waits for what the two directions want, until `limit`. Returns whether anything has happened.
    ///
    /// # Errors
    /// If the client has disconnected.
    pub(crate) fn wait(
        &mut self,
        client: &impl AsFd,
        to_sandbox: Want,
        to_client: Want,
        limit: Option<Instant>,
    ) -> Result<bool, ApiError> {
        let mut of_client = Want::events(to_sandbox, to_client);
        let mut of_upstream = Want::events(to_client, to_sandbox);
        let watches_end = to_sandbox == Want::Nothing && !self.is_half_closed && self.pump.is_read();
        if watches_end {
            of_client = of_client.and(Events::GONE);
        }
        if to_client == Want::Nothing {
            of_upstream = of_upstream.and(Events::GONE);
        }
        let deadline = match limit {
            _ if to_sandbox == Want::Turn || to_client == Want::Turn => Some(Instant::now()),
            None if self.upstream.is_large() => Some(Instant::now() + KEEP_BUFFER),
            limit => limit,
        };
        let connections = [(client.as_fd(), of_client), (self.upstream.as_fd(), of_upstream)];
        let [client, upstream] = self.pair.wait(connections, None, deadline).map_err(|_| ApiError::disconnected())?;
        if client == Events::NONE && upstream == Events::NONE {
            self.upstream.release();
            return Ok(false);
        }
        if client.any(Events::BROKEN) {
            return Err(ApiError::disconnected());
        }
        self.sandbox_ended |= to_client == Want::Nothing && upstream.any(Events::GONE);
        if watches_end && client.any(Events::GONE) {
            self.is_half_closed = true;
            // This fails only if the connection has failed, which is seen when the response is read.
            let _ = self.upstream.stream.end_writing();
        }
        Ok(true)
    }

    /// Keeps the connection for another request, if `answer`, whose body has ended, allows it.
    pub(crate) fn keep_connection(self, keeps_open: bool) {
        let is_whole = self.pump.is_finished() && !self.is_half_closed && !self.sandbox_ended;
        let is_clean = is_whole && self.upstream.buffered().is_empty();
        if let (true, true, Some(key), Stream::Tcp(stream)) =
            (keeps_open, is_clean, self.upstream.key, self.upstream.stream)
        {
            self.pool.keep(key, stream);
        }
    }
}

fn body_timed_out() -> ApiError {
    ApiError::new(408, "REQUEST_TIMEOUT", "the rest of the body did not arrive in time").close()
}

/// The error of a response that has ended too early.
pub(crate) fn ended_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the sandbox has ended the response too early")
}
