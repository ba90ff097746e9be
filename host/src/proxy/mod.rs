//! The data plane: passes requests on to the sandboxes, by the first label of `Host`.
//!
//! | file | what |
//! |---|---|
//! | `route` | which sandbox and which of its ports a request is for (pure) |
//! | `head` | the head of the request that the sandbox gets (pure) |
//! | `answer` | the head of the sandbox's response (pure) |
//! | `connect`, `tunnel` | a connection to the sandbox, directly or through its daemon |
//! | `stream`, `upstream` | such a connection, and with what was received on it |
//! | `pool` | connections that are kept for the next request |
//! | `exchange`, `pump` | sends the request and waits for the response |
//! | `watch` | looks after the sandbox meanwhile: it may be suspended |
//! | `transfer` | passes the body of the response on |
//! | `upgraded` | passes bytes on after an upgrade, in both directions |
//! | `frames` | where the frames of a WebSocket end (pure) |
//! | `pair` | waits for both connections |
//! | `directory` | the sandboxes, as the proxy sees them |
//! | `errors`, `numbers` | its own error responses, and what it counts |
//!
//! # Access
//!
//! Every request needs the API key, except those for an exposed port of a sandbox that allows them without. The key never
//! reaches a sandbox, and the token of a sandbox never reaches a client: towards the daemon the token takes the place of
//! the key. A request that is not allowed does not resume a suspended sandbox.

mod answer;
mod connect;
mod directory;
mod errors;
mod exchange;
mod frames;
mod head;
mod numbers;
mod pair;
mod pool;
mod pump;
mod route;
mod stream;
#[cfg(test)]
mod tests;
mod transfer;
mod tunnel;
mod upgraded;
mod upstream;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tl_os::tcp;
use tl_supervisor::http::message::{ApiError, Request, Response};
use tl_supervisor::http::server::Handler;
use tl_supervisor::http::{Auth, answers_soon};

use crate::proxy::answer::{Answer, Asked};
use crate::proxy::connect::{ConnectError, connect};
use crate::proxy::exchange::{Exchange, ExchangeError};
use crate::proxy::head::{BodyFraming, Recipient, RequestHead};
use crate::proxy::numbers::OpenRequest;
use crate::proxy::pair::Pair;
use crate::proxy::pool::{DaemonKey, Pool};
use crate::proxy::pump::Pump;
use crate::proxy::route::{Route, route};
use crate::proxy::stream::Stream;
use crate::proxy::tunnel::TunnelError;
use crate::proxy::upstream::Upstream;
use crate::proxy::watch::{Silence, Watch};

pub(crate) use directory::{Directory, Exposure, ReachError, Reached};
pub(crate) use numbers::Numbers;

/// How long a sandbox may take to become ready and to accept a connection.
const REACH_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the daemon may take to answer a request that it answers at once ([`answers_soon`]), without any progress.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a program may take to accept a connection. The kernel accepts at once, unless the program's queue is full.
const PORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The handler of the proxy's port.
pub(crate) struct Proxy {
    directory: Arc<dyn Directory>,
    auth: Auth,
    key: Vec<u8>,
    pool: Arc<Pool>,
    numbers: Arc<Numbers>,
    /// Maximum time between two pieces of a request's body.
    idle: Duration,
    /// See [`RESPONSE_TIMEOUT`].
    response_timeout: Duration,
}

