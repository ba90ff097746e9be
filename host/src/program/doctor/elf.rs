//! What an ELF file says of itself: its architecture, and whether it is static.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The part of a file that has its headers.
const HEAD: u64 = 4096;

/// A program.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// In the words of images: `amd64`.
    pub(super) architecture: &'static str,
    /// It needs no other file to run.
    pub(super) is_static: bool,
}

/// Reads the headers of a file; None if it is no 64-bit little-endian ELF file.
pub(super) fn read(path: &Path) -> io::Result<Option<Program>> {
    let mut head = Vec::new();
    File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    Ok(parse(&head))
}

fn parse(head: &[u8]) -> Option<Program> {
    // Magic, 64-bit, little-endian.
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let architecture = match u16_at(head, 18)? {
        62 => "amd64",
        183 => "arm64",
        243 => "riscv64",
        _ => "another architecture",
    };
    let table = usize::try_from(u64::from_le_bytes(*head.get(32..)?.first_chunk()?)).ok()?;
    let (size, count) = (usize::from(u16_at(head, 54)?), usize::from(u16_at(head, 56)?));
    let mut is_static = true;
    for index in 0..count {
        // PT_INTERP names the dynamic loader.
        let kind = head.get(table.checked_add(index.checked_mul(size)?)?..)?.first_chunk()?;
        is_static &= u32::from_le_bytes(*kind) != 3;
    }
    Some(Program { architecture, is_static })
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_dynamic() {
        let own = read(&std::env::current_exe().unwrap()).unwrap().unwrap();
        assert!(!own.is_static);
        let expected = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
        assert_eq!(own.architecture, expected);
    }

    #[test]
    fn what_is_no_program_is_nothing() {
        assert_eq!(read(Path::new("/etc/passwd")).unwrap(), None);
        assert_eq!(parse(b"\x7fELF\x02\x01"), None);
        assert!(read(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn a_program_without_a_loader_is_static() {
        let mut head = vec![0; 120];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (head[18], head[32], head[54], head[56]) = (183, 64, 56, 1);
        head[64] = 1;
        assert_eq!(parse(&head), Some(Program { architecture: "arm64", is_static: true }));
        head[64] = 3;
        assert_eq!(parse(&head), Some(Program { architecture: "arm64", is_static: false }));
        // Its table is behind the part that was read.
        head[33] = 255;
        assert_eq!(parse(&head), None);
    }
}
