//! An archive with one entry: a file or a symlink that gets another name than it has here, with its mode and its time.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tar::{Builder, EntryType, Header};

/// Writes an archive with a file. `content` must have the length that `meta` says.
///
/// # Errors
/// If the content cannot be read or is shorter, or the archive cannot be written.
pub(super) fn file(out: impl Write, name: &[u8], content: impl Read, meta: &Metadata) -> io::Result<()> {
    let mut archive = Builder::new(out);
    let mut header = header_of(&mut archive, meta, EntryType::Regular)?;
    header.set_size(meta.size());
    archive.append_data(&mut header, path(name), Exactly { content, left: meta.size() })?;
    archive.finish()
}

/// Writes an archive with a symlink.
///
/// # Errors
/// If the archive cannot be written.
pub(super) fn symlink(out: impl Write, name: &[u8], target: &Path, meta: &Metadata) -> io::Result<()> {
    let mut archive = Builder::new(out);
    let mut header = header_of(&mut archive, meta, EntryType::Symlink)?;
    header.set_size(0);
    archive.append_link(&mut header, path(name), target)?;
    archive.finish()
}

fn path(name: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(name))
}

/// The header of an entry, after an extended one with the exact time.
fn header_of(archive: &mut Builder<impl Write>, meta: &Metadata, kind: EntryType) -> io::Result<Header> {
    let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
    // A time before 1970 has no form that all programs read.
    let seconds = u64::try_from(seconds).unwrap_or(0);
    archive.append_pax_extensions([("mtime", format!("{seconds}.{nanos:09}").as_bytes())])?;
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(meta.mode() & 0o777);
    header.set_mtime(seconds);
    Ok(header)
}

/// Reads so many bytes, and fails if there are fewer.
#[derive(Debug)]
struct Exactly<R> {
    content: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(out.len());
        let Some(out) = out.get_mut(..most).filter(|out| !out.is_empty()) else { return Ok(0) };
        match self.content.read(out)? {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "the file has become shorter")),
            count => {
                self.left -= count as u64;
                Ok(count)
            }
        }
    }
}
