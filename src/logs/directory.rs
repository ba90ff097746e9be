//! The directory of all logs: creates or checks it, locks it, and removes the segments of an earlier daemon.
//!
//! It belongs to the daemon alone. A directory that another user has created or could have manipulated is rejected,
//! because its entries could redirect output to other files.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

const LOCK_FILE: &str = "lock";

/// The directory, checked and locked.
#[derive(Debug)]
pub(super) struct LogDirectory {
    /// The device and inode of the directory.
    id: (u64, u64),
    /// The lock file. The kernel releases the lock when the daemon ends, however it ends.
    lock: Flock<File>,
}

impl LogDirectory {
    /// Whether the directory is still at this path.
    pub(super) fn is_at(&self, dir: &Path) -> bool {
        fs::metadata(dir).is_ok_and(|meta| id(&meta) == self.id)
    }

    /// Creates and locks the lock file again if it was removed, so that another daemon finds it locked.
    ///
    /// # Errors
    /// `ResourceBusy` if another daemon has locked the directory meanwhile, or an error of the file system.
    pub(super) fn keep_locked(&mut self, dir: &Path) -> io::Result<()> {
        let there = fs::symlink_metadata(dir.join(LOCK_FILE)).map(|meta| id(&meta));
        if !there.is_ok_and(|there| self.lock.metadata().is_ok_and(|held| id(&held) == there)) {
            self.lock = lock(dir)?;
        }
        Ok(())
    }
}

/// Creates `dir` (mode 0700) or checks the existing one, and locks it.
///
/// # Errors
/// `ResourceBusy` if another daemon has locked it, `PermissionDenied` if it belongs to another user, or an error of the
/// file system; each with a sentence that names the directory.
pub(super) fn open(dir: &Path) -> io::Result<LogDirectory> {
    make(dir).and_then(|()| Ok(LogDirectory { lock: lock(dir)?, id: id(&fs::metadata(dir)?) })).map_err(|error| {
        let sentence = match error.kind() {
            ErrorKind::ResourceBusy => format!("log directory {} is in use by another daemon", dir.display()),
            _ => format!("log directory {}: {error}", dir.display()),
        };
        io::Error::new(error.kind(), sentence)
    })
}

/// Removes the segments of an earlier daemon. Files with other names are kept.
///
/// # Errors
/// An error of the file system.
pub(super) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_segment) && !entry.file_type()?.is_dir() {
            let failed =
                |error: io::Error| io::Error::new(error.kind(), format!("log directory {}: {error}", dir.display()));
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn id(meta: &Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// Creates the directory, accessible only to its owner. An existing directory must belong to the daemon's user, and be
/// empty or contain a lock file: changing the mode of `/tmp`, for example, would lock out other users.
fn make(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let link = fs::symlink_metadata(dir)?;
    // A symlink that belongs to root is trusted like a directory.
    if link.is_symlink() && link.uid() != 0 {
        ours(&link, "it is a symlink that")?;
    }
    let meta = fs::metadata(dir)?;
    if !meta.is_dir() {
        return Err(io::Error::new(ErrorKind::NotADirectory, "it is not a directory"));
    }
    ours(&meta, "it")?;
    match fs::symlink_metadata(dir.join(LOCK_FILE)) {
        Ok(lock) => check_lock(&lock)?,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let foreign = |name: &OsStr| name != "lost+found";
            if fs::read_dir(dir)?.flatten().any(|entry| foreign(&entry.file_name())) {
                let sentence = "it has other files in it; name one for logs only";
                return Err(io::Error::new(ErrorKind::DirectoryNotEmpty, sentence));
            }
        }
        Err(error) => return Err(error),
    }
    if meta.permissions().mode() & 0o7777 != 0o700 {
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Rejects a file of another user.
fn ours(meta: &Metadata, what: &str) -> io::Result<()> {
    let (owner, own) = (meta.uid(), geteuid().as_raw());
    if owner == own {
        return Ok(());
    }
    let sentence =
        format!("{what} belongs to the user {owner}, and the daemon runs as {own}; name another one, or remove it");
    Err(io::Error::new(ErrorKind::PermissionDenied, sentence))
}

fn check_lock(meta: &Metadata) -> io::Result<()> {
    if !meta.is_file() {
        let sentence = "`lock` in it is not a regular file; remove it if the directory is for logs only";
        return Err(io::Error::new(ErrorKind::InvalidInput, sentence));
    }
    ours(meta, "`lock` in it")
}

fn lock(dir: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        // Follows no symlink, and does not block on a FIFO without a reader.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(dir.join(LOCK_FILE))?;
    check_lock(&file.metadata()?)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => ErrorKind::ResourceBusy.into(),
        errno => errno.into(),
    })
}

fn is_segment(name: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    name.split_once('.').is_some_and(|(unit, number)| digits(unit) && digits(number))
}
