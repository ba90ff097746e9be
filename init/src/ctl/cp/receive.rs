//! `tlctl cp` from the sandbox. What comes from there is not trusted: nothing outside of the destination is written.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tl_supervisor::archive::{UnpackError, UnpackOptions, unpack};

use super::new_file::{NewFile, PERMISSIONS, cannot_write, create_symlink, remove_at_signals};
use super::sandbox::{Kind, Sandbox, Stat};
use super::side::{Side, base_name, is_of_directory};
use super::{each, read_piece, shown};
use crate::ctl::error::Error;
use crate::ctl::http::{Body, Response};

/// Copies files and folders from the sandbox.
pub(super) fn receive(sandbox: Sandbox<'_>, sources: &[Side], dest: &Path, follows: bool) -> Result<u8, Error> {
    let (exists, is_dir) = match fs::metadata(dest) {
        Ok(meta) => (true, meta.is_dir()),
        // A symlink that leads nowhere is there all the same.
        Err(error) if error.kind() == ErrorKind::NotFound => (fs::symlink_metadata(dest).is_ok(), false),
        Err(error) => return Err(cannot_write(dest, &error)),
    };
    if sources.len() > 1 && !is_dir {
        return Err(Error::local(format_args!("cp: {dest:?} is no directory, which several files need")));
    }
    let _signals = remove_at_signals()?;
    let dest = Destination { path: dest, exists, is_dir };
    each(sources, |source| match source {
        Side::Sandbox(path) => dest.take(sandbox, path, follows),
        _ => Ok(()),
    })
}

/// Copies a file to standard output, or a folder, as an archive.
pub(super) fn print(sandbox: Sandbox<'_>, sources: &[Side]) -> Result<u8, Error> {
    let Some(Side::Sandbox(path)) = sources.first() else { return Ok(0) };
    let endpoint = match sandbox.kind(path)? {
        None => return Err(not_found(path)),
        Some(Kind::Directory) if io::stdout().is_terminal() => {
            let path = shown(path);
            return Err(Error::local(format_args!(
                "cp: {path} is a directory, whose archive is not written to a terminal; use for example | tar t"
            )));
        }
        Some(Kind::Directory) => "/archive",
        Some(_) => "",
    };
    let mut response = sandbox.download(endpoint, path)?;
    // Not line by line.
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(Error::output)?);
    copy(sandbox, &mut response, &mut out, Error::output)?;
    Ok(0)
}

/// The destination on this host.
#[derive(Debug)]
struct Destination<'p> {
    path: &'p Path,
    exists: bool,
    is_dir: bool,
}

