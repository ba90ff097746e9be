//! Wakes one thread that sleeps until there is work. Ringing costs a system call only while that thread sleeps.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Instant;

use crate::poll::{Events, Waker, wait_or_signal};

/// Wakes the one thread that calls [`Bell::sleep_unless`].
#[derive(Debug)]
pub struct Bell {
    /// Whether the thread sleeps or is about to, and nobody has rung since.
    asleep: AtomicBool,
    waker: Waker,
}

impl Bell {
    /// A bell that has not been rung.
    ///
    /// # Errors
    /// When the system or this process has no descriptor left.
    pub fn new() -> io::Result<Bell> {
        Ok(Bell { asleep: AtomicBool::new(false), waker: Waker::new()? })
    }

    /// Wakes the thread if it sleeps. Call it after the work was made visible to the thread: if the thread does not
    /// sleep, it sees that work before it sleeps. Async-signal-safe.
    pub fn ring(&self) {
        // Pairs with the fence in `sleep_unless`: either this thread sees that the other one sleeps, or that one sees
        // the work.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    /// Sleeps until the bell is rung, a signal handler has run in this thread, or `deadline`; not at all if there is
    /// work, which `has_work` says. Also returns early without a reason.
    ///
    /// # Errors
    /// What `poll(2)` says.
    pub fn sleep_unless(&self, has_work: impl FnOnce() -> bool, deadline: Option<Instant>) -> io::Result<()> {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let result = if has_work() {
            Ok([Events::NONE])
        } else {
            wait_or_signal([(self.waker.as_fd(), Events::READ)], deadline)
        };
        // A late ring leaves the waker awake: the next sleep then returns early.
        self.asleep.store(false, Ordering::Relaxed);
        if result?.iter().any(|events| *events != Events::NONE) {
            self.waker.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_sleeps_misses_no_ring() {
        const COUNT: usize = 100_000;
        let (bell, work) = (Arc::new(Bell::new().unwrap()), Arc::new(AtomicUsize::new(0)));
        let sender = {
            let (bell, work) = (Arc::clone(&bell), Arc::clone(&work));
            thread::spawn(move || {
                for _ in 0..COUNT {
                    work.fetch_add(1, Ordering::Relaxed);
                    bell.ring();
                }
            })
        };
        let (mut done, deadline) = (0, Instant::now() + Duration::from_secs(60));
        while done < COUNT {
            assert!(Instant::now() < deadline, "{done} of {COUNT}: a ring was missed");
            done += work.swap(0, Ordering::Relaxed);
            if done < COUNT {
                bell.sleep_unless(|| work.load(Ordering::Relaxed) > 0, Some(deadline)).unwrap();
            }
        }
        sender.join().unwrap();
    }

    #[test]
    fn a_sleep_ends_at_its_deadline() {
        let (bell, begun) = (Bell::new().unwrap(), Instant::now());
        bell.sleep_unless(|| false, Some(begun + Duration::from_millis(20))).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(20));
    }
}
