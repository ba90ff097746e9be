//! The monotonic clock and the wall clock.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::Millis;
use crate::unit::Now;

/// A hundred years: longer than any uptime, and short enough to add to an `Instant` without overflow.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// The wall clock, in milliseconds since 1970.
pub fn wall() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

/// A clock that counts from its start, on CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Clock {
        Clock(Instant::now())
    }

    /// The time on both clocks.
    pub fn now(&self) -> Now {
        Now { mono: self.0.elapsed(), wall: wall() }
    }

    /// A time of this clock as an `Instant`, at most a hundred years after its start.
    pub fn instant(&self, mono: Duration) -> Instant {
        self.0.checked_add(mono.min(NEVER)).unwrap_or(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_of_range_becomes_a_far_future_instant() {
        let clock = Clock::start();
        for mono in [Duration::MAX, Duration::from_secs(i64::MAX as u64), Duration::from_secs(1 << 40)] {
            assert!(clock.instant(mono) > Instant::now() + Duration::from_secs(1 << 30), "{mono:?}");
        }
        assert_eq!(clock.instant(Duration::from_secs(5)) - clock.instant(Duration::ZERO), Duration::from_secs(5));
    }
}
