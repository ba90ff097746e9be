//! SIGCHLD: says that a child has ended or, if it is traced, has stopped.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use signal_hook::SigId;
use signal_hook::low_level::{register, unregister};

use crate::bell::Bell;
use crate::sigmask;

/// A handler for SIGCHLD that rings a bell. It is removed when this is dropped.
#[derive(Debug)]
pub struct ChildSignal {
    id: SigId,
    received: Arc<AtomicBool>,
}

impl ChildSignal {
    /// Installs the handler. It runs in any thread that has SIGCHLD unblocked. SIGCHLD is blocked for the calling
    /// thread from now on; a thread that never hangs in a system call must [unblock](ChildSignal::unblock) it.
    ///
    /// # Errors
    /// What `sigaction(2)` says.
    pub fn register(bell: Arc<Bell>) -> io::Result<ChildSignal> {
        let received = Arc::new(AtomicBool::new(false));
        let in_handler = Arc::clone(&received);
        let handler = move || {
            let errno = Errno::last_raw();
            in_handler.store(true, Ordering::Release);
            bell.ring();
            Errno::set_raw(errno);
        };
        // SAFETY: the handler stores to an atomic, and rings the bell, which writes to a descriptor at most; it
        // restores `errno`. It neither allocates nor panics.
        let id = unsafe { register(libc::SIGCHLD, handler) }?;
        let signal = ChildSignal { id, received };
        sigmask::block(&[libc::SIGCHLD])?;
        Ok(signal)
    }

    /// Unblocks SIGCHLD for the calling thread, so that the handler can run in it. A pending signal is delivered before
    /// this returns.
    ///
    /// # Errors
    /// What `sigprocmask(2)` says.
    pub fn unblock(&self) -> io::Result<()> {
        sigmask::unblock(&[libc::SIGCHLD])
    }

    /// Whether a signal was received since the last call of [`ChildSignal::take`].
    pub fn is_received(&self) -> bool {
        self.received.load(Ordering::Acquire)
    }

    /// Whether a signal was received since the last call. Children are waited for after this: one that ends later
    /// causes another signal.
    pub fn take(&self) -> bool {
        self.is_received() && self.received.swap(false, Ordering::AcqRel)
    }
}

impl Drop for ChildSignal {
    fn drop(&mut self) {
        unregister(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, raise};

    use super::*;

    #[test]
    fn a_signal_ends_the_sleep_of_the_thread_that_has_it_unblocked() {
        let bell = Arc::new(Bell::new().unwrap());
        let children = ChildSignal::register(Arc::clone(&bell)).unwrap();
        raise(Signal::SIGCHLD).unwrap();
        assert!(!children.is_received(), "it is blocked for the thread that has installed the handler");
        children.unblock().unwrap();
        assert!(children.take() && !children.is_received());
        let deadline = Instant::now() + Duration::from_secs(30);
        let other = std::process::Command::new("/bin/true").spawn();
        while !children.is_received() {
            assert!(Instant::now() < deadline);
            bell.sleep_unless(|| children.is_received(), Some(deadline)).unwrap();
        }
        other.unwrap().wait().unwrap();
    }
}
