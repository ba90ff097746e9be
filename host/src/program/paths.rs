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
        return Ok(found.clone());
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
    std::path::absolute(path).map_err(|error| format!("{option}: {}: {error}", path.display()))
}
