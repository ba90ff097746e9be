//! The signal dispositions of this process (signal(7)).

use std::io;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};

/// Unblocks all signals for the calling thread, whatever mask it was started with, and ignores SIGPIPE for the process:
/// a write to a broken pipe then returns an error instead of ending the process. Rust's own start-up code, if it runs,
/// ignores SIGPIPE too.
///
/// # Errors
/// None is known: both calls succeed with these arguments.
pub fn reset() -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // SAFETY: an ignored signal calls no handler.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
    Ok(())
}
