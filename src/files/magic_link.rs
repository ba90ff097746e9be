//! "Magic links": the links in `/proc` that lead to open files without a path (proc_pid_fd(5)).

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::stat::{fstat, stat};

/// The magic link of an open file; `None` if no `/proc` that shows this process is mounted.
pub(super) fn magic_link(file: impl AsFd) -> Option<String> {
    let file = file.as_fd();
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let (there, here) = (stat(&*link).ok()?, fstat(file).ok()?);
    ((there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)).then_some(link)
}
