//! Descriptors that refer to a process (pidfd_open(2)). A signal sent through one reaches that process or none; a PID
//! can belong to another process as soon as the first one was reaped.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use nix::errno::Errno;

use crate::Pid;
use crate::poll::{Events, wait};

/// A descriptor that refers to one process, even after that has ended.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens the process that has this PID now.
    ///
    /// # Errors
    /// ESRCH if there is none, ENOSYS before Linux 5.3.
    pub fn open(pid: Pid) -> io::Result<PidFd> {
        // SAFETY: it takes integers.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just opened this descriptor, and nothing else owns it. It is close-on-exec.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal to the process.
    ///
    /// # Errors
    /// What `pidfd_send_signal(2)` says: ESRCH if the process has ended.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: it takes integers and a null pointer, which asks for the siginfo of `kill(2)`.
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, none, 0) })?;
        Ok(())
    }

    /// A copy of the descriptor that has this number in the process.
    ///
    /// # Errors
    /// What `pidfd_getfd(2)` says: EBADF if it has none, EPERM without the permission to trace it, ENOSYS before Linux
    /// 5.6.
    pub(crate) fn copy_descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: it takes integers.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) })?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just opened this descriptor, and nothing else owns it. It is close-on-exec.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Waits until the process has ended, whether or not it was reaped. Returns false if `deadline` passes first.
    ///
    /// # Errors
    /// What `poll(2)` says.
    pub fn wait_end(&self, deadline: Instant) -> io::Result<bool> {
        let [events] = wait([(self.0.as_fd(), Events::READ)], Some(deadline))?;
        Ok(events != Events::NONE)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_signal_reaches_only_the_process_that_was_opened() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = PidFd::open(child.id() as Pid).unwrap();
        process.signal(0).unwrap();
        assert!(!process.wait_end(Instant::now()).unwrap());
        process.signal(libc::SIGKILL).unwrap();
        assert!(process.wait_end(Instant::now() + std::time::Duration::from_secs(60)).unwrap());
        child.wait().unwrap();
        assert_eq!(process.signal(0).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(PidFd::open(child.id() as Pid).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
