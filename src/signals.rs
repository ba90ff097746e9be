//! The signals thread: turns signals into calls, outside of any handler.

use std::io;
use std::thread::JoinHandle;

use nix::sys::signal::{SigSet, Signal};
use signal_hook::iterator::{Handle, Signals};

use crate::worker;

/// The thread; ends and is joined on drop.
#[derive(Debug)]
pub struct SignalThread {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl SignalThread {
    /// Takes over `signals`; calls `notice` for each that comes. Several of a kind that are pending count as one.
    ///
    /// They are unblocked for the calling thread, which must live as long as this: one that was started with signals
    /// blocked would never hear of them otherwise.
    ///
    /// # Errors
    /// When a signal cannot be taken over, or the kernel gives no thread.
    pub fn start(
        signals: &[i32],
        mut notice: impl FnMut(i32) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<SignalThread> {
        let mine: SigSet = signals.iter().filter_map(|signal| Signal::try_from(*signal).ok()).collect();
        mine.thread_unblock()?;
        let mut signals = Signals::new(signals)?;
        let handle = signals.handle();
        let body = move || {
            for signal in signals.forever() {
                notice(signal);
            }
            Ok(())
        };
        let thread = worker::spawn("signals", body, died)?;
        Ok(SignalThread { handle, thread: Some(thread) })
    }
}

impl Drop for SignalThread {
    fn drop(&mut self) {
        self.handle.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
