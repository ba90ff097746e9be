//! Waits for the children of this process, including the orphans that it has adopted.
//!
//! Only one thread of a process may do this. These functions take the exit status of every child: other code that waits
//! for a child, `std::process::Child` included, does not get it.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::ptrace::getsiginfo;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid as Process;

use crate::Pid;
use crate::usage::Usage;

/// A change in one child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChildEvent {
    /// The child has ended and was reaped.
    Ended(Reaped),
    /// The child has stopped for this process as its tracer. It still runs.
    Stopped(TraceStop),
}

/// A child that was reaped. From now on another process can get its PID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// The PID that the child had.
    pub pid: Pid,
    /// How the child ended.
    pub exit: Exit,
    /// What it has used.
    pub usage: ExitUsage,
}

/// What a child has used until its end (getrusage(2)), those of its children that it has waited for included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitUsage {
    /// CPU time in user mode, in microseconds.
    pub cpu_user: u64,
    /// CPU time in the kernel, in microseconds.
    pub cpu_system: u64,
    /// The most memory that it, or one of these children, had at the same time, in bytes. It is at least that of the
    /// process which has forked it.
    pub memory_peak: u64,
    /// Bytes read from storage devices.
    pub read_bytes: u64,
    /// Bytes written to storage devices.
    pub written_bytes: u64,
}

impl From<ExitUsage> for Usage {
    /// A process that has ended has neither memory nor tasks.
    fn from(usage: ExitUsage) -> Usage {
        Usage {
            cpu_user: Some(Duration::from_micros(usage.cpu_user)),
            cpu_system: Some(Duration::from_micros(usage.cpu_system)),
            memory: Some(0),
            memory_peak: Some(usage.memory_peak),
            tasks: Some(0),
            read_bytes: Some(usage.read_bytes),
            written_bytes: Some(usage.written_bytes),
            oom_kills: None,
        }
    }
}

impl ExitUsage {
    fn of(usage: &libc::rusage) -> ExitUsage {
        let number = |number: libc::c_long| u64::try_from(number).unwrap_or(0);
        let micros =
            |time: libc::timeval| number(time.tv_sec).saturating_mul(1_000_000).saturating_add(number(time.tv_usec));
        ExitUsage {
            cpu_user: micros(usage.ru_utime),
            cpu_system: micros(usage.ru_stime),
            memory_peak: number(usage.ru_maxrss).saturating_mul(1024),
            // The kernel counts in blocks of 512 bytes.
            read_bytes: number(usage.ru_inblock).saturating_mul(512),
            written_bytes: number(usage.ru_oublock).saturating_mul(512),
        }
    }
}

/// How a child has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code, 0 to 255.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
}

/// A stop of a child that has called `PTRACE_TRACEME`, which makes its parent, this process, its tracer (ptrace(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceStop {
    /// The PID of the process, or the TID of the thread, that has stopped.
    pub pid: Pid,
    /// The signal that it has stopped at, before it is delivered.
    pub signal: i32,
}

/// Takes the next change in any child, reaping the child if it has ended; `None` if there is none at the moment. Does
/// not block. The kernel looks at one child after the other: with thousands of them that takes 100 µs and more.
pub fn next_event() -> Option<ChildEvent> {
    take_event(-1)
}

/// Takes the next change in the child with this PID, as [`next_event`] does, however many other children there are.
/// `None` also if it is not a child of this process.
pub fn event_of_child(pid: Pid) -> Option<ChildEvent> {
    if pid > 0 { take_event(pid) } else { None }
}

/// nix has no `wait4`, and its `waitpid` cannot be used here: it reaps a child that a real-time signal has killed, and
/// then returns an error without the PID.
fn take_event(which: Pid) -> Option<ChildEvent> {
    let mut status = 0;
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // Without WUNTRACED and WCONTINUED, only stops of traced children are reported.
        // SAFETY: `status` and `usage` are valid for writing, which is all that this call does with them.
        match unsafe { libc::wait4(which, &raw mut status, libc::WNOHANG, &raw mut usage) } {
            pid if pid > 0 => return Some(event_of(pid, status, ExitUsage::of(&usage))),
            0 => return None,
            _ if Errno::last() == Errno::EINTR => {}
            // ECHILD: no children at all, or not a child.
            _ => return None,
        }
    }
}

fn event_of(pid: Pid, status: i32, usage: ExitUsage) -> ChildEvent {
    let exit = if libc::WIFSTOPPED(status) {
        // Higher bits would name a ptrace event; only a tracer that has asked for those gets any.
        return ChildEvent::Stopped(TraceStop { pid, signal: libc::WSTOPSIG(status) });
    } else if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status))
    };
    ChildEvent::Ended(Reaped { pid, exit, usage })
}

impl TraceStop {
    /// Ends the tracing, so that the process continues as it would without a tracer: with the signal that it has
    /// stopped at.
    ///
    /// # Errors
    /// ESRCH if the calling thread is not the tracer, or if the process was killed meanwhile. The tracer is the thread
    /// that is the parent: the one that forked the process or, for an orphan, the main thread.
    pub fn detach(self) -> io::Result<()> {
        let signal = if self.is_exec_trap() { 0 } else { self.signal };
        let signal = signal as libc::c_long;
        // SAFETY: PTRACE_DETACH takes a PID and a signal number, and ignores the address.
        let result = unsafe { libc::ptrace(libc::PTRACE_DETACH, self.pid, std::ptr::null_mut::<u8>(), signal) };
        Errno::result(result)?;
        Ok(())
    }

    /// Whether the signal is the SIGTRAP that the kernel sends to a tracee after an exec. Delivered to a process
    /// without a tracer, it would kill it. A SIGTRAP that was sent with `kill(2)` cannot be told from it, and is lost.
    fn is_exec_trap(self) -> bool {
        if self.signal != libc::SIGTRAP {
            return false;
        }
        // For a breakpoint or a single step the code is one of the kernel's, above 0 (sigaction(2)).
        getsiginfo(Process::from_raw(self.pid)).is_ok_and(|info| info.si_code == libc::SI_USER)
    }
}

/// Whether this process has any child, running or ended.
pub fn has_children() -> bool {
    waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) != Err(Errno::ECHILD)
}

/// Makes this process the parent of the orphans among its descendants (PR_SET_CHILD_SUBREAPER), as PID 1 is anyway.
///
/// # Errors
/// What `prctl(2)` says.
pub fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_status_is_a_code_or_any_signal_or_a_stop() {
        let usage = ExitUsage { memory_peak: 4096, ..ExitUsage::default() };
        let ended = |exit| ChildEvent::Ended(Reaped { pid: 7, exit, usage });
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
            assert_eq!(event_of(7, status, usage), event, "{status:#x}");
        }
    }
}
