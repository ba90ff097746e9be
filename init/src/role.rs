//! Where we are: it decides what is ours to do at the beginning and at the end.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// The inode of the initial PID namespace, fixed since Linux 3.8 (PROC_PID_INIT_INO, in the kernel's `nsfs.h`).
const INITIAL: u64 = 0xEFFF_FFFC;

/// Where this process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// PID 1 of a machine, which ends with us.
    Machine,
    /// PID 1 of a PID namespace.
    Container,
    /// A process among others.
    Process,
}

impl Role {
    /// Finds out. Without /proc a PID 1 takes itself for a machine's: there it must not end.
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
