//! Starts threads: each has a name, blocks all signals, and reports its own panic. Tells which of them hang.

mod fault;
mod pulse;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

pub use fault::{fault_point, with_name};
pub use pulse::{ThreadState, idle, states};

use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

/// Stack size of a thread in bytes: several times what any thread of the programs needs. Only pages in use take memory.
const STACK: usize = 256 << 10;

/// Pause after a panic before a thread of [`spawn_persistent`] continues, so that one that panics again and again does
/// not take a CPU.
const PAUSE_AFTER_PANIC: Duration = Duration::from_secs(1);

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

/// Starts a thread as [`spawn`] does, which outlives its own panics: after each, it calls `body` again a second later. So
/// `body` must be able to go on with what a panic has left. If `body` returns, the thread ends; an error is logged.
///
/// # Errors
/// When the system has no thread left.
pub fn spawn_persistent(
    name: &str,
    mut body: impl FnMut() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let thread_name = name.to_owned();
    let persistent = move || {
        loop {
            match catch_unwind(AssertUnwindSafe(&mut body)) {
                Ok(result) => return result,
                Err(_) => log::error!("thread {thread_name} has panicked; it continues"),
            }
            sleep(PAUSE_AFTER_PANIC);
        }
    };
    spawn(name, persistent, || {})
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
    fn a_persistent_thread_continues_after_a_panic_and_ends_when_it_returns() {
        let (tell, told) = bounded(3);
        let mut turn = 0;
        let body = move || {
            turn += 1;
            tell.send(turn).unwrap();
            if turn < 3 { panic!("on purpose") } else { Ok(()) }
        };
        spawn_persistent("doomed", body).unwrap().join().unwrap();
        assert_eq!(told.try_iter().collect::<Vec<i32>>(), [1, 2, 3]);
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
