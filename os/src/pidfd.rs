//! Signals that reach one certain process or nobody: through a descriptor of the process instead of its PID, which
//! another process can get as soon as this one has been reaped (pidfd_open(2)).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::Pid;

/// A process that stays the same one, also when it has ended and its PID is another's.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// The process that has this PID now.
    ///
    /// # Errors
    /// ESRCH where there is none; ENOSYS before Linux 5.3.
    pub fn open(pid: Pid) -> io::Result<PidFd> {
        // SAFETY: no memory involved.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just opened it for us, close-on-exec.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// What `pidfd_send_signal(2)` says; ESRCH where the process has ended.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: without a siginfo no memory is involved.
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, none, 0) })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_signal_reaches_the_process_that_was_opened_and_no_other() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = PidFd::open(child.id() as Pid).unwrap();
        process.signal(0).unwrap();
        process.signal(libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert_eq!(process.signal(0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(PidFd::open(child.id() as Pid).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
