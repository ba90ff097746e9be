//! The listening socket, and the thread that accepts connections from it.
//!
//! No error of `accept` ends the thread or makes it spin. It wakes only for a client, or when a connection ends that a
//! waiting client needs. When the connection table is full, further clients wait in the kernel's queue.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};

use tl_os::allocator;
use tl_os::poll::{self, Events};
use tl_os::thread;

use crate::http::connection::entry::is_silent;
use crate::http::connection::table::{ConnectionGuard, ConnectionTable, Eviction};
use crate::http::message::ApiError;
use crate::http::server::handler::Handler;
use crate::http::server::options::Options;
use crate::http::server::reserve::Reserve;
use crate::http::server::serve;

/// Maximum number of clients in the kernel's queue, unless `net.core.somaxconn` is less. A client that finds it full tries
/// again after seconds.
const BACKLOG: i32 = 4096;

/// Pause before `accept` is tried again after an error that only another process may resolve.
const RETRY: Duration = Duration::from_secs(1);

/// How long after a connection has freed memory the allocator returns it to the kernel.
const TRIM_DELAY: Duration = Duration::from_secs(2);

/// Minimum time between two warnings about refused connections.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// A listening socket. The sockets accepted from it inherit TCP_NODELAY (a response is one write, which must not wait
/// for an acknowledgement) and SO_KEEPALIVE (so that the connection of a client whose machine is gone ends eventually).
pub(crate) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(family, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    setsockopt(&fd, sockopt::KeepAlive, &true)?;
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
    socket::listen(&fd, Backlog::new(BACKLOG)?)?;
    Ok(TcpListener::from(fd))
}

/// Accepts connections and starts a thread for each.
pub(crate) struct Acceptor {
    listener: TcpListener,
    connections: Arc<ConnectionTable>,
    handler: Arc<dyn Handler>,
    options: Arc<Options>,
    reserve: Reserve,
    /// A descriptor that is closed when there is none left, so that one more client can be accepted and refused.
    spare: Option<File>,
    /// Time of the last warning about refused connections.
    warned_at: Option<Instant>,
    /// The response to a client when there is no memory to print one.
    out_of_memory: Vec<u8>,
    /// When the allocator returns memory to the kernel next.
    trim_at: Option<Instant>,
}

impl Acceptor {
    /// An acceptor that accepts nothing yet.
    ///
    /// # Errors
    /// If the reserve threads cannot be started.
    pub(crate) fn new(
        listener: TcpListener,
        connections: Arc<ConnectionTable>,
        handler: Arc<dyn Handler>,
        options: Arc<Options>,
    ) -> io::Result<Acceptor> {
        let reserve = Reserve::start(&handler, &options)?;
        let out_of_memory = refusal(&options, &ErrorKind::OutOfMemory.into());
        Ok(Acceptor {
            listener,
            connections,
            handler,
            options,
            reserve,
            spare: spare(),
            warned_at: None,
            out_of_memory,
            trim_at: None,
        })
    }

    /// Accepts connections until the server is stopped.
    pub(crate) fn run(mut self) {
        while !self.connections.is_stopping() {
            // A panic costs the connection being accepted, not the port.
            if catch_unwind(AssertUnwindSafe(|| self.accept_until_stopped())).is_err() {
                log::error!("HTTP server: the acceptor panicked; it continues");
                self.pause(Some(RETRY));
            }
        }
    }

    fn accept_until_stopped(&mut self) {
        while !self.connections.is_stopping() {
            let fds = [(self.listener.as_fd(), Events::READ), (self.connections.waker().as_fd(), Events::READ)];
            match thread::idle(|| poll::wait(fds, self.trim_at)) {
                Ok([listener, waker]) => {
                    if waker.any(Events::READ) {
                        self.connections.waker().clear();
                    }
                    self.trim_memory();
                    if listener != Events::NONE {
                        self.accept_all();
                        self.connections.set_crowded(false);
                    }
                }
                Err(error) => {
                    log::error!("HTTP server: cannot wait for connections: {error}");
                    self.pause(Some(RETRY));
                }
            }
        }
    }

    /// Returns freed memory to the kernel [`TRIM_DELAY`] after a connection has freed some: once for all connections
    /// that have freed memory by then.
    fn trim_memory(&mut self) {
        let now = Instant::now();
        match self.trim_at {
            None if self.connections.take_freed() => self.trim_at = Some(now + TRIM_DELAY),
            Some(at) if at <= now => {
                allocator::trim();
                // A connection that has freed memory during the delay has not woken this thread.
                self.trim_at = self.connections.take_freed().then(|| now + TRIM_DELAY);
            }
            _ => {}
        }
    }

