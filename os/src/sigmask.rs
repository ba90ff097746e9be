//! The calling thread's signal mask, including real-time signals, which nix has no names for.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

/// Blocks these signals for the calling thread.
///
/// # Errors
/// EINVAL for a number that is not a signal's.
pub fn block(signals: &[i32]) -> io::Result<()> {
    change(libc::SIG_BLOCK, signals)
}

/// Unblocks these signals for the calling thread. A pending one is delivered before this returns.
///
/// # Errors
/// EINVAL for a number that is not a signal's.
pub fn unblock(signals: &[i32]) -> io::Result<()> {
    change(libc::SIG_UNBLOCK, signals)
}

fn change(how: libc::c_int, signals: &[i32]) -> io::Result<()> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is valid for writing, which is all that this call does with it.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: `sigemptyset` has initialised the set. A number that is no signal's is refused.
        if unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the set is initialised and valid for reading; a null pointer asks for no copy of the old one.
    match unsafe { libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Blocks all signals for the calling thread while it lives. Dropping it restores the mask.
pub(crate) struct BlockedSignals {
    before: libc::sigset_t,
    /// The mask is a thread's own: this must be dropped by the thread that made it.
    not_send: std::marker::PhantomData<*const ()>,
}

impl BlockedSignals {
    /// Blocks all signals.
    pub(crate) fn all() -> io::Result<BlockedSignals> {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: `all` is valid for writing, which is all that this call does with it.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: `sigfillset` has initialised `all`, and `before` is valid for writing.
        match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) } {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        // SAFETY: the call above succeeded, so it has written the old mask.
        let before = unsafe { before.assume_init() };
        Ok(BlockedSignals { before, not_send: std::marker::PhantomData })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: `before` is a mask that the kernel gave, valid for reading; a null pointer asks for no copy.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::{SigSet, Signal};

    use super::*;

    #[test]
    fn blocking_all_signals_ends_with_the_guard() {
        let is_blocked = || SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR1);
        unblock(&[libc::SIGUSR1]).unwrap();
        let guard = BlockedSignals::all().unwrap();
        assert!(is_blocked());
        drop(guard);
        assert!(!is_blocked());
    }

    #[test]
    fn a_number_that_is_no_signal_is_refused() {
        for number in [-1, 0, 65, i32::MAX] {
            assert_eq!(block(&[number]).unwrap_err().raw_os_error(), Some(libc::EINVAL), "{number}");
        }
    }
}
