//! The role of this process, which decides what it does at boot and at power-off.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The inode of the initial PID namespace, fixed since Linux 3.8 (PROC_PID_INIT_INO, in the kernel's `nsfs.h`).
const INITIAL: u64 = 0xEFFF_FFFC;

/// What this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// PID 1 of a machine, which is powered off when this process ends.
    Machine,
    /// PID 1 of a PID namespace that is not the initial one.
    Container,
    /// A process with any other PID.
    Process,
}

impl Role {
    /// Determines the role. PID 1 without /proc counts as that of a machine, because there a wrong exit is a kernel
    /// panic.
    pub(crate) fn find() -> Role {
        if std::process::id() != 1 {
            return Role::Process;
        }
        match fs::metadata("/proc/self/ns/pid") {
            Ok(namespace) if namespace.ino() != INITIAL => Role::Container,
            _ => Role::Machine,
        }
    }
}
