//! Reaping: every child of this process, orphans of the whole machine included, by the one thread that calls this.

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, waitid};

use crate::model::{Exit, Pid};

/// A child that has been reaped: its PID may be anybody's from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// What its PID was.
    pub pid: Pid,
    /// How it ended; the cause of a SIGKILL is not known here.
    pub exit: Exit,
}

/// Reaps one child that has ended, if there is one.
///
/// nix's `waitpid` has no word for a real-time signal: it reaps such a child and then gives an error without its PID.
pub fn reap() -> Option<Reaped> {
    let mut status = 0;
    loop {
        // SAFETY: the status is valid for writing. WNOHANG alone never tells of stops and continues.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            pid if pid > 0 => return Some(Reaped { pid, exit: exit_of(status) }),
            0 => return None,
            _ if Errno::last() == Errno::EINTR => {}
            // ECHILD: no children at all.
            _ => return None,
        }
    }
}

/// Whether anybody is left to be reaped, now or later.
pub fn has_children() -> bool {
    waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT) != Err(Errno::ECHILD)
}

fn exit_of(status: i32) -> Exit {
    if libc::WIFSIGNALED(status) { Exit::Signal(libc::WTERMSIG(status)) } else { Exit::Code(libc::WEXITSTATUS(status)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_code_or_any_signal() {
        assert_eq!(exit_of(3 << 8), Exit::Code(3));
        assert_eq!(exit_of(255 << 8), Exit::Code(255));
        assert_eq!(exit_of(9), Exit::Signal(9));
        assert_eq!(exit_of(11 | 0x80), Exit::Signal(11));
        assert_eq!(exit_of(40), Exit::Signal(40));
    }
}
