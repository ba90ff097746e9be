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
//!   wait for a file system. The daemon waits for the answer for [`PATIENCE`] at most, or for [`LONGEST_PATIENCE`] while
//!   the server waits for a CPU or inside the kernel. A server that does not answer in time, because somebody has
//!   stopped it for example, is killed and replaced: each time after a longer interval, because somebody may stop each
//!   one.
//! - The kernel writes the PID of a child to the shared memory before the child runs (CLONE_PARENT_SETTID). So the
//!   daemon knows every child, even if the server is killed before it answers.
//! - The server closes all descriptors of the daemon.
//!
//! Where the server does not work (a kernel before Linux 5.9, a seccomp filter, no memory), and for arguments and an
//! environment that do not fit into the region, the daemon forks by itself.

mod memory;
mod outcome;
mod process;
mod region;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, setsockopt, socketpair,
};
use nix::sys::stat::fstat;
use nix::sys::time::TimeVal;
use nix::unistd;

pub(super) use self::outcome::Outcome;
use self::region::Region;
use super::child::Setup;
use super::clone;
use super::launch::Launch;
use crate::Pid;
use crate::pidfd::PidFd;
use crate::poll::{Events, wait};
use crate::procfs;
use crate::resource_limits::OriginalLimits;
use crate::wait::{Exit, Reaped, event_of_child};

/// Longest time to wait for an answer of the server, and then for its end after its SIGKILL.
const PATIENCE: Duration = Duration::from_millis(500);

/// The same while the server waits for a CPU or inside the kernel, as any process of a busy machine does: a fork locks
/// each file that is mapped, in turn with all other processes that map it.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);

/// Minimum time between two starts of the server. It doubles with each server that does not answer in time.
const RESTART_INTERVAL: Duration = Duration::from_secs(1);
/// The longest such time. A server that has run for longer counts as the first one that does not answer.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60);

/// The warning after a server has ended by itself, or was killed by somebody.
const ENDED: &str = "the fork server has ended; another one is started for the next process";

/// The PID of the fork server of this process; 0 if it has none.
static SERVER: AtomicI32 = AtomicI32::new(0);

/// Whether this is the PID of the fork server of this process, which belongs to no run.
pub fn is_fork_server(pid: Pid) -> bool {
    pid != 0 && pid == SERVER.load(Ordering::Relaxed)
}

/// The fork server as the thread sees it that starts children. Dropping it ends the server.
#[derive(Debug)]
pub(super) struct ForkServer {
    region: Option<Region>,
    running: Option<Running>,
    /// The PID of the last server until it was reaped; 0 if there is none.
    unreaped: Pid,
    /// The time of the last start.
    started: Option<Instant>,
    /// Minimum time from the last start to the next one.
    interval: Duration,
    /// It must not be started again.
    stopped: bool,
    /// Limits that the server sets for itself, and so for its children.
    limits: Option<OriginalLimits>,
}

/// A server that was forked and was not reaped, so that its PID is its own.
#[derive(Debug)]
struct Running {
    pid: Pid,
    socket: OwnedFd,
    /// The inode number of the server's end of the socket.
    its_end: libc::ino_t,
}

impl ForkServer {
    /// A server that is not running yet. Its children will have `limits`.
    pub(super) fn new(limits: Option<OriginalLimits>) -> ForkServer {
        ForkServer {
            region: None,
            running: None,
            unreaped: 0,
            started: None,
            interval: RESTART_INTERVAL,
            stopped: false,
            limits,
        }
    }

