//! Examines a file of any type.

use std::os::fd::AsFd;

use nix::fcntl::{AT_FDCWD, OFlag, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat};

use super::walk::open;
use super::{FileError, FilePath, modified_at, proc_guard, unsigned};

/// The type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A Unix-domain socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// What [`stat`] finds out about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// The type.
    pub kind: FileKind,
    /// Size in bytes; of a symlink, the length of its target; `None` for a directory.
    pub size: Option<u64>,
    /// Permissions, set-user-ID, set-group-ID and sticky bit.
    pub mode: u32,
    /// The id of the owner.
    pub uid: u32,
    /// The id of the group.
    pub gid: u32,
    /// Modification time in milliseconds since the epoch.
    pub modified_at: i64,
    /// The target of a symlink, with U+FFFD in place of bytes that are not UTF-8.
    pub target: Option<String>,
}

/// Examines the file at `path`. A symlink itself is examined, unless the path ends in `/`.
///
/// # Errors
/// If there is none, or the user may not examine it.
pub fn stat(path: &FilePath) -> Result<FileInfo, FileError> {
    examine(path).map_err(|errno| FileError::of(path, &errno.into()))
}

fn examine(path: &FilePath) -> nix::Result<FileInfo> {
    let file = open(AT_FDCWD, path.as_os_str(), OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty())?;
    proc_guard::check(&file, false)?;
    let stat = fstat(&file)?;
    let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => FileKind::Directory,
        SFlag::S_IFLNK => FileKind::Symlink,
        SFlag::S_IFIFO => FileKind::Fifo,
        SFlag::S_IFSOCK => FileKind::Socket,
        SFlag::S_IFCHR => FileKind::CharDevice,
        SFlag::S_IFBLK => FileKind::BlockDevice,
        _ => FileKind::File,
    };
    let target = match kind {
        // An empty path is the link that is open.
        FileKind::Symlink => Some(readlinkat(file.as_fd(), "")?.to_string_lossy().into_owned()),
        _ => None,
    };
    Ok(FileInfo {
        kind,
        size: (kind != FileKind::Directory).then(|| unsigned(stat.st_size)),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified_at: modified_at(&stat),
        target,
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::{self, Permissions};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_file_of_any_type_is_examined_itself() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
        let of = |name: &[u8]| stat(&FilePath::parse(at(name).as_os_str().as_bytes(), "/").unwrap());
        fs::write(at(b"file"), "12345").unwrap();
        fs::create_dir(at(b"dir")).unwrap();
        symlink("dir", at(b"link")).unwrap();
        symlink(OsStr::from_bytes(b"no\xffwhere"), at(b"\xff\n")).unwrap();
        nix::unistd::mkfifo(&at(b"fifo"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at(b"socket")).unwrap();
        for (name, kind, size, target) in [
            (&b"file"[..], FileKind::File, Some(5), None),
            (b"dir", FileKind::Directory, None, None),
            (b"dir/", FileKind::Directory, None, None),
            (b"link", FileKind::Symlink, Some(3), Some("dir")),
            (b"link/", FileKind::Directory, None, None),
            (b"\xff\n", FileKind::Symlink, Some(8), Some("no\u{fffd}where")),
            (b"fifo", FileKind::Fifo, Some(0), None),
            (b"socket", FileKind::Socket, Some(0), None),
        ] {
            let found = of(name).unwrap();
            assert_eq!((found.kind, found.size, found.target.as_deref()), (kind, size, target), "{name:?}");
        }
        let meta = fs::metadata(at(b"file")).unwrap();
        let found = of(b"file").unwrap();
        assert_eq!((found.uid, found.gid, found.mode), (meta.uid(), meta.gid(), meta.mode() & 0o7777));
        assert_eq!(found.modified_at, meta.mtime() * 1000 + meta.mtime_nsec() / 1_000_000);
        for mode in [0, 0o644, 0o7777, 0o4711, 0o2755, 0o1777] {
            fs::set_permissions(at(b"file"), Permissions::from_mode(mode)).unwrap();
            assert_eq!(of(b"file").unwrap().mode, mode, "{mode:o}");
        }
        assert!(matches!(of(b"absent"), Err(FileError::NotFound(_))));
        assert!(matches!(of(b"file/x"), Err(FileError::NotADirectory(_))));
        assert!(matches!(of(b"file/"), Err(FileError::NotADirectory(_))));
    }

    #[test]
    fn devices_and_entries_of_proc_are_examined_unless_they_are_the_own_ones() {
        let of = |path: &str| stat(&FilePath::parse(path.as_bytes(), "/").unwrap());
        assert_eq!(of("/dev/null").unwrap().kind, FileKind::CharDevice);
        assert_eq!(of("/proc/self/status").unwrap().kind, FileKind::File);
        assert_eq!(of("/proc/self").unwrap().target, Some(std::process::id().to_string()));
        for own in ["/proc/self/maps", "/proc/self/exe", "/proc/self/cwd", "/proc/thread-self/fd/0"] {
            assert!(matches!(of(own), Err(FileError::Denied { .. })), "{own}");
        }
        // A magic link is not followed.
        assert!(matches!(of("/proc/self/cwd/Cargo.toml"), Err(FileError::Invalid(_))));
    }
}
