//! [`Parker`]: lets a thread sleep until another wakes it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Wake;
use std::time::Instant;

/// A flag that one thread waits for and any thread sets. Takes no descriptor.
#[derive(Debug, Default)]
pub(crate) struct Parker {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Parker {
    /// Sets the flag. Never blocks.
    pub(crate) fn unpark(&self) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    /// Waits until the flag is set, and clears it: true. Or until `deadline`: false.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> bool {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        while !std::mem::take(&mut *woken) {
            let Some(deadline) = deadline else {
                woken = self.changed.wait(woken).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            (woken, _) = self.changed.wait_timeout(woken, left).unwrap_or_else(PoisonError::into_inner);
        }
        true
    }
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wake_before_the_wait_counts_once() {
        let parker = Parker::default();
        parker.unpark();
        parker.unpark();
        assert!(parker.park(None));
        assert!(!parker.park(Some(Instant::now())));
    }

    #[test]
    fn another_thread_ends_the_wait() {
        let parker = Arc::new(Parker::default());
        let other = Arc::clone(&parker);
        let waiting = thread::spawn(move || other.park(Some(Instant::now() + Duration::from_secs(1 << 40))));
        parker.unpark();
        assert!(waiting.join().unwrap());
    }
}