impl Destination<'_> {
    /// Copies a file or a folder.
    fn take(&self, sandbox: Sandbox<'_>, path: &[u8], follows: bool) -> Result<(), Error> {
        let followed = follows || is_of_directory(path);
        let mut stat = sandbox.stat(path)?.ok_or_else(|| not_found(path))?;
        if stat.kind == Kind::Symlink && followed {
            stat = sandbox.leads_to(path, stat)?;
        }
        match stat.kind {
            Kind::Directory => self.take_dir(sandbox, path, &stat),
            Kind::File => self.take_file(sandbox, path, &stat),
            Kind::Symlink => create_symlink(&self.target(path)?, symlink_target(path, &stat)?),
            Kind::Other => {
                let path = shown(path);
                Err(Error::local(format_args!("cp: {path} is neither a file nor a directory nor a symlink")))
            }
        }
    }

    fn take_dir(&self, sandbox: Sandbox<'_>, path: &[u8], stat: &Stat) -> Result<(), Error> {
        let name = base_name(path).filter(|_| self.is_dir);
        let target = name.map_or(self.path.to_owned(), |name| in_dir(self.path, name));
        // A symlink in the directory may come from the sandbox too, and is not followed.
        let is_other = match name {
            Some(_) => fs::symlink_metadata(&target).is_ok_and(|found| !found.is_dir()),
            None => self.exists && !self.is_dir,
        };
        if is_other {
            let path = shown(path);
            return Err(Error::local(format_args!("cp: {path} is a directory, and {target:?} is none")));
        }
        let is_new = !target.exists();
        let mut response = sandbox.download("/archive", path)?;
        let mut reader = Remembering { body: &mut response.body, broken: None };
        let unpacked = unpack(&target, &mut reader, UnpackOptions::default());
        let broken = reader.broken;
        if let Some(error) = broken {
            let error = sandbox.client.broken(&error);
            return Err(Error::local(format_args!("cp: only a part of {} was copied: {error}", shown(path))));
        }
        unpacked.map_err(|error| cannot_unpack(&target, &error))?;
        sandbox.drain(response)?;
        // A directory that was there keeps its mode, and the time of the last change in it.
        if is_new { set_attributes(&target, stat) } else { Ok(()) }
    }

    fn take_file(&self, sandbox: Sandbox<'_>, path: &[u8], stat: &Stat) -> Result<(), Error> {
        let target = self.target(path)?;
        // It may come from the sandbox, as a part of a folder that was copied before. In a directory, it is replaced.
        if !self.is_dir && fs::symlink_metadata(&target).is_ok_and(|found| found.is_symlink()) {
            return Err(Error::local(format_args!(
                "cp: {target:?} is a symlink, which is not followed; name the file that it leads to"
            )));
        }
        let mut response = sandbox.download("", path)?;
        let mut file = NewFile::create(&target)?;
        copy(sandbox, &mut response, &mut file, |error| cannot_write(&target, &error))?;
        file.finish(stat.mode, stat.modified)
    }

    /// Where a file or symlink of the sandbox is copied to.
    fn target(&self, path: &[u8]) -> Result<PathBuf, Error> {
        if !self.exists && is_of_directory(self.path.as_os_str().as_bytes()) {
            return Err(Error::local(format_args!("cp: there is no directory {:?}", self.path)));
        }
        let name = base_name(path).filter(|_| self.is_dir);
        Ok(name.map_or(self.path.to_owned(), |name| in_dir(self.path, name)))
    }
}

/// Gives a new directory its mode and its time.
fn set_attributes(dir: &Path, stat: &Stat) -> Result<(), Error> {
    let set = || {
        let opened = File::open(dir)?;
        opened.set_permissions(Permissions::from_mode(stat.mode & PERMISSIONS))?;
        stat.modified.map_or(Ok(()), |modified| opened.set_modified(modified))
    };
    set().map_err(|error| cannot_write(dir, &error))
}

fn in_dir(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(name))
}

/// The target of a symlink. The JSON of the API cannot show bytes that are not UTF-8.
fn symlink_target<'s>(path: &[u8], stat: &'s Stat) -> Result<&'s str, Error> {
    if stat.target.is_empty() || stat.target.contains('\u{fffd}') {
        let path = shown(path);
        return Err(Error::local(format_args!(
            "cp: the target of the symlink {path} is not UTF-8; copy the directory that it is in"
        )));
    }
    Ok(&stat.target)
}

/// Copies the body of a response. At its end, nothing is missing.
fn copy(
    sandbox: Sandbox<'_>,
    response: &mut Response,
    out: &mut impl Write,
    cannot_write: impl FnOnce(io::Error) -> Error,
) -> Result<(), Error> {
    let mut buffer = Vec::new();
    loop {
        let piece = read_piece(&mut response.body, &mut buffer).map_err(|error| sandbox.client.broken(&error))?;
        if piece.is_empty() {
            return out.flush().map_err(cannot_write);
        }
        if let Err(error) = out.write_all(piece) {
            return Err(cannot_write(error));
        }
    }
}

/// A body that remembers how its connection broke: the error of the archive would not say that.
struct Remembering<'b> {
    body: &'b mut Body,
    broken: Option<io::Error>,
}

impl Read for Remembering<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.body.read(out).map_err(|error| {
            let kind = error.kind();
            self.broken = Some(error);
            kind.into()
        })
    }
}

fn not_found(path: &[u8]) -> Error {
    Error::local(format_args!("cp: there is no file or directory {} in the sandbox", shown(path)))
}

fn cannot_unpack(path: &Path, error: &UnpackError) -> Error {
    Error::local(format_args!("cp: cannot write {path:?}: {error}"))
}
