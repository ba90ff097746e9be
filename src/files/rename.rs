//! Moves files and directories.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat, renameat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, linkat, unlinkat};
use rustix::fs::{Access, accessat};

use super::walk::{examine_name, has_openat2, open_path_dir};
use super::{FileError, FilePath, is};

/// Moves what is at `from` to `to` (rename(2)). A symlink itself is moved. If something is at `to`, it is replaced only
/// with `overwrite`: a file by a file, an empty directory by a directory.
///
/// # Errors
/// If that is not possible. The error names the path that is wrong, and whether it is `from` or `to`.
pub fn rename(from: &FilePath, to: &FilePath, overwrite: bool) -> Result<(), FileError> {
    let from = Place::find(from, "from", false)?;
    let to = Place::find(to, "to", true)?;
    let Some(moved) = &from.found else { return Err(from.error(FileError::NotFound)) };
    if from.path.ends_in_slash() && !is(moved, SFlag::S_IFDIR) {
        return Err(from.error(FileError::NotADirectory));
    }
    if to.found.as_ref().is_some_and(|found| is_same(found, moved)) {
        // For rename(2) this is a success that changes nothing, also if the two are hard links to one file.
        return Err(match overwrite {
            false => to.error(FileError::AlreadyExists),
            true => to.error(|path| FileError::Invalid(format!("must not be the same file as `from`: {path:?}"))),
        });
    }
    let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::RENAME_NOREPLACE };
    match renameat2(&from.dir, &*from.last, &to.dir, &*to.last, flags) {
        Ok(()) => Ok(()),
        // The file system, the kernel or a seccomp filter does not know the flag. EINVAL is also the error of a move
        // below itself, which then is that of the fallback.
        Err(Errno::EINVAL | Errno::ENOSYS) if !overwrite => {
            move_without_flag(&from, &to, moved).map_err(|errno| failure(errno, &from, &to, overwrite))
        }
        Err(errno) => Err(failure(errno, &from, &to, overwrite)),
    }
}

/// One of the two paths of a move.
struct Place<'p> {
    path: &'p FilePath,
    /// The field of the request.
    field: &'static str,
    /// The directory, opened with `O_PATH`.
    dir: OwnedFd,
    /// The name in the directory, with a `/` if the path ends in one.
    last: OsString,
    /// What has this name, if anything.
    found: Option<FileStat>,
}

impl<'p> Place<'p> {
    /// Finds the directory of a path, and what is in it. With `names_dir`, the error for a missing directory names the
    /// directory and not the path.
    fn find(path: &'p FilePath, field: &'static str, names_dir: bool) -> Result<Place<'p>, FileError> {
        let failed = |path: &FilePath, errno: Errno| FileError::of(path, &errno.into()).named(field);
        let must_have_name = || {
            let why = format!("must end in a name, and not in `/` or `.` alone: {:?}", path.shown());
            FileError::Invalid(why).named(field)
        };
        let (dir_path, name) = path.split_last().ok_or_else(must_have_name)?;
        let dir = open_path_dir(AT_FDCWD, dir_path.as_os_str())
            .map_err(|errno| failed(if names_dir { &dir_path } else { path }, errno))?;
        let found = match examine_name(&dir, name) {
            Ok(found) => Some(found),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(failed(path, errno)),
        };
        let mut last = name.to_owned();
        if path.ends_in_slash() {
            last.push("/");
        }
        Ok(Place { path, field, dir, last, found })
    }

    fn error(&self, make: impl FnOnce(String) -> FileError) -> FileError {
        make(self.path.shown()).named(self.field)
    }

    /// The name in the directory.
    fn name(&self) -> &OsStr {
        let bytes = self.last.as_bytes();
        OsStr::from_bytes(bytes.strip_suffix(b"/").unwrap_or(bytes))
    }

    /// Whether the user may add and remove names in the directory. True if that cannot be determined.
    fn is_writable(&self) -> bool {
        let wanted = Access::WRITE_OK | Access::EXEC_OK;
        !matches!(
            accessat(&self.dir, ".", wanted, rustix::fs::AtFlags::EACCESS),
            Err(rustix::io::Errno::ACCESS | rustix::io::Errno::ROFS | rustix::io::Errno::PERM)
        )
    }

    /// Whether the sticky bit of the directory keeps the user from removing what is there.
    fn is_protected(&self) -> bool {
        let user = geteuid().as_raw();
        let (Some(found), Ok(dir)) = (&self.found, fstat(&self.dir)) else { return false };
        dir.st_mode & libc::S_ISVTX != 0 && found.st_uid != user && dir.st_uid != user
    }

    fn is_mount_point(&self) -> bool {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_XDEV);
        has_openat2() && matches!(openat2(&self.dir, self.name(), how), Err(Errno::EXDEV))
    }
}

