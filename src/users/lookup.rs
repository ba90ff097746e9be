//! Reads `/etc/passwd` and `/etc/group`, again at each call: processes in the sandbox may add users at any time.

use std::path::Path;

use tl_os::regular_file;

use super::passwd::{self, Identity};
use crate::error::Error;
use crate::model::UserSpec;

/// Maximum size of a file, in bytes: enough for about 200,000 users.
const LIMIT: u64 = 16 << 20;

/// Looks up the user named by `spec`. Reads `/etc/group` only if supplementary groups are needed. Blocks while the file
/// system does.
///
/// # Errors
/// Those of `passwd::resolve`, and [`Error::from_io`] for a file that cannot be read. A file that does not exist counts
/// as empty.
pub fn resolve(spec: &UserSpec) -> Result<Identity, Error> {
    resolve_in(spec, Path::new("/etc"))
}

/// The id of a group in `/etc/group`; None if the group has no entry or the file cannot be read.
pub fn group(name: &str) -> Option<u32> {
    passwd::group_id(name, &read(Path::new("/etc/group")).ok()?)
}

fn resolve_in(spec: &UserSpec, dir: &Path) -> Result<Identity, Error> {
    passwd::resolve(spec, &read(&dir.join("passwd"))?, || read(&dir.join("group")))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    match regular_file::read(path, LIMIT) {
        Err(error) if error.is_not_found() => Ok(Vec::new()),
        result => result.map_err(|error| Error::from_io(&format!("reading {}", path.display()), &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use nix::sys::stat::Mode;
    use tempfile::TempDir;

    use super::*;

    fn root() -> UserSpec {
        UserSpec::Name { name: "root".into(), gid: None }
    }

    fn dir(passwd: &str) -> TempDir {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("passwd"), passwd).unwrap();
        dir
    }

    #[test]
    fn root_is_found_in_the_files_of_this_machine() {
        let root = resolve(&root()).unwrap();
        assert_eq!((root.uid, root.gid, root.groups.first()), (0, 0, Some(&0)));
    }

    #[test]
    fn files_are_read_at_each_call_and_may_be_missing() {
        let dir = dir("");
        assert_eq!(resolve_in(&root(), dir.path()), Err(Error::UserNotFound("root".into())));
        fs::write(dir.path().join("passwd"), "root:x:0:0::/root:/bin/sh").unwrap();
        assert_eq!(resolve_in(&root(), dir.path()).unwrap().groups, [0]);
        fs::write(dir.path().join("group"), "wheel:x:10:root").unwrap();
        assert_eq!(resolve_in(&root(), dir.path()).unwrap().groups, [0, 10]);
        fs::remove_file(dir.path().join("passwd")).unwrap();
        assert_eq!(resolve_in(&root(), dir.path()), Err(Error::UserNotFound("root".into())));
    }

    #[test]
    fn a_fifo_or_directory_is_an_error_and_does_not_block() {
        let dir = dir("root:x:0:0::/root:/bin/sh");
        let group = dir.path().join("group");
        nix::unistd::mkfifo(&group, Mode::S_IRWXU).unwrap();
        assert!(matches!(resolve_in(&root(), dir.path()), Err(Error::Internal(_))));
        // The file is not read if the gid is given.
        assert!(resolve_in(&"0:0".parse().unwrap(), dir.path()).is_ok());
        fs::remove_file(&group).unwrap();
        fs::create_dir(&group).unwrap();
        assert!(matches!(resolve_in(&root(), dir.path()), Err(Error::Internal(_))));
    }

    #[test]
    fn a_file_that_is_too_long_is_an_error() {
        let dir = dir("root:x:0:0::/root:/bin/sh");
        let group = File::create(dir.path().join("group")).unwrap();
        group.set_len(LIMIT).unwrap();
        assert!(resolve_in(&root(), dir.path()).is_ok());
        group.set_len(LIMIT + 1).unwrap();
        let error = resolve_in(&root(), dir.path()).unwrap_err();
        assert!(error.to_string().contains("longer than"), "{error}");
    }
}
