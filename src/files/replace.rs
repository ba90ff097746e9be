//! Replaces a file atomically: a reader sees the old content or the new, never a part.
//!
//! The new content goes into a file without a name (`O_TMPFILE`) in the target's directory, which disappears with its
//! last descriptor, however the upload or the daemon ends. When it is complete and on the disk, it gets a temporary
//! name and is renamed over the target; a crash between these two calls leaves `.tl-init.<random>`. On a file system
//! without `O_TMPFILE` it has the temporary name from the beginning: a crash then leaves it, while a failure or a lost
//! client does not.
//!
//! The new file gets the mode, owner, group, ACL and extended attributes of the old one (`attributes`). The target is
//! written in place instead, once the content is complete (`in_place`), if the user cannot set all of these, if no file
//! can be created in the directory, or if the target cannot be renamed over (a mount point, a file of the user in
//! `/etc`, a file in `/sys`).

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, RenameFlags, renameat, renameat2};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::condition::{Condition, Unmet};
use super::in_place::{open_target, write_in_place};
use super::magic_link::magic_link;
use super::target::Target;
use super::temporary::{new_file, spool, temporary_name};
use super::walk::{examine_name, open, open_regular, sync, sync_dir};
use super::{FileError, FilePath, attributes, is};

/// An upload that replaces a file. If it is dropped before [`Upload::commit`], the old file is unchanged.
#[derive(Debug)]
pub struct Upload<'p> {
    path: &'p FilePath,
    target: Target,
    /// The new content.
    file: File,
    /// The temporary name, if the new file has one.
    name: Option<OsString>,
    /// Whether the target will be written in place.
    in_place: bool,
    condition: Condition,
}

impl<'p> Upload<'p> {
    /// Begins to replace or create the file at `path`, under a condition. `length` is the announced length in bytes, if
    /// any.
    ///
    /// # Errors
    /// If the file cannot be written, its file system has no space for `length` bytes, or the condition is not met.
    pub fn begin(path: &'p FilePath, length: Option<u64>, condition: Condition) -> Result<Upload<'p>, FileError> {
        let failed = |errno: Errno| FileError::of(path, &errno.into());
        // Checked before the directories of a missing file are created.
        if condition.exists || condition.has_tag {
            match condition.unmet_at(path, true) {
                Err(FileError::NotFound(_)) => return Err(unmet(path, condition.unmet(None))),
                result => result.map(drop)?,
            }
        }
        let target = Target::resolve(path.as_os_str()).map_err(failed)?;
        if let Some(found) = &target.found {
            if is(found, SFlag::S_IFDIR) {
                return Err(FileError::IsDirectory(path.shown()));
            }
            if !is(found, SFlag::S_IFREG) {
                return Err(FileError::NotARegularFile(path.shown()));
            }
        }
        if let Some(why) = condition.unmet(target.found.as_ref()) {
            return Err(FileError::Unmet { path: path.shown(), why });
        }
        let (file, name, in_place) = content_for(&target).map_err(failed)?;
        let mut upload = Upload { path, target, file, name, in_place, condition };
        if let Some(found) = &upload.target.found
            && !in_place
            && !attributes::keep_owner(&upload.file, found).map_err(|error| FileError::of(path, &error))?
        {
            open_target(&upload.target).map_err(failed)?;
            upload.in_place = true;
        }
        if length.is_some_and(|length| length > upload.free_space()) {
            return Err(failed(Errno::ENOSPC));
        }
        Ok(upload)
    }

    /// Appends to the new content.
    ///
    /// # Errors
    /// Mostly [`FileError::NoSpace`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all(bytes).map_err(|error| FileError::of(self.path, &error))
    }

    /// Replaces the old content by the new.
    ///
    /// # Errors
    /// If that fails, or if the condition is no longer met. A failed write in place can leave a part of the new
    /// content; otherwise the old file is unchanged.
    pub fn commit(mut self) -> Result<(), FileError> {
        let found = examine_name(&self.target.dir, &self.target.name).ok();
        if let Some(why) = self.condition.unmet(found.as_ref()) {
            return Err(FileError::Unmet { path: self.path.shown(), why });
        }
        let done = match () {
            () if self.in_place => write_in_place(&self.file, &self.target),
            () if self.condition.is_absent => self.create(),
            () => self.replace(),
        };
        done.map_err(|error| match error.raw_os_error() {
            // The file was created after the check above.
            Some(libc::EEXIST) if self.condition.is_absent => unmet(self.path, Some(Unmet::IsAbsent)),
            _ => FileError::of(self.path, &error),
        })
    }

    /// Free space for the content in bytes, without regard to quotas.
    fn free_space(&self) -> u64 {
        match fstatvfs(&self.file) {
            // A file system that does not count its blocks reports 0 for all of them.
            Ok(stat) if stat.blocks() > 0 => stat.blocks_free().saturating_mul(stat.fragment_size()),
            _ => u64::MAX,
        }
    }

