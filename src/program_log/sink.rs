//! Standard output and standard error, written to without blocking for longer than the caller permits.
//!
//! Either can be a pipe that is not read, or a stopped console. Neither is set to O_NONBLOCK, because the main process
//! shares them.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use tl_os::poll::{self, Events};

/// Maximum number of bytes of one write: as many as a pipe that is ready for writing takes at once (PIPE_BUF, pipe(7)).
pub const MAX_WRITE: usize = 4096;

/// Standard output or standard error.
#[derive(Debug)]
pub struct Sink {
    is_stdout: bool,
    /// If it is a terminal, that terminal opened again with O_NONBLOCK. Unlike a pipe, a terminal can take the beginning
    /// of a line and block on the rest.
    terminal: Option<File>,
}

impl Sink {
    /// Standard output.
    #[must_use]
    pub fn stdout() -> Sink {
        Sink { is_stdout: true, terminal: reopened(io::stdout().is_terminal(), "/proc/self/fd/1") }
    }

    /// Standard error.
    #[must_use]
    pub fn stderr() -> Sink {
        Sink { is_stdout: false, terminal: reopened(io::stderr().is_terminal(), "/proc/self/fd/2") }
    }

    /// Waits until it can be written to, or has failed; until `deadline` at most. Returns whether it can be.
    #[must_use]
    pub fn wait(&self, deadline: Option<Instant>) -> bool {
        let ready = self.with_fd(|fd| poll::wait([(fd, Events::WRITE)], deadline));
        ready.is_ok_and(|[events]| events != Events::NONE)
    }

    /// Calls `work` with the descriptor.
    pub fn with_fd<T>(&self, work: impl FnOnce(BorrowedFd<'_>) -> T) -> T {
        if self.is_stdout { work(io::stdout().as_fd()) } else { work(io::stderr().as_fd()) }
    }

    /// Writes bytes, [`MAX_WRITE`] at most, after [`Sink::wait`] has returned true. Returns how many were written: a
    /// terminal can take fewer.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.terminal {
            Some(terminal) => terminal.write(bytes),
            // Not through std's buffer of stdout, which would hold a lock and keep what was not written.
            None if self.is_stdout => Ok(nix::unistd::write(io::stdout(), bytes)?),
            None => Ok(nix::unistd::write(io::stderr(), bytes)?),
        }
    }

    /// Like [`Sink::write`], but an error if not all was written.
    ///
    /// # Errors
    /// What `write(2)` says, or [`io::ErrorKind::WriteZero`].
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.write(bytes)? < bytes.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }
}

fn reopened(is_terminal: bool, path: &str) -> Option<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    is_terminal.then(|| options.open(path).ok()).flatten()
}
