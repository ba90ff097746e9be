//! The fork itself: `clone3(2)`, which can put the child into a cgroup.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

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
    let cgroup = cgroup.map(|fd| fd.as_raw_fd());
    // SAFETY: the contract of `child` is the same. No flag asks for the pointer.
    unsafe { clone(0, ptr::null_mut(), cgroup, child) }.map_err(io::Error::from)
}

/// Like [`fork`], but the child is a child of this process's parent (CLONE_PARENT), and its PID is written to `pid`
/// before it runs. Async-signal-safe; all signals must be blocked.
///
/// # Safety
/// As for [`fork`]; `pid` must be valid for writing.
pub(super) unsafe fn fork_sibling(
    pid: *mut libc::c_int,
    cgroup: Option<RawFd>,
    child: impl FnOnce(),
) -> Result<Pid, Errno> {
    let flags = libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID;
    // SAFETY: the contracts of `child` and of `pid` are the same.
    unsafe { clone(flags, pid, cgroup, child) }
}

/// Forks with these flags of `clone(2)`.
///
/// # Safety
/// As for [`fork`]; with CLONE_PARENT_SETTID, `pid` must be valid for writing.
unsafe fn clone(
    flags: libc::c_int,
    pid: *mut libc::c_int,
    cgroup: Option<RawFd>,
    child: impl FnOnce(),
) -> Result<Pid, Errno> {
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64;
    args.parent_tid = pid as u64;
    // A sibling ends with the same signal to the parent as this process; clone3(2) takes none for it.
    args.exit_signal = if flags & libc::CLONE_PARENT == 0 { libc::SIGCHLD as u64 } else { 0 };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd as u64;
    }
    // SAFETY: `args` is valid for reading for the length that is passed. Without CLONE_VM and a stack of its own the
    // child has a copy of this stack, so returning from the call is sound in it; it then only runs `child`, which by
    // this function's contract does nothing that needs another thread.
    let mut result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    if result < 0 && cgroup.is_none() && Errno::last() == Errno::ENOSYS {
        let (flags, none) = (libc::c_long::from(flags | libc::SIGCHLD), ptr::null_mut::<libc::c_void>());
        // SAFETY: the null pointer for its stack gives the child a copy of this one; `pid` is valid by contract if a flag
        // asks for it. The child then only runs `child`, which by this function's contract does nothing that needs
        // another thread.
        result = unsafe { libc::syscall(libc::SYS_clone, flags, none, pid, none, none) };
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