    fn accept_all(&mut self) {
        // The table was full: other clients need the place of one that has sent nothing for long.
        let mut crowded = false;
        while !self.connections.is_stopping() {
            if self.connections.is_full() {
                let now = Some(Instant::now());
                if !matches!(poll::wait([(self.listener.as_fd(), Events::READ)], now), Ok([Events::READ])) {
                    return;
                }
                self.connections.set_crowded(true);
                self.wait_for_room();
                crowded = true;
                continue;
            }
            match self.listener.accept() {
                Ok((stream, _)) if crowded && is_silent(&stream) => self.connections.note_refused(),
                Ok((stream, _)) if allocator::replenish() && allocator::has_margin() => self.start_thread(stream),
                Ok((stream, _)) => self.serve_without_memory(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_of_one_connection(&error) => log::debug!("accept: {error}"),
                Err(error) => {
                    self.refuse_one(&error);
                    return;
                }
            }
        }
    }

    /// The table is full and a client is waiting: evicts a connection, and waits until one has ended.
    fn wait_for_room(&self) {
        self.connections.set_client_waiting(true);
        // Checked again: a connection that ended before the flag was set has not woken this thread.
        if self.connections.is_full() && !self.connections.is_stopping() {
            match self.connections.evict_one() {
                Eviction::NotBefore(time) => self.pause(Some(time.saturating_duration_since(Instant::now()))),
                Eviction::AllBusy => self.pause(None),
                // The evicted connection ends for certain. Another wakeup must not evict a second one.
                Eviction::Begun => {
                    while self.connections.is_full() && !self.connections.is_stopping() {
                        self.pause(None);
                    }
                }
            }
        }
        self.connections.set_client_waiting(false);
    }

    /// Waits for the waker, for at most `time`.
    fn pause(&self, time: Option<Duration>) {
        let deadline = time.map(|time| Instant::now() + time);
        let waker = self.connections.waker();
        let _ = thread::idle(|| poll::wait([(waker.as_fd(), Events::READ)], deadline));
        self.connections.waker().clear();
    }

    fn start_thread(&mut self, stream: TcpStream) {
        if let Err(error) = stream.set_nonblocking(true) {
            log::warn!("HTTP server: cannot prepare a connection: {error}");
            return;
        }
        // Shared with the thread, so that the connection is not lost if the thread cannot be started.
        let shared = Arc::new(Mutex::new(Some(self.connections.add(stream))));
        let (handler, options) = (Arc::clone(&self.handler), Arc::clone(&self.options));
        let of_thread = Arc::clone(&shared);
        let serve = move || {
            if let Some(connection) = take(&of_thread) {
                serve::serve(connection, handler, options);
            }
            Ok(())
        };
        let Err(error) = thread::spawn("http-conn", serve, || {}) else { return };
        self.warn("reserve threads serve short requests only", &error);
        let Some(connection) = take(&shared) else { return };
        if let Err(connection) = self.reserve.take(connection) {
            self.connections.note_refused();
            send_refusal(connection.stream(), &refusal(&self.options, &error));
        }
    }

    /// The machine is out of memory: if a little is left, a reserve thread answers a short request; otherwise the
    /// client is refused with a response that was prepared at the start.
    fn serve_without_memory(&mut self, stream: TcpStream) {
        let mut what = "connections are refused";
        if !allocator::has_some() || stream.set_nonblocking(true).is_err() {
            self.connections.note_refused();
            send_refusal(&stream, &self.out_of_memory);
        } else if let Err(connection) = self.reserve.take(self.connections.add(stream)) {
            self.connections.note_refused();
            send_refusal(connection.stream(), &self.out_of_memory);
        } else {
            what = "reserve threads serve short requests only";
        }
        self.warn(what, &ErrorKind::OutOfMemory.into());
    }

    fn warn(&mut self, what: &str, error: &io::Error) {
        if self.warned_at.is_none_or(|at| at.elapsed() > WARN_INTERVAL) {
            log::warn!("HTTP server: {what}: {error}");
            self.warned_at = Some(Instant::now());
        }
    }

    /// There is no descriptor or memory left to accept a connection: refuses the first client in the queue, and evicts
    /// a connection.
    fn refuse_one(&mut self, error: &io::Error) {
        self.spare = None;
        let accepted = self.listener.accept().map(|(stream, _)| send_refusal(&stream, &refusal(&self.options, error)));
        self.spare = spare();
        if accepted.as_ref().is_err_and(|again| again.kind() == ErrorKind::WouldBlock) {
            // No client was waiting: the kernel looks for a descriptor before it looks for a client.
            return;
        }
        if accepted.is_ok() {
            self.connections.note_refused();
        }
        self.warn("connections are refused", error);
        self.connections.set_client_waiting(true);
        if self.connections.evict_one() == Eviction::Begun || accepted.is_err() || self.spare.is_none() {
            // A connection that ends wakes this thread. Descriptors that other processes hold can only be waited for.
            self.pause(Some(RETRY));
        }
        self.connections.set_client_waiting(false);
    }
}

/// Whether `accept` reports the failure of one waiting connection, after which accept(2) says to try again.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::EOPNOTSUPP
                | libc::ENETUNREACH
        )
    )
}

fn take(shared: &Mutex<Option<ConnectionGuard>>) -> Option<ConnectionGuard> {
    shared.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// The bytes of a 503 that says that `error` keeps the server from serving the connection.
fn refusal(options: &Options, error: &io::Error) -> Vec<u8> {
    serve::print_whole(&options.server_name, &ApiError::out_of("this connection", error))
}

/// Sends a response without waiting for the request, and closes the connection.
fn send_refusal(mut stream: &TcpStream, bytes: &[u8]) {
    let _ = stream.set_nonblocking(true);
    let _ = stream.write(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    // Unread bytes would turn the close into a reset, which discards the response.
    let _ = stream.read(&mut [0; 4096]);
}
