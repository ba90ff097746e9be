//! The process API over HTTP: everything that a client on the network sees.
//!
//! An acceptor gives each connection a thread of its own, up to a limit, and a thread waits for one thing at a time
//! with a deadline: there is no pool that streams could use up and no event loop. What is between the socket and a
//! handler knows nothing of processes, and a handler knows nothing of sockets: it gets a `Request` and
//! returns an `Answer`.
//!
//! | file | what |
//! |---|---|
//! | `acceptor`, `seats` | who is let in, and who gives way when it is full |
//! | `reserve`, `memory` | threads for when none can be started; what all may hold together |
//! | `connection` | the loop of one connection |
//! | `socket`, `head`, `chunked`, `body`, `request` | a request on its way in |
//! | `reply`, `answer` | an answer on its way out; tiny_http prints the heads |
//! | `routes` | one match from method and path to what was asked for, behind the token |
//! | `json`, `user` | bodies, with sentences about what is wrong with them |
//! | `events`, `text` | server-sent events from a log; a JSON string piece by piece |
//! | `range` | which part of a file |
//! | `host` | what the program around us tells, and how it is ended |
//! | `websocket`, `frames` | the way into a WebSocket and out of it; its single frames |
//! | `attach`, `tunnel` | what goes over one: a terminal, a connection |
//! | the others | one resource each |
//!
//! tiny_http's own server is not used: one request with a huge `Content-Length` aborts it, and nothing in it has a limit
//! or a deadline.

mod api;
mod json;
mod message;
mod server;
mod ws;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::supervisor::Handle;
use tl_os::thread;

pub use api::processes::{InvalidBody, parse_process};
use api::routes::Api;
pub use api::system::{BootReport, BootService, BootStep, EndAction, Host};
pub use json::user::parse_user;
use server::acceptor::{self, Acceptor};
use server::connection::Service;
use server::connections::House;

/// Who may use the API. `GET /api/v1/health` is for everybody.
#[derive(Clone, Default)]
pub enum Auth {
    /// Nobody: the default, so that forgetting to choose is safe.
    #[default]
    Nobody,
    /// Whoever has this token.
    Token(Vec<u8>),
    /// Everybody, behind a proxy that has authenticated them.
    Anybody,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::Nobody => "Nobody",
            Auth::Token(_) => "Token(…)",
            Auth::Anybody => "Anybody",
        })
    }
}

/// Limits and deadlines; the defaults are those of section 7 of the wire contract.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who may use it.
    pub auth: Auth,
    /// Connections at once; further ones wait in the kernel's queue, idle ones give way to them.
    pub max_connections: usize,
    /// Bytes of a JSON body.
    pub max_body: usize,
    /// Bytes of the head of a request.
    pub max_head: usize,
    /// From the first byte of a head, or the beginning of a connection, to the head's end; a day at most.
    pub head_timeout: Duration,
    /// Between two requests, between two pieces of a body, and between two pieces of an answer that a client takes; a day
    /// at most.
    pub idle_timeout: Duration,
    /// Whom `GET /boot` and `POST /shutdown` ask; without one there is nothing to tell or to end.
    pub host: Option<Arc<dyn Host>>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            auth: Auth::Nobody,
            max_connections: 1024,
            max_body: 1 << 20,
            max_head: 64 << 10,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            host: None,
        }
    }
}

/// The longest of the timeouts: what is longer would overflow a deadline.
const LONGEST: Duration = Duration::from_millis(crate::model::MAX_MS);

/// What clients are given at the end to take the answers that are on their way: so long while none takes anything,
const FAREWELL: Duration = Duration::from_secs(2);
/// and so long in any case.
const LONG_FAREWELL: Duration = Duration::from_secs(10);

/// The API on a port. Dropping it is [`Server::shutdown`].
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    house: Arc<House>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// Listens on `addr` and serves the API of `handle`, on threads of its own.
    ///
    /// # Errors
    /// When the address cannot be listened on, or a descriptor or the acceptor's thread is not to be had.
    pub fn bind(addr: SocketAddr, handle: Handle, options: Options) -> io::Result<Server> {
        let api = Api::new(handle, options.auth.clone(), options.host.clone());
        Server::serve(addr, Arc::new(move |request| api.answer(request)), options)
    }

    /// The same for any service: what is below the routes is tested like this.
    fn serve(addr: SocketAddr, service: Service, mut options: Options) -> io::Result<Server> {
        for time in [&mut options.head_timeout, &mut options.idle_timeout] {
            *time = (*time).min(LONGEST);
        }
        let listener = acceptor::listen(addr)?;
        let local_addr = listener.local_addr()?;
        let house = Arc::new(House::new(options.max_connections)?);
        let acceptor = Acceptor::new(listener, Arc::clone(&house), service, Arc::new(options))?;
        let accept = move || {
            acceptor.run();
            Ok(())
        };
        let thread = thread::spawn("http-accept", accept, || {})?;
        Ok(Server { local_addr, house, acceptor: Mutex::new(Some(thread)) })
    }

    /// Where it listens: the port that the kernel chose, where 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops listening and ends the connections that execute no request. Requests that are being executed are answered,
    /// and their connections end with the answer: it waits for them, for 2 s at most while no client takes
    /// anything, and for 10 s in any case.
    pub fn shutdown(&self) {
        self.house.stop();
        let acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(acceptor) = acceptor {
            // It catches its own panics.
            let _ = acceptor.join();
            if !self.house.await_empty(FAREWELL, LONG_FAREWELL) {
                log::warn!("some clients have not taken their answers");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}
