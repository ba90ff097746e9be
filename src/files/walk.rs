//! From a path to an open directory and a name in it, or to an open file.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat, stat};

use super::is;
use super::path::split;
use crate::files::proc_guard;

/// As many symlinks as the kernel follows on one way.
const MOST_LINKS: usize = 40;

/// A name in a directory, and what has it.
#[derive(Debug)]
pub(super) struct Place {
    /// Opened for its place only (`O_PATH`).
    pub(super) dir: OwnedFd,
    pub(super) name: OsString,
    /// Never a symlink.
    pub(super) found: Option<FileStat>,
}

/// `openat(2)`, close-on-exec, but never through a magic link of `/proc`.
pub(super) fn open(dir: impl AsFd, path: &OsStr, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let flags = flags | OFlag::O_CLOEXEC;
    if !has_openat2() {
        return fcntl::openat(dir.as_fd(), path, flags, mode);
    }
    let how = OpenHow::new().flags(flags).mode(mode).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    fcntl::openat2(dir.as_fd(), path, how)
}

/// Whether `openat2(2)` can be called: not before Linux 5.6, and not where a container's filter does not know it. Found
/// out once, with what every user may open: later such an answer is about the file.
fn has_openat2() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
        !matches!(fcntl::openat2(AT_FDCWD, "/", how), Err(Errno::ENOSYS | Errno::EPERM))
    })
}

/// Takes hold of what is there without opening it. Follows symlinks.
pub(super) fn hold(dir: impl AsFd, path: &OsStr) -> nix::Result<OwnedFd> {
    open(dir, path, OFlag::O_PATH, Mode::empty())
}

/// The same for a directory.
pub(super) fn hold_dir(dir: impl AsFd, path: &OsStr) -> nix::Result<OwnedFd> {
    open(dir, path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())
}

/// Opens the regular file at `path`, and no other one; none where it is something else.
pub(super) fn open_regular(dir: impl AsFd, path: &OsStr, flags: OFlag) -> nix::Result<Option<(File, FileStat)>> {
    let held = hold(&dir, path)?;
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
    // The one way to open what is held. The kernel asks for its permissions as ever.
    if let Some(again) = magic_link(&held) {
        let file = fcntl::open(&*again, flags, Mode::empty())?;
        return Ok(Some((File::from(file), stat)));
    }
    // Without /proc it is opened by its name once more. By then that may lead to something else, which must not hold us
    // up if it is a FIFO.
    let file = match open(&dir, path, flags | OFlag::O_NONBLOCK, Mode::empty()) {
        // Somebody has a lease on it: so it is a regular file.
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

/// The link in `/proc` that leads to an open file; none where there is no `/proc` that shows this process.
pub(super) fn magic_link(file: impl AsFd) -> Option<String> {
    let file = file.as_fd();
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let (there, here) = (stat(&*link).ok()?, fstat(file).ok()?);
    ((there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)).then_some(link)
}

/// What has this name, a symlink itself.
pub(super) fn look(dir: impl AsFd, name: &OsStr) -> nix::Result<FileStat> {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW | AtFlags::AT_NO_AUTOMOUNT)
}

impl Place {
    /// Where writing to `path` would end up: its directories are made, and a symlink is followed, also a dangling one.
    ///
    /// # Errors
    /// EISDIR where it names a directory by its form; what the kernel says on the way.
    pub(super) fn for_writing(path: &OsStr) -> nix::Result<Place> {
        let mut path = path.to_owned();
        let mut dir: Option<OwnedFd> = None;
        for _ in 0..MOST_LINKS {
            let (parent, name) = split(&path);
            let name = name.ok_or(Errno::EISDIR)?;
            let within = match &dir {
                Some(dir) => make_dirs(dir.as_fd(), parent)?,
                None => make_dirs(AT_FDCWD, parent)?,
            };
            let found = match look(&within, name) {
                Ok(stat) => Some(stat),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(errno),
            };
            if !found.as_ref().is_some_and(|stat| is(stat, SFlag::S_IFLNK)) {
                return Ok(Place { name: name.to_owned(), dir: within, found });
            }
            // Whether this user may follow this link is the kernel's decision (protected_symlinks in proc_sys_fs(5)).
            match hold(&within, name) {
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            path = readlinkat(&within, name)?;
            dir = Some(within);
        }
        Err(Errno::ELOOP)
    }
}

/// Takes hold of a directory that is made where it is missing, with those above it.
fn make_dirs(from: impl AsFd, path: &OsStr) -> nix::Result<OwnedFd> {
    match hold_dir(from.as_fd(), path) {
        Err(Errno::ENOENT) => {}
        result => return result,
    }
    let bytes = path.as_bytes();
    let begin = if bytes.starts_with(b"/") { "/" } else { "." };
    let mut dir = hold_dir(from.as_fd(), OsStr::new(begin))?;
    for component in bytes.split(|byte| *byte == b'/').filter(|component| !component.is_empty()) {
        let component = OsStr::from_bytes(component);
        dir = match hold_dir(&dir, component) {
            Err(Errno::ENOENT) => {
                match mkdirat(&dir, component, Mode::from_bits_truncate(0o777)) {
                    Ok(()) => sync_dir(&dir)?,
                    // Somebody was faster; or it is a symlink that leads nowhere, as opening it will say.
                    Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno),
                }
                hold_dir(&dir, component)?
            }
            result => result?,
        };
    }
    Ok(dir)
}

/// Puts the names in a directory on the disk, as far as the user and its file system let us.
pub(super) fn sync_dir(dir: impl AsFd) -> nix::Result<()> {
    match open(dir, OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()) {
        Ok(dir) => sync(dir),
        Err(Errno::EACCES) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// `fsync(2)`, where there is anything to put on a disk.
pub(super) fn sync(file: impl AsFd) -> nix::Result<()> {
    match nix::unistd::fsync(file) {
        Err(Errno::EINVAL | Errno::EROFS | Errno::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}
