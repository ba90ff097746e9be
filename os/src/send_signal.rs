//! Sends signals to processes and process groups.
//!
//! A PID that was found in /proc or in a cgroup can belong to another process by the time a signal is sent to it. Such
//! a process is signalled through a pidfd, after a second check that it is the intended one ([`signal_if`]). A child
//! that was not reaped keeps its PID, and is signalled by that.
//!
//! No function here passes on a PID that `kill(2)` gives a special meaning, such as -1 for all processes: those are
//! refused with EINVAL. The one that signals all processes is [`signal_all_processes`].

use std::io;

use nix::errno::Errno;

use crate::Pid;
use crate::pidfd::PidFd;
use crate::procfs::{Process, is_alive};

/// Signals that ask a process to end: SIGTERM, and SIGCONT because a stopped process acts on SIGTERM only when
/// continued.
pub const TERMINATE: [i32; 2] = [libc::SIGTERM, libc::SIGCONT];

/// Signals for a process whose terminal is gone: SIGHUP, and SIGCONT because a stopped process acts on SIGHUP only when
/// continued.
pub const HANG_UP: [i32; 2] = [libc::SIGHUP, libc::SIGCONT];

/// Sends a signal, 1 to 64, to the process group of a leader that was not reaped.
///
/// # Errors
/// What `kill(2)` says; EINVAL for a leader of 1 or less.
pub fn signal_group(leader: Pid, signal: i32) -> io::Result<()> {
    // `kill(-1)` is all processes, `kill(0)` the group of the caller.
    if leader <= 1 {
        return Err(Errno::EINVAL.into());
    }
    match raw_kill(-leader, signal) {
        // The leader was just forked, and has not made its group yet.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => kill(leader, signal),
        result => result,
    }
}

/// Sends signals to a leader that was not reaped, and to no other process.
///
/// # Errors
/// What `kill(2)` says of the first that fails; EINVAL for a leader of 0 or less.
pub fn signal_leader(leader: Pid, signals: &[i32]) -> io::Result<()> {
    signals.iter().try_for_each(|signal| kill(leader, *signal))
}

/// Sends [`TERMINATE`] to the process group of a leader that was not reaped.
///
/// # Errors
/// What `kill(2)` says of the SIGTERM; EINVAL for a leader of 1 or less.
pub fn terminate_group(leader: Pid) -> io::Result<()> {
    let terminated = signal_group(leader, libc::SIGTERM);
    // Failure only means that the group has ended meanwhile.
    let _ = signal_group(leader, libc::SIGCONT);
    terminated
}

/// Sends a signal to all processes of this PID namespace except this one (kill(2)). Does nothing unless this process is
/// PID 1: from any other it would reach processes that are not its own.
pub fn signal_all_processes(signal: i32) {
    if std::process::id() == 1
        && let Err(error) = raw_kill(-1, signal)
        && error.raw_os_error() != Some(libc::ESRCH)
    {
        log::warn!("cannot send signal {signal} to all processes: {error}");
    }
}

/// Opens a pidfd, calls `is_it` to confirm that it refers to the intended process, then sends the signals. Returns
/// whether the intended process got them.
pub fn signal_if(pid: Pid, signals: &[i32], is_it: impl FnOnce() -> bool) -> bool {
    match PidFd::open(pid) {
        // The descriptor refers to one process from here on: if that passes the check, it is the intended one.
        Ok(process) => is_it() && signals.iter().all(|signal| process.signal(*signal).is_ok()),
        // The kernel is older than 5.3, or no descriptor is left: signal by PID, directly after the check.
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            is_it() && signals.iter().all(|signal| kill(pid, *signal).is_ok())
        }
        Err(_) => false,
    }
}

/// Sends signals to each of these processes that still exists.
pub fn signal_all<'a>(processes: impl IntoIterator<Item = &'a Process>, signals: &[i32]) {
    for process in processes {
        signal_if(process.pid, signals, || is_alive(process.identity()));
    }
}

/// `kill(2)` for one process.
fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    if pid <= 0 {
        return Err(Errno::EINVAL.into());
    }
    raw_kill(pid, signal)
}

/// `kill(2)`, with its special PIDs.
fn raw_kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: it takes two integers.
    Errno::result(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_with_a_special_meaning_are_refused() {
        let refused = |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::EINVAL);
        for pid in [1, 0, -1, Pid::MIN] {
            assert!(refused(signal_group(pid, 0)) && refused(terminate_group(pid)), "{pid}");
        }
        for pid in [0, -1, Pid::MIN] {
            assert!(refused(signal_leader(pid, &[0])) && !signal_if(pid, &[0], || true), "{pid}");
        }
        signal_leader(std::process::id() as Pid, &[0]).unwrap();
    }
}
