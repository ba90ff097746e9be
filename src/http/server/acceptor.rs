//! The listening socket and the thread that accepts from it.
//!
//! No error of `accept` ends the thread or makes it spin, and it wakes for nothing but a client or a seat that is
//! wanted. When all seats are taken further clients wait in the kernel's queue.

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

use crate::http::Options;
use crate::http::message::response_head::{Ending, out_of};
use crate::http::server::connection::{Connection, Service};
use crate::http::server::connections::{House, Room, Seated};
use crate::http::server::reserve::Reserve;

/// Clients that may wait in the kernel's queue.
const BACKLOG: i32 = 1024;

/// After an error that another process may have to clear up, `accept` is tried again after this.
const RETRY: Duration = Duration::from_secs(1);

/// Memory that connections have used is given back so long after that.
const TIDY: Duration = Duration::from_secs(2);

/// Said once in so long, however many are turned away.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// A listening socket whose accepted sockets inherit TCP_NODELAY (an answer is one write, which must not wait for an
/// acknowledgement) and SO_KEEPALIVE (so that a follower whose machine has vanished ends one day).
pub(in crate::http) fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
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
pub(in crate::http) struct Acceptor {
    listener: TcpListener,
    house: Arc<House>,
    service: Service,
    options: Arc<Options>,
    reserve: Reserve,
    /// Given up to accept one more connection when there is no descriptor left, to tell it so.
    spare: Option<File>,
    warned: Option<Instant>,
    /// What a client is told while there is no memory to say it with.
    refusal: Vec<u8>,
    /// When memory is given back next, if it is.
    tidy_at: Option<Instant>,
}

impl Acceptor {
    /// Does not accept anything yet.
    ///
    /// # Errors
    /// When the threads in reserve cannot be started.
    pub(in crate::http) fn new(
        listener: TcpListener,
        house: Arc<House>,
        service: Service,
        options: Arc<Options>,
    ) -> io::Result<Acceptor> {
        let reserve = Reserve::start(&service, &options)?;
        let refusal = refusal(&ErrorKind::OutOfMemory.into());
        Ok(Acceptor {
            listener,
            house,
            service,
            options,
            reserve,
            spare: spare(),
            warned: None,
            refusal,
            tidy_at: None,
        })
    }

    /// Accepts until the house is stopped.
    pub(in crate::http) fn run(mut self) {
        while !self.house.stopping() {
            // A panic costs the connection at hand, not the port.
            if catch_unwind(AssertUnwindSafe(|| self.accept_until_stopped())).is_err() {
                log::error!("the acceptor panicked, and goes on");
                self.pause(Some(RETRY));
            }
        }
    }

    fn accept_until_stopped(&mut self) {
        while !self.house.stopping() {
            let fds = [(self.listener.as_fd(), Events::READ), (self.house.waker().as_fd(), Events::READ)];
            match poll::wait(fds, self.tidy_at) {
                Ok([listener, waker]) => {
                    if waker.any(Events::READ) {
                        self.house.waker().clear();
                    }
                    self.tidy();
                    if listener != Events::NONE {
                        self.accept_all();
                    }
                }
                Err(error) => {
                    log::error!("cannot wait for connections: {error}");
                    self.pause(Some(RETRY));
                }
            }
        }
    }

    /// Gives memory back that connections have used, a while after the first of them is through: not for each, and not
    /// again until another one is.
    fn tidy(&mut self) {
        let now = Instant::now();
        match self.tidy_at {
            None if self.house.take_freed() => self.tidy_at = Some(now + TIDY),
            Some(at) if at <= now => {
                allocator::give_back();
                self.tidy_at = None;
                // What was freed meanwhile has woken nobody.
                if self.house.take_freed() {
                    self.tidy_at = Some(now + TIDY);
                }
            }
            _ => {}
        }
    }

