//! Puts one entry of an archive into a directory: a name in an open directory, and no symlink is followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, futimens, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, mkfifoat, symlinkat, unlinkat};

use super::entry::{Entry, Time};
use crate::files::is;
use crate::files::magic_link::magic_link;
use crate::files::temporary::{new_file, temporary_name};

/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// The attributes that a file gets from its entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attributes {
    mode: Mode,
    modified: Time,
    owner: Option<(Uid, Gid)>,
}

impl Attributes {
    /// Those of an entry. Without its owner, it does not keep set-user-id and set-group-id either.
    pub(super) fn of(entry: &Entry, preserve_owner: bool) -> Attributes {
        let mode = if preserve_owner { entry.mode } else { entry.mode & !SET_ID };
        Attributes {
            mode: Mode::from_bits_truncate(mode),
            modified: entry.modified,
            owner: preserve_owner.then(|| (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    /// Sets them on an open file.
    pub(super) fn set(&self, file: BorrowedFd<'_>) -> nix::Result<()> {
        if let Some((uid, gid)) = self.owner {
            fchown(file, Some(uid), Some(gid))?;
        }
        // After the owner, because changing that drops set-user-id.
        fchmod(file, self.mode)?;
        futimens(file, &TimeSpec::UTIME_NOW, &self.time())
    }

    /// Sets those of a symlink or a FIFO that was created under this name, but not the mode of a symlink. Does nothing if
    /// the file with the name is another by now: with the rights of root, another user's rename must not give that user
    /// any other file.
    fn set_by_name(&self, dir: BorrowedFd<'_>, name: &OsStr, kind: SFlag) -> nix::Result<()> {
        // With `O_PATH`, because opening the FIFO itself would affect the processes that use it.
        let file = match openat(dir, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            file => file?,
        };
        let stat = fstat(&file)?;
        if !is(&stat, kind) || stat.st_nlink != 1 {
            return Ok(());
        }
        if let Some((uid, gid)) = self.owner {
            fchownat(&file, "", Some(uid), Some(gid), AtFlags::AT_EMPTY_PATH)?;
        }
        // Calls that take such a descriptor need Linux 5.8 (utimensat) and 6.6 (fchmodat2); its magic link needs /proc.
        let Some(link) = magic_link(&file) else { return Ok(()) };
        if kind == SFlag::S_IFIFO {
            fchmodat(AT_FDCWD, &*link, self.mode, FchmodatFlags::FollowSymlink)?;
        }
        utimensat(AT_FDCWD, &*link, &TimeSpec::UTIME_NOW, &self.time(), UtimensatFlags::FollowSymlink)
    }

    fn time(&self) -> TimeSpec {
        TimeSpec::new(self.modified.seconds, self.modified.nanoseconds.into())
    }
}

/// Opens the directory that these components lead to from `root`, with `O_PATH`.
///
/// # Errors
/// ELOOP if a component is a symlink, ENOTDIR if it is another file, ENOENT if it does not exist.
pub(super) fn open_below(root: BorrowedFd<'_>, components: &[&[u8]]) -> nix::Result<OwnedFd> {
    let mut dir = root.try_clone_to_owned().map_err(|_| Errno::EMFILE)?;
    for name in components {
        dir = open_child(dir.as_fd(), OsStr::from_bytes(name))?;
    }
    Ok(dir)
}

/// Opens a directory in another with `O_PATH`.
///
/// # Errors
/// As [`open_below`].
pub(super) fn open_child(dir: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(dir, name, flags, Mode::empty()) {
        // A symlink is not a directory either.
        Err(Errno::ENOTDIR) if is_symlink(dir, name) => Err(Errno::ELOOP),
        result => result,
    }
}

fn is_symlink(dir: BorrowedFd<'_>, name: &OsStr) -> bool {
    nix::fcntl::readlinkat(dir, name).is_ok()
}

/// A new regular file in a directory. It is removed unless it gets its name.
#[derive(Debug)]
pub(super) struct NewFile<'d> {
    pub(super) file: File,
    dir: BorrowedFd<'d>,
    /// Its temporary name, if it has one.
    temporary: Option<OsString>,
}

impl<'d> NewFile<'d> {
    /// Creates a file without a name, or with a temporary one where that is not possible.
    pub(super) fn create(dir: BorrowedFd<'d>) -> nix::Result<NewFile<'d>> {
        let (file, temporary) = new_file(dir, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok(NewFile { file, dir, temporary })
    }

    /// Gives the file its name. Replaces another file that has it, but no directory.
    pub(super) fn put(mut self, name: &OsStr) -> io::Result<()> {
        if self.temporary.is_none() {
            let unnamed = magic_link(&self.file).ok_or(Errno::ENOENT)?;
            match linkat(AT_FDCWD, &*unnamed, self.dir, name, AtFlags::AT_SYMLINK_FOLLOW) {
                Err(Errno::EEXIST) => {}
                result => return Ok(result?),
            }
            let temporary = temporary_name()?;
            linkat(AT_FDCWD, &*unnamed, self.dir, &*temporary, AtFlags::AT_SYMLINK_FOLLOW)?;
            self.temporary = Some(temporary);
        }
        if let Some(temporary) = &self.temporary {
            renameat(self.dir, &**temporary, self.dir, name)?;
            self.temporary = None;
        }
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            discard(self.dir, &temporary);
        }
    }
}

/// Creates a symlink. Replaces a file that has its name, but no directory.
pub(super) fn put_symlink(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    target: &OsStr,
    attributes: &Attributes,
) -> io::Result<()> {
    create_or_replace(dir, name, |name| {
        symlinkat(target, dir, name)?;
        attributes.set_by_name(dir, name, SFlag::S_IFLNK)
    })
}

/// Creates another name of the file `target` in `target_dir`. Replaces a file that has the name, but no directory.
pub(super) fn put_hard_link(
    dir: BorrowedFd<'_>,
    name: &OsStr,
    target_dir: BorrowedFd<'_>,
    target: &OsStr,
) -> io::Result<()> {
    create_or_replace(dir, name, |name| linkat(target_dir, target, dir, name, AtFlags::empty()))
}

/// Creates a FIFO. Replaces a file that has its name, but no directory.
pub(super) fn put_fifo(dir: BorrowedFd<'_>, name: &OsStr, attributes: &Attributes) -> io::Result<()> {
    create_or_replace(dir, name, |name| {
        mkfifoat(dir, name, attributes.mode)?;
        // Also the mode, which the umask has cut.
        attributes.set_by_name(dir, name, SFlag::S_IFIFO)
    })
}

/// Calls `create` with the name; if something has that name, with a temporary one, which is then renamed.
fn create_or_replace(dir: BorrowedFd<'_>, name: &OsStr, create: impl Fn(&OsStr) -> nix::Result<()>) -> io::Result<()> {
    match create(name) {
        Err(Errno::EEXIST) => {}
        result => return Ok(result?),
    }
    let temporary = temporary_name()?;
    create(&temporary)?;
    let renamed = renameat(dir, &*temporary, dir, name);
    // Renaming one name of a file to another does nothing (rename(2)): the temporary one is still there.
    discard(dir, &temporary);
    Ok(renamed?)
}

fn discard(dir: BorrowedFd<'_>, temporary: &OsStr) {
    match unlinkat(dir, temporary, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(errno) => log::warn!("the temporary file {temporary:?} of an archive cannot be removed: {errno}"),
    }
}
