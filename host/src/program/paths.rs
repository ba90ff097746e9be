//! The state directory and the static tl-init, where no option names them.

use std::env;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;

/// The state directory of root.
const STATE: &str = "/var/lib/tl-host";

/// Where packages install tl-init.
const INIT: &str = "/usr/lib/tl-init/tl-init";

/// The state directory: [`STATE`] for root, else `$XDG_STATE_HOME/tl-host`.
///
/// # Errors
/// One sentence if the environment names no home directory.
pub(crate) fn state_dir() -> Result<PathBuf, String> {
    if geteuid().is_root() {
        return Ok(PathBuf::from(STATE));
    }
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    base.map(|base| base.join("tl-host")).ok_or_else(|| "--state-dir: neither it nor HOME is given".to_owned())
}

/// The static tl-init: beside this program, or where packages install it.
///
/// # Errors
/// One sentence that names the places.
pub(crate) fn init() -> Result<PathBuf, String> {
    let own = env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(|dir| dir.join("tl-init"));
    let places: Vec<PathBuf> = beside.into_iter().chain([PathBuf::from(INIT)]).collect();
    if let Some(found) = places.iter().find(|place| place.is_file()) {
        return utf8("--init", found.clone());
    }
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    Err(format!("--init: there is no tl-init at {}; `make static` builds one", places.join(" or ")))
}

/// A file that must exist, as an absolute path: the engine mounts it.
///
/// # Errors
/// One sentence that names it.
pub(crate) fn existing(option: &str, path: &Path) -> Result<PathBuf, String> {
    if !path.is_file() {
        return Err(format!("{option}: {} is not a file", path.display()));
    }
    let path = std::path::absolute(path).map_err(|error| format!("{option}: {}: {error}", path.display()))?;
    utf8(option, path)
}

/// A path that the engine can be told: its API is JSON, whose text is UTF-8.
///
/// # Errors
/// One sentence that names it.
pub(crate) fn utf8(option: &str, path: PathBuf) -> Result<PathBuf, String> {
    if path.to_str().is_none() {
        return Err(format!("{option}: {} is not UTF-8, and the engine takes no other path", path.display()));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_path_that_is_not_utf8_is_refused_by_a_sentence() {
        let directory = tempfile::tempdir().unwrap();
        let odd = directory.path().join(OsStr::from_bytes(b"odd-\xff"));
        std::fs::write(&odd, "").unwrap();
        let sentence = existing("--init", &odd).unwrap_err();
        assert!(sentence.starts_with("--init: ") && sentence.contains("is not UTF-8"), "{sentence}");
        assert!(existing("--init", &directory.path().join("none")).unwrap_err().contains("is not a file"));
    }
}