    fn accept_all(&mut self) {
        while !self.house.stopping() {
            if self.house.is_full() {
                let now = Some(Instant::now());
                if !matches!(poll::wait([(self.listener.as_fd(), Events::READ)], now), Ok([Events::READ])) {
                    return;
                }
                self.wait_for_a_seat();
                continue;
            }
            match self.listener.accept() {
                Ok((stream, _)) if allocator::replenish() && allocator::has_margin() => self.welcome(stream),
                Ok((stream, _)) => self.welcome_without_memory(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_of_one_connection(&error) => log::debug!("accept: {error}"),
                Err(error) => {
                    self.turn_away(&error);
                    return;
                }
            }
        }
    }

    /// Every seat is taken and a client is waiting: asks one to give way, and waits until somebody has.
    fn wait_for_a_seat(&self) {
        self.house.set_crowded(true);
        // Looked at again after the announcement: whoever left before it has not woken us.
        if self.house.is_full() && !self.house.stopping() {
            match self.house.make_room() {
                Room::After(moment) => self.pause(Some(moment.saturating_duration_since(Instant::now()))),
                Room::None => self.pause(None),
                // It leaves for certain; whoever else wakes us must not cost another one its seat.
                Room::Soon => {
                    while self.house.is_full() && !self.house.stopping() {
                        self.pause(None);
                    }
                }
            }
        }
        self.house.set_crowded(false);
    }

    /// Waits for the waker only.
    fn pause(&self, time: Option<Duration>) {
        let deadline = time.map(|time| Instant::now() + time);
        let _ = poll::wait([(self.house.waker().as_fd(), Events::READ)], deadline);
        self.house.waker().clear();
    }

    fn welcome(&mut self, stream: TcpStream) {
        if let Err(error) = stream.set_nonblocking(true) {
            log::warn!("cannot prepare a connection: {error}");
            return;
        }
        // Where no thread can be started, what it was to have is still there.
        let seated = Arc::new(Mutex::new(Some(self.house.seat(stream))));
        let (service, options) = (Arc::clone(&self.service), Arc::clone(&self.options));
        let handed = Arc::clone(&seated);
        let serve = move || {
            if let Some(seated) = take(&handed) {
                Connection::serve(seated, service, options);
            }
            Ok(())
        };
        let Err(error) = thread::spawn("http-conn", serve, || {}) else { return };
        self.warn("threads in reserve serve short requests only", &error);
        let Some(seated) = take(&seated) else { return };
        if let Err(seated) = self.reserve.take(seated) {
            refuse(seated.stream(), &error);
        }
    }

    /// There is no reserve of memory: what is already there must do, for a short request if any.
    fn welcome_without_memory(&mut self, stream: TcpStream) {
        let mut what = "connections are turned away";
        if !allocator::has_some() || stream.set_nonblocking(true).is_err() {
            send_refusal(&stream, &self.refusal);
        } else if let Err(seated) = self.reserve.take(self.house.seat(stream)) {
            send_refusal(seated.stream(), &self.refusal);
        } else {
            what = "threads in reserve serve short requests only";
        }
        self.warn(what, &ErrorKind::OutOfMemory.into());
    }

    fn warn(&mut self, what: &str, error: &io::Error) {
        if self.warned.is_none_or(|at| at.elapsed() > WARN_AGAIN) {
            log::warn!("{what}: {error}");
            self.warned = Some(Instant::now());
        }
    }

    /// Out of descriptors or memory: tells the first client in the queue so, and asks an idle one to go.
    fn turn_away(&mut self, error: &io::Error) {
        self.spare = None;
        let accepted = self.listener.accept().map(|(stream, _)| {
            refuse(&stream, error);
        });
        self.spare = spare();
        if accepted.as_ref().is_err_and(|again| again.kind() == ErrorKind::WouldBlock) {
            // The kernel looks for a descriptor before it looks for a client, and there was none.
            return;
        }
        self.warn("connections are turned away", error);
        self.house.set_crowded(true);
        if self.house.make_room() == Room::Soon || accepted.is_err() || self.spare.is_none() {
            // Whoever goes wakes us; what other processes hold can only be waited for.
            self.pause(Some(RETRY));
        }
        self.house.set_crowded(false);
    }
}

/// Whether `accept` reports the failure of a connection that was waiting: accept(2) asks to go on with the next.
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

fn take(seated: &Mutex<Option<Seated>>) -> Option<Seated> {
    seated.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// Answers 503 without waiting for the request.
fn refuse(stream: &TcpStream, error: &io::Error) {
    send_refusal(stream, &refusal(error));
}

/// The answer that says so; nothing where it cannot be printed.
fn refusal(error: &io::Error) -> Vec<u8> {
    let reply = out_of("this connection", error).reply();
    let mut bytes = reply.head(Ending::Length(reply.body.len()), true).unwrap_or_default();
    bytes.extend_from_slice(&reply.body);
    bytes
}

fn send_refusal(mut stream: &TcpStream, bytes: &[u8]) {
    let _ = stream.set_nonblocking(true);
    let _ = stream.write(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    // Unread bytes would turn the close into a reset, which takes the answer away.
    let _ = stream.read(&mut [0; 4096]);
}
