//! The fork server: a small process that forks the children of this process.
//!
//! A fork copies the page tables of the process that calls it, and makes each of its pages fault once when it is
//! written next. For a daemon with several threads and megabytes of data, that takes longer than everything else about
//! a start. The fork server has one thread and a few pages, whatever the size of the daemon.
//!
//! - Its children are children of the daemon (CLONE_PARENT), which waits for them as for its own. The thread that has
//!   started the server is their tracer if they ask for one, as if it had forked them itself.
//! - A request consists of memory that both processes share ([`Region`]), and of a message on a socket with the
//!   descriptors of the child. The server answers when it has forked, which takes some 100 µs: nothing that it does can
//!   wait for a file system. The daemon waits for the answer for [`PATIENCE`] at most. A server that does not answer in
//!   time, because somebody has stopped it for example, is killed and replaced.
//! - The kernel writes the PID of a child to the shared memory before the child runs (CLONE_PARENT_SETTID). So the
//!   daemon knows every child, even if the server is killed before it answers.
//! - The server closes all descriptors of the daemon.
//!
//! Where the server does not work (a kernel before Linux 5.9, a seccomp filter, no memory), and for arguments and an
//! environment that do not fit into the region, the daemon forks by itself.

mod memory;
mod process;
mod region;

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt, socketpair,
};
use nix::sys::time::TimeVal;
use nix::unistd;

use self::region::Region;
use super::child::Setup;
use super::clone;
use super::launch::Launch;
use crate::Pid;
use crate::pidfd::PidFd;
use crate::resource_limits::OriginalLimits;

/// Longest time to wait for an answer of the server, and then for its end after its SIGKILL.
const PATIENCE: Duration = Duration::from_millis(500);

/// Minimum time between two starts of the server.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);

/// The PID of the fork server of this process; 0 if it has none.
static SERVER: AtomicI32 = AtomicI32::new(0);

/// Whether this is the PID of the fork server of this process, which belongs to no run.
pub fn is_fork_server(pid: Pid) -> bool {
    pid != 0 && pid == SERVER.load(Ordering::Relaxed)
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A child with this PID was forked.
    Forked(Pid),
    /// The kernel has refused to fork.
    Refused(io::Error),
    /// Nothing was forked, and the server cannot be used for this request.
    Unavailable,
}

/// The fork server as the thread sees it that starts children. Dropping it ends the server.
#[derive(Debug)]
pub(super) struct ForkServer {
    region: Option<Region>,
    running: Option<Running>,
    /// The time of the last start.
    started: Option<Instant>,
    /// It must not be started again.
    stopped: bool,
    /// Limits that the server sets for itself, and so for its children.
    limits: Option<OriginalLimits>,
}

/// A server that was forked and was not killed by this process.
#[derive(Debug)]
struct Running {
    pid: Pid,
    socket: OwnedFd,
}

impl ForkServer {
    /// A server that is not running yet. Its children will have `limits`.
    pub(super) fn new(limits: Option<OriginalLimits>) -> ForkServer {
        ForkServer { region: None, running: None, started: None, stopped: false, limits }
    }

    /// Starts the server if it is not running. The calling thread becomes the parent, and so the tracer, of its
    /// children.
    pub(super) fn start(&mut self) {
        if self.stopped || self.running.is_some() || self.started.is_some_and(|at| at.elapsed() < RESTART_INTERVAL) {
            return;
        }
        self.started = Some(Instant::now());
        match self.fork() {
            Ok(running) => {
                SERVER.store(running.pid, Ordering::Relaxed);
                self.running = Some(running);
            }
            Err(error) => log::warn!("cannot start the fork server: {error}"),
        }
    }

    fn fork(&mut self) -> io::Result<Running> {
        let region = match &mut self.region {
            Some(region) => region,
            none => none.insert(Region::map()?),
        };
        let (socket, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, PATIENCE.as_micros() as i64))?;
        // Copies, on the stack: the server gives the heap back.
        let (number, mappings, limits) = (theirs.as_raw_fd(), region.mappings(), self.limits);
        let server = move || {
            // SAFETY: this closure runs in a child that was just forked, and in no other process.
            unsafe { process::run(number, mappings, limits) }
        };
        // SAFETY: `process::run` is async-signal-safe, allocates nothing and cannot panic.
        let pid = unsafe { clone::fork(None, server) }?;
        Ok(Running { pid, socket })
    }

    /// Ends the server, and does not start it again.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.running = None;
    }

    /// Records that a child of this process was reaped. Returns whether it was the server.
    pub(super) fn reaped(&mut self, pid: Pid) -> bool {
        if !is_fork_server(pid) {
            return false;
        }
        SERVER.store(0, Ordering::Relaxed);
        if self.running.take_if(|running| running.pid == pid).is_some() {
            log::warn!("the fork server has ended; another one is started for the next process");
        }
        true
    }

    /// Forks a child that executes `launch`. `descriptors` become those with the numbers from 0 on, which `setup` and
    /// `cgroup` refer to; `cgroup` is the directory of the cgroup that the child is created in.
    pub(super) fn spawn(
        &mut self,
        launch: &Launch,
        setup: &Setup,
        cgroup: Option<RawFd>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Outcome {
        self.start();
        let (Some(running), Some(region)) = (&self.running, &mut self.region) else { return Outcome::Unavailable };
        if !region.write(launch, setup, cgroup, descriptors.len()) {
            return Outcome::Unavailable;
        }
        match running.request(descriptors) {
            Ok(()) => region.outcome(),
            Err(errno) => {
                log::warn!("the fork server does not answer ({errno}): it is replaced");
                let ended = running.end();
                self.running = None;
                match region.outcome() {
                    // It may still fork, so this request must not be repeated.
                    Outcome::Unavailable if !ended => Outcome::Refused(Errno::ETIMEDOUT.into()),
                    outcome => outcome,
                }
            }
        }
    }
}

impl Running {
    /// Sends a request and waits for the answer.
    fn request(&self, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let message = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(b"!")], &message, MsgFlags::MSG_NOSIGNAL, None)?;
        match self.receive()? {
            0 => Err(Errno::EPIPE),
            _ => Ok(()),
        }
    }

    /// Waits for a message, for [`PATIENCE`] at most. Returns its length; 0 if the server has ended.
    fn receive(&self) -> Result<usize, Errno> {
        loop {
            match recv(self.socket.as_raw_fd(), &mut [0], MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(0),
                result => return result,
            }
        }
    }

    /// Kills the server. Returns whether it has ended, so that it will fork no more.
    ///
    /// The end of its socket does not say so: a child that hangs before its exec, in a frozen cgroup for example, has that
    /// open, too. For the same reason the request is taken back: the descriptors in it would stay open.
    fn end(&self) -> bool {
        let Ok(process) = PidFd::open(self.pid) else {
            self.kill();
            return self.is_closed();
        };
        let theirs = process.copy_descriptor(process::SOCKET);
        self.kill();
        let ended = process.wait_end(Instant::now() + PATIENCE).unwrap_or(false);
        if let Ok(theirs) = theirs {
            // Without room for them, the kernel closes the descriptors.
            while recv(theirs.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0) {}
        }
        ended
    }

    /// Waits for the end of the socket. Skips an answer that has come late.
    fn is_closed(&self) -> bool {
        while let Ok(length) = self.receive() {
            if length == 0 {
                return true;
            }
        }
        false
    }

    fn kill(&self) {
        // It was not reaped yet: otherwise `reaped` would have removed it.
        let _ = kill(unistd::Pid::from_raw(self.pid), Signal::SIGKILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
