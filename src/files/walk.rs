//! Opens and examines files and directories by path.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::magic_link::magic_link;
use super::{is, proc_guard};

/// Opens a file (openat(2)), close-on-exec, without following a magic link of `/proc`.
pub(super) fn open(dir: impl AsFd, path: &OsStr, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC;
    if !has_openat2() {
        return fcntl::openat(dir.as_fd(), path, flags, mode);
    }
    let how = OpenHow::new().flags(flags).mode(mode).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    fcntl::openat2(dir.as_fd(), path, how)
}

/// Whether `openat2(2)` can be called: it needs Linux 5.6, and a container's seccomp filter can deny it.
/// Determined once, on a file that every user may open, because on other files the same errors can be about the file.
fn has_openat2() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        !matches!(fcntl::openat2(AT_FDCWD, "/", how), Err(Errno::ENOSYS | Errno::EPERM))
    })
}

/// Opens a file of any type with `O_PATH`, which has no effect on it. Follows symlinks.
pub(super) fn open_path(dir: impl AsFd, path: &OsStr) -> nix::Result<OwnedFd> {
    open(dir, path, OFlag::O_PATH, Mode::empty())
}

/// Opens a directory with `O_PATH`. Follows symlinks.
pub(super) fn open_path_dir(dir: impl AsFd, path: &OsStr) -> nix::Result<OwnedFd> {
    open(dir, path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
}

/// Opens the regular file at `path`. Returns it with its `fstat`, or `None` if it is not a regular file.
///
/// # Errors
/// EISDIR for a directory; otherwise the kernel's error.
pub(super) fn open_regular(dir: impl AsFd, path: &OsStr, flags: OFlag) -> nix::Result<Option<(File, FileStat)>> {
    let held = open_path(&dir, path)?;
    let stat = fstat(&held)?;
    if is(&stat, SFlag::S_IFDIR) {
        return Err(Errno::EISDIR);
    }
    if !is(&stat, SFlag::S_IFREG) {
        return Ok(None);
    }
    let for_writing = flags.intersects(OFlag::O_WRONLY | OFlag::O_RDWR);
    proc_guard::check(&held, for_writing)?;
    let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    // Opening the magic link opens exactly the file that was examined. The kernel checks its permissions as for any
    // path.
    if let Some(again) = magic_link(&held) {
        let file = fcntl::open(&*again, flags, Mode::empty())?;
        return Ok(Some((File::from(file), stat)));
    }
    // Without /proc the file is opened by its name. By now the name can refer to another file, such as a FIFO, which
    // must not block.
    let file = match open(&dir, path, flags | OFlag::O_NONBLOCK, Mode::empty()) {
        // Another process holds a lease on it, which only a regular file can have.
        Err(Errno::EAGAIN) => open(&dir, path, flags, Mode::empty())?,
        opened => opened?,
    };
    let stat = fstat(&file)?;
    if !is(&stat, SFlag::S_IFREG) {
        return Ok(None);
    }
    proc_guard::check(&file, for_writing)?;
    Ok(Some((File::from(file), stat)))
}

/// The `fstat` of the file with this name in `dir`. Does not follow a symlink.
pub(super) fn examine_name(dir: impl AsFd, name: &OsStr) -> nix::Result<FileStat> {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT)
}

/// Flushes the entries of a directory to the disk, if the user may read the directory and the file system supports it.
pub(super) fn sync_dir(dir: impl AsFd) -> nix::Result<()> {
    match open(dir, OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()) {
        Ok(dir) => sync(dir),
        Err(Errno::EACCES) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Flushes a file to the disk (fsync(2)). Succeeds for a file that is not on a disk.
pub(super) fn sync(file: impl AsFd) -> nix::Result<()> {
    match nix::unistd::fsync(file) {
        Err(Errno::EINVAL | Errno::EROFS | Errno::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}
