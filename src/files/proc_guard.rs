//! The daemon's own entries in `/proc`.
//!
//! Whoever a thread acts as, the kernel lets it read and change those of its own process: the memory map, descriptors,
//! the names of threads. They are nobody's through this API, but for what is there for all to read.
//!
//! Which entry is ours is not asked by PID: a `/proc` shows the PIDs of the namespace that it was mounted in, which need
//! not be ours. It is the one whose `fd` has the very descriptor that is asked about, as the kernel shows that to every
//! thread of its process, and to no other user.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, readlinkat};
use nix::sys::stat::{fstat, stat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::files::walk::magic_link;

/// What the kernel shows to everybody, and where `/proc/mounts` and `/proc/net` lead. The directory itself is the
/// empty name.
const PUBLIC: [&str; 9] = ["", "cgroup", "cmdline", "comm", "limits", "mountinfo", "mounts", "net", "status"];

/// Refuses what is the daemon's own.
///
/// # Errors
/// EACCES, as another process of the user would get.
pub(super) fn check(fd: impl AsFd, for_writing: bool) -> nix::Result<()> {
    let fd = fd.as_fd();
    if fstatfs(fd)?.filesystem_type() != PROC_SUPER_MAGIC {
        return Ok(());
    }
    // What cannot be told apart is refused: a procfs somewhere, and none at /proc that shows this process.
    let link = magic_link(fd).ok_or(Errno::EACCES)?;
    let path = readlinkat(AT_FDCWD, &*link)?;
    match below_process(path.as_bytes(), |dir| has_descriptor(dir, fd)) {
        Some(rest) if for_writing || !is_public(rest) => Err(Errno::EACCES),
        _ => Ok(()),
    }
}

/// Whether `dir` is the entry of a process, or of a thread, that has this descriptor.
fn has_descriptor(dir: &[u8], fd: BorrowedFd<'_>) -> bool {
    let theirs = [dir, b"/fd/", fd.as_raw_fd().to_string().as_bytes()].concat();
    match (stat(OsStr::from_bytes(&theirs)), fstat(fd)) {
        (Ok(theirs), Ok(ours)) => (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino),
        _ => false,
    }
}

/// What follows the entry of our process in `path`; none where it is in no such entry.
fn below_process(path: &[u8], is_ours: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
    let ends = memchr::memchr_iter(b'/', path).skip(1).chain([path.len()]);
    ends.map(|at| path.split_at(at)).find(|(dir, _)| is_ours(dir)).map(|(_, rest)| rest)
}

/// Whether it is public, of the process or of one of its threads.
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
    fn what_is_ours_and_what_of_that_is_for_all() {
        let ours = |dir: &[u8]| dir == b"/proc/1" || dir == b"/elsewhere/proc/1";
        let rest = |path: &'static str| below_process(path.as_bytes(), ours).map(String::from_utf8_lossy);
        for (path, right) in [
            ("/proc/1/maps", Some("/maps")),
            ("/elsewhere/proc/1/task/7/comm", Some("/task/7/comm")),
            ("/proc/1", Some("")),
            ("/proc/12/maps", None),
            ("/proc/irq/1/spurious", None),
            ("/", None),
        ] {
            assert_eq!(rest(path).as_deref(), right, "{path}");
        }
        for public in ["", "/status", "/net/tcp", "/task/7/status", "/task/7", "/mounts"] {
            assert!(is_public(public.as_bytes()), "{public}");
        }
        for own in ["/maps", "/mem", "/environ", "/fd", "/fd/3", "/task", "/task/7/mem", "/statusx", "/attr/current"] {
            assert!(!is_public(own.as_bytes()), "{own}");
        }
    }

    #[test]
    fn the_kernel_is_asked() {
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