    /// Starts the server if it is not running. The calling thread becomes the parent, and so the tracer, of its
    /// children.
    pub(super) fn start(&mut self) {
        if self.stopped || self.running.is_some() || self.started.is_some_and(|at| at.elapsed() < self.interval) {
            return;
        }
        self.started = Some(Instant::now());
        match self.fork() {
            Ok(running) => {
                SERVER.store(running.pid, Ordering::Relaxed);
                self.unreaped = running.pid;
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
        let its_end = fstat(&theirs)?.st_ino;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(0, PATIENCE.as_micros() as libc::suseconds_t))?;
        // Copies, on the stack: the server gives the heap back.
        let (number, mappings, limits) = (theirs.as_raw_fd(), region.mappings(), self.limits);
        let server = move || {
            // SAFETY: this closure runs in a child that was just forked, and in no other process.
            unsafe { process::run(number, mappings, limits) }
        };
        // SAFETY: `process::run` is async-signal-safe, allocates nothing and cannot panic.
        let pid = unsafe { clone::fork(None, server) }?;
        Ok(Running { pid, socket, its_end })
    }

    /// Ends the server, and does not start it again.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        if let Some(running) = self.running.take() {
            running.kill();
        }
    }

    /// Records that a child of this process was reaped. Returns whether it was the server.
    pub(super) fn reaped(&mut self, reaped: Reaped) -> bool {
        if reaped.pid != self.unreaped {
            return false;
        }
        self.forget_pid();
        let was_running = self.running.take().is_some();
        if reaped.exit == Exit::Code(process::UNSUPPORTED) {
            log::info!("there is no fork server, because the kernel or a filter of system calls does not permit it");
            self.stopped = true;
        } else if was_running {
            log::warn!("{ENDED}");
        }
        true
    }

    fn forget_pid(&mut self) {
        // Another server of this process, in tests, keeps its place.
        let _ = SERVER.compare_exchange(self.unreaped, 0, Ordering::Relaxed, Ordering::Relaxed);
        self.unreaped = 0;
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
                match errno {
                    Errno::EPIPE => log::warn!("{ENDED}"),
                    _ => log::warn!("the fork server does not answer ({errno}): it is replaced"),
                }
                self.give_up(errno)
            }
        }
    }

    /// Kills a server that does not answer for this reason. Returns what became of the request.
    fn give_up(&mut self, why: Errno) -> Outcome {
        let (Some(running), Some(region)) = (self.running.take(), &self.region) else { return Outcome::Unavailable };
        let has_ended = running.end();
        let outcome = region.outcome();
        if why == Errno::ETIMEDOUT {
            let is_first = self.started.is_none_or(|at| at.elapsed() > LONGEST_INTERVAL);
            self.interval = if is_first { RESTART_INTERVAL } else { (2 * self.interval).min(LONGEST_INTERVAL) };
        }
        if has_ended {
            return outcome;
        }
        // It may still write to this region.
        self.region = None;
        match outcome {
            // It may still fork, so the request must not be repeated. This error does not blame the cgroup.
            Outcome::Unavailable => Outcome::Refused(Errno::EAGAIN.into()),
            outcome => outcome,
        }
    }
}

