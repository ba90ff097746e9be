//! Denies access to the daemon's own entries in `/proc`.
//!
//! The kernel lets any thread, whatever its rights, read and change the entries of its own process: the memory map, the
//! descriptors, the names of threads. This API does not permit that, except for reading what every user can read of any
//! process.
//!
//! The PID does not identify the daemon's entries, because a `/proc` shows the PIDs of the namespace in which it was
//! mounted, which can be another one. They are the entries below a directory whose `fd` contains the descriptor that is
//! being checked: every thread of this process can see that, and other users cannot.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, readlinkat};
use nix::sys::stat::{fstat, stat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::magic_link::magic_link;

/// Entries of a process that every user may read, and those that `/proc/mounts` and `/proc/net` lead to. The empty name
/// is the directory itself.
const PUBLIC: [&str; 9] = ["", "cgroup", "cmdline", "comm", "limits", "mountinfo", "mounts", "net", "status"];

/// Checks that an open file is not one of the daemon's own entries, or is one that every user may read.
///
/// # Errors
/// EACCES otherwise, as for another process of the user.
pub(super) fn check(fd: impl AsFd, for_writing: bool) -> nix::Result<()> {
    let fd = fd.as_fd();
    if fstatfs(fd)?.filesystem_type() != PROC_SUPER_MAGIC {
        return Ok(());
    }
    // The file is in a procfs, but the one at /proc does not show this process, so the file cannot be identified.
    let link = magic_link(fd).ok_or(Errno::EACCES)?;
    let path = readlinkat(AT_FDCWD, &*link)?;
    match below_process(path.as_bytes(), |dir| has_descriptor(dir, fd)) {
        Some(rest) if for_writing || !is_public(rest) => Err(Errno::EACCES),
        _ => Ok(()),
    }
}

/// Whether `dir` is the directory of a process or a thread that has this descriptor.
fn has_descriptor(dir: &[u8], fd: BorrowedFd<'_>) -> bool {
    let theirs = [dir, b"/fd/", fd.as_raw_fd().to_string().as_bytes()].concat();
    match (stat(OsStr::from_bytes(&theirs)), fstat(fd)) {
        (Ok(theirs), Ok(ours)) => (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino),
        _ => false,
    }
}

/// The part of `path` after the directory of this process; `None` if the path is not below it.
fn below_process(path: &[u8], is_ours: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
    let ends = memchr::memchr_iter(b'/', path).skip(1).chain([path.len()]);
    ends.map(|at| path.split_at(at)).find(|(dir, _)| is_ours(dir)).map(|(_, rest)| rest)
}

/// Whether an entry of a process, or of one of its threads, is one that every user may read.
fn is_public(rest: &[u8]) -> bool {
    let mut names = rest.split(|byte| *byte == b'/').skip(1);
    let first = match names.next() {
        Some(b"task") if names.next().is_some() => names.next(),
        first => first,
    };
    let first = first.unwrap_or_default();
    PUBLIC.iter().any(|name| name.as_bytes() == first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_entries_are_identified_and_some_are_public() {
        let ours = |dir: &[u8]| dir == b"/proc/1" || dir == b"/elsewhere/proc/1";
        let rest = |path: &'static str| below_process(path.as_bytes(), ours).map(String::from_utf8_lossy);
        for (path, expected) in [
            ("/proc/1/maps", Some("/maps")),
            ("/elsewhere/proc/1/task/7/comm", Some("/task/7/comm")),
            ("/proc/1", Some("")),
            ("/proc/12/maps", None),
            ("/proc/irq/1/spurious", None),
            ("/", None),
        ] {
            assert_eq!(rest(path).as_deref(), expected, "{path}");
        }
        for public in ["", "/status", "/net/tcp", "/task/7/status", "/task/7", "/mounts"] {
            assert!(is_public(public.as_bytes()), "{public}");
        }
        for own in ["/maps", "/mem", "/environ", "/fd", "/fd/3", "/task", "/task/7/mem", "/statusx", "/attr/current"] {
            assert!(!is_public(own.as_bytes()), "{own}");
        }
    }

    #[test]
    fn own_entries_are_denied_unless_public() {
        let open = |path: &str| std::fs::File::open(path).unwrap();
        for own in ["/proc/self/maps", "/proc/thread-self/stat", "/proc/self/fd"] {
            assert_eq!(check(open(own), false), Err(Errno::EACCES), "{own}");
        }
        for public in ["/proc/self/status", "/proc/mounts", "/proc/meminfo", "/proc", "/etc/passwd", "/proc/sys/kernel"]
        {
            assert_eq!(check(open(public), false), Ok(()), "{public}");
        }
        assert_eq!(check(open("/proc/thread-self/comm"), true), Err(Errno::EACCES));
        assert_eq!(check(open("/proc/sys/kernel/ostype"), true), Ok(()));
    }
}