/// Whether both are the same file. True of two hard links too.
fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Moves without replacing, where the kernel cannot do so in one step. What is at `to` is replaced in no case.
///
/// A directory replaces an empty one that is created for that, since rename(2) replaces no other. A file gets the new
/// name as a hard link and then loses the old one. If another process gives the old name to another file in between, that
/// file keeps it.
fn move_without_flag(from: &Place<'_>, to: &Place<'_>, moved: &FileStat) -> nix::Result<()> {
    if is(moved, SFlag::S_IFDIR) {
        mkdirat(&to.dir, to.name(), Mode::S_IRWXU)?;
        let result = renameat(&from.dir, &*from.last, &to.dir, &*to.last);
        if result.is_err() {
            // It fails if something is in the directory by now.
            let _ = unlinkat(&to.dir, to.name(), UnlinkatFlags::RemoveDir);
        }
        return result;
    }
    if to.path.ends_in_slash() {
        return Err(Errno::ENOTDIR);
    }
    match linkat(&from.dir, from.name(), &to.dir, to.name(), AtFlags::empty()) {
        // The file system has no hard links, or this user may not make one.
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS) => return Err(Errno::EOPNOTSUPP),
        result => result?,
    }
    let (old, new) = (examine_name(&from.dir, from.name()), examine_name(&to.dir, to.name()));
    if !matches!((&old, &new), (Ok(old), Ok(new)) if is_same(old, new)) {
        return Ok(());
    }
    let removed = unlinkat(&from.dir, from.name(), UnlinkatFlags::NoRemoveDir);
    if removed.is_err() {
        let _ = unlinkat(&to.dir, to.name(), UnlinkatFlags::NoRemoveDir);
    }
    removed
}

