//! What must hold for every stream of bytes that is read as an archive (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic)]

use tar::Header;

use super::entry::{Entry, EntryKind};
use super::name::components;
use super::reader::EntryReader;

/// Checks an input, and the same with the right checksum in every block that looks like a header.
pub(crate) fn archive(input: &[u8]) {
    read(input);
    let mut corrected = input.to_vec();
    for block in corrected.chunks_exact_mut(512).filter(|block| block.get(257..262) == Some(b"ustar")) {
        let mut header = Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
    read(&corrected);
}

/// Reading ends; contents have the size that was announced; an entry that is written again is read as the same entry; safe
/// names stay below the directory.
fn read(input: &[u8]) {
    let mut reader = EntryReader::new(input);
    let mut piece = [0; 1000];
    for at in 0.. {
        let Ok(Some(entry)) = reader.next() else { return };
        names(&entry.path);
        names(&entry.link);
        written_again(&entry);
        if at % 3 == 2 {
            continue;
        }
        let mut size = 0;
        loop {
            match reader.read(&mut piece) {
                Err(_) => return,
                Ok(0) => break,
                Ok(read) => size += read as u64,
            }
        }
        assert_eq!(size, entry.size);
    }
}

fn names(path: &[u8]) {
    if let Ok(names) = components(path) {
        assert!(!path.starts_with(b"/"));
        assert!(names.iter().all(|name| !matches!(*name, b"" | b"." | b"..") && !name.contains(&b'/')));
    }
}

fn written_again(entry: &Entry) {
    // These cannot be written, and neither can a name that ends a field with a NUL.
    if matches!(entry.kind, EntryKind::Sparse | EntryKind::Other(_))
        || entry.path.contains(&0)
        || entry.link.contains(&0)
    {
        return;
    }
    let entry = Entry { size: 0, ..entry.clone() };
    // A slash at the end of its name makes a directory of a file.
    if entry.kind == EntryKind::File && entry.path.ends_with(b"/") {
        return;
    }
    let mut written = Vec::new();
    entry.write_head(&mut written);
    written.resize(written.len() + 1024, 0);
    assert_eq!(EntryReader::new(&written[..]).next().unwrap(), Some(entry));
}
