//! A file on this host whose content is being written: it has a temporary name until it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use tl_os::signal_thread::{Received, SignalThread};
use tl_os::{disposition, random};

use super::side::{join, parent};
use crate::ctl::error::Error;
use crate::exit_status;

/// The signals that end this program, after the temporary file was removed.
const SIGNALS: [i32; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// The temporary name that must be removed if the program ends now.
static TEMPORARY: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The permission bits that a file gets from the sandbox: set-user-ID and the like would count for the user here.
pub(super) const PERMISSIONS: u32 = 0o777;

/// Removes the temporary file at a signal that ends this program, and then ends it.
///
/// # Errors
/// If the system has no thread left.
pub(super) fn remove_at_signals() -> Result<SignalThread, Error> {
    // Those that are ignored, as under nohup, stay ignored.
    let signals: Vec<i32> = SIGNALS.into_iter().filter(|signal| !disposition::is_ignored(*signal)).collect();
    let notice = |received: Received| {
        // Kept locked: no other temporary file appears meanwhile.
        let temporary = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &*temporary {
            let _ = fs::remove_file(path);
        }
        std::process::exit(exit_status::of_signal(received.signal).into());
    };
    let started = SignalThread::start("signals", &signals, notice);
    started.map_err(|error| Error::local(format_args!("cannot handle signals: {error}")))
}

/// A file that is being written. If it is dropped before [`NewFile::finish`], nothing stays of it.
#[derive(Debug)]
pub(super) struct NewFile<'p> {
    path: &'p Path,
    file: File,
    /// The temporary name; none for a FIFO or a device, which is written directly.
    temporary: Option<PathBuf>,
    /// The file that is replaced.
    replaced: Option<Metadata>,
}

impl<'p> NewFile<'p> {
    /// Begins to write the file at `path`.
    ///
    /// # Errors
    /// If no file can be created in its directory, or if it is a directory.
    pub(super) fn create(path: &'p Path) -> Result<NewFile<'p>, Error> {
        let replaced = fs::symlink_metadata(path).ok();
        let kind = replaced.as_ref().map(Metadata::file_type);
        if kind.is_some_and(|kind| kind.is_dir()) {
            return Err(Error::local(format_args!("cp: {path:?} is a directory, which a file does not replace")));
        }
        if kind.is_some_and(|kind| kind.is_fifo() || kind.is_char_device() || kind.is_block_device()) {
            let file = OpenOptions::new().write(true).open(path).map_err(|error| cannot_write(path, &error))?;
            return Ok(NewFile { path, file, temporary: None, replaced: None });
        }
        let (temporary, file) = with_temporary_name(path, |temporary| {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)
        })?;
        Ok(NewFile { path, file, temporary: Some(temporary), replaced })
    }

    /// Gives the file its name. It gets the mode and the owner of the file that it replaces, or else this mode; and this
    /// time.
    ///
    /// # Errors
    /// If that fails.
    pub(super) fn finish(mut self, mode: u32, modified: Option<SystemTime>) -> Result<(), Error> {
        let Some(temporary) = &self.temporary else { return Ok(()) };
        let replaced = self.replaced.as_ref().filter(|found| found.is_file());
        if let Some(found) = replaced {
            // Only root can give a file away; otherwise it belongs to the user.
            let _ = fchown(&self.file, Some(found.uid()), Some(found.gid()));
        }
        let mode = replaced.map_or(mode, |found| found.mode()) & PERMISSIONS;
        let finished = (|| {
            self.file.set_permissions(Permissions::from_mode(mode))?;
            if let Some(modified) = modified {
                self.file.set_modified(modified)?;
            }
            // The disk can be full only now, as on NFS.
            self.file.sync_all()?;
            fs::rename(temporary, self.path)
        })();
        finished.map_err(|error| cannot_write(self.path, &error))?;
        self.temporary = None;
        forget();
        Ok(())
    }
}

impl Write for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
            forget();
        }
    }
}

/// Creates a symlink, in place of a file or symlink that is there.
///
/// # Errors
/// If that fails, or if there is a directory.
pub(super) fn create_symlink(path: &Path, target: &str) -> Result<(), Error> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir()) {
        return Err(Error::local(format_args!("cp: {path:?} is a directory, which a symlink does not replace")));
    }
    let (temporary, ()) = with_temporary_name(path, |temporary| symlink(target, temporary))?;
    let renamed = fs::rename(&temporary, path);
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    forget();
    renamed.map_err(|error| cannot_write(path, &error))
}

/// Creates something beside `path` with a random name, which is removed at a signal until [`forget`] is called.
fn with_temporary_name<T>(path: &Path, create: impl FnOnce(&Path) -> io::Result<T>) -> Result<(PathBuf, T), Error> {
    let dir = parent(path.as_os_str().as_bytes()).unwrap_or(b".");
    let failed = |error: io::Error| {
        let dir = Path::new(OsStr::from_bytes(dir));
        Error::local(format_args!("cp: cannot create a file in {dir:?}: {error}"))
    };
    let name = format!(".tlctl.{}", random::hex::<8>().map_err(failed)?);
    let temporary = PathBuf::from(OsString::from_vec(join(dir, name.as_bytes())));
    // Locked, so that a signal finds either no file or its name.
    let mut known = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
    let created = create(&temporary).map_err(failed)?;
    *known = Some(temporary.clone());
    Ok((temporary, created))
}

/// The temporary name is gone.
fn forget() {
    *TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// The error for a file that cannot be written.
pub(super) fn cannot_write(path: &Path, error: &io::Error) -> Error {
    Error::local(format_args!("cp: cannot write {path:?}: {error}"))
}