/// The error of a move, about the path that is wrong.
fn failure(errno: Errno, from: &Place<'_>, to: &Place<'_>, overwrite: bool) -> FileError {
    let of = |place: &Place<'_>| FileError::of(place.path, &errno.into()).named(place.field);
    match errno {
        Errno::EEXIST if !overwrite => to.error(FileError::AlreadyExists),
        Errno::EEXIST | Errno::ENOTEMPTY => to.error(FileError::NotEmpty),
        Errno::EXDEV => FileError::CrossDevice { from: from.path.shown(), to: to.path.shown() },
        Errno::EINVAL => to
            .error(|path| FileError::Invalid(format!("must not be below `from`, the directory to be moved: {path:?}"))),
        Errno::EOPNOTSUPP => to.error(|path| FileError::Denied {
            path,
            why: "the file system cannot move a file without replacing what may be there: allow that with `overwrite`"
                .to_owned(),
        }),
        Errno::EBUSY if !from.is_mount_point() && to.is_mount_point() => to.error(FileError::MountPoint),
        Errno::EBUSY => from.error(FileError::MountPoint),
        // `to` is a file, or ends in a slash and the file that is moved is no directory. That of `from` has been checked.
        Errno::ENOTDIR | Errno::EISDIR | Errno::ENOSPC | Errno::EDQUOT | Errno::EMLINK | Errno::EILSEQ => of(to),
        // The kernel does not say which of the two it is.
        Errno::EACCES | Errno::EPERM if from.is_writable() && (!to.is_writable() || to.is_protected()) => of(to),
        Errno::ENAMETOOLONG if to.last.len() > from.last.len() => of(to),
        _ => of(from),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn path(path: impl AsRef<Path>) -> FilePath {
        FilePath::parse(path.as_ref().as_os_str().as_bytes(), "/").unwrap()
    }

    /// Directories `d`, `d/sub`, `empty` and `full` with a file; files `f` and `g`; a symlink to each of `d` and `f`.
    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["d/sub", "empty", "full"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        for name in ["f", "g", "full/x"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        symlink("d", dir.path().join("to-d")).unwrap();
        symlink("f", dir.path().join("to-f")).unwrap();
        dir
    }

    #[test]
    fn files_directories_and_symlinks_themselves_are_moved() {
        for (from, to, overwrite) in [
            ("f", "new", false),
            ("f", "new", true),
            ("f", "full/new", false),
            ("f", "to-d/new", false),
            ("f", "g", true),
            ("f", "to-d", true),
            ("f", "to-f", true),
            ("d", "new", false),
            ("d/", "new/", false),
            ("d/.", "new//", false),
            ("d", "empty", true),
            ("d", "full/new/", false),
            ("to-d", "new", false),
            ("to-f", "g", true),
            ("full/x", "f", true),
        ] {
            let dir = tree();
            let at = |name: &str| dir.path().join(name);
            let before = examine(&at(from));
            rename(&path(at(from)), &path(at(to)), overwrite).unwrap_or_else(|error| panic!("{from} {to}: {error}"));
            assert_eq!(examine(&at(to.trim_end_matches('/'))), before, "{from} {to}");
            assert!(fs::symlink_metadata(at(from.trim_end_matches(['/', '.']))).is_err(), "{from} {to}");
        }
    }

    fn examine(at: &Path) -> u64 {
        let at = at.to_str().unwrap().trim_end_matches(['/', '.']);
        std::os::unix::fs::MetadataExt::ino(&fs::symlink_metadata(at).unwrap())
    }

    #[test]
    fn a_refusal_names_the_field_and_the_path() {
        for (from, to, overwrite, expected) in [
            ("absent", "new", false, "`from`: there is no file or directory \"DIR/absent\""),
            ("absent/x", "new", false, "`from`: there is no file or directory \"DIR/absent/x\""),
            ("absent", "f", true, "`from`: there is no file or directory \"DIR/absent\""),
            ("f/x", "new", false, "`from`: \"DIR/f/x\" is not a directory"),
            ("f/", "new", false, "`from`: \"DIR/f/\" is not a directory"),
            ("to-d/", "new", false, "`from`: \"DIR/to-d/\" is not a directory"),
            ("f", "absent/deep/new", false, "`to`: there is no file or directory \"DIR/absent/deep\""),
            ("f", "g/new", false, "`to`: \"DIR/g\" is not a directory"),
            ("f", "new/", false, "`to`: \"DIR/new/\" is not a directory"),
            ("f", "g", false, "`to`: \"DIR/g\" exists already"),
            ("f", "d", false, "`to`: \"DIR/d\" exists already"),
            ("f", "to-d", false, "`to`: \"DIR/to-d\" exists already"),
            ("d", "empty", false, "`to`: \"DIR/empty\" exists already"),
            ("f", "d", true, "`to`: \"DIR/d\" names a directory, not a file"),
            ("f", "empty", true, "`to`: \"DIR/empty\" names a directory, not a file"),
            ("d", "f", true, "`to`: \"DIR/f\" is not a directory"),
            ("d", "to-d", true, "`to`: \"DIR/to-d\" is not a directory"),
            ("d", "full", true, "`to`: \"DIR/full\" is a directory that is not empty"),
            ("d/sub", "d", true, "`to`: \"DIR/d\" is a directory that is not empty"),
            ("d/sub", "d", false, "`to`: \"DIR/d\" exists already"),
            ("d", "d/new", false, "`to` must not be below `from`, the directory to be moved: \"DIR/d/new\""),
            ("d", "d/sub/new", true, "`to` must not be below `from`, the directory to be moved: \"DIR/d/sub/new\""),
            ("d", "to-d/new", true, "`to` must not be below `from`, the directory to be moved: \"DIR/to-d/new\""),
            ("f", "f", false, "`to`: \"DIR/f\" exists already"),
            ("f", "f", true, "`to` must not be the same file as `from`: \"DIR/f\""),
            ("d", "d/.", false, "`to`: \"DIR/d/.\" exists already"),
            ("d", "to-d/../d", true, "`to` must not contain"),
            ("d", "./d/", true, "`to` must not be the same file as `from`: \"DIR/./d/\""),
        ] {
            let dir = tree();
            let at = |name: &str| format!("{}/{name}", dir.path().display());
            let parse = |name: &str, field| {
                FilePath::parse(at(name).as_bytes(), "/").map_err(|error: FileError| error.named(field))
            };
            let result = parse(to, "to").and_then(|to| rename(&parse(from, "from")?, &to, overwrite));
            let sentence = result.expect_err(&format!("{from} {to}")).to_string();
            let expected = expected.replace("DIR", dir.path().to_str().unwrap());
            assert!(sentence.starts_with(&expected), "{from} {to}: {sentence}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 7, "{from} {to}");
        }
    }

    #[test]
    fn two_hard_links_to_one_file_are_refused_because_both_would_stay() {
        let dir = tree();
        let at = |name: &str| dir.path().join(name);
        fs::hard_link(at("f"), at("link")).unwrap();
        let error = rename(&path(at("f")), &path(at("link")), true).unwrap_err();
        assert!(error.to_string().starts_with("`to` must not be the same file as `from`"), "{error}");
        assert!(at("f").exists() && at("link").exists());
    }

    #[test]
    fn the_root_directory_is_neither_moved_nor_replaced() {
        for (from, to, field) in [("/", "/tmp/x", "from"), ("/tmp", "/", "to"), ("/.", "//", "from")] {
            let sentence = rename(&path(from), &path(to), true).unwrap_err().to_string();
            assert!(sentence.starts_with(&format!("`{field}` must end in a name")), "{sentence}");
        }
    }

    #[test]
    fn a_long_name_is_attributed_to_its_path() {
        let dir = tree();
        let at = |name: &str| path(dir.path().join(name));
        let long = "x".repeat(256);
        for (from, to, field) in [(&*long, "new", "from"), ("f", &long, "to")] {
            let sentence = rename(&at(from), &at(to), false).unwrap_err().to_string();
            assert!(sentence.starts_with(&format!("`{field}` is too long")), "{sentence}");
        }
    }

    /// As on a file system without RENAME_NOREPLACE.
    #[test]
    fn without_the_flag_nothing_is_replaced_either() {
        for (from, to, expected) in [
            ("f", "new", Ok(())),
            ("f", "g", Err(Errno::EEXIST)),
            ("f", "d", Err(Errno::EEXIST)),
            ("f", "new/", Err(Errno::ENOTDIR)),
            ("to-d", "new", Ok(())),
            ("d", "new", Ok(())),
            ("d/", "new/", Ok(())),
            ("d", "empty", Err(Errno::EEXIST)),
            ("d", "g", Err(Errno::EEXIST)),
            ("d", "d/sub/new", Err(Errno::EINVAL)),
        ] {
            let dir = tree();
            let at = |name: &str| path(dir.path().join(name));
            let (from_path, to_path) = (at(from), at(to));
            let places = (Place::find(&from_path, "from", false).unwrap(), Place::find(&to_path, "to", true).unwrap());
            let before = examine(&dir.path().join(from));
            let moved = move_without_flag(&places.0, &places.1, places.0.found.as_ref().unwrap());
            assert_eq!(moved, expected, "{from} {to}");
            let there = if expected.is_ok() { to } else { from };
            assert_eq!(examine(&dir.path().join(there)), before, "{from} {to}");
            let entries = fs::read_dir(dir.path()).unwrap().count();
            assert_eq!((entries, fs::read_dir(dir.path().join("full")).unwrap().count()), (7, 1), "{from} {to}");
            assert!(expected.is_ok() || !dir.path().join("d/sub/new").exists());
        }
    }
}
