//! A thread that calls a function for each signal of the process, outside of any signal handler.
//!
//! The kernel delivers a signal of the process to one thread that has it unblocked, and to no other while that one
//! hangs in a system call. So the thread that has it unblocked must do nothing else.

use std::io;
use std::thread::JoinHandle;

use signal_hook::consts::FORBIDDEN;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::iterator::{Handle, SignalsInfo};

use crate::sigmask;
use crate::thread;

/// A signal that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The signal's number.
    pub signal: i32,
    /// The process that sent it; `None` if the kernel did.
    pub sender: Option<Sender>,
}

/// The sender of a signal, as its siginfo names it (sigaction(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its PID; 0 if it is outside of this PID namespace (pid_namespaces(7)).
    pub pid: i32,
    /// Its real UID.
    pub uid: u32,
}

/// The thread. It ends and is joined on drop.
#[derive(Debug)]
pub struct SignalThread {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl SignalThread {
    /// Starts the thread `name`. It calls `notice` for each of `signals` that is received; several pending ones of the
    /// same number count as one. A panic of `notice` costs that signal only.
    ///
    /// Handlers are installed for `signals` in the whole process. The thread has them unblocked. They are blocked for
    /// the calling thread from now on, and should be blocked in every other thread. One that was received while it was
    /// blocked is reported too.
    ///
    /// # Errors
    /// EINVAL for a number that cannot be handled (SIGKILL, SIGSTOP, SIGILL, SIGFPE, SIGSEGV, and what is no signal);
    /// when the system has no descriptor or thread left.
    pub fn start(
        name: &str,
        signals: &[i32],
        mut notice: impl FnMut(Received) + Send + 'static,
    ) -> io::Result<SignalThread> {
        if !signals.iter().all(|signal| can_be_handled(*signal)) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mine = signals.to_vec();
        let mut signals = SignalsInfo::<WithOrigin>::new(signals)?;
        // Only now that there are handlers: before, a pending signal would have its default action, which for PID 1 is
        // none. Unblocking delivers signals that were sent to the calling thread alone; those that were sent to the
        // process are delivered here or in the new thread.
        sigmask::unblock(&mine)?;
        sigmask::block(&mine)?;
        let handle = signals.handle();
        let body = move || {
            sigmask::unblock(&mine)?;
            for origin in signals.forever() {
                let sender = origin.process.map(|process| Sender { pid: process.pid, uid: process.uid });
                thread::fault_point();
                notice(Received { signal: origin.signal, sender });
            }
            Ok(())
        };
        let thread = thread::spawn_persistent(name, body)?;
        Ok(SignalThread { handle, thread: Some(thread) })
    }
}

/// Whether signal-hook takes the signal; it panics for others.
fn can_be_handled(signal: i32) -> bool {
    let is_signal = (1..=31).contains(&signal) || (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&signal);
    is_signal && !FORBIDDEN.contains(&signal)
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
    fn a_signal_that_was_pending_before_the_start_is_reported() {
        let mine = SigSet::from(Signal::SIGUSR2);
        mine.thread_block().unwrap();
        // Its default action would end this process.
        raise(Signal::SIGUSR2).unwrap();
        let (tell, told) = unbounded();
        let notice = move |received: Received| tell.send(received).unwrap();
        let _thread = SignalThread::start("signals", &[libc::SIGUSR2], notice).unwrap();
        let received = told.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(received.signal, libc::SIGUSR2);
        assert_eq!(received.sender.unwrap().pid, std::process::id() as i32);
        assert!(
            SigSet::thread_get_mask().unwrap().contains(Signal::SIGUSR2),
            "it is unblocked in the signal thread only"
        );
    }

    #[test]
    fn a_real_time_signal_is_reported() {
        let signal = libc::SIGRTMIN() + 7;
        let (tell, told) = unbounded();
        let notice = move |received: Received| tell.send(received.signal).unwrap();
        let _thread = SignalThread::start("signals", &[signal], notice).unwrap();
        // SAFETY: it takes two integers; there is a handler for the signal.
        unsafe { libc::kill(std::process::id() as i32, signal) };
        assert_eq!(told.recv_timeout(Duration::from_secs(30)), Ok(signal));
    }

    #[test]
    fn a_signal_that_cannot_be_handled_is_an_error() {
        for signal in [libc::SIGKILL, libc::SIGSTOP, libc::SIGSEGV, 0, 65, -1] {
            let result = SignalThread::start("signals", &[signal], |_| {});
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EINVAL), "{signal}");
        }
    }
}
