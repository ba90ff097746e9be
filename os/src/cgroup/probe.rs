//! Checks by a fork whether processes can be put into a slice, which its files do not show.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{self, pipe2};

use super::leaf::Leaf;
use super::slice::Slice;
use crate::Pid;
use crate::spawn::SpawnError;
use crate::spawn::clone::fork;

/// How often, in steps of 1 ms, the removal of the probe's leaf is tried before the leaf is left behind.
const REMOVALS: usize = 20;

/// Forks a child into a leaf of `slice`, checks that it is there, kills it through the leaf, and waits for its end,
/// which takes less than a millisecond. Also finds out whether children can be created in the leaves of this slice.
///
/// No other thread of this process may wait for any child meanwhile.
///
/// # Errors
/// When units cannot have a cgroup here. A lack of processes or descriptors is not such an error.
pub fn probe(slice: &Slice) -> io::Result<()> {
    let leaf = slice.new_leaf()?;
    let mut result = try_out(&leaf).map_err(SpawnError::in_cgroup);
    if matches!(result, Err(SpawnError::Cgroup(_))) {
        // The kernel is older than Linux 5.7, or a seccomp filter hides clone3(2).
        leaf.set_cannot_clone_into();
        result = try_out(&leaf).map_err(SpawnError::in_cgroup);
    }
    // The kernel may count the process for a moment after it was reaped.
    for _ in 0..REMOVALS {
        if leaf.give_back().is_ok() {
            break;
        }
        sleep(Duration::from_millis(1));
    }
    match result {
        Ok(()) | Err(SpawnError::Other(_)) => Ok(()),
        Err(SpawnError::Cgroup(error)) => Err(error),
    }
}

fn try_out(leaf: &Leaf) -> io::Result<()> {
    let child = IdleChild::fork(leaf)?;
    if !leaf.members().contains(&child.pid) {
        return Err(io::Error::other("a process that was put into a new cgroup is not in it"));
    }
    leaf.kill()?;
    // The child's end of the pipe closes when it has ended.
    let mut byte = [0];
    unistd::read(&child.ready, &mut byte)?;
    Ok(())
}

/// A child in a leaf that waits until it is killed or until this process has ended. Killed and reaped on drop.
struct IdleChild {
    pid: Pid,
    /// The child writes one byte when it is in the leaf.
    ready: OwnedFd,
    /// The child ends when this is closed.
    _hold: OwnedFd,
}

impl IdleChild {
    fn fork(leaf: &Leaf) -> io::Result<IdleChild> {
        let clone_into = leaf.can_clone_into();
        let file: File = if clone_into { leaf.open()? } else { leaf.procs()? };
        let (ready, ready_write) = pipe2(OFlag::O_CLOEXEC)?;
        let (held, hold) = pipe2(OFlag::O_CLOEXEC)?;
        let (cgroup, procs) = if clone_into { (Some(file.as_fd()), None) } else { (None, Some(file.as_fd())) };
        let child = || {
            // SAFETY: this closure runs in a child that was just forked, and in no other process.
            unsafe { idle(procs, ready_write.as_fd(), held.as_fd(), hold.as_fd()) }
        };
        // SAFETY: `idle` is async-signal-safe, allocates nothing and cannot panic.
        let pid = unsafe { fork(cgroup, child) }?;
        let child = IdleChild { pid, ready, _hold: hold };
        drop(ready_write);
        let mut byte = [0];
        match unistd::read(&child.ready, &mut byte)? {
            1 => Ok(child),
            _ => Err(io::Error::other("a process could not join a new cgroup")),
        }
    }
}

impl Drop for IdleChild {
    fn drop(&mut self) {
        let pid = unistd::Pid::from_raw(self.pid);
        // The child has not been reaped, so the PID is still its own.
        let _ = kill(pid, Signal::SIGKILL);
        while waitpid(pid, None) == Err(Errno::EINTR) {}
    }
}

/// What the child does: joins the cgroup of `procs`, if that is given, writes a byte to `ready`, and waits until the
/// parent closes its `hold`.
///
/// # Safety
/// Only for a child that was just forked: it closes `hold` although another owns it, and ends the process.
unsafe fn idle(procs: Option<BorrowedFd<'_>>, ready: BorrowedFd<'_>, held: BorrowedFd<'_>, hold: BorrowedFd<'_>) -> ! {
    let mut byte = [0u8];
    // Otherwise the child would itself keep open the pipe whose end it waits for.
    // SAFETY: it takes an integer. Nothing in this process uses the descriptor again.
    unsafe { libc::close(hold.as_raw_fd()) };
    // "0" stands for the writing process (cgroups(7)).
    // SAFETY: the buffer is valid for reading for one byte.
    let join = |procs: BorrowedFd<'_>| unsafe { libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) } == 1;
    if procs.is_none_or(join) {
        // SAFETY: the buffer is valid for reading for one byte.
        unsafe { libc::write(ready.as_raw_fd(), byte.as_ptr().cast(), 1) };
        // All signals are blocked, so that this ends only when the pipe is closed.
        // SAFETY: the buffer is valid for writing for one byte.
        unsafe { libc::read(held.as_raw_fd(), byte.as_mut_ptr().cast(), 1) };
    }
    // SAFETY: it takes an integer, and ends the process without running exit handlers of the parent's.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_probe_tells_whether_processes_can_be_put_into_a_slice() {
        // Only root can make cgroups, and only where a hierarchy of version 2 is mounted.
        let Ok(outer) = Slice::below(None) else { return };
        // The outer slice has no controllers enabled: those would keep its cgroups from being made threaded.
        let parent = outer.dir();
        for (threaded, usable) in [(false, true), (true, false)] {
            if threaded {
                fs::create_dir(parent.join("t")).unwrap();
                fs::write(parent.join("t/cgroup.type"), "threaded").unwrap();
            }
            let slice = Slice::below(Some(parent)).unwrap();
            assert_eq!(probe(&slice).is_ok(), usable);
            let leaf = slice.new_leaf().unwrap();
            assert_eq!(leaf.can_clone_into(), usable, "this machine has clone3(2)");
            leaf.set_cannot_clone_into();
            assert_eq!(try_out(&leaf).is_ok(), usable, "a child that joins the leaf");
        }
    }
}
