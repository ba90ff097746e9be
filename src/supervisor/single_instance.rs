//! Permits at most one supervisor per process: each of two would reap the other's children with `waitpid(2)`.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static RUNNING: AtomicBool = AtomicBool::new(false);

/// Held by the supervisor of this process. Dropping it allows another one.
#[derive(Debug)]
pub(super) struct SingleInstance(());

impl SingleInstance {
    /// Registers the supervisor of this process.
    ///
    /// # Errors
    /// `ResourceBusy` if another one runs.
    pub(super) fn register() -> io::Result<SingleInstance> {
        match RUNNING.swap(true, Ordering::SeqCst) {
            false => Ok(SingleInstance(())),
            true => Err(io::Error::new(io::ErrorKind::ResourceBusy, "another supervisor runs in this process")),
        }
    }
}

impl Drop for SingleInstance {
    fn drop(&mut self) {
        RUNNING.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_supervisor_is_rejected_until_the_first_is_dropped() {
        let first = SingleInstance::register().unwrap();
        assert_eq!(SingleInstance::register().unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        drop(SingleInstance::register().unwrap());
    }
}
