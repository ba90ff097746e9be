//! The calling thread's signal mask, real-time signals included, for which nix has no names.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Blocks these signals for the calling thread.
///
/// # Errors
/// What `pthread_sigmask(3)` says.
pub fn block(signals: &[i32]) -> io::Result<()> {
    change(libc::SIG_BLOCK, signals)
}

/// Unblocks these signals for the calling thread: what is pending is delivered before this returns.
///
/// # Errors
/// What `pthread_sigmask(3)` says.
pub fn unblock(signals: &[i32]) -> io::Result<()> {
    change(libc::SIG_UNBLOCK, signals)
}

fn change(how: libc::c_int, signals: &[i32]) -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is valid for writing.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set is initialised and valid for writing. A number that is none is refused.
        if unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the set is valid for reading; nothing is to be written.
    match unsafe { libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}
