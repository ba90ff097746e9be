//! Replacing a file: a reader sees the old one or the new one, never half of one.
//!
//! The new content goes into a file without a name (`O_TMPFILE`) in the target's directory, which vanishes with its last
//! descriptor however the upload or the daemon ends. Only when it is complete and on the disk it gets a name, since
//! only a name can be renamed over another: a crash between the two calls would leave `.tl-init.<random>`. A file system
//! without `O_TMPFILE` has the name from the beginning; then a crash leaves it, a failure or a lost client does not.
//!
//! The new file has the mode, owner, group, ACL and extended attributes of the old one (`attributes`). Where the user
//! cannot give it all of these, where the directory takes no new file, or where the target cannot be renamed over (a mount
//! point, a file of the user's in `/etc`, a switch in `/sys`), the target itself is written, once everything is there. A
//! user who may not write that either gets to hear so.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::{Condvar, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, RenameFlags, fallocate, renameat, renameat2};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::condition::{Condition, Unmet};
use super::walk::{Place, look, magic_link, open, open_regular, sync, sync_dir};
use super::{FileError, FilePath, attributes, is, unsigned};
use tl_os::random;

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
    /// The target itself is written in the end.
    in_place: bool,
    condition: Condition,
}

impl<'p> Upload<'p> {
    /// Prepares to replace `path`, or to make it, on a condition. `length` is what was announced.
    ///
    /// # Errors
    /// Why it cannot be written; also where it is certain that so much has no room.
    pub fn begin(path: &'p FilePath, length: Option<u64>, condition: Condition) -> Result<Upload<'p>, FileError> {
        let failed = |errno: Errno| FileError::of(path, &errno.into());
        // Before any directory is made for what is not there.
        if condition.exists || condition.has_tag {
            match condition.unmet_at(path, true) {
                Err(FileError::NotFound(_)) => return Err(unmet(path, condition.unmet(None))),
                result => result.map(drop)?,
            }
        }
        let place = Place::for_writing(path.as_os_str()).map_err(failed)?;
        if let Some(found) = &place.found {
            if is(found, SFlag::S_IFDIR) {
                return Err(FileError::IsDirectory(path.shown()));
            }
            if !is(found, SFlag::S_IFREG) {
                return Err(FileError::NotARegularFile(path.shown()));
            }
        }
        if let Some(why) = condition.unmet(place.found.as_ref()) {
            return Err(FileError::Unmet { path: path.shown(), why });
        }
        let (file, name, in_place) = content_for(&place).map_err(failed)?;
        let mut upload = Upload { path, place, file, name, in_place, condition };
        if let Some(found) = &upload.place.found
            && !in_place
            && !attributes::keep_owner(&upload.file, found).map_err(|error| FileError::of(path, &error))?
        {
            open_target(&upload.place).map_err(failed)?;
            upload.in_place = true;
        }
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
        let found = look(&self.place.dir, &self.place.name).ok();
        if let Some(why) = self.condition.unmet(found.as_ref()) {
            return Err(FileError::Unmet { path: self.path.shown(), why });
        }
        let done = match () {
            () if self.in_place => self.write_in_place(),
            () if self.condition.is_absent => self.make(),
            () => self.replace(),
        };
        done.map_err(|error| match error.raw_os_error() {
            // Somebody else has made it since the look above.
            Some(libc::EEXIST) if self.condition.is_absent => unmet(self.path, Some(Unmet::IsAbsent)),
            _ => FileError::of(self.path, &error),
        })
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
        if !self.keep_attributes()? {
            self.remove_name();
            return self.write_in_place();
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

    /// Gives the new file its name where nothing has it, which the kernel sees to: EEXIST where something has.
    fn make(&mut self) -> io::Result<()> {
        sync(&self.file)?;
        let (dir, target) = (&self.place.dir, &*self.place.name);
        match &self.name {
            None => {
                let unnamed = magic_link(&self.file).ok_or(Errno::ENOENT)?;
                linkat(AT_FDCWD, &*unnamed, dir, target, AtFlags::AT_SYMLINK_FOLLOW)?;
            }
            Some(name) => match linkat(dir, &**name, dir, target, AtFlags::empty()) {
                Ok(()) => self.remove_name(),
                Err(Errno::EEXIST) => return Err(Errno::EEXIST.into()),
                // A file system without hard links.
                Err(_) => {
                    renameat2(dir, &**name, dir, target, RenameFlags::RENAME_NOREPLACE)?;
                    self.name = None;
                }
            },
        }
        Ok(sync_dir(&self.place.dir)?)
    }

    /// Gives the new file what the old one has, as it is now; whether it has all of it.
    fn keep_attributes(&self) -> io::Result<bool> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let old = match open(&self.place.dir, &self.place.name, flags, Mode::empty()) {
            Ok(old) => old,
            Err(Errno::ENOENT) => {
                // Removed since the beginning: what there is now is new, with the mode that the old one had.
                return Ok(self.place.found.as_ref().is_none_or(|found| attributes::keep_mode(&self.file, found)));
            }
            Err(errno) => return Err(errno.into()),
        };
        if !is(&fstat(&old)?, SFlag::S_IFREG) {
            return Ok(true);
        }
        if magic_link(&old).is_some() {
            return attributes::keep(&self.file, &old);
        }
        // Without /proc only an open file shows its attributes.
        match open_regular(&self.place.dir, &self.place.name, OFlag::O_RDONLY) {
            Ok(Some((old, _))) => attributes::keep(&self.file, &old),
            Ok(None) | Err(_) => Ok(false),
        }
    }

    /// The name that the new file has, or gets now.
    fn named(&mut self) -> io::Result<OsString> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let name = temporary_name()?;
        let unnamed = magic_link(&self.file).ok_or(Errno::ENOENT)?;
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
        // What a write takes away, from whoever has no right to keep it; so from everybody. Where this thread may not change
        // the mode, the kernel does.
        if let Some(mode) = special_mode(&target)? {
            let _ = fchmod(&target, mode);
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

/// A file for the new content, its temporary name, and whether the target itself is to be written in the end.
fn content_for(place: &Place) -> nix::Result<(File, Option<OsString>, bool)> {
    match temporary(&place.dir, mode_for(place)) {
        Ok((file, name)) => Ok((file, name, false)),
        Err(errno) if refuses(errno) && place.found.is_some() => {
            open_target(place)?;
            Ok((spool()?, None, true))
        }
        Err(errno) => Err(errno),
    }
}

fn unmet(path: &FilePath, why: Option<Unmet>) -> FileError {
    FileError::Unmet { path: path.shown(), why: why.unwrap_or(Unmet::Exists) }
}

/// The mode of a file without set-user-id and set-group-id, where it has one of them.
fn special_mode(file: &File) -> nix::Result<Option<Mode>> {
    let mode = fstat(file)?.st_mode & 0o7777;
    Ok((mode & !attributes::MODE != 0).then(|| Mode::from_bits_truncate(mode & attributes::MODE)))
}

/// A new file in `dir`, with a name where it cannot be without.
fn temporary(dir: impl AsFd, mode: Mode) -> nix::Result<(File, Option<OsString>)> {
    match open(dir.as_fd(), OsStr::new("."), OFlag::O_TMPFILE | OFlag::O_RDWR, mode) {
        // What has no name gets one through /proc.
        Ok(file) if magic_link(&file).is_none() => {}
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// As on a file system without `O_TMPFILE`.
    fn begin_named(path: &FilePath) -> Upload<'_> {
        let place = Place::for_writing(path.as_os_str()).unwrap();
        let (file, name) = named(&place.dir, mode_for(&place)).unwrap();
        Upload { path, place, file, name: Some(name), in_place: false, condition: Condition::default() }
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
    fn a_file_is_made_only_where_there_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let path = FilePath::parse(target.as_os_str().as_bytes(), "/").unwrap();
        let condition = Condition { is_absent: true, ..Condition::default() };
        let unnamed = || Upload::begin(&path, None, condition).unwrap();
        let with_name = || {
            let mut upload = begin_named(&path);
            upload.condition = condition;
            upload
        };
        for named in [false, true] {
            let begin = || if named { with_name() } else { unnamed() };
            let (mut first, mut second) = (begin(), begin());
            first.make().unwrap();
            // No look beforehand says so.
            assert_eq!(second.make().unwrap_err().raw_os_error(), Some(libc::EEXIST));
            assert!(matches!(second.commit(), Err(FileError::Unmet { why: Unmet::IsAbsent, .. })));
            drop(first);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            fs::remove_file(&target).unwrap();
        }
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
                        let (file, condition) = (spool().unwrap(), Condition::default());
                        let mut upload = Upload { path, place, file, name: None, in_place: true, condition };
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
