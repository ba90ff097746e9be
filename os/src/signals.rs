//! The signals thread: turns signals into calls, outside of any handler.
//!
//! The kernel delivers a signal of the process to one thread that has it unblocked, and to no other while that one hangs in a
//! system call. So that is a thread that does nothing else.

use std::io;
use std::thread::JoinHandle;

use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};

use crate::sigmask;
use crate::thread;

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
    /// The thread has them unblocked, and they are blocked for the calling thread from now on: every other thread should
    /// have them blocked too. What has come while they were blocked is heard.
    ///
    /// # Errors
    /// When a signal cannot be taken over, or the kernel gives no thread.
    pub fn start(
        signals: &[i32],
        mut notice: impl FnMut(Received) + Send + 'static,
        died: impl FnOnce() + Send + 'static,
    ) -> io::Result<SignalThread> {
        let mine = signals.to_vec();
        let mut signals = SignalsInfo::<WithOrigin>::new(signals)?;
        // Not before: what has come until now would be its default, which for PID 1 is nothing. This hears of what was sent to
        // the calling thread alone; what was sent to the process is for whoever is first.
        sigmask::unblock(&mine)?;
        sigmask::block(&mine)?;
        let handle = signals.handle();
        let body = move || {
            sigmask::unblock(&mine)?;
            for origin in signals.forever() {
                let sender = origin.process.map(|process| Sender { pid: process.pid, uid: process.uid });
                notice(Received { signal: origin.signal, sender });
            }
            Ok(())
        };
        let thread = thread::spawn("signals", body, died)?;
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam_channel::unbounded;
    use nix::sys::signal::{SigSet, Signal, raise};

    use super::*;

    #[test]
    fn what_has_come_before_it_is_heard() {
        let mine = SigSet::from(Signal::SIGUSR2);
        mine.thread_block().unwrap();
        // Its default would be the end of this process.
        raise(Signal::SIGUSR2).unwrap();
        let (tell, told) = unbounded();
        let notice = move |received: Received| tell.send(received).unwrap();
        let _thread = SignalThread::start(&[libc::SIGUSR2], notice, || {}).unwrap();
        let received = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(received.signal, libc::SIGUSR2);
        assert_eq!(received.sender.unwrap().pid, std::process::id() as i32);
        assert!(SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR2), "it is the other thread's");
    }

    #[test]
    fn a_real_time_signal_is_heard() {
        let signal = libc::SIGRTMIN() + 7;
        let (tell, told) = unbounded();
        let notice = move |received: Received| tell.send(received.signal).unwrap();
        let _thread = SignalThread::start(&[signal], notice, || {}).unwrap();
        // SAFETY: no memory involved; there is a handler.
        unsafe { libc::kill(std::process::id() as i32, signal) };
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(signal));
    }
}
