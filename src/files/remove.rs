//! Removes a file.

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::SFlag;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::path::split;
use super::walk::{examine_name, open_path, open_path_dir};
use super::{FileError, FilePath, is};

/// Removes the file at `path`, of any type except a directory. A symlink itself is removed, not its target.
///
/// # Errors
/// If it cannot be removed.
pub fn remove(path: &FilePath) -> Result<(), FileError> {
    let failed = |errno: nix::Error| FileError::of(path, &errno.into());
    let (dir, name) = split(path.as_os_str());
    let Some(name) = name else {
        // The path ends like that of a directory. If there is none, the kernel's error says so.
        open_path(AT_FDCWD, path.as_os_str()).map_err(failed)?;
        return Err(FileError::IsDirectory(path.shown()));
    };
    let dir = open_path_dir(AT_FDCWD, dir).map_err(failed)?;
    // Checked first, because if the user may not unlink, the kernel's error would be about the permission.
    if examine_name(&dir, name).is_ok_and(|stat| is(&stat, SFlag::S_IFDIR)) {
        return Err(FileError::IsDirectory(path.shown()));
    }
    unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir).map_err(failed)
}
