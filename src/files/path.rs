//! A path as it was sent, made absolute.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::FileError;

/// An absolute path without a NUL and without `..`. Not resolved: symlinks are the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(Vec<u8>);

impl FilePath {
    /// Reads `text`; a relative one is below `home`.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for an empty one and one with a NUL, [`FileError::Traversal`] for a component `..`.
    pub fn parse(text: &[u8], home: &str) -> Result<FilePath, FileError> {
        if text.is_empty() {
            return Err(FileError::Invalid("must not be empty".to_owned()));
        }
        if text.contains(&0) {
            return Err(FileError::Invalid("must not contain a NUL character".to_owned()));
        }
        if text.split(|byte| *byte == b'/').any(|component| component == b"..") {
            return Err(FileError::Traversal(String::from_utf8_lossy(text).into_owned()));
        }
        Ok(FilePath(match text.first() {
            Some(b'/') => text.to_vec(),
            _ => [home.as_bytes(), b"/", text].concat(),
        }))
    }

    /// For a person to read.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    pub(super) fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

/// The directory and the name in it; no name where the path names a directory by its form (`/`, `a/`, `a/.`).
pub(super) fn split(path: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = path.as_bytes();
    let (dir, name) = match memchr::memrchr(b'/', bytes) {
        Some(at) => bytes.split_at(at + 1),
        None => (&b"."[..], bytes),
    };
    let name = (!matches!(name, b"" | b"." | b"..")).then(|| OsStr::from_bytes(name));
    (OsStr::from_bytes(dir), name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (text, right) in [
            ("/etc/passwd", "/etc/passwd"),
            ("a", "/home/u/a"),
            ("./a//b/.", "/home/u/./a//b/."),
            ("/", "/"),
            ("//x", "//x"),
            (" ", "/home/u/ "),
            ("~/a", "/home/u/~/a"),
            ("/a..b/...", "/a..b/..."),
            ("..a", "/home/u/..a"),
            ("/a\n\u{e9}\\", "/a\n\u{e9}\\"),
        ] {
            assert_eq!(FilePath::parse(text.as_bytes(), "/home/u").unwrap().shown(), right, "{text:?}");
        }
        assert_eq!(FilePath::parse(b"/\xff", "/").unwrap(), FilePath(b"/\xff".to_vec()));
    }

    #[test]
    fn what_is_no_path() {
        for text in [&b""[..], b"\0", b"/etc/passwd\0.txt"] {
            assert!(matches!(FilePath::parse(text, "/"), Err(FileError::Invalid(_))), "{text:?}");
        }
        for text in ["..", "/..", "../a", "/a/../b", "/a/..", "a/../", "/../../etc/shadow", "/a//..//b"] {
            assert!(matches!(FilePath::parse(text.as_bytes(), "/"), Err(FileError::Traversal(_))), "{text:?}");
        }
    }

    #[test]
    fn directory_and_name() {
        for (path, dir, name) in [
            ("/a/b", "/a/", Some("b")),
            ("/a", "/", Some("a")),
            ("a", ".", Some("a")),
            ("../a", "../", Some("a")),
            ("/", "/", None),
            ("/a/", "/a/", None),
            ("/a/.", "/a/", None),
            ("/a/..", "/a/", None),
            ("..", ".", None),
            ("", ".", None),
            ("/a/...", "/a/", Some("...")),
        ] {
            assert_eq!(split(OsStr::new(path)), (OsStr::new(dir), name.map(OsStr::new)), "{path:?}");
        }
    }
}
