//! What must hold for every path of a request (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic)]

use std::os::unix::ffi::OsStrExt;

use super::FileError;
use super::path::{FilePath, split};

/// A path is absolute, ends as the request says, and cannot lead out of the directory that it begins with.
pub(crate) fn file_path(text: &[u8], home: &str) {
    let has_parent = text.split(|byte| *byte == b'/').any(|component| component == b"..");
    let path = match FilePath::parse(text, home) {
        Err(FileError::Invalid(_)) => return assert!(text.is_empty() || text.contains(&0)),
        Err(FileError::Traversal(_)) => return assert!(has_parent),
        Err(error) => panic!("{error:?}"),
        Ok(path) => path,
    };
    let bytes = path.as_os_str().as_bytes();
    assert!(!has_parent && !bytes.contains(&0) && bytes.starts_with(b"/") && bytes.ends_with(text), "{path:?}");
    assert!(text.starts_with(b"/") || bytes.starts_with(home.as_bytes()), "{path:?}");
    let (dir, name) = split(path.as_os_str());
    match name {
        Some(name) => {
            assert!(!matches!(name.as_bytes(), b"" | b"." | b"..") && !name.as_bytes().contains(&b'/'));
            assert_eq!([dir.as_bytes(), name.as_bytes()].concat(), bytes);
            assert_eq!(split(dir).1, None);
        }
        None => assert!(bytes.ends_with(b"/") || bytes.ends_with(b"/."), "{path:?}"),
    }
    assert_eq!(path.shown().as_bytes() == bytes, std::str::from_utf8(bytes).is_ok());
}