impl Proxy {
    /// A proxy for the sandboxes of `directory`, whose clients send `key`. `idle` is the maximum time between two pieces of a
    /// request's body.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn start(directory: Arc<dyn Directory>, key: Vec<u8>, idle: Duration) -> io::Result<Proxy> {
        let (pool, numbers, response_timeout) = (Pool::start()?, Arc::default(), RESPONSE_TIMEOUT);
        Ok(Proxy { directory, auth: Auth::Token(key.clone()), key, pool, numbers, idle, response_timeout })
    }

    /// What the proxy counts.
    pub(crate) fn numbers(&self) -> Arc<Numbers> {
        Arc::clone(&self.numbers)
    }

    /// Checks that the client may send the request, and that the port is exposed. Does not resume the sandbox. Returns
    /// whether the client has the key.
    fn admit(&self, request: &Request<'_>, route: &Route) -> Result<bool, ApiError> {
        let has_key = self.auth.allows(request.header("Authorization").as_deref());
        let Some(port) = route.port else {
            return if has_key { Ok(has_key) } else { Err(errors::unauthorized()) };
        };
        match self.directory.exposure(&route.sandbox) {
            Some(exposure) => {
                let may_ask = has_key || exposure.allow_unauthenticated_access;
                check_exposure(route, port, &exposure.ports, may_ask).map(|()| has_key)
            }
            None if has_key => Err(ReachError::Unknown(route.sandbox.clone()).into()),
            // Without the key, a client does not learn which sandboxes there are.
            None => Err(errors::unauthorized()),
        }
    }

    fn pass_on(&self, request: &mut Request<'_>, open: OpenRequest) -> Result<Response, ApiError> {
        let hosts: Vec<&[u8]> = all(request, "Host").collect();
        let labels: Vec<&[u8]> = all(request, route::HEADER).collect();
        let route = route(&hosts, &labels)?;
        let has_key = self.admit(request, &route)?;
        // The other side sees only that the proxy is there: a client that has vanished is found out here.
        if let Err(error) = tcp::keep_alive(request) {
            log::debug!("a connection is not probed: {error}");
        }
        request.begin_long()?;
        let deadline = Instant::now() + REACH_TIMEOUT;
        let reached = self.directory.reach(&route.sandbox, deadline)?;
        if let Some(port) = route.port {
            // Changed while the sandbox was resumed.
            check_exposure(&route, port, &reached.exposed_ports, has_key || reached.allow_unauthenticated_access)?;
        }
        let (exchange, answer) = self.exchange(request, &route, &reached, open, deadline)?;
        log::debug!("{} {}: {}", route.sandbox, request.path(), answer.status);
        Ok(respond(exchange, answer))
    }

    /// Passes the request on, and waits for the head of the response.
    fn exchange(
        &self,
        request: &mut Request<'_>,
        route: &Route,
        reached: &Reached,
        mut open: OpenRequest,
        deadline: Instant,
    ) -> Result<(Exchange, Answer), ApiError> {
        let asked = Asked { is_head: request.is_head(), upgrade: upgrade(request).is_some() };
        let to_daemon = route.port.is_none();
        // What a connection that was kept could swallow may be sent again: a GET changes nothing in the daemon.
        let may_repeat = matches!(request.method(), "GET" | "OPTIONS") && !asked.upgrade && request.is_body_done();
        let limit = (to_daemon && answers_soon(request.method(), request.path())).then_some(self.response_timeout);
        let mut watch = Watch::new(Arc::clone(&self.directory), reached.id.clone(), limit);
        let head = self.head(request, route, reached);
        let mut upstream = self.connect(request, route, reached, may_repeat, deadline)?;
        loop {
            let remaining = request.body_remaining();
            let (pump, pool) = (Pump::new(head.clone(), remaining), Arc::clone(&self.pool));
            let mut exchange = Exchange {
                upstream,
                pump,
                asked,
                open,
                pool,
                is_half_closed: false,
                sandbox_ended: false,
                watch,
                idle: self.idle,
                pair: Pair::default(),
            };
            let why = match exchange.await_answer(request) {
                Ok(answer) if answer.status == 101 && !exchange.pump.is_finished() => {
                    "it changes the protocol before the request has ended".to_owned()
                }
                Ok(answer) => return Ok((exchange, answer)),
                Err(ExchangeError::Client(error)) => return Err(error),
                Err(ExchangeError::Nothing(_)) if may_repeat && exchange.upstream.is_reused => {
                    (open, watch) = (exchange.open, exchange.watch);
                    upstream = self.connect(request, route, reached, false, deadline)?;
                    continue;
                }
                Err(ExchangeError::Nothing(why) | ExchangeError::Garbage(why)) => why,
                Err(ExchangeError::Silence(Silence::TooLong(limit))) => {
                    return Err(errors::no_response_in_time(route, limit, exchange.pump.has_begun()));
                }
                Err(ExchangeError::Silence(Silence::Unreachable(error))) => error.to_string(),
            };
            return Err(errors::no_response(route, &why, exchange.pump.has_begun()));
        }
    }

    fn head(&self, request: &Request<'_>, route: &Route, reached: &Reached) -> Vec<u8> {
        let headers: Vec<(&str, &[u8])> = request.headers().collect();
        let has_length = request.header("Content-Length").is_some();
        let body = match request.body_remaining() {
            None => BodyFraming::Chunked,
            Some(0) if !has_length => BodyFraming::None,
            Some(length) => BodyFraming::Length(length),
        };
        let to_daemon = route.port.is_none();
        let recipient = if to_daemon { Recipient::Daemon { token: &reached.token } } else { Recipient::Program };
        let head = RequestHead {
            method: if request.is_head() { "HEAD" } else { request.method() },
            target: &request.target(),
            headers: &headers,
            body,
            client: request.peer_addr().map(|addr| addr.ip()),
            recipient,
            key: &self.key,
            upgrade: upgrade(request),
            keeps_open: to_daemon,
        };
        head.print()
    }

    fn connect(
        &self,
        request: &Request<'_>,
        route: &Route,
        reached: &Reached,
        may_reuse: bool,
        deadline: Instant,
    ) -> Result<Upstream, ApiError> {
        if let Some(port) = route.port {
            let stream = connect_to_port(request, route, reached, port)?;
            self.check_address(route, reached)?;
            return Ok(Upstream::new(stream, None, false));
        }
        let key = DaemonKey { sandbox: reached.id.clone(), addr: reached.daemon };
        if let Some(kept) = may_reuse.then(|| self.pool.take(&key)).flatten() {
            // A connection that was kept leads to where it has led before, or nowhere.
            return Ok(Upstream::new(Stream::Tcp(kept), Some(key), true));
        }
        match connect(reached.daemon, request, deadline) {
            Ok(stream) => {
                self.check_address(route, reached)?;
                Ok(Upstream::new(Stream::Tcp(stream), Some(key), false))
            }
            Err(ConnectError::ClientGone) => Err(ApiError::disconnected()),
            Err(error) => Err(errors::daemon_unreachable(&route.sandbox, &error)),
        }
    }

    /// Checks that a new connection leads to the sandbox. Another one may have got its address since it has ended, which
    /// the directory learns later. Nothing of the request was sent on the connection yet; a tunnel has sent the token,
    /// which is of no use to another sandbox.
    fn check_address(&self, route: &Route, reached: &Reached) -> Result<(), ApiError> {
        if self.directory.has_address(reached) { Ok(()) } else { Err(errors::has_ended(&route.sandbox)) }
    }
}

