//! Reads the entries of a tar archive from a stream, in flat memory.
//!
//! Blocks are parsed by the crate `tar`. Its own iterator is not used: it holds names of any length in memory, splits pax
//! records at newlines, and does not tell the end of an archive from that of a stream that was cut off.

use std::io::{self, ErrorKind, Read};

use tar::{EntryType, Header};
use thiserror::Error;

use super::entry::{Entry, EntryKind, Time, padding};
use super::pax;

/// Maximum size of a pax header or of a long name, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;

/// Why no entry can be read.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    /// The bytes are not those of a tar archive.
    #[error("{0}")]
    Malformed(&'static str),
    /// The archive ends too early.
    #[error("the archive is cut off")]
    Cut,
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> ReadError {
        match error.kind() {
            ErrorKind::UnexpectedEof => ReadError::Cut,
            _ => ReadError::Io(error),
        }
    }
}

/// Reads entries from `R`. The content of an entry is read through [`EntryReader::read`].
#[derive(Debug)]
pub(super) struct EntryReader<R> {
    input: R,
    /// Bytes of the current entry's content that have not been read.
    remaining: u64,
    /// Zeros that follow the content.
    padding: usize,
    /// Pax records of a global header, which apply to all entries that follow.
    global: Vec<u8>,
}

/// What headers before that of an entry say about it.
#[derive(Debug, Default)]
struct Extensions {
    /// The pax records.
    records: Vec<u8>,
    /// GNU's long names.
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> EntryReader<R> {
    pub(super) fn new(input: R) -> EntryReader<R> {
        EntryReader { input, remaining: 0, padding: 0, global: Vec::new() }
    }

    /// Skips what has not been read of the current entry, and reads the header of the next. None at the end of the archive.
    ///
    /// # Errors
    /// If there is no valid header, or the stream ends before the end of the archive.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ReadError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let mut header = Header::new_old();
            self.input.read_exact(header.as_mut_bytes())?;
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            check_sum(&header)?;
            let size = number(&header.as_old().size, header.entry_size())?;
            self.begin(size)?;
            match header.entry_type() {
                EntryType::XHeader => extensions.records = self.extension()?,
                EntryType::XGlobalHeader => self.global = self.extension()?,
                EntryType::GNULongName => extensions.path = Some(without_nul(self.extension()?)),
                EntryType::GNULongLink => extensions.link = Some(without_nul(self.extension()?)),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// Reads some of the content of the current entry. Returns 0 at its end.
    ///
    /// # Errors
    /// If the archive is cut off, or the stream cannot be read.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<usize, ReadError> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(out.len());
        if most == 0 {
            return Ok(0);
        }
        let read = loop {
            match self.input.read(out.get_mut(..most).unwrap_or_default()) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) => return Err(ReadError::Cut),
                result => break result?,
            }
        };
        self.remaining -= read as u64;
        Ok(read)
    }

    /// The stream, for what comes after the end of the archive.
    pub(super) fn input(&mut self) -> &mut R {
        &mut self.input
    }

    fn begin(&mut self, size: u64) -> Result<(), ReadError> {
        if i64::try_from(size).is_err() {
            return Err(ReadError::Malformed("a size is larger than that of any file"));
        }
        (self.remaining, self.padding) = (size, padding(size));
        Ok(())
    }

    fn skip(&mut self) -> Result<(), ReadError> {
        let left = self.remaining + self.padding as u64;
        (self.remaining, self.padding) = (0, 0);
        let skipped = io::copy(&mut self.input.by_ref().take(left), &mut io::sink())?;
        if skipped == left { Ok(()) } else { Err(ReadError::Cut) }
    }

    /// Reads the content of a header that is about the entry after it.
    fn extension(&mut self) -> Result<Vec<u8>, ReadError> {
        if self.remaining > MAX_EXTENSION {
            return Err(ReadError::Malformed("a header is longer than 1 MiB"));
        }
        let mut content = Vec::new();
        self.input.by_ref().take(self.remaining).read_to_end(&mut content)?;
        if content.len() as u64 != self.remaining {
            return Err(ReadError::Cut);
        }
        self.remaining = 0;
        Ok(content)
    }

    /// The entry of a header, with what the headers before it say.
    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, ReadError> {
        let old = header.as_old();
        let id = |field, id| {
            u32::try_from(number(field, id)?).map_err(|_| ReadError::Malformed("an id in a header is too large"))
        };
        let mut entry = Entry {
            kind: EntryKind::of(header),
            path: extensions.path.unwrap_or_else(|| header.path_bytes().into_owned()),
            link: extensions.link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            mode: u32::try_from(number(&old.mode, header.mode().map(u64::from))? & 0o7777).unwrap_or(0),
            uid: id(&old.uid, header.uid())?,
            gid: id(&old.gid, header.gid())?,
            // A time before the epoch is stored as a negative number.
            modified: Time { seconds: number(&old.mtime, header.mtime())?.cast_signed(), nanoseconds: 0 },
            size: self.remaining,
        };
        for records in [&self.global, &extensions.records] {
            apply(&mut entry, records)?;
        }
        // Other types have no content, whatever size their header states: some programs write that of a link's target.
        if !matches!(entry.kind, EntryKind::File | EntryKind::Sparse | EntryKind::Other(_)) {
            entry.size = 0;
        }
        self.begin(entry.size)?;
        Ok(entry)
    }
}

