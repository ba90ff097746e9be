//! The directories of nested cgroups, and their files.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::kernel_file;

/// How many levels of cgroups that a tree has made below its leaf are walked and removed.
pub(super) const MAX_DEPTH: usize = 16;

/// Whether an error says that the cgroup no longer exists. ENODEV comes from a file that was open when it was removed.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// The names of the cgroups directly below `dir`.
pub(super) fn children(dir: &mut Dir) -> Vec<OsString> {
    let entries = dir.iter().flatten().filter(|entry| entry.file_type() == Some(Type::Directory));
    let names = entries.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
    names.filter(|name| name != "." && name != "..").collect()
}

/// Opens the directory `name` in `parent`.
pub(super) fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Dir> {
    Dir::openat(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens the file at `path` in `dir`.
pub(super) fn open_file(dir: BorrowedFd<'_>, path: &str, flags: OFlag) -> io::Result<File> {
    Ok(openat(dir, path, flags | OFlag::O_CLOEXEC, Mode::empty())?.into())
}

/// Reads the file at `path` in `dir`.
pub(super) fn read_file(dir: BorrowedFd<'_>, path: &str) -> io::Result<String> {
    kernel_file::rest_to_string(open_file(dir, path, OFlag::O_RDONLY)?)
}

/// Removes the cgroup `name` in `parent`, and first all cgroups below it, down to `depth` levels.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::EBUSY) if depth > 0 => {}
        Err(Errno::ENOENT) => return Ok(()),
        result => return Ok(result?),
    }
    let mut dir = open_dir(parent, name)?;
    for child in children(&mut dir) {
        remove_tree(dir.as_fd(), &child, depth - 1)?;
    }
    Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?)
}

/// Writes to a file of a cgroup. Does not create it: a cgroup refuses that with EPERM, which would hide that the file
/// does not exist.
pub(super) fn write_existing(file: &Path, value: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(value.as_bytes())
}
