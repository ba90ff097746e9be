//! `tlctl cp` to the sandbox.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tl_supervisor::archive::{ArchiveError, ArchiveFormat, pack, pack_as};

use super::sandbox::{Kind, Sandbox};
use super::side::{Side, base_name, is_of_directory, join, parent};
use super::{each, entry, read_piece, shown};
use crate::ctl::error::Error;
use crate::ctl::upload::Upload;

/// Copies files, folders or standard input to the sandbox.
pub(super) fn send(sandbox: Sandbox<'_>, sources: &[Side], path: &[u8], follows: bool) -> Result<u8, Error> {
    let kind = sandbox.kind(path)?;
    if sources.len() > 1 && kind != Some(Kind::Directory) {
        return Err(Error::local(format_args!("cp: {} is no directory, which several files need", shown(path))));
    }
    // `PUT /files` would create it, which a mistyped name must not do.
    if kind.is_none()
        && let Some(dir) = parent(path)
        && sandbox.kind(dir)?.is_none()
    {
        return Err(no_directory(dir));
    }
    let dest = Destination { sandbox, path, kind };
    each(sources, |source| match source {
        Side::Local(path) => dest.take(Path::new(path), follows),
        _ => dest.take_stdin(),
    })
}

/// What is copied from this host.
enum Source {
    Directory,
    File(File, Metadata),
    Symlink(PathBuf, Metadata),
    /// A FIFO or a device.
    Stream(File),
}

impl Source {
    fn open(path: &Path, follows: bool) -> io::Result<Source> {
        let meta = fs::symlink_metadata(path)?;
        if meta.is_symlink() && !follows {
            // What a shell makes of <(COMMAND) is a symlink to a pipe.
            let leads_to_stream = fs::metadata(path).is_ok_and(|found| is_stream(&found));
            if !leads_to_stream {
                return Ok(Source::Symlink(fs::read_link(path)?, meta));
            }
        }
        if fs::metadata(path)?.is_dir() {
            return Ok(Source::Directory);
        }
        let file = File::open(path)?;
        let meta = file.metadata()?;
        // The files in /proc have a content and the length 0.
        if is_stream(&meta) || meta.len() == 0 {
            return Ok(Source::Stream(file));
        }
        Ok(Source::File(file, meta))
    }
}

fn is_stream(meta: &Metadata) -> bool {
    meta.file_type().is_fifo() || meta.file_type().is_char_device()
}

/// The destination in the sandbox.
#[derive(Debug)]
struct Destination<'c> {
    sandbox: Sandbox<'c>,
    path: &'c [u8],
    /// What is there.
    kind: Option<Kind>,
}

impl Destination<'_> {
    /// Copies a file or a folder.
    fn take(&self, path: &Path, follows: bool) -> Result<(), Error> {
        let name = path.as_os_str().as_bytes();
        let failed = |error: io::Error| cannot_read(path, &error);
        match Source::open(path, follows).map_err(failed)? {
            Source::Directory => {
                let (target, exists) = match (self.kind, base_name(name)) {
                    (Some(Kind::Directory), Some(_)) => self.target(name)?,
                    (Some(Kind::Directory), None) => (self.path.to_vec(), true),
                    (None, _) => (self.path.to_vec(), false),
                    _ => {
                        let dest = shown(self.path);
                        return Err(Error::local(format_args!("cp: {path:?} is a directory, and {dest} is none")));
                    }
                };
                let failed = |error: ArchiveError| cannot_pack(path, &error);
                match exists {
                    true => self.put("/archive", &target, None, |upload| {
                        pack(path, ArchiveFormat::Tar, upload).map_err(failed)
                    }),
                    // With its mode and its time, which a directory that is there keeps.
                    false => self.put_entry(&target, |name, upload| {
                        pack_as(path, OsStr::from_bytes(name), ArchiveFormat::Tar, upload).map_err(failed)
                    }),
                }
            }
            Source::File(file, meta) => match self.target(name)? {
                (target, true) => self.put("", &target, Some(meta.len()), |upload| {
                    let sent = io::copy(&mut (&file).take(meta.len()), upload).map_err(failed)?;
                    let shorter =
                        || Error::local(format_args!("cp: cannot read {path:?}: the file has become shorter"));
                    if sent < meta.len() { Err(shorter()) } else { Ok(()) }
                }),
                (target, false) => {
                    self.put_entry(&target, |name, upload| entry::file(upload, name, &file, &meta).map_err(failed))
                }
            },
            Source::Symlink(leads_to, meta) => {
                let (target, _) = self.target(name)?;
                self.put_entry(&target, |name, upload| entry::symlink(upload, name, &leads_to, &meta).map_err(failed))
            }
            Source::Stream(file) => {
                let (target, _) = self.target(name)?;
                self.put("", &target, None, |upload| send_stream(upload, file).map_err(failed))
            }
        }
    }

    /// Copies standard input: to a file, or, as an archive, into a directory.
    fn take_stdin(&self) -> Result<(), Error> {
        let endpoint = if self.kind == Some(Kind::Directory) { "/archive" } else { "" };
        if self.kind.is_none() && is_of_directory(self.path) {
            return Err(no_directory(self.path));
        }
        self.put(endpoint, self.path, None, |upload| {
            let failed = |error: io::Error| Error::local(format_args!("cannot read the standard input: {error}"));
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
            send_stream(upload, stdin.into()).map_err(failed)
        })
    }

    /// Where the file with this name on this host is copied to, and whether something is there.
    fn target(&self, name: &[u8]) -> Result<(Vec<u8>, bool), Error> {
        match (self.kind, base_name(name)) {
            (Some(Kind::Directory), Some(name)) => {
                let target = join(self.path, name);
                let exists = self.sandbox.stat(&target)?.is_some();
                Ok((target, exists))
            }
            (None, _) if is_of_directory(self.path) => Err(no_directory(self.path)),
            (kind, _) => Ok((self.path.to_vec(), kind.is_some())),
        }
    }

    /// Sends a PUT.
    fn put(
        &self,
        endpoint: &str,
        path: &[u8],
        length: Option<u64>,
        produce: impl FnOnce(&mut Upload) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let path = self.sandbox.request_path(endpoint, path);
        self.sandbox.client.upload(&path, length, produce).map(drop)
    }

    /// Sends an archive with one entry, whose name is that of `target`.
    fn put_entry(
        &self,
        target: &[u8],
        produce: impl FnOnce(&[u8], &mut Upload) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let name = base_name(target).unwrap_or_default();
        self.put("/archive", parent(target).unwrap_or(b"."), None, |upload| produce(name, upload))
    }
}

/// Sends all that can be read.
fn send_stream(upload: &mut Upload, mut source: File) -> io::Result<()> {
    let mut buffer = Vec::new();
    while upload.wait_for(source.as_fd())? {
        match read_piece(&mut source, &mut buffer)? {
            [] => break,
            piece => upload.write_all(piece)?,
        }
    }
    Ok(())
}

fn no_directory(path: &[u8]) -> Error {
    Error::local(format_args!("cp: there is no directory {} in the sandbox", shown(path)))
}

fn cannot_read(path: &Path, error: &io::Error) -> Error {
    Error::local(format_args!("cp: cannot read {path:?}: {error}"))
}

fn cannot_pack(path: &Path, error: &ArchiveError) -> Error {
    Error::local(format_args!("cp: cannot read {path:?}: {error}"))
}
