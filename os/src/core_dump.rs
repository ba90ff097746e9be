//! Keeps the memory of this process from other users (PR_SET_DUMPABLE).

use nix::sys::prctl::set_dumpable;
use nix::unistd::geteuid;

/// Makes this process "not dumpable", if it is root's: it leaves no core dump, and only a process with CAP_SYS_PTRACE in
/// its user namespace can trace it, read its memory or open what it has open. The kernel does the same at the first
/// change of a thread's user.
///
/// Children have the same state until they execute a program. For another user than root it would change the owner of the
/// process's own entries in /proc, some of which it writes to.
pub fn forbid() {
    if geteuid().is_root() {
        // It cannot fail with this value.
        let _ = set_dumpable(false);
    }
}