impl Drop for ForkServer {
    /// Ends the server and reaps it: its owner, the thread that reaps all children, is ending.
    fn drop(&mut self) {
        if self.running.take().is_some_and(|running| !running.end()) {
            return;
        }
        // It has closed its socket, or was killed when it was stopped: this takes less than a millisecond.
        let deadline = Instant::now() + PATIENCE;
        while self.unreaped != 0 && event_of_child(self.unreaped).is_none() && Instant::now() < deadline {
            sleep(Duration::from_millis(1));
        }
        self.forget_pid();
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

    /// Waits for a message. Returns its length; 0 if the server has ended.
    fn receive(&self) -> Result<usize, Errno> {
        let receive = || match self.receive_soon() {
            Err(Errno::ETIMEDOUT) => None,
            result => Some(result),
        };
        self.while_working(receive).unwrap_or(Err(Errno::ETIMEDOUT))
    }

    /// Calls `wait`, which waits for [`PATIENCE`] and then returns `None`; again as long as the server is working, for
    /// [`LONGEST_PATIENCE`] in all.
    fn while_working<T>(&self, mut wait: impl FnMut() -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + LONGEST_PATIENCE;
        loop {
            let result = wait();
            if result.is_some() || Instant::now() >= deadline || !procfs::is_working(self.pid) {
                return result;
            }
        }
    }

    /// Waits for a message, for [`PATIENCE`] at most.
    fn receive_soon(&self) -> Result<usize, Errno> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match recv(self.socket.as_raw_fd(), &mut [0], MsgFlags::empty()) {
                // A handler has run, for SIGCHLD. Another `recv` alone would wait for the whole time again.
                Err(Errno::EINTR) => match wait([(self.socket.as_fd(), Events::READ)], Some(deadline)) {
                    Ok([events]) if events != Events::NONE => {}
                    _ => return Err(Errno::ETIMEDOUT),
                },
                Err(Errno::EAGAIN) => return Err(Errno::ETIMEDOUT),
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
        // Until the server has arranged its descriptors, that number stands for what this process has there.
        let theirs = process.copy_descriptor(process::SOCKET);
        let theirs = theirs.ok().filter(|fd| fstat(fd).is_ok_and(|stat| stat.st_ino == self.its_end));
        self.kill();
        let wait_end = || process.wait_end(Instant::now() + PATIENCE).unwrap_or(false).then_some(());
        let ended = self.while_working(wait_end).is_some();
        if let Some(theirs) = theirs {
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
        let _ = kill(unistd::Pid::from_raw(self.pid), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};

    use super::*;
    use crate::testing::{LONG, wait_until};

    fn started() -> (ForkServer, Pid) {
        let mut server = ForkServer::new(None);
        server.start();
        let pid = server.running.as_ref().expect("it was forked").pid;
        (server, pid)
    }

    fn exists(pid: Pid) -> bool {
        kill(unistd::Pid::from_raw(pid), None).is_ok()
    }

    #[test]
    fn signals_do_not_prolong_the_wait_for_a_server_that_is_stopped() {
        extern "C" fn nothing(_: libc::c_int) {}
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing, and no other test sends or handles this signal.
        unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
        let (server, pid) = started();
        kill(unistd::Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        // SAFETY: it takes no arguments.
        let this = unsafe { libc::pthread_self() };
        let (done, null) = (AtomicBool::new(false), File::open("/dev/null").unwrap());
        thread::scope(|scope| {
            scope.spawn(|| {
                let deadline = Instant::now() + Duration::from_secs(20);
                while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
                    // SAFETY: it takes integers; that thread runs as long as this scope.
                    unsafe { libc::pthread_kill(this, libc::SIGUSR1) };
                    sleep(Duration::from_millis(20));
                }
            });
            let begun = Instant::now();
            let result = server.running.as_ref().unwrap().request(&[null.as_fd()]);
            let waited = begun.elapsed();
            done.store(true, Ordering::Relaxed);
            assert_eq!(result, Err(Errno::ETIMEDOUT));
            assert!(waited < Duration::from_secs(10), "{waited:?}");
        });
    }

    /// Until the server has arranged its descriptors, another one of the daemon has the number of its socket.
    #[test]
    fn the_end_of_a_server_takes_nothing_out_of_another_descriptor() {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        unistd::write(&ours, b"x").unwrap();
        let script = format!("exec {}<&0; exec sleep 60", process::SOCKET);
        let mut other = Command::new("sh").args(["-c", &script]).stdin(theirs.try_clone().unwrap()).spawn().unwrap();
        let pid = other.id() as Pid;
        let path = format!("/proc/{pid}/fd/{}", process::SOCKET);
        wait_until("it has the descriptor", || std::fs::symlink_metadata(&path).is_ok());
        let its_end = fstat(&ours).unwrap().st_ino;
        assert!(Running { pid, socket: ours, its_end }.end());
        other.wait().unwrap();
        assert_eq!(recv(theirs.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT), Ok(1));
    }

    #[test]
    fn a_server_that_is_dropped_leaves_no_zombie() {
        for stopped in [false, true] {
            // On a busy machine its end can take longer than it is waited for.
            wait_until("a server is reaped", || {
                let (mut server, pid) = started();
                assert!(exists(pid));
                if stopped {
                    server.stop();
                }
                let begun = Instant::now();
                drop(server);
                assert!(!is_fork_server(pid));
                let is_reaped = !exists(pid);
                assert!(is_reaped || begun.elapsed() >= PATIENCE, "stopped: {stopped}");
                if !is_reaped {
                    wait_until("its end", || event_of_child(pid).is_some());
                }
                is_reaped
            });
        }
    }

    #[test]
    fn the_interval_grows_with_each_server_that_does_not_answer() {
        let (mut server, pid) = started();
        // It has ended before it is given up, which waits for its end only for a moment.
        kill(unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        assert!(PidFd::open(pid).unwrap().wait_end(Instant::now() + LONG).unwrap());
        assert!(matches!(server.give_up(Errno::ETIMEDOUT), Outcome::Unavailable));
        assert_eq!(server.interval, 2 * RESTART_INTERVAL);
        // As if this test had taken no time so far.
        server.started = Some(Instant::now() + LONG);
        server.start();
        assert!(server.running.is_none(), "it is too early for another one");
    }

    #[test]
    fn a_server_that_the_kernel_does_not_permit_is_not_started_again() {
        let (mut server, pid) = started();
        assert!(!server.reaped(Reaped { pid: pid + 1, exit: Exit::Code(process::UNSUPPORTED) }));
        wait_until("it has ended", || server.running.as_ref().is_some_and(Running::end));
        wait_until("it is reaped", || event_of_child(pid).is_some());
        assert!(server.reaped(Reaped { pid, exit: Exit::Code(process::UNSUPPORTED) }));
        server.started = None;
        server.start();
        assert!(server.running.is_none());
    }
}
