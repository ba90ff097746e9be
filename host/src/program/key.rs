//! The API key: from `--key-file`, or made once and kept in the state directory.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::unistd::geteuid;
use tl_os::{random, regular_file};

/// The name of the file in the state directory.
pub(crate) const FILE: &str = "key";

/// Maximum length of a key.
const MAX_KEY: u64 = 4096;

/// What a key that was made here begins with.
const PREFIX: &str = "tl_host_";

/// Reads the key of a file that only its owner can read.
///
/// # Errors
/// One sentence that names the file.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let file = regular_file::open(path).map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if metadata.mode() & 0o077 != 0 {
        return Err(failed(&"other users can read or write it; chmod 600 it"));
    }
    if ![0, geteuid().as_raw()].contains(&metadata.uid()) {
        return Err(failed(&"it belongs to another user"));
    }
    let bytes = regular_file::read_open(file, MAX_KEY).map_err(|error| failed(&error))?;
    let text = String::from_utf8(bytes).map_err(|_| failed(&"it is not text"))?;
    let key = text.trim();
    // It is sent in a header, and printed for a shell.
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic() && !b"'\"\\$`".contains(&byte)) {
        return Err(failed(&"the key must be one line of printable characters without spaces, quotes, $ and \\"));
    }
    Ok(key.to_owned())
}

/// Reads the key of the state directory. Makes the directory and the key first if there are none.
///
/// # Errors
/// One sentence that names the file.
pub(crate) fn read_or_make(state_dir: &Path) -> Result<String, String> {
    let path = state_dir.join(FILE);
    match make(state_dir, &path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(format!("{}: {error}", path.display())),
        _ => read(&path),
    }
}

fn make(state_dir: &Path, path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(state_dir)?;
    if path.exists() {
        return Ok(());
    }
    let key = format!("{PREFIX}{}\n", random::hex::<24>()?);
    // Written whole or not at all: another tl-host may start at the same time.
    let unfinished = state_dir.join(format!("{FILE}.{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(key.as_bytes())?;
    file.sync_all()?;
    let linked = fs::hard_link(&unfinished, path);
    fs::remove_file(&unfinished)?;
    linked
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("a/b");
        let key = read_or_make(&state).unwrap();
        assert!(key.starts_with(PREFIX) && key.len() == PREFIX.len() + 48, "{key}");
        assert_eq!(read_or_make(&state).unwrap(), key);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
        assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_none_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let refused = |text: &[u8], mode: u32, part: &str| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.contains(part) && error.contains("key: "), "{error}");
        };
        refused(b"secret", 0o644, "chmod 600");
        refused(b"", 0o600, "one line");
        refused(b"a b", 0o600, "one line");
        refused(b"a'b", 0o600, "one line");
        refused(b"\xff", 0o600, "not text");
        fs::write(&path, "s3cret\n").unwrap();
        assert_eq!(read(&path).unwrap(), "s3cret");
        assert!(read(&dir.path().join("none")).is_err());
    }
}
