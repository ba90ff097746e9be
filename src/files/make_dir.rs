//! Creates directories.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::descent::{BATCH, Batch};
use super::target::create_dirs;
use super::walk::{open, open_path_dir};
use super::{FileError, FilePath};

/// Mode of a directory that is created without one, before the umask.
const DEFAULT_MODE: u32 = 0o777;

/// Mode of a directory until it gets the one that was asked for.
const PRIVATE_MODE: u32 = 0o700;

/// Creates the directory at `path`, with its parents if `parents` is true. Succeeds if there is a directory already, or
/// a symlink to one, and does not change it. `mode` is that of the last directory, whatever the umask is; the parents
/// get the default mode.
///
/// # Errors
/// If it cannot be created. [`FileError::AlreadyExists`] if something else is at the path.
pub fn make_dir(path: &FilePath, mode: Option<u32>, parents: bool) -> Result<(), FileError> {
    let failed = |errno: Errno| FileError::of(path, &errno.into());
    match open_path_dir(AT_FDCWD, path.as_os_str()) {
        Ok(_) => return Ok(()),
        Err(Errno::ENOENT | Errno::ENOTDIR) => {}
        Err(errno) => return Err(failed(errno)),
    }
    let (parent_path, name) = path.split_last().ok_or_else(|| FileError::AlreadyExists(path.shown()))?;
    let dir = parent_path.as_os_str();
    let parent = if parents { create_dirs(AT_FDCWD, dir) } else { open_path_dir(AT_FDCWD, dir) };
    let parent = parent.map_err(|errno| FileError::of(&parent_path, &errno.into()))?;
    let made = match mode {
        None => mkdirat(&parent, name, Mode::from_bits_truncate(DEFAULT_MODE)),
        Some(mode) => make_with_mode(parent.as_fd(), name, Mode::from_bits_truncate(mode)),
    };
    match made {
        // A concurrent request can have created it.
        Err(Errno::EEXIST) => match open_path_dir(&parent, name) {
            Ok(_) => Ok(()),
            Err(_) => Err(FileError::AlreadyExists(path.shown())),
        },
        result => result.map_err(failed),
    }
}

/// Creates a directory with exactly this mode. `mkdirat(2)` alone would apply the umask or a default ACL, and ignore the
/// set-user-ID and set-group-ID bits.
fn make_with_mode(parent: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> nix::Result<()> {
    mkdirat(parent, name, Mode::from_bits_truncate(PRIVATE_MODE))?;
    let set = open_own(parent, name).and_then(|dir| {
        fchmod(&dir, mode)?;
        // The kernel drops set-group-ID without an error if the user is not in the group.
        if fstat(&dir)?.st_mode & 0o7777 == mode.bits() { Ok(()) } else { Err(Errno::EPERM) }
    });
    if set.is_err() {
        // Only if it is empty.
        let _ = unlinkat(parent, name, UnlinkatFlags::RemoveDir);
    }
    set
}

/// Opens the directory that was just created. The owner of its parent can have put another one in its place, whose mode
/// must not change: the acting user can be root. One that is the user's own and empty could as well be the new one.
fn open_own(parent: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let dir = open(parent, name, flags, Mode::empty())?;
    let stat = fstat(&dir)?;
    let mut buffer = vec![MaybeUninit::uninit(); BATCH];
    let is_own = stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0;
    if is_own && !Batch::default().fill(dir.as_fd(), &mut buffer)? { Ok(dir) } else { Err(Errno::EPERM) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::{self, Permissions};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use nix::fcntl::AT_FDCWD;

    use super::*;

    fn make(path: &Path, mode: Option<u32>, parents: bool) -> Result<(), FileError> {
        make_dir(&FilePath::parse(path.as_os_str().as_bytes(), "/").unwrap(), mode, parents)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn directories_are_created_with_their_parents_and_may_exist() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for path in ["a/b/c", "a/b/c", "a/b/./d//", "a/b/e/.", "a", "."] {
            make(&at(path), None, true).unwrap();
            assert!(at(path).is_dir(), "{path}");
        }
        assert_eq!(mode(&at("a/b/c")), 0o777 & !umask());
        for path in [&b"\xff"[..], b"new\nline", b" "] {
            make(&dir.path().join(OsStr::from_bytes(path)), None, false).unwrap();
            assert!(dir.path().join(OsStr::from_bytes(path)).is_dir(), "{path:?}");
        }
        make(Path::new("/"), Some(0o700), true).unwrap();
        assert_ne!(mode(Path::new("/")), 0o700);
    }

    fn umask() -> u32 {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
        u32::from_str_radix(line.trim(), 8).unwrap()
    }

    #[test]
    fn the_mode_is_exact_and_only_that_of_the_last_directory() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        for bits in [0o777, 0o700, 0, 0o1777, 0o2775, 0o4711, 0o7777, 0o222] {
            let path = at(&format!("x/{bits:o}"));
            make(&path, Some(bits), true).unwrap();
            assert_eq!(mode(&path), bits, "{bits:o}");
            make(&path, Some(0o755), true).unwrap();
            assert_eq!(mode(&path), bits, "{bits:o}: it keeps its mode");
        }
        assert_eq!(mode(&at("x")), 0o777 & !umask());
        // Not that of the directory above, which the new directory would inherit.
        fs::set_permissions(at("x"), Permissions::from_mode(0o2777)).unwrap();
        make(&at("x/new"), Some(0o755), false).unwrap();
        assert_eq!(mode(&at("x/new")), 0o755);
    }

    #[test]
    fn what_exists_and_is_no_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        fs::write(at("file"), "").unwrap();
        fs::create_dir(at("dir")).unwrap();
        symlink("dir", at("to-dir")).unwrap();
        symlink("absent", at("dangling")).unwrap();
        symlink("loop", at("loop")).unwrap();
        for parents in [false, true] {
            make(&at("to-dir"), Some(0o700), parents).unwrap();
            make(&at("to-dir/."), None, parents).unwrap();
            for path in ["file", "dangling", "file/."] {
                let error = make(&at(path), None, parents).unwrap_err();
                assert!(matches!(error, FileError::AlreadyExists(_)), "{path}: {error}");
            }
            let error = make(&at("file/x"), None, parents).unwrap_err();
            assert!(matches!(&error, FileError::NotADirectory(path) if path.ends_with("/file")), "{error}");
            let error = make(&at("loop/x"), None, parents).unwrap_err();
            assert!(matches!(error, FileError::Invalid(_)), "{error}");
            let error = make(&at("dangling/x"), None, parents).unwrap_err();
            assert!(matches!(&error, FileError::NotFound(path) if path.ends_with("/dangling")), "{error}");
        }
        let error = make(&at("absent/x/y"), None, false).unwrap_err();
        assert!(matches!(&error, FileError::NotFound(path) if path.ends_with("/absent/x")), "{error}");
        assert!(matches!(make(&at(&"x".repeat(256)), None, true), Err(FileError::Invalid(_))));
        assert!(!at("absent").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    }

    #[test]
    fn the_mode_of_a_directory_that_was_swapped_in_is_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let parent = open_path_dir(AT_FDCWD, dir.path().as_os_str()).unwrap();
        // What another process can put there meanwhile.
        fs::create_dir_all(dir.path().join("full/x")).unwrap();
        fs::create_dir(dir.path().join("open")).unwrap();
        fs::set_permissions(dir.path().join("full"), Permissions::from_mode(0o700)).unwrap();
        symlink("full", dir.path().join("link")).unwrap();
        for name in ["full", "open", "link"] {
            assert!(open_own(parent.as_fd(), OsStr::new(name)).is_err(), "{name}");
        }
    }
}
