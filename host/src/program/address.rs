//! The file of the state directory with the address of the API, by which `tl-host stop` finds the tl-host that runs.
//!
//! The API key is sent only to that tl-host. After SIGKILL the file stays, and anybody can listen on the port. So the
//! program that has written the file holds a lock on it (flock(2)) as long as it listens: the kernel gives the lock up
//! when the program ends, however it ends. Whoever has connected and then finds the file locked is connected to that
//! program, because it was listening at the address all the time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use tl_os::random;

/// The name of the file.
pub(crate) const FILE: &str = "address";

/// The file of a tl-host that runs. It is removed when this is dropped, which must be before the API stops to listen.
#[derive(Debug)]
pub(crate) struct Announced {
    path: PathBuf,
    _lock: Flock<File>,
}

/// Writes the address at which the API listens, whole or not at all.
pub(crate) fn announce(state_dir: &Path, api: SocketAddr) -> io::Result<Announced> {
    let unfinished = state_dir.join(format!("{FILE}.{}", random::hex::<4>()?));
    let path = state_dir.join(FILE);
    let written = write_locked(&unfinished, api).and_then(|lock| fs::rename(&unfinished, &path).map(|()| lock));
    if written.is_err() {
        let _ = fs::remove_file(&unfinished);
    }
    Ok(Announced { path, _lock: written? })
}

fn write_locked(path: &Path, api: SocketAddr) -> io::Result<Flock<File>> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    lock.write_all(format!("{api}\n").as_bytes())?;
    Ok(lock)
}

impl Drop for Announced {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// A connection to the tl-host that runs with this state directory.
///
/// # Errors
/// One sentence: no tl-host runs, or it cannot be reached.
pub(crate) fn connect(state_dir: &Path) -> Result<(SocketAddr, TcpStream), String> {
    let path = state_dir.join(FILE);
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let mut file = File::open(&path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => failed(&"no tl-host listens yet or any more; try again"),
        _ => failed(&error),
    })?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(|error| failed(&error))?;
    let address: SocketAddr = text.trim().parse().map_err(|_| failed(&"it has no address"))?;
    let stream = TcpStream::connect(address);
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {}
        Err((_, errno)) => return Err(failed(&errno)),
        Ok(_) => return Err(failed(&"the tl-host that has written it has ended; try again")),
    }
    let stream = stream.map_err(|error| format!("the tl-host that runs at {address} cannot be reached: {error}"))?;
    Ok((address, stream))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_the_address_of_a_program_that_runs_is_connected_to() {
        let directory = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert!(connect(directory.path()).unwrap_err().contains("no tl-host listens"));
        let announced = announce(directory.path(), address).unwrap();
        assert_eq!(connect(directory.path()).unwrap().0, address);
        // As SIGKILL leaves it: the file stays, and whoever holds the lock is gone.
        let left = fs::read(directory.path().join(FILE)).unwrap();
        drop(announced);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
        fs::write(directory.path().join(FILE), left).unwrap();
        assert!(connect(directory.path()).unwrap_err().contains("has ended"));
        // The next one writes a file of its own.
        let _announced = announce(directory.path(), address).unwrap();
        assert_eq!(connect(directory.path()).unwrap().0, address);
    }
}
