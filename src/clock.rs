//! The two clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::model::Millis;
use crate::unit::Now;

/// Longer than any machine runs, in a range that no clock overflows: a hundred years.
const NEVER: Duration = Duration::from_secs(100 * 365 * 86_400);

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

    /// A monotonic time of ours as an `Instant`; one that is too far away for that, as one that never comes.
    pub fn instant(&self, mono: Duration) -> Instant {
        self.0.checked_add(mono.min(NEVER)).unwrap_or(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_never_comes_is_not_now() {
        let clock = Clock::start();
        for mono in [Duration::MAX, Duration::from_secs(i64::MAX as u64), Duration::from_secs(1 << 40)] {
            assert!(clock.instant(mono) > Instant::now() + Duration::from_secs(1 << 30), "{mono:?}");
        }
        assert_eq!(clock.instant(Duration::from_secs(5)) - clock.instant(Duration::ZERO), Duration::from_secs(5));
    }
}
