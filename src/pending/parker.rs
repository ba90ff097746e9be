//! [`Parker`]: lets a thread sleep until another wakes it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Wake;
use std::time::Instant;

/// A flag that one thread waits for and any thread sets. Uses no file descriptor.
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

    /// Waits until the flag is set, clears it and returns true. Returns false if `deadline` passes first.
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
    fn several_unparks_before_a_park_end_only_one_park() {
        let parker = Parker::default();
        parker.unpark();
        parker.unpark();
        assert!(parker.park(None));
        assert!(!parker.park(Some(Instant::now())));
    }

    #[test]
    fn unpark_from_another_thread_ends_park() {
        let parker = Arc::new(Parker::default());
        let other = Arc::clone(&parker);
        let waiting = thread::spawn(move || other.park(Some(Instant::now() + Duration::from_secs(1 << 40))));
        parker.unpark();
        assert!(waiting.join().unwrap());
    }
}