    /// Renames the new file over the target; if that is refused, writes the target in place.
    fn replace(&mut self) -> io::Result<()> {
        if !self.keep_attributes()? {
            self.remove_name();
            return write_in_place(&self.file, &self.target);
        }
        sync(&self.file)?;
        let name = self.named()?;
        match renameat(&self.target.dir, &*name, &self.target.dir, &*self.target.name) {
            Ok(()) => {
                self.name = None;
                Ok(sync_dir(&self.target.dir)?)
            }
            // The target is a mount point, or another user's file in a directory like /tmp.
            Err(errno) if refuses(errno) && self.target.found.is_some() => {
                self.remove_name();
                write_in_place(&self.file, &self.target)
                    .map_err(|error| if is_refusal(&error) { errno.into() } else { error })
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Gives the new file the name of the target. The kernel checks atomically that nothing has this name, else EEXIST.
    fn create(&mut self) -> io::Result<()> {
        sync(&self.file)?;
        let (dir, target) = (&self.target.dir, &*self.target.name);
        match &self.name {
            None => {
                let unnamed = magic_link(&self.file).ok_or(Errno::ENOENT)?;
                linkat(AT_FDCWD, &*unnamed, dir, target, AtFlags::AT_SYMLINK_FOLLOW)?;
            }
            Some(name) => match linkat(dir, &**name, dir, target, AtFlags::empty()) {
                Ok(()) => self.remove_name(),
                Err(Errno::EEXIST) => return Err(Errno::EEXIST.into()),
                // The file system has no hard links.
                Err(_) => {
                    renameat2(dir, &**name, dir, target, RenameFlags::RENAME_NOREPLACE)?;
                    self.name = None;
                }
            },
        }
        Ok(sync_dir(&self.target.dir)?)
    }

    /// Copies the attributes that the old file has now. Returns whether the new file has all of them.
    fn keep_attributes(&self) -> io::Result<bool> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
        let old = match open(&self.target.dir, &self.target.name, flags, Mode::empty()) {
            Ok(old) => old,
            Err(Errno::ENOENT) => {
                // The old file was removed meanwhile: the new one only gets the mode that it had.
                return Ok(self.target.found.as_ref().is_none_or(|found| attributes::keep_mode(&self.file, found)));
            }
            Err(errno) => return Err(errno.into()),
        };
        if !is(&fstat(&old)?, SFlag::S_IFREG) {
            return Ok(true);
        }
        if magic_link(&old).is_some() {
            return attributes::keep(&self.file, &old);
        }
        // Without /proc, attributes can be read only through a descriptor that is open for reading.
        match open_regular(&self.target.dir, &self.target.name, OFlag::O_RDONLY) {
            Ok(Some((old, _))) => attributes::keep(&self.file, &old),
            Ok(None) | Err(_) => Ok(false),
        }
    }

    /// The temporary name of the new file, which it gets now if it has none.
    fn named(&mut self) -> io::Result<OsString> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let name = temporary_name()?;
        let unnamed = magic_link(&self.file).ok_or(Errno::ENOENT)?;
        linkat(AT_FDCWD, &*unnamed, &self.target.dir, &*name, AtFlags::AT_SYMLINK_FOLLOW)?;
        Ok(self.name.insert(name).clone())
    }

    /// Removes the temporary name, if the new file has one.
    fn remove_name(&mut self) {
        if let Some(name) = self.name.take()
            && let Err(errno) = unlinkat(&self.target.dir, &*name, UnlinkatFlags::NoRemoveDir)
        {
            log::warn!("the temporary file {name:?} beside {:?} cannot be removed: {errno}", self.path.shown());
        }
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        self.remove_name();
    }
}

/// The mode of the new file: private until it gets the mode of the old file, or the default if there is no old file.
fn mode_for(target: &Target) -> Mode {
    Mode::from_bits_truncate(if target.found.is_some() { 0o600 } else { 0o666 })
}

/// Creates the file for the new content. Returns it with its temporary name, if it has one, and whether the target will
/// be written in place.
fn content_for(target: &Target) -> nix::Result<(File, Option<OsString>, bool)> {
    match new_file(&target.dir, mode_for(target)) {
        Ok((file, name)) => Ok((file, name, false)),
        Err(errno) if refuses(errno) && target.found.is_some() => {
            open_target(target)?;
            Ok((spool()?, None, true))
        }
        Err(errno) => Err(errno),
    }
}

fn unmet(path: &FilePath, why: Option<Unmet>) -> FileError {
    FileError::Unmet { path: path.shown(), why: why.unwrap_or(Unmet::Exists) }
}

/// Whether an error means that this operation is not permitted for this file, rather than that it has failed.
fn refuses(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::EBUSY | Errno::EXDEV)
}

fn is_refusal(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| refuses(Errno::from_raw(errno)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    use super::super::temporary::named;
    use super::*;

    /// Begins an upload as on a file system without `O_TMPFILE`.
    fn begin_named(path: &FilePath) -> Upload<'_> {
        let target = Target::resolve(path.as_os_str()).unwrap();
        let (file, name) = named(&target.dir, mode_for(&target)).unwrap();
        Upload { path, target, file, name: Some(name), in_place: false, condition: Condition::default() }
    }

    #[test]
    fn a_temporary_name_disappears_with_the_upload() {
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
        // The new content of a private file is private from the beginning.
        fs::set_permissions(&target, PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(begin_named(&path).file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(), ["file"]);
    }

    #[test]
    fn an_upload_with_if_none_match_creates_a_file_only_if_there_is_none() {
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
            first.create().unwrap();
            // `create` itself fails, without a check beforehand.
            assert_eq!(second.create().unwrap_err().raw_os_error(), Some(libc::EEXIST));
            assert!(matches!(second.commit(), Err(FileError::Unmet { why: Unmet::IsAbsent, .. })));
            drop(first);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
            fs::remove_file(&target).unwrap();
        }
    }

    #[test]
    fn after_concurrent_uploads_in_place_the_file_has_the_content_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("file");
        let path = FilePath::parse(target.as_os_str().as_bytes(), "/").unwrap();
        for round in 0..20 {
            fs::write(&target, "old").unwrap();
            std::thread::scope(|scope| {
                for letter in b'a'..b'i' {
                    let path = &path;
                    scope.spawn(move || {
                        let target = Target::resolve(path.as_os_str()).unwrap();
                        let (file, condition) = (spool().unwrap(), Condition::default());
                        let mut upload = Upload { path, target, file, name: None, in_place: true, condition };
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
