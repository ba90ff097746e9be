//! Finds the file that an upload replaces or creates.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, mkdirat};

use super::is;
use super::path::split;
use super::walk::{examine_name, open_path, open_path_dir, sync_dir};

/// Maximum number of symlinks on a path, as in the kernel.
const MAX_LINKS: usize = 40;

/// The file that an upload replaces or creates.
#[derive(Debug)]
pub(super) struct Target {
    /// Its directory, opened with `O_PATH`.
    pub(super) dir: OwnedFd,
    /// Its name in the directory.
    pub(super) name: OsString,
    /// The file that has this name, if any. Never a symlink.
    pub(super) found: Option<FileStat>,
}

impl Target {
    /// Finds the file to which writing to `path` would write. Creates missing directories, and follows symlinks,
    /// including a dangling one.
    ///
    /// # Errors
    /// EISDIR if the path ends like that of a directory; the kernel's error about a component.
    pub(super) fn resolve(path: &OsStr) -> nix::Result<Target> {
        let mut path = path.to_owned();
        let mut dir: Option<OwnedFd> = None;
        for _ in 0..MAX_LINKS {
            let (parent, name) = split(&path);
            let name = name.ok_or(Errno::EISDIR)?;
            let within = match &dir {
                Some(dir) => create_dirs(dir.as_fd(), parent)?,
                None => create_dirs(AT_FDCWD, parent)?,
            };
            let found = match examine_name(&within, name) {
                Ok(stat) => Some(stat),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(errno),
            };
            if !found.as_ref().is_some_and(|stat| is(stat, SFlag::S_IFLNK)) {
                return Ok(Target { name: name.to_owned(), dir: within, found });
            }
            // The kernel decides whether this user may follow the link (protected_symlinks in proc_sys_fs(5)).
            match open_path(&within, name) {
                Ok(_) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            path = readlinkat(&within, name)?;
            dir = Some(within);
        }
        Err(Errno::ELOOP)
    }
}

/// Opens a directory with `O_PATH`. First creates it and its parents if they do not exist.
fn create_dirs(from: impl AsFd, path: &OsStr) -> nix::Result<OwnedFd> {
    match open_path_dir(from.as_fd(), path) {
        Err(Errno::ENOENT) => {}
        result => return result,
    }
    let bytes = path.as_bytes();
    let begin = if bytes.starts_with(b"/") { "/" } else { "." };
    let mut dir = open_path_dir(from.as_fd(), OsStr::new(begin))?;
    for component in bytes.split(|byte| *byte == b'/').filter(|component| !component.is_empty()) {
        let component = OsStr::from_bytes(component);
        dir = match open_path_dir(&dir, component) {
            Err(Errno::ENOENT) => {
                match mkdirat(&dir, component, Mode::from_bits_truncate(0o777)) {
                    Ok(()) => sync_dir(&dir)?,
                    // It was created meanwhile, or is a dangling symlink, on which the open below fails.
                    Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno),
                }
                open_path_dir(&dir, component)?
            }
            result => result?,
        };
    }
    Ok(dir)
}
