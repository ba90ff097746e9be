//! The two clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::model::Millis;
use crate::unit::Now;

/// The wall clock.
pub fn wall() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

/// Counts from when it was made, on CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Begins to count.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// Both clocks now.
    pub fn now(&self) -> Now {
        Now { mono: self.0.elapsed(), wall: wall() }
    }

    /// A monotonic time of ours as an `Instant`.
    pub fn instant(&self, mono: std::time::Duration) -> Instant {
        self.0.checked_add(mono).unwrap_or(self.0)
    }
}
