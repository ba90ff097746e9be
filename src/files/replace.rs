//! Replacing a file: a reader sees the old one or the new one, never half of one.
//!
//! The new content goes into a file without a name (`O_TMPFILE`) in the target's directory, which vanishes with its last
//! descriptor however the upload or the daemon ends. Only when it is complete and on the disk it gets a name, since
//! only a name can be renamed over another: a crash between the two calls would leave `.tl-init.<random>`. A file system
//! without `O_TMPFILE` has the name from the beginning; then a crash leaves it, a failure or a lost client does not.
//!
//! Where the directory takes no new file, or the target cannot be renamed over, but the user may write the target itself (a
//! mount point, a file of the user's in `/etc`, a switch in `/sys`), it is written in place, once everything is there.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::{Condvar, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, fallocate, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, linkat, unlinkat};

use super::walk::{Place, open, open_regular, sync, sync_dir};
use super::{FileError, FilePath, is, unsigned};
use crate::os::random;

/// As much is copied at once.
const BUFFER: usize = 64 << 10;

/// Where content waits whose directory takes no file.
const ELSEWHERE: [&str; 2] = ["/var/tmp", "/tmp"];

/// A file that is being replaced. Dropped, it leaves everything as it was.
#[derive(Debug)]
pub struct Upload<'p> {
    path: &'p FilePath,
    place: Place,
    file: File,
    /// The temporary name, while there is one.
    name: Option<OsString>,
    /// The directory takes no new file.
    in_place: bool,
}

impl<'p> Upload<'p> {
    /// Prepares to replace `path`, or to make it. `length` is what was announced.
    ///
    /// # Errors
    /// Why it cannot be written; also where it is certain that so much has no room.
    pub fn begin(path: &'p FilePath, length: Option<u64>) -> Result<Upload<'p>, FileError> {
        let failed = |errno: Errno| FileError::of(path, &errno.into());
        let place = Place::for_writing(path.as_os_str()).map_err(failed)?;
        if let Some(found) = &place.found {
            if is(found, SFlag::S_IFDIR) {
                return Err(FileError::IsDirectory(path.shown()));
            }
            if !is(found, SFlag::S_IFREG) {
                return Err(FileError::NotARegularFile(path.shown()));
            }
        }
        let (file, name, in_place) = match temporary(&place.dir, mode_for(&place)) {
            Ok((file, name)) => (file, name, false),
            Err(errno) if refuses(errno) && place.found.is_some() => {
                open_target(&place).map_err(failed)?;
                (spool().map_err(failed)?, None, true)
            }
            Err(errno) => return Err(failed(errno)),
        };
        let upload = Upload { path, place, file, name, in_place };
        if length.is_some_and(|length| length > upload.room()) {
            return Err(failed(Errno::ENOSPC));
        }
        Ok(upload)
    }

    /// Appends to the new content.
    ///
    /// # Errors
    /// [`FileError::NoSpace`], for the most part.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(|error| FileError::of(self.path, &error))
    }

    /// Puts the new content in the place of the old.
    ///
    /// # Errors
    /// Why that failed; the old content is still there.
    pub fn commit(mut self) -> Result<(), FileError> {
        let done = if self.in_place { self.write_in_place() } else { self.replace() };
        done.map_err(|error| FileError::of(self.path, &error))
    }

    /// The most that could have room where the content goes to. Knows nothing of quotas.
    fn room(&self) -> u64 {
        match fstatvfs(&self.file) {
            // What keeps no count says 0 of everything.
            Ok(stat) if stat.blocks() > 0 => stat.blocks_free().saturating_mul(stat.fragment_size()),
            _ => u64::MAX,
        }
    }

