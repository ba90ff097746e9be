//! A small HTTP/1.1 server: it accepts connections, reads requests and gives them to a [`Handler`].
//!
//! Each connection has a thread, up to a limit. A thread waits for one thing at a time, with a deadline: there is
//! neither a pool that streams could exhaust nor an event loop. The server knows nothing of what its handler does.
//!
//! tiny_http's own server is not used: one request with a huge `Content-Length` aborts it, and it has neither limits
//! nor deadlines.
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::TcpStream;
//! use tl_supervisor::http::message::{ApiError, Request, Response};
//! use tl_supervisor::http::server::{Options, Server};
//!
//! let handler = |request: &mut Request<'_>| match (request.method(), request.path()) {
//!     ("GET", "/hello") => Ok(Response::new(200, "text/plain", "hello\n")),
//!     (_, path) => Err(ApiError::no_route(path)),
//! };
//! let server = Server::bind("127.0.0.1:0".parse()?, handler, Options::new())?;
//!
//! let mut client = TcpStream::connect(server.local_addr())?;
//! client.write_all(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
//! let mut response = String::new();
//! client.read_to_string(&mut response)?;
//! assert!(response.starts_with("HTTP/1.1 200 OK\r\n") && response.ends_with("\r\n\r\nhello\n"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod acceptor;
mod handler;
mod options;
mod reserve;
mod serve;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tl_os::thread;

use crate::http::connection::table::ConnectionTable;
use crate::http::message::check_server_name;
use crate::http::server::acceptor::Acceptor;

pub use handler::Handler;
pub use options::Options;

/// At shutdown, how long to wait for clients to take their responses while none takes anything.
const STALL_TIMEOUT: Duration = Duration::from_secs(2);

/// At shutdown, how long to wait for clients to take their responses in any case.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// A handler that is served on a port. Dropping it is [`Server::shutdown`].
#[must_use = "dropping a server shuts it down"]
pub struct Server {
    local_addr: SocketAddr,
    connections: Arc<ConnectionTable>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// Listens on `addr` and serves `handler` on threads of its own. Port 0 lets the kernel choose the port.
    ///
    /// # Errors
    /// If the address cannot be listened on, or there is no descriptor or thread left; [`io::ErrorKind::InvalidInput`] for
    /// an [`Options::server_name`] that is not valid in HTTP.
    pub fn bind(addr: SocketAddr, handler: impl Handler, options: Options) -> io::Result<Server> {
        check_server_name(&options.server_name)?;
        let listener = acceptor::listen(addr)?;
        let local_addr = listener.local_addr()?;
        let connections = Arc::new(ConnectionTable::new(options.max_connections)?);
        let acceptor = Acceptor::new(listener, Arc::clone(&connections), Arc::new(handler), Arc::new(options))?;
        let accept = move || {
            acceptor.run();
            Ok(())
        };
        let thread = thread::spawn("http-accept", accept, || {})?;
        Ok(Server { local_addr, connections, acceptor: Mutex::new(Some(thread)) })
    }

    /// The address on which the server listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops listening, closes the connections that execute no request, and waits for the others to be answered: for at
    /// most 2 s while no client takes anything, and for at most 10 s in any case.
    pub fn shutdown(&self) {
        self.connections.stop();
        let acceptor = self.acceptor.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(acceptor) = acceptor {
            // The acceptor catches its own panics.
            let _ = acceptor.join();
            if !self.connections.await_empty(STALL_TIMEOUT, SHUTDOWN_TIMEOUT) {
                log::warn!("HTTP server: shut down although some clients have not taken their responses");
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("local_addr", &self.local_addr).finish_non_exhaustive()
    }
}
