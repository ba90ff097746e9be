//! The fork itself: `clone3(2)`, which can put the child into a cgroup.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;

use crate::Pid;
use crate::sigmask::BlockedSignals;

/// `linux/sched.h`; the libc crate has it for some targets only.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Forks a process, in `cgroup` if that is given, that runs `child` and then ends. Returns its PID. Without a cgroup,
/// `clone(2)` is used where a seccomp filter hides `clone3(2)`.
///
/// The child starts with all signals blocked, so that no handler of this process runs in it. Handlers of
/// `pthread_atfork(3)` do not run in either process.
///
/// # Safety
/// The child is a copy of a process with several threads, of which only the calling one exists in the copy: any lock
/// may be held for ever. So `child` may call only async-signal-safe functions (signal-safety(7)); it must not allocate
/// and must not panic.
///
/// # Errors
/// What `clone3(2)` says; ENOSYS from a kernel before Linux 5.3, or before 5.7 with a cgroup.
pub(crate) unsafe fn fork(cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce()) -> io::Result<Pid> {
    let _blocked = BlockedSignals::all()?;
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(fd) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: `args` is valid for reading for the length that is passed. Without CLONE_VM and a stack of its own the
    // child has a copy of this stack, so returning from the call is sound in it; it then only runs `child`, which by
    // this function's contract does nothing that needs another thread.
    let mut result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    if result < 0 && cgroup.is_none() && Errno::last() == Errno::ENOSYS {
        // SAFETY: all arguments are integers: no flags but the exit signal and no stack, so the child has a copy of
        // this one. It then only runs `child`, which by this function's contract does nothing that needs another
        // thread.
        result = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    }
    match Errno::result(result)? {
        0 => {
            child();
            // SAFETY: it takes an integer, and ends the process without running exit handlers of the parent's.
            unsafe { libc::_exit(127) }
        }
        pid => Ok(pid as Pid),
    }
}
