//! Limits how many containers are started at a time.

use std::sync::{Condvar, Mutex, PoisonError};

/// How many containers are started at a time: more take longer altogether.
pub(super) const PARALLEL: usize = 4;

/// Limits how many containers are started at a time.
pub(crate) struct Slots {
    free: Mutex<usize>,
    changed: Condvar,
}

pub(crate) struct Slot<'a>(&'a Slots);

impl Slots {
    pub(crate) fn new() -> Slots {
        Slots { free: Mutex::new(PARALLEL), changed: Condvar::new() }
    }

    /// Waits for its turn. What is not urgent starts only if nothing else is being started.
    pub(super) fn take(&self, is_urgent: bool) -> Slot<'_> {
        let needed = if is_urgent { 1 } else { PARALLEL };
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let too_few = |free: &mut usize| *free < needed;
        *self.changed.wait_while(free, too_few).unwrap_or_else(PoisonError::into_inner) -= 1;
        Slot(self)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        *self.0.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.changed.notify_all();
    }
}
