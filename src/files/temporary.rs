//! Temporary files for content that is not complete yet.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::Mode;
use tl_os::random;

use super::magic_link::magic_link;
use super::walk::open;

/// Directories for the content if no file can be created in the target's directory.
const SPOOL_DIRS: [&str; 2] = ["/var/tmp", "/tmp"];

/// Creates a file in `dir`: without a name if that is possible, else with a temporary name, which is returned.
pub(super) fn new_file(dir: impl AsFd, mode: Mode) -> nix::Result<(File, Option<OsString>)> {
    match open(dir.as_fd(), OsStr::new("."), OFlag::O_TMPFILE | OFlag::O_RDWR, mode) {
        // Without /proc, the file could not get a name later.
        Ok(file) if magic_link(&file).is_none() => {}
        Ok(file) => return Ok((file.into(), None)),
        // A kernel that does not know the flag returns EISDIR.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    named(dir, mode).map(|(file, name)| (file, Some(name)))
}

/// Creates a file in `dir` with a temporary name.
pub(super) fn named(dir: impl AsFd, mode: Mode) -> nix::Result<(File, OsString)> {
    let name = temporary_name().map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_RDWR;
    Ok((open(dir, &name, flags, mode)?.into(), name))
}

/// A random name, which is unique and cannot be guessed.
pub(super) fn temporary_name() -> io::Result<OsString> {
    Ok(format!(".tl-init.{}", random::hex::<16>()?).into())
}

/// Creates a file without a name, outside of the target's directory.
pub(super) fn spool() -> nix::Result<File> {
    let mut last = Errno::EACCES;
    for dir in SPOOL_DIRS {
        match open(AT_FDCWD, OsStr::new(dir), OFlag::O_TMPFILE | OFlag::O_RDWR, Mode::from_bits_truncate(0o600)) {
            Ok(file) => return Ok(file.into()),
            Err(errno) => last = errno,
        }
    }
    Err(last)
}
