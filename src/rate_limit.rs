//! Limits how many lines each source may log: a token bucket for each source, and one for all of them together.
//!
//! A source that logs more than its bucket allows is silent for a while; the lines that were left out are counted, and
//! the count is reported [`REPORT_AFTER`] after the first of them. Pure: the time is a parameter.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

/// How long after the first line that was left out their number is reported.
pub(crate) const REPORT_AFTER: Duration = Duration::from_secs(10);

/// Maximum number of sources with a bucket of their own. Further ones share the bucket of all.
const MAX_SOURCES: usize = 1024;

/// The lines of one source: 20 at once, and then two each second.
const OWN: Rate = Rate { burst: 20, period: Duration::from_millis(500) };

/// The lines of all sources together: 200 at once, and then 20 each second.
const ALL: Rate = Rate { burst: 200, period: Duration::from_millis(50) };

/// How many lines a bucket allows: `burst` at once, and one more after each `period`.
#[derive(Clone, Copy, Debug)]
struct Rate {
    burst: u32,
    period: Duration,
}

#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// The time for which lines may still be logged: each costs a period.
    credit: Duration,
    /// When the credit was last updated.
    at: Duration,
    /// Number of lines that were left out and have not been reported, and the time of the first one.
    left_out: Option<(u64, Duration)>,
}

impl Bucket {
    fn new(rate: Rate, now: Duration) -> Bucket {
        Bucket { rate, credit: rate.period * rate.burst, at: now, left_out: None }
    }

    /// Whether there is credit for a line.
    fn has_credit(&mut self, now: Duration) -> bool {
        let most = self.rate.period * self.rate.burst;
        self.credit = self.credit.saturating_add(now.saturating_sub(self.at)).min(most);
        self.at = now;
        self.credit >= self.rate.period
    }

    fn spend(&mut self) {
        self.credit = self.credit.saturating_sub(self.rate.period);
    }

    fn leave_out(&mut self, now: Duration) {
        let (count, _) = self.left_out.get_or_insert((0, now));
        *count += 1;
    }

    fn is_unused(&mut self, now: Duration) -> bool {
        self.has_credit(now) && self.credit == self.rate.period * self.rate.burst && self.left_out.is_none()
    }

    /// Takes the number of lines that were left out, if it must be reported now.
    fn take_due(&mut self, now: Duration) -> Option<u64> {
        self.left_out.take_if(|(_, since)| *since + REPORT_AFTER <= now).map(|(count, _)| count)
    }
}

/// Limits how many lines each source may log: 20 at once, and then two each second; all sources together 200 at once,
/// and then 20 each second. The lines beyond are counted. Times are those of any monotonic clock.
///
/// ```
/// use std::time::Duration;
/// use tl_supervisor::RateLimit;
///
/// let mut limit = RateLimit::default();
/// let logged = (0..30).filter(|_| limit.admits(&"a client", Duration::ZERO)).count();
/// assert_eq!((logged, limit.due()), (20, Some(Duration::from_secs(10))));
/// assert_eq!(limit.take_due(Duration::from_secs(10)), [(Some("a client"), 10)]);
/// ```
#[derive(Debug)]
pub struct RateLimit<K> {
    own: HashMap<K, Bucket>,
    all: Bucket,
    /// When the next report is due.
    due: Option<Duration>,
}

impl<K: Clone + Eq + Hash> Default for RateLimit<K> {
    fn default() -> Self {
        RateLimit { own: HashMap::new(), all: Bucket::new(ALL, Duration::ZERO), due: None }
    }
}

impl<K: Clone + Eq + Hash> RateLimit<K> {
    /// Whether `source` may log a line now. If not, the line counts as left out.
    pub fn admits(&mut self, source: &K, now: Duration) -> bool {
        if !self.own.contains_key(source) {
            if self.own.len() >= MAX_SOURCES {
                self.own.retain(|_, bucket| !bucket.is_unused(now));
            }
            if self.own.len() < MAX_SOURCES {
                self.own.insert(source.clone(), Bucket::new(OWN, now));
            }
        }
        let has_credit = self.all.has_credit(now);
        let own = self.own.get_mut(source).map(|own| (own.has_credit(now), own));
        match own {
            Some((false, own)) => own.leave_out(now),
            own if has_credit => {
                self.all.spend();
                own.into_iter().for_each(|(_, own)| own.spend());
                return true;
            }
            _ => self.all.leave_out(now),
        }
        self.due.get_or_insert(now + REPORT_AFTER);
        false
    }

    /// When [`RateLimit::take_due`] has something to report.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// The numbers of lines that were left out, and must be reported now: of one source, or of several if it is None.
    pub fn take_due(&mut self, now: Duration) -> Vec<(Option<K>, u64)> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let own = self.own.iter_mut().filter_map(|(source, own)| Some((Some(source.clone()), own.take_due(now)?)));
        let mut counts: Vec<_> = own.collect();
        counts.extend(self.all.take_due(now).map(|count| (None, count)));
        let waiting = self.own.values().chain([&self.all]).filter_map(|bucket| bucket.left_out);
        self.due = waiting.map(|(_, since)| since + REPORT_AFTER).min();
        counts
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod invariants;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_source_logs_a_burst_then_two_lines_each_second_and_the_rest_is_counted_once() {
        let mut limit = RateLimit::default();
        let logged = |limit: &mut RateLimit<u32>, source, from: Duration, lines: u32| {
            (0..lines).filter(|n| limit.admits(&source, from + Duration::from_millis(u64::from(*n)))).count()
        };
        assert_eq!(logged(&mut limit, 1, Duration::ZERO, 37), 20);
        assert_eq!(logged(&mut limit, 2, Duration::ZERO, 5), 5, "another source has its own bucket");
        let first = Duration::from_millis(20);
        assert_eq!(limit.due(), Some(first + REPORT_AFTER));
        assert_eq!(limit.take_due(REPORT_AFTER), [], "not yet");
        assert_eq!(limit.take_due(first + REPORT_AFTER), [(Some(1), 17)]);
        assert_eq!((limit.due(), limit.take_due(100 * SECOND)), (None, Vec::new()), "reported once");
        assert_eq!(logged(&mut limit, 1, 100 * SECOND, 20), 20);
        assert_eq!(logged(&mut limit, 1, 101 * SECOND, 10), 2);
    }

    #[test]
    fn all_sources_together_are_limited_and_many_sources_take_bounded_memory() {
        let mut limit = RateLimit::default();
        let logged = (0..100_000u32).filter(|source| limit.admits(source, SECOND)).count();
        assert_eq!(logged, 200);
        assert!((1..=MAX_SOURCES).contains(&limit.own.len()), "{}", limit.own.len());
        assert_eq!(limit.take_due(SECOND + REPORT_AFTER), [(None, 99_800)]);
        // The buckets that are full again make room for those of new sources.
        assert!((0..100_000u32).filter(|source| limit.admits(source, 60 * SECOND)).count() <= 200);
        assert!(limit.own.len() <= MAX_SOURCES && limit.admits(&1_000_000, 120 * SECOND));
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_gives_no_credit() {
        let mut limit = RateLimit::default();
        assert_eq!((0..100).filter(|_| limit.admits(&1, 50 * SECOND)).count(), 20);
        assert!(!limit.admits(&1, 49 * SECOND));
    }
}
