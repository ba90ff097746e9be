//! Forks, into a cgroup where there is one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{self, pipe2};

use crate::Pid;
use crate::cgroup::{Leaf, Slice};
use crate::child::{self, Inherited};
use crate::launch::Launch;

/// Not in libc for every target.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// How often the probe's leaf is removed before it is left behind.
const REMOVALS: usize = 20;

/// Why there was no fork.
#[derive(Debug)]
pub enum Failure {
    /// The cgroup takes no process: it is gone, or was made unable to. Without it there could be a fork.
    Cgroup(io::Error),
    /// Anything else.
    Fork(io::Error),
}

impl Failure {
    /// What an error means when a leaf was made or a child was put into it.
    ///
    /// What is short would be short without a cgroup too, and a limit on the cgroup (`pids.max`: EAGAIN) must hold.
    /// Everything else is about the cgroup: it was removed (ENOENT, ENODEV), it is threaded or below a threaded one
    /// (EOPNOTSUPP), controllers are enabled in it for others (EBUSY), it is not ours to write (EACCES, EPERM, EROFS),
    /// or the kernel cannot do it (EINVAL, ENOSYS).
    pub fn of_cgroup(error: io::Error) -> Failure {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => Failure::Fork(error),
            _ => Failure::Cgroup(error),
        }
    }
}

/// Forks a child that becomes the program of `launch`, in the leaf: born there (`CLONE_INTO_CGROUP`), or joining it
/// before anything else where the kernel does not know that.
///
/// # Errors
/// Nothing was forked.
pub(super) fn fork(launch: &Launch, mut inherited: Inherited, leaf: Option<&Leaf>) -> Result<Pid, Failure> {
    let Some(leaf) = leaf else { return start(launch, &inherited, None).map_err(Failure::Fork) };
    if leaf.born_into() {
        let dir = leaf.open().map_err(Failure::of_cgroup)?;
        return start(launch, &inherited, Some(dir.as_fd())).map_err(Failure::of_cgroup);
    }
    let procs = leaf.procs().map_err(Failure::of_cgroup)?;
    inherited.cgroup = procs.as_raw_fd();
    start(launch, &inherited, None).map_err(Failure::Fork)
}

