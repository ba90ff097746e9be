//! Files whose content the kernel makes while they are read, as in /proc and in cgroups.
//!
//! Their size is 0, so the functions of std read them in small steps: 32 bytes, then 32, 64, 128 and so on. These
//! functions read most of them with two calls of `read(2)`, of which the second finds the end.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Bytes to read at once. The kernel returns at most a page for each read of most of these files (its fs/seq_file.c).
const PAGE: usize = 4096;

/// Reads a whole file.
///
/// # Errors
/// If the file cannot be opened or read.
pub(crate) fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(PAGE);
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a whole file that must be UTF-8.
///
/// # Errors
/// If the file cannot be opened or read, or is not UTF-8.
pub(crate) fn read_to_string(path: impl AsRef<Path>) -> io::Result<String> {
    rest_to_string(File::open(path)?)
}

/// Reads an open file to its end, which must be UTF-8.
///
/// # Errors
/// If the file cannot be read, or is not UTF-8.
pub(crate) fn rest_to_string(mut file: File) -> io::Result<String> {
    let mut text = String::with_capacity(PAGE);
    file.read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        let text = "0123456789abcdef".repeat(4096);
        std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        assert_eq!(rest_to_string(file).unwrap(), text);
        assert!(read("/proc/self/mountinfo").unwrap().ends_with(b"\n"));
        assert_eq!(read_to_string("/proc/sys/kernel/ostype").unwrap(), "Linux\n");
        assert_eq!(read("/proc/self/none").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