/// The number in a field of a header. Zero if the field is empty, which the crate `tar` does not accept.
fn number(field: &[u8], parsed: io::Result<u64>) -> Result<u64, ReadError> {
    if field.iter().all(|byte| matches!(*byte, 0 | b' ')) {
        return Ok(0);
    }
    parsed.map_err(|_| ReadError::Malformed("a number in a header is malformed"))
}

/// Applies pax records to an entry.
fn apply(entry: &mut Entry, records: &[u8]) -> Result<(), ReadError> {
    for record in pax::records(records) {
        let (key, value) = record.ok_or(ReadError::Malformed("a pax header is malformed"))?;
        let malformed = || ReadError::Malformed("a number in a pax header is malformed");
        match key {
            b"path" => entry.path = value.to_vec(),
            b"linkpath" => entry.link = value.to_vec(),
            b"size" => entry.size = pax::number(value).ok_or_else(malformed)?,
            b"uid" => entry.uid = pax::number(value).ok_or_else(malformed)?,
            b"gid" => entry.gid = pax::number(value).ok_or_else(malformed)?,
            b"mtime" => entry.modified = pax::time(value).ok_or_else(malformed)?,
            key if key.starts_with(b"GNU.sparse.") => entry.kind = EntryKind::Sparse,
            _ => {}
        }
    }
    Ok(())
}

/// GNU's long names end with a NUL.
fn without_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = memchr::memchr(0, &name) {
        name.truncate(end);
    }
    name
}

/// Checks the sum of a header's bytes, where those of the sum itself count as spaces.
fn check_sum(header: &Header) -> Result<(), ReadError> {
    let bytes = header.as_bytes();
    let sum = |value: fn(u8) -> i64| -> i64 {
        let counted = bytes.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte });
        counted.map(value).sum()
    };
    let stated = header.cksum().ok().map(i64::from);
    // Some old programs summed signed bytes.
    if stated == Some(sum(i64::from)) || stated == Some(sum(|byte| i64::from(byte.cast_signed()))) {
        return Ok(());
    }
    Err(ReadError::Malformed("a header has a wrong checksum"))
}

#[cfg(test)]
mod tests {
    use super::super::entry::pad;
    use super::*;

    fn file(path: &[u8], content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let entry = Entry { path: path.to_vec(), size: content.len() as u64, mode: 0o644, ..Entry::default() };
        entry.write_head(&mut out);
        out.extend_from_slice(content);
        pad(entry.size, &mut out);
        out
    }

    /// Reads all entries with their content.
    fn read_all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, ReadError> {
        let mut reader = EntryReader::new(archive);
        let mut entries = Vec::new();
        while let Some(entry) = reader.next()? {
            let mut content = Vec::new();
            let mut piece = [0; 100];
            loop {
                match reader.read(&mut piece)? {
                    0 => break,
                    read => content.extend_from_slice(&piece[..read]),
                }
            }
            entries.push((entry, content));
        }
        Ok(entries)
    }

