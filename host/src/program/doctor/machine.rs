//! Checks that need no engine.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{AccessFlags, access};

use super::elf;
use super::finding::{Finding, Verdict};
use crate::program::config::Config;
use crate::program::outcome::Failure;
use crate::program::{paths, setup};

/// The static tl-init, if there is one.
pub(super) fn init(config: &Config, show: &mut impl FnMut(Finding)) -> Option<PathBuf> {
    let found = match &config.init {
        Some(path) => paths::existing("--init", path),
        None => paths::init(),
    };
    let path = match found {
        Ok(path) => path,
        Err(sentence) => {
            show(Finding::missing("tl-init", sentence));
            return None;
        }
    };
    let shown = path.display();
    let finding = match elf::read(&path) {
        Ok(Some(program)) if program.is_static => {
            Finding::ok("tl-init", format!("{shown}, static, {}", program.architecture))
        }
        Ok(Some(_)) => Finding::missing(
            "tl-init",
            format!("{shown} is not static, so most images cannot run it; `make static` builds dist/tl-init"),
        ),
        Ok(None) => Finding::missing("tl-init", format!("{shown} is not a program; `make static` builds dist/tl-init")),
        Err(error) => Finding::missing("tl-init", format!("{shown}: {error}")),
    };
    let is_usable = finding.verdict == Verdict::Ok;
    show(finding);
    is_usable.then_some(path)
}

/// The directory of the records, and the two ports. All are in use if tl-host runs.
pub(super) fn state_and_ports(config: &Config, show: &mut impl FnMut(Finding)) {
    let directory = match setup::state_dir(config) {
        Ok(directory) => directory,
        Err(Failure::Usage(sentence) | Failure::Failed(sentence)) => {
            return show(Finding::missing("state", sentence));
        }
    };
    let shown = directory.display();
    if is_locked(&directory) {
        return show(Finding::ok("state", format!("{shown}: tl-host runs with it")));
    }
    show(match writable(&directory) {
        Ok(()) => Finding::ok("state", format!("{shown} can be used")),
        Err(error) => Finding::missing("state", format!("{shown}: {error}; --state-dir names another directory")),
    });
    for (subject, option, address) in [("API port", "--api", config.api), ("proxy port", "--proxy", config.proxy)] {
        show(port(subject, option, address));
    }
}

fn is_locked(directory: &Path) -> bool {
    let Ok(lock) = File::open(directory.join("lock")) else { return false };
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).is_err()
}

/// Whether files can be made in the directory, or the directory itself.
fn writable(directory: &Path) -> io::Result<()> {
    let existing = directory.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(directory);
    if !existing.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(access(existing, AccessFlags::W_OK | AccessFlags::X_OK)?)
}

fn port(subject: &'static str, option: &str, address: SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(subject, format!("{address} is free")),
        Err(error) => Finding::missing(
            subject,
            format!("{address}: {error}; `ss -ltnp` shows who listens there, {option} names another address"),
        ),
    }
}

/// Connections through the proxy need two descriptors each.
pub(super) fn descriptors(show: &mut impl FnMut(Finding)) {
    const ENOUGH: u64 = 1024;
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard);
    show(if limit >= ENOUGH {
        Finding::ok("descriptors", format!("up to {limit} may be open"))
    } else {
        Finding::warning(
            "descriptors",
            format!("only {limit} may be open, two for each connection; `ulimit -Hn` as root raises the limit"),
        )
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_can_be_made_is_usable() {
        let directory = tempfile::tempdir().unwrap();
        assert!(writable(&directory.path().join("a/b")).is_ok());
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(writable(&file).is_err() && writable(&file.join("a")).is_err());
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let finding = port("API port", "--api", address).to_string();
        assert!(finding.starts_with(&format!("missing  API port: {address}: Address already in use")), "{finding}");
        drop(listener);
        assert_eq!(port("API port", "--api", address).to_string(), format!("ok       API port: {address} is free"));
    }
}
