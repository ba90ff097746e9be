//! Threads: each is named, blocks all signals, and its panic is an event instead of the end of the process.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Bytes of stack for a thread: deep enough for any of ours, with room to spare. Only what is touched takes memory.
const STACK: usize = 256 << 10;

/// Starts a thread with all signals blocked: handlers run where somebody waits for them, and a child forked here has
/// none that could run before it has put its dispositions right. Where it ends by a panic (whose words are the panic
/// hook's to tell) or an error, `died` is called.
///
/// # Errors
/// When the kernel gives no thread.
pub fn spawn(
    name: &str,
    body: impl FnOnce() -> io::Result<()> + Send + 'static,
    died: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let thread_name = name.to_owned();
    Builder::new().name(thread_name.clone()).stack_size(STACK).spawn(move || {
        if let Err(errno) = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None) {
            log::warn!("{thread_name}: cannot block signals: {errno}");
        }
        match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                log::error!("the thread {thread_name} has ended: {error}");
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
    fn a_panic_is_an_event() {
        let (tell, told) = bounded(1);
        let thread = spawn("doomed", || panic!("on purpose"), move || tell.send("died").unwrap()).unwrap();
        assert_eq!(told.recv(), Ok("died"));
        thread.join().expect("the panic was caught");
    }

    #[test]
    fn so_is_an_error() {
        let (tell, told) = bounded(1);
        let died = move || tell.send("died").unwrap();
        spawn("failing", || Err(io::Error::other("on purpose")), died).unwrap().join().unwrap();
        assert_eq!(told.recv(), Ok("died"));
    }

    #[test]
    fn signals_are_blocked() {
        let (tell, told) = bounded(1);
        let body = move || {
            tell.send(SigSet::thread_get_mask().unwrap()).unwrap();
            Ok(())
        };
        spawn("quiet", body, || {}).unwrap().join().unwrap();
        assert!(told.recv().unwrap().contains(nix::sys::signal::Signal::SIGCHLD));
    }
}