fn connect_to_port(request: &Request<'_>, route: &Route, reached: &Reached, port: u16) -> Result<Stream, ApiError> {
    let deadline = Instant::now() + PORT_TIMEOUT;
    if reached.is_direct {
        match connect(SocketAddr::new(reached.daemon.ip(), port), request, deadline) {
            Ok(stream) => return Ok(Stream::Tcp(stream)),
            Err(ConnectError::ClientGone) => return Err(ApiError::disconnected()),
            // The program may listen on loopback only.
            Err(ConnectError::Failed(error)) => log::debug!("port {port} of {:?}: {error}", route.sandbox),
        }
    }
    let deadline = Instant::now() + PORT_TIMEOUT;
    tunnel::open(reached.daemon, &reached.token, port, request, deadline).map_err(|error| match error {
        TunnelError::ClientGone => ApiError::disconnected(),
        TunnelError::Refused => errors::port_refused(&route.sandbox, port),
        TunnelError::Failed(_) => errors::daemon_unreachable(&route.sandbox, &error),
    })
}

fn check_exposure(route: &Route, port: u16, exposed: &[u16], may_ask: bool) -> Result<(), ApiError> {
    if !may_ask {
        return Err(errors::unauthorized());
    }
    if exposed.contains(&port) { Ok(()) } else { Err(errors::not_exposed(&route.sandbox, port)) }
}

/// The response to the client.
fn respond(mut exchange: Exchange, answer: Answer) -> Response {
    if answer.status != 101 {
        return transfer::respond(exchange, answer);
    }
    let received = exchange.upstream.take_buffered();
    exchange.open.upgrade();
    let (stream, open) = (exchange.upstream.stream, exchange.open);
    let protocol = answer.protocol.unwrap_or_default();
    let is_web_socket = protocol.eq_ignore_ascii_case("websocket");
    let response = Response::upgrade(protocol, move |socket| {
        upgraded::pass_both_ways(socket, stream, received, is_web_socket, &open);
    });
    answer.headers.into_iter().fold(response, |response, (name, value)| response.header(name, value))
}

/// The values of all headers with this name.
fn all<'c>(request: &Request<'c>, name: &'static str) -> impl Iterator<Item = &'c [u8]> + use<'c> {
    request.headers().filter(move |(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The protocols that the request asks to change to.
fn upgrade<'c>(request: &Request<'c>) -> Option<&'c [u8]> {
    let protocols = all(request, "Upgrade").next()?;
    head::is_listed(all(request, "Connection"), "Upgrade").then_some(protocols)
}

impl Handler for Proxy {
    fn handle(&self, request: &mut Request<'_>) -> Result<Response, ApiError> {
        let open = OpenRequest::begin(&self.numbers);
        self.pass_on(request, open).inspect_err(|error| {
            if !error.is_disconnected() {
                self.numbers.failed();
            }
        })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.pool.end();
    }
}
