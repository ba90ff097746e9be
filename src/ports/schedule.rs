//! When to look at the listening sockets. Pure: times are those of any clock that only goes forward.

use std::time::Duration;

/// Time between the first two looks; it doubles with each look, up to [`LONGEST`].
const FIRST: Duration = Duration::from_millis(5);

/// The longest time between two looks.
const LONGEST: Duration = Duration::from_millis(250);

/// For this many times as long as a look took, there is no other: so looks take a quarter of a CPU at most.
const REST: u32 = 3;

/// When the next look is due: at once after something has happened that may have opened a port, then more and more
/// rarely.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    next: Duration,
    interval: Duration,
    /// No look before this time.
    rest_until: Duration,
}

impl Schedule {
    /// Something may open a port soon: look now, or as soon after the last look as is allowed.
    pub fn hurry(&mut self, now: Duration) {
        self.interval = FIRST;
        self.next = self.next.min(now.max(self.rest_until));
    }

    /// A look has ended at `now`, which took this long.
    pub fn looked(&mut self, now: Duration, took: Duration) {
        let interval = self.interval.max(FIRST);
        self.next = now + interval.max(took * REST);
        // Without a pause, a sandbox that starts a process every millisecond would have a look for each.
        self.rest_until = now + FIRST.max(took * REST);
        self.interval = (interval * 2).min(LONGEST);
    }

    /// When the next look is due.
    pub fn next(&self) -> Duration {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn looks_become_rarer_and_are_never_more_than_250_ms_apart() {
        let mut schedule = Schedule::default();
        let (mut now, mut gaps) = (ms(1_000), Vec::new());
        schedule.hurry(now);
        assert!(schedule.next() <= now, "the first look is due at once");
        for _ in 0..9 {
            schedule.looked(now, Duration::ZERO);
            gaps.push((schedule.next() - now).as_millis());
            now = schedule.next();
        }
        assert_eq!(gaps, [5, 10, 20, 40, 80, 160, 250, 250, 250]);
    }

    #[test]
    fn a_hurry_brings_the_next_look_forward_to_5_ms_after_the_last_one() {
        let mut schedule = Schedule { interval: LONGEST, ..Schedule::default() };
        schedule.looked(ms(1_000), Duration::ZERO);
        assert_eq!(schedule.next(), ms(1_250));
        schedule.hurry(ms(1_001));
        assert_eq!(schedule.next(), ms(1_005));
        schedule.hurry(ms(1_100));
        assert_eq!(schedule.next(), ms(1_005), "a hurry never delays a look");
        schedule.looked(ms(1_100), Duration::ZERO);
        assert_eq!(schedule.next(), ms(1_105));
        schedule.looked(ms(1_105), Duration::ZERO);
        schedule.hurry(ms(1_112));
        assert_eq!(schedule.next(), ms(1_112), "the pause is over");
    }

    #[test]
    fn slow_looks_take_a_quarter_of_the_time_at_most() {
        let mut schedule = Schedule::default();
        schedule.looked(ms(1_000), ms(200));
        assert_eq!(schedule.next(), ms(1_600));
        schedule.hurry(ms(1_001));
        assert_eq!(schedule.next(), ms(1_600));
    }
}