    fn replace(&mut self) -> io::Result<()> {
        if let Some(found) = &self.place.found {
            keep_attributes(&self.file, found)?;
        }
        sync(&self.file)?;
        let name = self.named()?;
        match renameat(&self.place.dir, &*name, &self.place.dir, &*self.place.name) {
            Ok(()) => {
                self.name = None;
                Ok(sync_dir(&self.place.dir)?)
            }
            // A mount point, or another's file in a directory like /tmp.
            Err(errno) if refuses(errno) && self.place.found.is_some() => {
                self.remove_name();
                self.write_in_place().map_err(|error| if is_refusal(&error) { errno.into() } else { error })
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// The name that the new file has, or gets now.
    fn named(&mut self) -> io::Result<OsString> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let name = temporary_name()?;
        let unnamed = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(AT_FDCWD, &*unnamed, &self.place.dir, &*name, AtFlags::AT_SYMLINK_FOLLOW)?;
        Ok(self.name.insert(name).clone())
    }

    fn remove_name(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(errno) = unlinkat(&self.place.dir, &*name, UnlinkatFlags::NoRemoveDir)
        {
            log::warn!("the temporary file {name:?} beside {:?} cannot be removed: {errno}", self.path.shown());
        }
    }

    /// Copies what is complete into the target. What it needs is reserved first, so that a full disk changes nothing.
    fn write_in_place(&self) -> io::Result<()> {
        let target = open_target(&self.place)?;
        let _turn = Turn::take(&target)?;
        let length = self.file.metadata()?.len();
        let before = unsigned(fstat(&target)?.st_size);
        if length > before {
            reserve(&target, length)?;
        }
        copy(&self.file, &target)?;
        if length < before {
            match target.set_len(length) {
                // A file of the kernel's has no length of its own.
                Err(error) if error.kind() != ErrorKind::InvalidInput => return Err(error),
                _ => {}
            }
        }
        Ok(sync(&target)?)
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        self.remove_name();
    }
}

/// The right to write a file in place, which one upload at a time has: two would leave something of each.
#[derive(Debug)]
struct Turn((u64, u64));

/// The files that are being written in place, by device and inode.
static IN_PLACE: Mutex<BTreeSet<(u64, u64)>> = Mutex::new(BTreeSet::new());
static TURN_OVER: Condvar = Condvar::new();

impl Turn {
    /// Waits for those who write the same file, and for nobody else.
    fn take(file: &File) -> io::Result<Turn> {
        let stat = fstat(file)?;
        let file = (stat.st_dev, stat.st_ino);
        let files = IN_PLACE.lock().unwrap_or_else(PoisonError::into_inner);
        let free = TURN_OVER.wait_while(files, |files| files.contains(&file));
        free.unwrap_or_else(PoisonError::into_inner).insert(file);
        Ok(Turn(file))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        IN_PLACE.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
        TURN_OVER.notify_all();
    }
}

/// Nobody else gets to read a file that is to have a mode of its own in the end.
fn mode_for(place: &Place) -> Mode {
    Mode::from_bits_truncate(if place.found.is_some() { 0o600 } else { 0o666 })
}

/// A new file in `dir`, with a name where it cannot be without.
fn temporary(dir: impl AsFd, mode: Mode) -> nix::Result<(File, Option<OsString>)> {
    match open(dir.as_fd(), OsStr::new("."), OFlag::O_TMPFILE | OFlag::O_RDWR, mode) {
        Ok(file) => return Ok((file.into(), None)),
        // EISDIR is what a kernel says that does not know the flag.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::EINVAL) => {}
        Err(errno) => return Err(errno),
    }
    named(dir, mode).map(|(file, name)| (file, Some(name)))
}

fn named(dir: impl AsFd, mode: Mode) -> nix::Result<(File, OsString)> {
    let name = temporary_name().map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_RDWR;
    Ok((open(dir, &name, flags, mode)?.into(), name))
}

fn temporary_name() -> io::Result<OsString> {
    Ok(format!(".tl-init.{}", random::hex::<16>()?).into())
}

/// A file without a name, anywhere.
fn spool() -> nix::Result<File> {
    let mut last = Errno::EACCES;
    for dir in ELSEWHERE {
        match open(AT_FDCWD, OsStr::new(dir), OFlag::O_TMPFILE | OFlag::O_RDWR, Mode::from_bits_truncate(0o600)) {
            Ok(file) => return Ok(file.into()),
            Err(errno) => last = errno,
        }
    }
    Err(last)
}

/// The existing file, for writing.
fn open_target(place: &Place) -> nix::Result<File> {
    match open_regular(&place.dir, &place.name, OFlag::O_WRONLY)? {
        Some((file, _)) => Ok(file),
        // It was one a moment ago.
        None => Err(Errno::ENXIO),
    }
}

/// Whether the kernel says that this is not possible here, rather than not at all.
fn refuses(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::EBUSY | Errno::EXDEV)
}

fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| refuses(Errno::from_raw(errno)))
}

