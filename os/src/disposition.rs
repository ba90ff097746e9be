//! The signal dispositions of this process (signal(7)).

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

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

/// Whether the process ignores the signal, as one that was started under nohup(1) does with SIGHUP. False for a number
/// that is no signal.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action it changes nothing, and writes the current one to `action`.
    let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: every field is a number or a pointer, for which zeros are valid, as what the kernel has written is.
    let action = unsafe { action.assume_init() };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_recognised() {
        assert!(!is_ignored(libc::SIGURG));
        // SAFETY: an ignored signal calls no handler.
        unsafe { nix::sys::signal::signal(Signal::SIGURG, SigHandler::SigIgn) }.unwrap();
        assert!(is_ignored(libc::SIGURG));
        assert!(!is_ignored(0) && !is_ignored(65));
    }
}
