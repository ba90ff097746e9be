//! The path of a request, made absolute.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::FileError;

/// An absolute path without a NUL character and without `..`. Its symlinks are not resolved; the kernel follows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath(Vec<u8>);

impl FilePath {
    /// Parses `text`. A relative path is below `home`.
    ///
    /// # Errors
    /// [`FileError::Invalid`] for an empty text and for a NUL character, [`FileError::Traversal`] for a component `..`.
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

    /// The path for messages, with U+FFFD in place of bytes that are not UTF-8.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }

    /// The path for system calls.
    pub(super) fn as_os_str(&self) -> &OsStr {
        OsStr::from_bytes(&self.0)
    }
}

/// Splits a path into a directory and a name in it. The name is `None` if the path has the form of a directory's (`/`,
/// `a/`, `a/.`).
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
    fn a_relative_path_is_below_home_and_an_absolute_path_is_unchanged() {
        for (text, expected) in [
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
            assert_eq!(FilePath::parse(text.as_bytes(), "/home/u").unwrap().shown(), expected, "{text:?}");
        }
        assert_eq!(FilePath::parse(b"/\xff", "/").unwrap(), FilePath(b"/\xff".to_vec()));
    }

    #[test]
    fn invalid_paths_are_rejected() {
        for text in [&b""[..], b"\0", b"/etc/passwd\0.txt"] {
            assert!(matches!(FilePath::parse(text, "/"), Err(FileError::Invalid(_))), "{text:?}");
        }
        for text in ["..", "/..", "../a", "/a/../b", "/a/..", "a/../", "/../../etc/shadow", "/a//..//b"] {
            assert!(matches!(FilePath::parse(text.as_bytes(), "/"), Err(FileError::Traversal(_))), "{text:?}");
        }
    }

    #[test]
    fn a_path_is_split_into_directory_and_name() {
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
