//! Removes a file.

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::SFlag;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::path::split;
use super::walk::{hold, hold_dir, look};
use super::{FileError, FilePath, is};

/// Removes the file at `path`, of any type except a directory. A symlink is removed itself.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &FilePath) -> Result<(), FileError> {
    let failed = |errno: nix::Error| FileError::of(path, &errno.into());
    let (dir, name) = split(path.as_os_str());
    let Some(name) = name else {
        // The path has the form of a directory's. If no directory is there, the kernel's error says so.
        hold(AT_FDCWD, path.as_os_str()).map_err(failed)?;
        return Err(FileError::IsDirectory(path.shown()));
    };
    let dir = hold_dir(AT_FDCWD, dir).map_err(failed)?;
    // Checked first: if the user may not unlink, the kernel's error would be about that.
    if look(&dir, name).is_ok_and(|stat| is(&stat, SFlag::S_IFDIR)) {
        return Err(FileError::IsDirectory(path.shown()));
    }
    unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir).map_err(failed)
}
