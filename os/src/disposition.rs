//! The signal dispositions of this process (signal(7)).

use std::io;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};

/// Unblocks all signals for the calling thread, whatever mask it was started with, and ignores SIGPIPE for the process:
/// a write into a broken pipe is then an error instead of the end. Rust's own start-up code, if it runs, does the
/// latter.
///
/// # Errors
/// None is known: both calls succeed with these arguments.
pub fn reset() -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // SAFETY: an ignored signal calls no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
    Ok(())
}
