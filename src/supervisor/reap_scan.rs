//! When to look for ended children among all children. Plain data.
//!
//! A signal names one child that has ended, which is reaped at once. Signals that are pending at the same time count as
//! one, so the other children are looked at too. With thousands of children that takes a good part of a millisecond;
//! then it is done less often.

use std::time::Duration;

/// A scan that takes less than this is made after each signal.
const CHEAP: Duration = Duration::from_micros(30);
/// Longer scans are followed by a pause of this many times their duration.
const PAUSE: u32 = 20;
/// The longest pause: what looks like a long scan can be one during which other threads had the processor.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// The next scan.
#[derive(Debug, Default)]
pub(super) struct ReapScan {
    /// When it is due; None if no child can have ended since the last one.
    due: Option<Duration>,
    /// The end of the pause after the last one.
    earliest: Duration,
}

impl ReapScan {
    /// Records that a child may have ended.
    pub(super) fn request(&mut self, now: Duration) {
        self.due.get_or_insert(self.earliest.max(now));
    }

    /// Records that more children have ended than one scan may reap.
    pub(super) fn go_on(&mut self) {
        self.due = Some(Duration::ZERO);
    }

    /// When the next scan is due.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Whether a scan is due. If so, it must be made.
    pub(super) fn take_due(&mut self, now: Duration) -> bool {
        self.due.take_if(|at| *at <= now).is_some()
    }

    /// Records that the last step of a scan, which has looked at all children, has lasted from `begun` to `ended`.
    pub(super) fn done(&mut self, begun: Duration, ended: Duration) {
        let cost = ended.saturating_sub(begun);
        self.earliest = if cost < CHEAP { ended } else { ended + (PAUSE * cost).min(LONGEST_PAUSE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROS: Duration = Duration::from_micros(1);

    #[test]
    fn cheap_scans_are_made_at_once_and_expensive_ones_after_a_pause() {
        let mut scan = ReapScan::default();
        assert!(scan.due().is_none() && !scan.take_due(MICROS));
        scan.request(100 * MICROS);
        assert!(scan.take_due(100 * MICROS) && scan.due().is_none());
        scan.done(100 * MICROS, 110 * MICROS);
        scan.request(110 * MICROS);
        assert!(scan.take_due(110 * MICROS));
        scan.done(200 * MICROS, 400 * MICROS);
        scan.request(500 * MICROS);
        scan.request(600 * MICROS);
        assert_eq!(scan.due(), Some(4_400 * MICROS));
        assert!(!scan.take_due(4_399 * MICROS) && scan.take_due(4_400 * MICROS));
        scan.done(4_400 * MICROS, 4_410 * MICROS);
        scan.request(4_410 * MICROS);
        assert!(scan.take_due(4_410 * MICROS));
        scan.done(5_000 * MICROS, 6_000 * MICROS);
        scan.go_on();
        assert!(scan.take_due(6_000 * MICROS));
        scan.done(6_000 * MICROS, 906_000 * MICROS);
        scan.request(906_000 * MICROS);
        assert_eq!(scan.due(), Some(906_000 * MICROS + LONGEST_PAUSE));
    }
}