    fn ended(parts: &[Vec<u8>]) -> Vec<u8> {
        [&parts.concat()[..], &[0; 1024]].concat()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut entries = Vec::new();
        let kinds = [EntryKind::Directory, EntryKind::Symlink, EntryKind::HardLink, EntryKind::Fifo, EntryKind::Device];
        for (kind, seconds) in kinds.into_iter().zip([0, 1, -5, 1 << 40, i64::MIN / 2]) {
            for length in [1, 99, 100, 101, 255, 5_000] {
                entries.push(Entry {
                    kind,
                    path: vec![b'n'; length],
                    link: if kind == EntryKind::Symlink { vec![b'\n'; length] } else { Vec::new() },
                    mode: 0o4755,
                    uid: 0o10_000_001,
                    gid: 5,
                    modified: Time { seconds, nanoseconds: 7 },
                    size: 0,
                });
            }
        }
        for name in [&b"\xff\n"[..], "\u{e9}".as_bytes(), b"a\nb=c", b" "] {
            entries.push(Entry { kind: EntryKind::Directory, path: name.to_vec(), ..Entry::default() });
        }
        let mut archive = Vec::new();
        entries.iter().for_each(|entry| entry.write_head(&mut archive));
        let read: Vec<_> = read_all(&ended(&[archive])).unwrap().into_iter().map(|(entry, _)| entry).collect();
        assert_eq!(read, entries);
    }

    #[test]
    fn contents_are_read_or_skipped() {
        let archive = ended(&[file(b"a", b"1"), file(b"b", &[7; 512]), file(b"c", b""), file(b"d", &[1; 1300])]);
        let contents: Vec<_> =
            read_all(&archive).unwrap().into_iter().map(|(entry, content)| (entry.path, content)).collect();
        let right = [(&b"a"[..], &b"1"[..]), (b"b", &[7; 512]), (b"c", b""), (b"d", &[1; 1300])];
        assert_eq!(contents, right.map(|(name, content)| (name.to_vec(), content.to_vec())));
        let mut reader = EntryReader::new(&archive[..]);
        for right in [b"a", b"b", b"c", b"d"] {
            assert_eq!(reader.next().unwrap().unwrap().path, right);
        }
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn an_archive_that_is_cut_anywhere_is_noticed() {
        let long = Entry { path: vec![b'n'; 600], ..Entry::default() };
        let mut head = Vec::new();
        long.write_head(&mut head);
        let archive = ended(&[file(b"a", b"1"), head, file(b"b", &[7; 700])]);
        for length in 0..archive.len() - 512 {
            assert!(matches!(read_all(&archive[..length]), Err(ReadError::Cut)), "{length}");
        }
        for length in archive.len() - 512..=archive.len() {
            assert_eq!(read_all(&archive[..length]).unwrap().len(), 3);
        }
    }

    #[test]
    fn what_is_no_archive_is_malformed() {
        let text = b"This is a text, and no archive. ".repeat(64);
        let mut wrong_sum = ended(&[file(b"a", b"")]);
        wrong_sum[0] = b'b';
        for archive in [text, wrong_sum] {
            assert!(matches!(read_all(&archive), Err(ReadError::Malformed(_))));
        }
    }

    #[test]
    fn sizes_and_headers_have_a_limit() {
        let head = |size: u64, flag: EntryType| {
            let mut header = Header::new_gnu();
            header.set_size(size);
            header.set_entry_type(flag);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_cksum();
            ended(&[header.as_bytes().to_vec()])
        };
        for (size, flag) in [
            (1 << 63, EntryType::Regular),
            (u64::MAX, EntryType::Regular),
            (MAX_EXTENSION + 1, EntryType::XHeader),
            (MAX_EXTENSION + 1, EntryType::XGlobalHeader),
            (1 << 62, EntryType::GNULongName),
            (1 << 62, EntryType::GNULongLink),
        ] {
            assert!(matches!(read_all(&head(size, flag)), Err(ReadError::Malformed(_))), "{size}");
        }
        assert!(matches!(read_all(&head((1 << 63) - 1, EntryType::Regular)), Err(ReadError::Cut)));
    }

    #[test]
    fn names_in_the_form_of_gnu_are_read() {
        let long = [b'x'; 300];
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = Header::new_gnu();
        header.set_size(2);
        header.set_entry_type(EntryType::Regular);
        builder.append_data(&mut header, std::str::from_utf8(&long).unwrap(), &b"ab"[..]).unwrap();
        let read = read_all(&builder.into_inner().unwrap()).unwrap();
        assert_eq!((&read[0].0.path[..], &read[0].1[..]), (&long[..], &b"ab"[..]));
    }
}
