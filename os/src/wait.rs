//! Waiting for children: every child of this process, orphans of the whole machine included, by the one thread that
//! calls this.

use std::io;

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::Pid;

/// What one child has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildEvent {
    /// It has ended and has been reaped.
    Ended(Reaped),
    /// It has stopped for us as its tracer, and lives on.
    Stopped(TraceStop),
}

/// A child that has been reaped: its PID may be anybody's from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// What its PID was.
    pub pid: Pid,
    /// How it ended.
    pub exit: Exit,
}

/// How a child has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code, 0..=255.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
}

/// A stop that the kernel reports to this process because it is the tracer: the child, or an orphan that has become our
/// child, has called `PTRACE_TRACEME`, which makes its parent the tracer (ptrace(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceStop {
    /// The PID of the process, or the TID of the thread, that is stopped.
    pub pid: Pid,
    /// The signal that it has stopped before it takes.
    pub signal: i32,
}

/// Takes the next thing that a child has done, if there is one.
///
/// nix's `waitpid` has no word for a real-time signal: it reaps such a child and then gives an error without its PID.
pub fn next_event() -> Option<ChildEvent> {
    let mut status = 0;
    loop {
        // SAFETY: the status is valid for writing. Without WUNTRACED and WCONTINUED the stops of a traced child are told
        // all the same, and no others.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            pid if pid > 0 => return Some(event_of(pid, status)),
            0 => return None,
            _ if Errno::last() == Errno::EINTR => {}
            // ECHILD: no children at all.
            _ => return None,
        }
    }
}

fn event_of(pid: Pid, status: i32) -> ChildEvent {
    let exit = if libc::WIFSTOPPED(status) {
        // The bits above the signal's say which ptrace event it is; those come only to a tracer that has asked for them.
        return ChildEvent::Stopped(TraceStop { pid, signal: libc::WSTOPSIG(status) });
    } else if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    ChildEvent::Ended(Reaped { pid, exit })
}

impl TraceStop {
    /// Ends the tracing, and lets the process go on as it would without it: with the signal that it has stopped for.
    ///
    /// # Errors
    /// ESRCH where another thread of this process is the tracer, or the process has been killed meanwhile: only the
    /// thread that is its parent can let a tracee go. That is the thread that forked it, and for an orphan the thread
    /// whose TID is the PID of this process.
    pub fn let_go(self) -> io::Result<()> {
        let signal = if self.is_of_an_exec() { 0 } else { self.signal };
        let signal = signal as libc::c_long;
        // SAFETY: PTRACE_DETACH takes a PID and a signal number; no memory is involved.
        let result = unsafe { libc::ptrace(libc::PTRACE_DETACH, self.pid, std::ptr::null_mut::<u8>(), signal) };
        Errno::result(result)?;
        Ok(())
    }

    /// Whether it is the SIGTRAP that the kernel sends a tracee after an exec, which would kill who is not traced. One that
    /// a process has sent with kill(2) looks the same, and is lost.
    fn is_of_an_exec(self) -> bool {
        if self.signal != libc::SIGTRAP {
            return false;
        }
        // SAFETY: all zeroes is a valid value of this struct of integers and pointers.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let none = std::ptr::null_mut::<u8>();
        // SAFETY: PTRACE_GETSIGINFO writes one siginfo_t, and `info` is valid for that.
        let result = unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, self.pid, none, &raw mut info) };
        // A breakpoint or a single step has a code of the kernel's, above 0 (sigaction(2)).
        result == 0 && info.si_code == libc::SI_USER
    }
}

/// Whether anybody is left to be reaped, now or later.
pub fn has_children() -> bool {
    waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) != Err(Errno::ECHILD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_code_or_any_signal_or_a_stop() {
        let ended = |exit| ChildEvent::Ended(Reaped { pid: 7, exit });
        for (status, event) in [
            (3 << 8, ended(Exit::Code(3))),
            (255 << 8, ended(Exit::Code(255))),
            (9, ended(Exit::Signal(9))),
            (11 | 0x80, ended(Exit::Signal(11))),
            (40, ended(Exit::Signal(40))),
            (19 << 8 | 0x7f, ChildEvent::Stopped(TraceStop { pid: 7, signal: 19 })),
            (5 << 8 | 0x7f, ChildEvent::Stopped(TraceStop { pid: 7, signal: 5 })),
            (64 << 8 | 0x7f, ChildEvent::Stopped(TraceStop { pid: 7, signal: 64 })),
        ] {
            assert_eq!(event_of(7, status), event, "{status:#x}");
        }
    }
}
