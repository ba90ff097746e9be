//! The mounts of this mount namespace, from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::kernel_file;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The directory of the file system that is visible at `point`.
    pub root: PathBuf,
    /// The mount point.
    pub point: PathBuf,
    /// The type of the file system.
    pub kind: String,
    /// Options of the file system itself, separated by commas.
    pub options: String,
}

/// Reads all mounts, in the order in which they were made. Returns none if /proc is not mounted.
pub fn read() -> Vec<Mount> {
    parse(&kernel_file::read("/proc/self/mountinfo").unwrap_or_default())
}

/// Parses the text of a `mountinfo`. Paths need not be UTF-8. Malformed lines are skipped.
pub fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    let lines = mountinfo.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, _source, options) = (rest.next()?, rest.next()?, rest.next().unwrap_or_default());
        let path = |field| PathBuf::from(OsString::from_vec(unescaped(field)));
        let text = |field| String::from_utf8_lossy(field).into_owned();
        Some(Mount { root: path(root), point: path(point), kind: text(kind), options: text(options) })
    });
    lines.collect()
}

/// Decodes a field, in which a space, a tab, a newline and a backslash are written as `\` and three octal digits.
fn unescaped(mut field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some((first, rest)) = field.split_first() {
        let code = rest.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                field = rest.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                field = rest;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_and_optional_fields_skipped() {
        let mounts = parse(
            b"20 1 259:0 / / ro,relatime - ext4 /dev/root ro\n\
              25 20 259:2 /a\\040b /my\\040disk\\134\xff rw shared:2 master:3 - cgroup2 cgroup2 rw,nsdelegate\n\
              26 20 0:22 /only half a line\n\
              garbage\n\n",
        );
        let disk = PathBuf::from(OsString::from_vec(b"/my disk\\\xff".to_vec()));
        let right = [("/", "/".into(), "ext4", "ro"), ("/a b", disk, "cgroup2", "rw,nsdelegate")];
        let right = right.map(|(root, point, kind, options)| Mount {
            root: root.into(),
            point,
            kind: kind.to_owned(),
            options: options.to_owned(),
        });
        assert_eq!(mounts, right);
        assert_eq!(parse(b""), []);
    }

    #[test]
    fn a_backslash_without_three_octal_digits_is_kept() {
        for (text, right) in [("a\\9b", "a\\9b"), ("a\\", "a\\"), ("\\777", "\\777"), ("\\0401", " 1")] {
            assert_eq!(unescaped(text.as_bytes()), right.as_bytes(), "{text}");
        }
    }
}
