//! Wakes a thread that waits with a deadline.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Rung by any thread, waited for by one. A ring before the wait is not lost.
#[derive(Default)]
pub(crate) struct Alarm {
    is_rung: Mutex<bool>,
    changed: Condvar,
}

impl Alarm {
    pub(crate) fn ring(&self) {
        *self.is_rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Waits until it is rung, or until `deadline`.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        let mut is_rung = self.is_rung.lock().unwrap_or_else(PoisonError::into_inner);
        while !*is_rung {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            is_rung = match left {
                Some(Duration::ZERO) => break,
                Some(left) => self.changed.wait_timeout(is_rung, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(is_rung).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *is_rung = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_before_the_wait_is_not_lost_and_is_used_up() {
        let alarm = Alarm::default();
        alarm.ring();
        alarm.wait(None);
        let begin = Instant::now();
        alarm.wait(Some(begin + Duration::from_millis(20)));
        assert!(begin.elapsed() >= Duration::from_millis(20));
    }
}
