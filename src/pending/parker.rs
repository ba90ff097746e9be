//! [`Parker`]: lets a thread sleep until another wakes it.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Wake;
use std::time::Instant;

/// A flag that one thread waits for and any thread sets. Uses no file descriptor.
#[derive(Debug, Default)]
pub(crate) struct Parker {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    woken: bool,
    /// A thread sleeps. Otherwise none need be woken, which is a system call.
    sleeps: bool,
}

impl Parker {
    /// Sets the flag. Never blocks.
    pub(crate) fn unpark(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.woken = true;
        let sleeps = state.sleeps;
        drop(state);
        if sleeps {
            self.changed.notify_one();
        }
    }

    /// Waits until the flag is set, clears it and returns true. Returns false if `deadline` passes first.
    pub(crate) fn park(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !std::mem::take(&mut state.woken) {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            state.sleeps = true;
            state = match left {
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.sleeps = false;
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
