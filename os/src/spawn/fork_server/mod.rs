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
//!   the server is in state R or D. A server that does not answer in time, because somebody has stopped it for example,
//!   is killed and replaced: each time after a longer interval, because somebody may stop each one.
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

/// Time to wait for an answer of the server, and then for its end after its SIGKILL, if it does nothing meanwhile.
const PATIENCE: Duration = Duration::from_millis(500);

/// Time to wait for both together while the server is in state R or D (proc_pid_stat(5)): it runs, or waits for a CPU or,
/// uninterruptibly, for the kernel. On a busy machine any process does that. A fork takes the lock of each mapped file,
/// which the forks and the ends of all other processes that map the file take, too.
const LONGEST_PATIENCE: Duration = Duration::from_secs(5);

/// Minimum time from a start of the server, or from the moment when it was given up, to the next start. It doubles with
/// each server that does not answer in time.
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
    /// The time of the last start. If that server did not answer, the time when it was given up.
    started: Option<Instant>,
    /// Minimum time from then to the next start.
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
        let deadline = Instant::now() + LONGEST_PATIENCE;
        match running.request(descriptors, deadline) {
            Ok(()) => region.outcome(),
            Err(errno) => {
                match errno {
                    Errno::EPIPE => log::warn!("{ENDED}"),
                    _ => log::warn!("the fork server does not answer ({errno}): it is replaced"),
                }
                self.give_up(errno, deadline)
            }
        }
    }

    /// Kills a server that does not answer for this reason; waits for its end until `deadline` at most, if it is working.
    /// Returns what became of the request.
    fn give_up(&mut self, why: Errno, deadline: Instant) -> Outcome {
        let (Some(running), Some(region)) = (self.running.take(), &self.region) else { return Outcome::Unavailable };
        let is_first = self.started.is_none_or(|at| at.elapsed() > LONGEST_INTERVAL);
        let has_ended = running.end(deadline);
        let outcome = region.outcome();
        if why == Errno::ETIMEDOUT {
            self.started = Some(Instant::now());
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
        if self.running.take().is_some_and(|running| !running.end(Instant::now())) {
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
    fn request(&self, descriptors: &[BorrowedFd<'_>], deadline: Instant) -> Result<(), Errno> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let message = [ControlMessage::ScmRights(&numbers)];
        sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(b"!")], &message, MsgFlags::MSG_NOSIGNAL, None)?;
        match self.receive(deadline)? {
            0 => Err(Errno::EPIPE),
            _ => Ok(()),
        }
    }

    /// Waits for a message. Returns its length; 0 if the server has ended.
    fn receive(&self, deadline: Instant) -> Result<usize, Errno> {
        let receive = |time| match self.receive_within(time) {
            Err(Errno::ETIMEDOUT) => None,
            result => Some(result),
        };
        self.while_working(deadline, receive).unwrap_or(Err(Errno::ETIMEDOUT))
    }

    /// Calls `wait`, which gets the time that it may take, until it has a result. After each [`PATIENCE`] without one, it
    /// gives up if the server is not working, or if `deadline` has passed.
    fn while_working<T>(&self, deadline: Instant, mut wait: impl FnMut(Duration) -> Option<T>) -> Option<T> {
        loop {
            if let Some(result) = wait(PATIENCE) {
                return Some(result);
            }
            if Instant::now() >= deadline || !procfs::is_working(self.pid) {
                // It may have answered, or ended, a moment ago.
                return wait(Duration::ZERO);
            }
        }
    }

    /// Waits for a message for this time, which is zero or [`PATIENCE`].
    fn receive_within(&self, time: Duration) -> Result<usize, Errno> {
        let deadline = Instant::now() + time;
        let flags = if time.is_zero() { MsgFlags::MSG_DONTWAIT } else { MsgFlags::empty() };
        loop {
            match recv(self.socket.as_raw_fd(), &mut [0], flags) {
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
    fn end(&self, deadline: Instant) -> bool {
        let Ok(process) = PidFd::open(self.pid) else {
            self.kill();
            return self.is_closed(deadline);
        };
        // Until the server has arranged its descriptors, that number stands for what this process has there.
        let theirs = process.copy_descriptor(process::SOCKET);
        let theirs = theirs.ok().filter(|fd| fstat(fd).is_ok_and(|stat| stat.st_ino == self.its_end));
        self.kill();
        let wait_end = |time| match process.wait_end(Instant::now() + time) {
            Ok(false) => None,
            result => Some(result.unwrap_or(false)),
        };
        let ended = self.while_working(deadline, wait_end).unwrap_or(false);
        if let Some(theirs) = theirs {
            // Without room for them, the kernel closes the descriptors.
            while recv(theirs.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT).is_ok_and(|length| length > 0) {}
        }
        ended
    }

    /// Waits for the end of the socket. Skips an answer that has come late.
    fn is_closed(&self, deadline: Instant) -> bool {
        while let Ok(length) = self.receive(deadline) {
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
    use crate::wait::ExitUsage;

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
            let result = server.running.as_ref().unwrap().request(&[null.as_fd()], begun + LONGEST_PATIENCE);
            let waited = begun.elapsed();
            done.store(true, Ordering::Relaxed);
            assert_eq!(result, Err(Errno::ETIMEDOUT));
            assert!(waited < LONGEST_PATIENCE, "{waited:?}");
        });
    }

    /// Until the server has arranged its descriptors, the number of its socket refers to another descriptor.
    #[test]
    fn the_end_of_a_server_takes_back_requests_but_nothing_out_of_another_descriptor() {
        for is_its_end in [true, false] {
            let flags = SockFlag::SOCK_CLOEXEC;
            let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
            unistd::write(&ours, b"x").unwrap();
            let script = format!("exec {}<&0; exec sleep 60", process::SOCKET);
            let mut other =
                Command::new("sh").args(["-c", &script]).stdin(theirs.try_clone().unwrap()).spawn().unwrap();
            let pid = other.id() as Pid;
            let path = format!("/proc/{pid}/fd/{}", process::SOCKET);
            let inode = fstat(&theirs).unwrap().st_ino;
            let right = Some(format!("socket:[{inode}]").into());
            wait_until("it has the descriptor", || std::fs::read_link(&path).ok() == right);
            let its_end = if is_its_end { inode } else { fstat(&ours).unwrap().st_ino };
            assert!(Running { pid, socket: ours.try_clone().unwrap(), its_end }.end(Instant::now() + LONG));
            other.wait().unwrap();
            let left = recv(theirs.as_raw_fd(), &mut [0], MsgFlags::MSG_DONTWAIT);
            assert_eq!(left, if is_its_end { Err(Errno::EAGAIN) } else { Ok(1) });
        }
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
                let is_reaped = !exists(pid);
                assert!(!is_reaped || !is_fork_server(pid));
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
        // The server ends first, because `give_up` waits only for a limited time for its end.
        kill(unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        assert!(PidFd::open(pid).unwrap().wait_end(Instant::now() + LONG).unwrap());
        let begun = Instant::now();
        assert!(matches!(server.give_up(Errno::ETIMEDOUT, begun), Outcome::Unavailable));
        assert_eq!(server.interval, 2 * RESTART_INTERVAL);
        assert!(server.started >= Some(begun), "the interval begins when the server was given up");
        // The interval has not passed, however long this test has taken.
        server.started = Some(Instant::now() + LONG);
        server.start();
        assert!(server.running.is_none(), "it is too early for another one");
    }

    #[test]
    fn an_answer_that_comes_just_after_the_wait_counts() {
        let (server, pid) = started();
        kill(unistd::Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
        let answer = |time: Duration| time.is_zero().then_some("an answer");
        let running = server.running.as_ref().unwrap();
        // At first, the server may not have stopped yet.
        assert_eq!(running.while_working(Instant::now() + LONG, answer), Some("an answer"));
    }

    #[test]
    fn a_server_that_the_kernel_does_not_permit_is_not_started_again() {
        let (mut server, pid) = started();
        assert!(!server.reaped(Reaped {
            pid: pid + 1,
            exit: Exit::Code(process::UNSUPPORTED),
            usage: ExitUsage::default()
        }));
        wait_until("it has ended", || server.running.as_ref().is_some_and(|it| it.end(Instant::now() + LONG)));
        wait_until("it is reaped", || event_of_child(pid).is_some());
        assert!(server.reaped(Reaped { pid, exit: Exit::Code(process::UNSUPPORTED), usage: ExitUsage::default() }));
        server.started = None;
        server.start();
        assert!(server.running.is_none());
    }
}
