//! The signals thread: turns signals into calls, outside of any handler.

use std::io;
use std::thread::JoinHandle;

use nix::sys::signal::{SigSet, Signal};
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};

use crate::worker;

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// The process that sent it; none where the kernel did.
    pub sender: Option<Sender>,
}

/// Who has sent a signal, as siginfo tells it (sigaction(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its PID; 0 where it is outside of our PID namespace (pid_namespaces(7)).
    pub pid: i32,
    /// Its real UID.
    pub uid: u32,
}

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
        mut notice: impl FnMut(Received) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<SignalThread> {
        let mine: SigSet = signals.iter().filter_map(|signal| Signal::try_from(*signal).ok()).collect();
        mine.thread_unblock()?;
        let mut signals = SignalsInfo::<WithOrigin>::new(signals)?;
        let handle = signals.handle();
        let body = move || {
            for origin in signals.forever() {
                let sender = origin.process.map(|process| Sender { pid: process.pid, uid: process.uid });
                notice(Received { signal: origin.signal, sender });
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