/// Gives `file` the mode of what it replaces, and its owner and group as far as the user may.
fn keep_attributes(file: &File, found: &FileStat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    let own = fstat(file)?;
    let mut mode = found.st_mode & 0o7777;
    if (own.st_uid, own.st_gid) != (found.st_uid, found.st_gid) && fchown(file, Some(uid), Some(gid)).is_err() {
        // Set-user-id is a promise of the old owner.
        mode &= 0o777;
        let _ = fchown(file, None, Some(gid));
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

/// Sees that a file can be so long. Not every file system can tell beforehand.
fn reserve(file: &File, length: u64) -> io::Result<()> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        Err(errno @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => Err(errno.into()),
        _ => Ok(()),
    }
}

/// Copies all of `from` over the beginning of `to`.
fn copy(from: &File, mut to: &File) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut at = 0;
    loop {
        match from.read_at(&mut buffer, at) {
            Ok(0) => return Ok(()),
            Ok(read) => {
                to.write_all(buffer.get(..read).unwrap_or_default())?;
                at += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    /// As on a file system without `O_TMPFILE`.
    fn begin_named(path: &FilePath) -> Upload<'_> {
        let place = Place::for_writing(path.as_os_str()).unwrap();
        let (file, name) = named(&place.dir, mode_for(&place)).unwrap();
        Upload { path, place, file, name: Some(name), in_place: false }
    }

    #[test]
    fn with_a_name_from_the_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        let target = dir.path().join("file");
        let path = FilePath::parse(target.as_os_str().as_bytes(), "/").unwrap();
        let mut upload = begin_named(&path);
        upload.write(b"1").unwrap();
        assert!(names()[0].as_bytes().starts_with(b".tl-init."), "{:?}", names());
        drop(upload);
        assert!(names().is_empty());
        for content in [b"1", b"2"] {
            let mut upload = begin_named(&path);
            upload.write(content).unwrap();
            upload.commit().unwrap();
            assert_eq!((names(), fs::read(&target).unwrap()), (vec!["file".into()], content.to_vec()));
        }
        // Nobody else reads what is to be private.
        fs::set_permissions(&target, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(begin_named(&path).file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(), ["file"]);
    }

    #[test]
    fn of_many_uploads_in_place_one_is_left_whole() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let path = FilePath::parse(target.as_os_str().as_bytes(), "/").unwrap();
        for round in 0..20 {
            fs::write(&target, "old").unwrap();
            std::thread::scope(|scope| {
                for letter in b'a'..b'i' {
                    let path = &path;
                    scope.spawn(move || {
                        let place = Place::for_writing(path.as_os_str()).unwrap();
                        let mut upload = Upload { path, place, file: spool().unwrap(), name: None, in_place: true };
                        upload.write(&vec![letter; usize::from(letter) * 5000]).unwrap();
                        upload.commit().unwrap();
                    });
                }
            });
            let content = fs::read(&target).unwrap();
            let letter = content[0];
            assert!(content == vec![letter; usize::from(letter) * 5000], "round {round}: {} bytes", content.len());
        }
    }
}
