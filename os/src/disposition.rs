//! What happens to this process at a signal (signal(7)).

use std::io;

use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};

/// A clean start, whatever we were started by: no signal is blocked, and a write into a broken pipe is an error instead
/// of the end. Rust's runtime does the latter before `main`, where it has one.
///
/// # Errors
/// None that the kernel is known to give.
pub fn reset() -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    // SAFETY: nothing is called at the signal: it is ignored.
    unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) }?;
    Ok(())
}
