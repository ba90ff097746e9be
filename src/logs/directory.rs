//! The directory of all logs: it is made or checked, locked, and cleared of what an earlier daemon has left.
//!
//! It belongs to the daemon alone. A directory that another user has made, or could have prepared, is refused: what is in it
//! decides where output goes.

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

    /// Takes the lock again if its file was removed, so that another daemon finds it.
    ///
    /// # Errors
    /// `ResourceBusy` when another daemon has taken it meanwhile, else what the file system says.
    pub(super) fn keep_locked(&mut self, dir: &Path) -> io::Result<()> {
        let there = fs::symlink_metadata(dir.join(LOCK_FILE)).map(|meta| id(&meta));
        if !there.is_ok_and(|there| self.lock.metadata().is_ok_and(|held| id(&held) == there)) {
            self.lock = lock(dir)?;
        }
        Ok(())
    }
}

/// Makes `dir` (0700), or checks the one that is there, and takes its lock.
///
/// # Errors
/// `ResourceBusy` when another daemon has it, `PermissionDenied` when it is another user's, else what the file system
/// says; each with a sentence that names the directory.
pub(super) fn open(dir: &Path) -> io::Result<LogDirectory> {
    make(dir).and_then(|()| Ok(LogDirectory { lock: lock(dir)?, id: id(&fs::metadata(dir)?) })).map_err(|error| {
        let sentence = match error.kind() {
            ErrorKind::ResourceBusy => format!("log directory {} is in use by another daemon", dir.display()),
            _ => format!("log directory {}: {error}", dir.display()),
        };
        io::Error::new(error.kind(), sentence)
    })
}

/// Removes the segments of an earlier daemon. Files with other names stay.
///
/// # Errors
/// What the file system says.
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

/// Makes the directory, for its owner only. One that was there before must belong to the daemon's user, and be empty or have a
/// lock file: this must not close `/tmp` to other users, for example.
fn make(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        made => return made,
    }
    let link = fs::symlink_metadata(dir)?;
    // A symlink that root has made is as good as a directory.
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

/// Refuses a file of another user.
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
        // Follows no symlink, and does not wait for the reader of a FIFO.
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
