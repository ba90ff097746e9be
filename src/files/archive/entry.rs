//! What an archive says of an entry, and the header blocks in which it stands.

use tar::{EntryType, Header};

use super::pax;

/// The unit of a tar archive, in bytes.
pub(super) const BLOCK: usize = 512;

/// Longest name that a header block holds.
const MAX_NAME: usize = 100;

/// Largest size and largest id that a header block holds in octal digits.
const MAX_SIZE: u64 = 0o77_777_777_777;
const MAX_ID: u32 = 0o7_777_777;

/// A modification time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Time {
    /// Seconds since the epoch, rounded down.
    pub(super) seconds: i64,
    /// Nanoseconds after that, less than a second.
    pub(super) nanoseconds: u32,
}

/// The type of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum EntryKind {
    #[default]
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
    /// A file with holes, in GNU's form.
    Sparse,
    /// The type flag of anything else.
    Other(u8),
}

/// An entry without its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: EntryKind,
    pub(super) path: Vec<u8>,
    /// The target of a symlink; the path of the entry that a hard link links to.
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) modified: Time,
    /// Bytes of content that follow the header.
    pub(super) size: u64,
}

impl Entry {
    /// Appends the header blocks: the one of the entry, and before it those of a pax header for what does not fit.
    pub(super) fn write_head(&self, out: &mut Vec<u8>) {
        let mut extended = Vec::new();
        let mut header = Header::new_ustar();
        let is_utf8 = [&self.path, &self.link].iter().all(|name| std::str::from_utf8(name).is_ok());
        if !is_utf8 {
            pax::append(&mut extended, "hdrcharset", b"BINARY");
        }
        let old = header.as_old_mut();
        name_into(&mut old.name, "path", &self.path, &mut extended);
        name_into(&mut old.linkname, "linkpath", &self.link, &mut extended);
        header.set_entry_type(self.kind.flag());
        header.set_mode(self.mode & 0o7777);
        for (id, key, set) in
            [(self.uid, "uid", Header::set_uid as fn(&mut Header, u64)), (self.gid, "gid", Header::set_gid)]
        {
            if id > MAX_ID {
                pax::append(&mut extended, key, id.to_string().as_bytes());
            }
            set(&mut header, id.min(MAX_ID).into());
        }
        if self.size > MAX_SIZE {
            pax::append(&mut extended, "size", self.size.to_string().as_bytes());
        }
        header.set_size(self.size.min(MAX_SIZE));
        let whole = u64::try_from(self.modified.seconds).ok().filter(|seconds| *seconds <= MAX_SIZE);
        if whole.is_none() || self.modified.nanoseconds > 0 {
            pax::append(&mut extended, "mtime", pax::time_text(self.modified).as_bytes());
        }
        header.set_mtime(whole.unwrap_or(0));
        header.set_cksum();
        if !extended.is_empty() {
            write_extended(&extended, out);
        }
        out.extend_from_slice(header.as_bytes());
    }
}

/// Puts a name into a field of a header, and into a pax header if it does not fit or is not ASCII.
fn name_into(field: &mut [u8; MAX_NAME], key: &str, name: &[u8], extended: &mut Vec<u8>) {
    if name.len() > MAX_NAME || !name.is_ascii() {
        pax::append(extended, key, name);
    }
    field.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
}

/// Appends a pax header with these records.
fn write_extended(records: &[u8], out: &mut Vec<u8>) {
    let mut header = Header::new_ustar();
    name_into(&mut header.as_old_mut().name, "path", b"././@PaxHeader", &mut Vec::new());
    header.set_entry_type(EntryType::XHeader);
    header.set_mode(0o644);
    header.set_size(records.len() as u64);
    header.set_cksum();
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(records);
    pad(records.len() as u64, out);
}

/// Appends the zeros that fill the last block of a content of `size` bytes.
pub(super) fn pad(size: u64, out: &mut Vec<u8>) {
    out.resize(out.len() + padding(size), 0);
}

/// Number of zeros that fill the last block of a content of `size` bytes.
pub(super) fn padding(size: u64) -> usize {
    let last = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    if last == 0 { 0 } else { BLOCK - last }
}

impl EntryKind {
    /// The type that a header has.
    pub(super) fn of(header: &Header) -> EntryKind {
        match header.entry_type() {
            // Before POSIX, a slash at the end of the name was all that told a directory.
            EntryType::Regular if header.path_bytes().ends_with(b"/") => EntryKind::Directory,
            EntryType::Regular | EntryType::Continuous => EntryKind::File,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => EntryKind::Symlink,
            EntryType::Link => EntryKind::HardLink,
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::Char | EntryType::Block => EntryKind::Device,
            EntryType::GNUSparse => EntryKind::Sparse,
            other => EntryKind::Other(other.as_byte()),
        }
    }

    fn flag(self) -> EntryType {
        match self {
            EntryKind::File => EntryType::Regular,
            EntryKind::Directory => EntryType::Directory,
            EntryKind::Symlink => EntryType::Symlink,
            EntryKind::HardLink => EntryType::Link,
            EntryKind::Fifo => EntryType::Fifo,
            EntryKind::Device => EntryType::Char,
            EntryKind::Sparse => EntryType::GNUSparse,
            EntryKind::Other(flag) => EntryType::new(flag),
        }
    }
}