fn start(launch: &Launch, inherited: &Inherited, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Pid> {
    // SAFETY: the child calls only `child::run`, which is async-signal-safe and does not return.
    match unsafe { clone(cgroup) }? {
        0 => child::run(launch, inherited),
        pid => Ok(pid),
    }
}

/// A fork by `clone3(2)`, or by `clone(2)` where a seccomp filter hides that; 0 in the child. No handlers of glibc's run, in
/// neither process; this thread has all signals blocked, and so has the child.
///
/// # Safety
/// The child may call only what is async-signal-safe, and must not return from the caller.
unsafe fn clone(cgroup: Option<BorrowedFd<'_>>) -> io::Result<Pid> {
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(fd) = cgroup {
        args.flags = CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has a copy of everything; the caller answers for what it does with it.
    let mut result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    if result < 0 && cgroup.is_none() && Errno::last() == Errno::ENOSYS {
        // SAFETY: as above; no stack of its own, no flags but the exit signal.
        result = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    }
    Ok(Errno::result(result)? as Pid)
}

/// Puts a child into a leaf of `slice`, looks whether it is there, and kills it through the leaf: whether all of that works
/// cannot be told from which files there are. Settles whether children can be born in the leaves. Waits for its child, which
/// nobody else may do meanwhile; that takes less than a millisecond.
///
/// # Errors
/// When units cannot have a cgroup here. Being out of processes or descriptors says nothing about that.
pub fn probe(slice: &Slice) -> io::Result<()> {
    let leaf = slice.leaf("probe")?;
    let mut result = try_out(&leaf).map_err(Failure::of_cgroup);
    if matches!(result, Err(Failure::Cgroup(_))) {
        // A kernel before Linux 5.7, or a seccomp filter that hides clone3(2).
        leaf.not_born_into();
        result = try_out(&leaf).map_err(Failure::of_cgroup);
    }
    // The kernel may count the process for a moment after it was reaped.
    for _ in 0..REMOVALS {
        if leaf.remove().is_ok() {
            break;
        }
        sleep(Duration::from_millis(1));
    }
    match result {
        Ok(()) | Err(Failure::Fork(_)) => Ok(()),
        Err(Failure::Cgroup(error)) => Err(error),
    }
}

fn try_out(leaf: &Leaf) -> io::Result<()> {
    let child = Waiting::fork(leaf)?;
    if !leaf.members().contains(&child.pid) {
        return Err(io::Error::other("a process that was put into a new cgroup is not in it"));
    }
    leaf.kill()?;
    // Its end of the pipe closes when it has ended.
    let mut byte = [0];
    unistd::read(&child.ready, &mut byte)?;
    Ok(())
}

/// A child in a leaf that waits until it is killed, or until we have ended.
struct Waiting {
    pid: Pid,
    /// Has a byte once it is in the leaf.
    ready: OwnedFd,
    /// It ends when this is closed.
    _hold: OwnedFd,
}

impl Waiting {
    fn fork(leaf: &Leaf) -> io::Result<Waiting> {
        let born = leaf.born_into();
        let file: File = if born { leaf.open()? } else { leaf.procs()? };
        let (ready, tell) = pipe2(OFlag::O_CLOEXEC)?;
        let (held, hold) = pipe2(OFlag::O_CLOEXEC)?;
        // SAFETY: the child calls only `wait`, which is async-signal-safe and does not return.
        let pid = match unsafe { clone(born.then(|| file.as_fd())) }? {
            0 => wait(if born { -1 } else { file.as_raw_fd() }, tell.as_raw_fd(), held.as_raw_fd(), hold.as_raw_fd()),
            pid => pid,
        };
        let child = Waiting { pid, ready, _hold: hold };
        drop(tell);
        let mut byte = [0];
        match unistd::read(&child.ready, &mut byte)? {
            1 => Ok(child),
            _ => Err(io::Error::other("a process could not join a new cgroup")),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let pid = unistd::Pid::from_raw(self.pid);
        // It has not been reaped: the PID is its own.
        let _ = kill(pid, Signal::SIGKILL);
        while waitpid(pid, None) == Err(Errno::EINTR) {}
    }
}

/// The child's half. `procs`: `cgroup.procs` of the leaf to join, or -1.
fn wait(procs: RawFd, tell: RawFd, held: RawFd, hold: RawFd) -> ! {
    let mut byte = [0u8];
    // SAFETY: no memory involved. It must not hold its own pipe open.
    unsafe { libc::close(hold) };
    // SAFETY: the buffer is valid for its length. "0" is the writer itself (cgroups(7)).
    if procs < 0 || unsafe { libc::write(procs, b"0".as_ptr().cast(), 1) } == 1 {
        // SAFETY: the buffer is valid for its length.
        unsafe { libc::write(tell, byte.as_ptr().cast(), 1) };
        // SAFETY: the buffer is valid for its length. All signals are blocked: this ends when the pipe is closed.
        unsafe { libc::read(held, byte.as_mut_ptr().cast(), 1) };
    }
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_probe_tells_whether_processes_can_be_put_into_a_slice() {
        // Only root may make cgroups, and only where there is a hierarchy of version 2.
        let Ok(outer) = Slice::below(None) else { return };
        // Enabled controllers of a slice would keep its cgroups from being threaded.
        let parent = outer.dir();
        for (threaded, usable) in [(false, true), (true, false)] {
            if threaded {
                fs::create_dir(parent.join("t")).unwrap();
                fs::write(parent.join("t/cgroup.type"), "threaded").unwrap();
            }
            let slice = Slice::below(Some(parent)).unwrap();
            assert_eq!(probe(&slice).is_ok(), usable);
            let leaf = slice.leaf("1.1").unwrap();
            assert_eq!(leaf.born_into(), usable, "clone3(2) is here");
            leaf.not_born_into();
            assert_eq!(try_out(&leaf).is_ok(), usable, "by joining it");
        }
    }

    #[test]
    fn what_is_short_is_no_fault_of_the_cgroup() {
        let about_cgroup =
            |errno| matches!(Failure::of_cgroup(io::Error::from_raw_os_error(errno)), Failure::Cgroup(_));
        assert!([libc::EAGAIN, libc::ENOMEM, libc::EMFILE].into_iter().all(|errno| !about_cgroup(errno)));
        let gone = [libc::ENODEV, libc::ENOENT, libc::EOPNOTSUPP, libc::EBUSY, libc::EACCES, libc::EROFS, libc::ENOSYS];
        assert!(gone.into_iter().all(about_cgroup));
    }
}
