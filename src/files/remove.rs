//! Removing a file.

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::SFlag;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::path::split;
use super::walk::{hold, hold_dir, look};
use super::{FileError, FilePath, is};

/// Removes what has this name, of any kind but a directory; a symlink itself.
///
/// # Errors
/// Why it cannot be removed.
pub fn remove(path: &FilePath) -> Result<(), FileError> {
    let failed = |errno: nix::Error| FileError::of(path, &errno.into());
    let (dir, name) = split(path.as_os_str());
    let Some(name) = name else {
        // A directory by its form; the kernel says what is there instead.
        hold(AT_FDCWD, path.as_os_str()).map_err(failed)?;
        return Err(FileError::IsDirectory(path.shown()));
    };
    let dir = hold_dir(AT_FDCWD, dir).map_err(failed)?;
    // Where the user may not unlink, the kernel would say that instead.
    if look(&dir, name).is_ok_and(|stat| is(&stat, SFlag::S_IFDIR)) {
        return Err(FileError::IsDirectory(path.shown()));
    }
    unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir).map_err(failed)
}
