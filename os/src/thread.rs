//! Starts threads: each has a name, blocks all signals, and reports its own panic. Tells which of them hang.

mod pulse;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

pub use pulse::{ThreadState, idle, states};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Stack size of a thread in bytes: several times what any thread of the programs needs. Only pages in use take memory.
const STACK: usize = 256 << 10;

/// Starts a thread with all signals blocked, so that signal handlers run only in the threads that are meant for them.
/// If the thread ends by an error or a panic, `died` is called in it; an error is logged, a panic is left to the panic
/// hook.
///
/// # Errors
/// When the system has no thread left.
pub fn spawn(
    name: &str,
    body: impl FnOnce() -> io::Result<()> + Send + 'static,
    died: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let thread_name = name.to_owned();
    Builder::new().name(thread_name.clone()).stack_size(STACK).spawn(move || {
        if let Err(errno) = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None) {
            log::warn!("thread {thread_name} cannot block signals: {errno}");
        }
        let _running = pulse::Running::begin(&thread_name);
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                log::error!("thread {thread_name} ended: {error}");
                died();
            }
            Err(_) => died(),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    #[test]
    fn a_panic_is_caught_and_reported() {
        let (tell, told) = bounded(1);
        let thread = spawn("doomed", || panic!("on purpose"), move || tell.send("died").unwrap()).unwrap();
        assert_eq!(told.recv(), Ok("died"));
        thread.join().expect("the panic was caught");
    }

    #[test]
    fn an_error_is_reported() {
        let (tell, told) = bounded(1);
        let died = move || tell.send("died").unwrap();
        spawn("failing", || Err(io::Error::other("on purpose")), died).unwrap().join().unwrap();
        assert_eq!(told.recv(), Ok("died"));
    }

    #[test]
    fn a_thread_blocks_all_signals() {
        let (tell, told) = bounded(1);
        let body = move || {
            tell.send(SigSet::thread_get_mask().unwrap()).unwrap();
            Ok(())
        };
        spawn("quiet", body, || {}).unwrap().join().unwrap();
        assert!(told.recv().unwrap().contains(nix::sys::signal::Signal::SIGCHLD));
    }
}
