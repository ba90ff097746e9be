//! Decides when each health check is probed, when a probe has timed out, and what a gap in time changes.
//!
//! Pure: times are passed in, as durations since an epoch of the caller's, so that tests can make the clock jump.
//! A check is in one of three states, each with one deadline:
//!
//! | state | ends at | or when | effect of a gap |
//! |---|---|---|---|
//! | starting | the end of the initial delay: [`Due::Begin`] | | prolongs it |
//! | waiting | its next probe is due: [`Due::Begin`] | | none |
//! | probing | its timeout is over: [`Due::Expired`] | the probe has an outcome: [`Schedule::finished`] | voids it |
//!
//! The next probe begins `interval` after the beginning of the previous one, or at its end if that is later. So a check
//! has one probe at a time, and a late one is not followed by a burst. Deadlines are rounded up a little (see
//! `quantum`), so that thousands of checks share wake-ups, each of which costs about as much as a probe. Intervals
//! count from the time before rounding, so the rate stays exact.
//!
//! A *gap* is time in which this thread should have run and did not: after SIGSTOP, or in a paused or restored machine.
//! A probe in progress then says nothing about the service, which was most likely stopped too. So a gap makes it void,
//! and what became due meanwhile is due once. The initial delay is time for a service to start: it is prolonged by the
//! time that the gap may have taken. (Suspend-to-RAM stops CLOCK_MONOTONIC, and so all deadlines here.)

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::time::Duration;

/// How late the thread may be before that counts as a gap.
///
/// More than a busy machine or a CPU quota (with periods of 100 ms) delays a thread: a machine that is always this late
/// would never get a verdict. Still short: a pause of less than this and one timeout can cost a service one failure. If
/// a delay is taken for a gap by mistake, that costs only a repeated probe.
pub const GAP: Duration = Duration::from_millis(250);

/// The times of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Time from `since` in [`Schedule::watch`] to the first probe.
    pub initial_delay: Duration,
    /// Time from the beginning of one probe to the beginning of the next.
    pub interval: Duration,
    /// Time that one probe may take.
    pub timeout: Duration,
}

/// An action that the caller must perform now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due<K> {
    /// Begin a probe. It is in progress from now on.
    Begin(K),
    /// The timeout of the probe is over. Returned once; the probe is in progress until [`Schedule::finished`].
    Expired(K),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Starting,
    Waiting,
    Probing { begun: Duration },
}

#[derive(Debug)]
struct Check {
    timing: Timing,
    state: State,
    /// The time at which its state ends.
    due: Duration,
    /// `due`, rounded up: its key in [`Schedule::deadlines`].
    deadline: Duration,
}

impl Check {
    fn enter(&mut self, state: State, due: Duration) {
        let span = match state {
            State::Starting => self.timing.initial_delay,
            State::Waiting => self.timing.interval,
            State::Probing { .. } => self.timing.timeout,
        };
        (self.state, self.due, self.deadline) = (state, due, round_up(due, quantum(span)));
    }
}

/// The step to which the end of a span of time is rounded up: at most a 64th of the span, and a power of two, so that
/// the deadlines of different checks coincide. At least 1 ms, the resolution of `epoll_wait(2)`, and at most 8 ms.
fn quantum(span: Duration) -> Duration {
    let sixty_fourth = u64::try_from(span.as_millis() / 64).unwrap_or(u64::MAX);
    Duration::from_millis(1 << sixty_fourth.max(1).ilog2().min(3))
}

fn round_up(at: Duration, step: Duration) -> Duration {
    let rounded = at.as_nanos().next_multiple_of(step.as_nanos().max(1));
    u64::try_from(rounded).map_or(at, Duration::from_nanos)
}

/// The checks by key, and their deadlines in order. Every operation except a gap takes logarithmic time.
#[derive(Debug)]
pub struct Schedule<K> {
    checks: HashMap<K, Check>,
    deadlines: BTreeSet<(Duration, K)>,
    /// The latest time at which [`Schedule::observe`] should be called next.
    expected: Duration,
    /// The time of the last [`Schedule::observe`].
    observed: Duration,
}

impl<K: Copy + Ord + Hash> Default for Schedule<K> {
    fn default() -> Self {
        let (checks, deadlines) = (HashMap::new(), BTreeSet::new());
        Schedule { checks, deadlines, expected: Duration::MAX, observed: Duration::ZERO }
    }
}

impl<K: Copy + Ord + Hash> Schedule<K> {
    /// Adds the check `key`. Its initial delay begins at `since`. Replaces an earlier check of this key with its
    /// probe.
    pub fn watch(&mut self, since: Duration, key: K, timing: Timing) {
        self.unwatch(key);
        let mut check = Check { timing, state: State::Starting, due: since, deadline: since };
        check.enter(State::Starting, since.saturating_add(timing.initial_delay));
        self.deadlines.insert((check.deadline, key));
        self.checks.insert(key, check);
    }

    /// Removes the check `key`.
    pub fn unwatch(&mut self, key: K) {
        if let Some(check) = self.checks.remove(&key) {
            self.deadlines.remove(&(check.deadline, key));
        }
    }

    /// The earliest deadline, if there is one. Call it before sleeping until then.
    pub fn sleep(&mut self) -> Option<Duration> {
        let next = self.deadlines.first().map(|(at, _)| *at);
        // Not before the last observation: a deadline in the past means that there is more work than time, not a gap.
        self.expected = match next {
            Some(at) if self.expected != Duration::MAX => at.max(self.expected),
            Some(at) => at,
            None => Duration::MAX,
        };
        next
    }

    /// Records the time. Call it after each sleep, and in between often enough that work alone never takes as long as
    /// [`GAP`].
    ///
    /// Returns the checks whose probes are void because of a gap. They are due again at once.
    pub fn observe(&mut self, now: Duration) -> Vec<K> {
        let gap = now > self.expected.saturating_add(GAP);
        // The thread was stopped for at most this time.
        let stopped = now.saturating_sub(self.observed);
        (self.expected, self.observed) = (now, now);
        if gap { self.gap(now, stopped) } else { Vec::new() }
    }

    fn gap(&mut self, now: Duration, stopped: Duration) -> Vec<K> {
        let mut void = Vec::new();
        self.deadlines.clear();
        for (key, check) in &mut self.checks {
            match check.state {
                State::Starting => {
                    let restarted = now.saturating_add(check.timing.initial_delay);
                    check.enter(State::Starting, check.due.saturating_add(stopped).min(restarted));
                }
                State::Waiting => {}
                State::Probing { .. } => {
                    void.push(*key);
                    check.enter(State::Waiting, now);
                    check.deadline = now;
                }
            }
            self.deadlines.insert((check.deadline, *key));
        }
        void.sort_unstable();
        void
    }

    /// The first action that is due. It is returned once. `None` if nothing is due now.
    pub fn due(&mut self, now: Duration) -> Option<Due<K>> {
        let (at, key) = *self.deadlines.first()?;
        if at > now {
            return None;
        }
        self.deadlines.remove(&(at, key));
        let check = self.checks.get_mut(&key)?;
        if let State::Probing { .. } = check.state {
            return Some(Due::Expired(key));
        }
        // Counts as on time unless it is later than by rounding.
        let begun = if now < at.saturating_add(quantum(check.timing.interval)) { check.due } else { now };
        check.enter(State::Probing { begun }, now.saturating_add(check.timing.timeout));
        self.deadlines.insert((check.deadline, key));
        Some(Due::Begin(key))
    }

    /// Records that the probe of `key` has ended, for any reason. Does nothing if there is none.
    pub fn finished(&mut self, now: Duration, key: K) {
        let Some(check) = self.checks.get_mut(&key) else { return };
        if let State::Probing { begun } = check.state {
            self.deadlines.remove(&(check.deadline, key));
            check.enter(State::Waiting, begun.saturating_add(check.timing.interval).max(now));
            self.deadlines.insert((check.deadline, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMING: Timing = Timing { initial_delay: ms(5000), interval: ms(1000), timeout: ms(500) };

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A schedule and a clock that the test sets.
    struct Harness {
        schedule: Schedule<u32>,
        now: Duration,
    }

    impl Harness {
        fn new(timing: Timing) -> Harness {
            let mut harness = Harness { schedule: Schedule::default(), now: ms(1_000_000) };
            assert!(harness.schedule.sleep().is_none());
            assert!(harness.schedule.observe(harness.now).is_empty());
            harness.schedule.watch(harness.now, 1, timing);
            harness
        }

        /// Sleeps until the next deadline and for `late` more. Returns the time up to the deadline, and the void
        /// checks.
        fn sleep(&mut self, late: Duration) -> (Duration, Vec<u32>) {
            let next = self.schedule.sleep().expect("a deadline");
            let slept = next.saturating_sub(self.now);
            self.now = self.now.max(next) + late;
            (slept, self.schedule.observe(self.now))
        }

        fn works_for(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now = end.min(self.now + GAP);
                assert!(self.schedule.observe(self.now).is_empty());
            }
        }

        fn due(&mut self) -> Vec<Due<u32>> {
            std::iter::from_fn(|| self.schedule.due(self.now)).collect()
        }

        #[track_caller]
        fn step(&mut self, slept: u64, want: Due<u32>) {
            assert_eq!(self.sleep(ms(0)), (ms(slept), vec![]));
            assert_eq!(self.due(), [want]);
        }

        fn finish(&mut self) {
            self.schedule.finished(self.now, 1);
        }
    }

    #[test]
    fn the_first_probe_follows_the_initial_delay_and_later_ones_each_interval() {
        let mut harness = Harness::new(TIMING);
        harness.step(5000, Due::Begin(1));
        harness.works_for(ms(10));
        harness.finish();
        harness.step(990, Due::Begin(1));
        harness.finish();
        harness.step(1000, Due::Begin(1));
    }

    #[test]
    fn a_timeout_is_returned_once_and_keeps_the_rate() {
        let mut harness = Harness::new(TIMING);
        harness.step(5000, Due::Begin(1));
        harness.step(500, Due::Expired(1));
        assert_eq!(harness.schedule.sleep(), None, "nothing is due until the probe is finished");
        harness.finish();
        harness.step(500, Due::Begin(1));
    }

    #[test]
    fn a_timeout_longer_than_the_interval_delays_the_next_probe() {
        let mut harness = Harness::new(Timing { timeout: ms(3600), ..TIMING });
        harness.step(5000, Due::Begin(1));
        harness.step(3600, Due::Expired(1));
        harness.finish();
        harness.step(0, Due::Begin(1));
        harness.works_for(ms(1));
        harness.finish();
        harness.step(999, Due::Begin(1));
    }

    #[test]
    fn a_late_probe_is_not_followed_by_an_early_one() {
        let mut harness = Harness::new(TIMING);
        assert_eq!(harness.sleep(ms(200)), (ms(5000), vec![]));
        assert_eq!(harness.due(), [Due::Begin(1)]);
        harness.finish();
        harness.step(1000, Due::Begin(1));
    }

    #[test]
    fn a_gap_voids_the_probe_in_progress() {
        for gap in [ms(252), ms(1004), ms(3_600_004), ms(86_400_004 * 365)] {
            let mut harness = Harness::new(TIMING);
            harness.step(5000, Due::Begin(1));
            assert_eq!(harness.sleep(gap), (ms(500), vec![1]), "{gap:?}");
            assert_eq!(harness.due(), [Due::Begin(1)], "{gap:?}: due once, and no failure");
            harness.finish();
            harness.step(1000, Due::Begin(1));
            harness.step(500, Due::Expired(1));
        }
    }

    #[test]
    fn a_delay_up_to_the_limit_is_not_a_gap() {
        for late in [ms(1), ms(100), GAP] {
            let mut harness = Harness::new(TIMING);
            harness.step(5000, Due::Begin(1));
            assert_eq!(harness.sleep(late), (ms(500), vec![]), "{late:?}");
            assert_eq!(harness.due(), [Due::Expired(1)], "{late:?}");
        }
    }

    #[test]
    fn a_probe_that_became_due_in_a_gap_is_due_once() {
        let mut harness = Harness::new(TIMING);
        harness.step(5000, Due::Begin(1));
        harness.finish();
        assert_eq!(harness.sleep(ms(3_600_000)), (ms(1000), vec![]));
        assert_eq!(harness.due(), [Due::Begin(1)]);
        harness.finish();
        harness.step(1000, Due::Begin(1));
    }

    #[test]
    fn a_gap_prolongs_the_initial_delay() {
        let mut harness = Harness::new(TIMING);
        harness.sleep(ms(3_600_000));
        assert_eq!(harness.due(), []);
        harness.step(5000, Due::Begin(1));

        // Not by more than the gap can have taken.
        let mut harness = Harness::new(TIMING);
        harness.works_for(ms(4896));
        harness.schedule.watch(harness.now, 2, TIMING);
        assert_eq!(harness.sleep(ms(304)), (ms(104), vec![]));
        assert_eq!(harness.due(), []);
        harness.step(104, Due::Begin(1));
        harness.finish();
        harness.schedule.unwatch(1);
        harness.step(4896, Due::Begin(2));
    }

    #[test]
    fn a_gap_between_two_observations_is_detected() {
        let mut harness = Harness::new(TIMING);
        harness.step(5000, Due::Begin(1));
        harness.now += GAP;
        assert!(harness.schedule.observe(harness.now).is_empty());
        harness.now += GAP + ms(1);
        assert_eq!(harness.schedule.observe(harness.now), [1]);
        assert_eq!(harness.due(), [Due::Begin(1)]);
    }

    #[test]
    fn a_gap_that_ends_before_the_deadline_changes_nothing() {
        let mut harness = Harness::new(TIMING);
        harness.step(5000, Due::Begin(1));
        assert_eq!(harness.schedule.sleep(), Some(harness.now + ms(500)));
        harness.now += ms(499);
        assert!(harness.schedule.observe(harness.now).is_empty());
        assert_eq!(harness.due(), []);
    }

    #[test]
    fn a_sleep_without_deadline_has_no_gap() {
        let mut harness = Harness::new(TIMING);
        harness.schedule.unwatch(1);
        assert_eq!(harness.schedule.sleep(), None);
        harness.now += ms(3_600_000);
        assert!(harness.schedule.observe(harness.now).is_empty());
        harness.schedule.watch(harness.now, 1, TIMING);
        harness.step(5000, Due::Begin(1));
        assert_eq!(harness.sleep(GAP + ms(1)), (ms(500), vec![1]));
    }

    #[test]
    fn more_work_than_time_is_not_a_gap() {
        let mut harness = Harness::new(Timing { initial_delay: ms(0), interval: ms(1), timeout: ms(10_000) });
        for key in 2..2000 {
            harness.schedule.watch(harness.now, key, TIMING);
        }
        harness.step(0, Due::Begin(1));
        // 8 s of work, observed every 200 ms: deadlines of other checks pass, and the probe in progress is not void.
        for _ in 0..40 {
            harness.works_for(ms(200));
            assert_eq!(harness.schedule.sleep(), Some(ms(1_005_000)));
            harness.now += ms(1);
            assert!(harness.schedule.observe(harness.now).is_empty());
        }
        assert_eq!(harness.due().len(), 1998);
    }

    #[test]
    fn deadlines_are_rounded_up_and_the_rate_stays_exact() {
        for (span, step) in
            [(0, 1), (1, 1), (127, 1), (128, 2), (255, 2), (256, 4), (500, 4), (1000, 8), (86_400_000, 8)]
        {
            assert_eq!(quantum(ms(span)), ms(step), "{span}");
        }
        assert_eq!(quantum(Duration::MAX), ms(8));
        for interval in [1, 2, 7, 99, 333, 1001, 4999] {
            let interval = ms(interval);
            let mut harness = Harness::new(Timing { initial_delay: ms(3), interval, timeout: ms(500) });
            for n in 0..100 {
                let late = Duration::from_micros(n * 7 % 1000);
                harness.sleep(late);
                assert_eq!(harness.due(), [Due::Begin(1)]);
                let due = ms(1_000_003) + interval * n as u32;
                assert!(harness.now >= due && harness.now <= due + quantum(interval) + late, "{interval:?} {n}");
                harness.finish();
            }
        }
    }

    #[test]
    fn thousands_of_checks_share_wake_ups() {
        let mut harness = Harness::new(TIMING);
        for key in 2..=1000 {
            harness.schedule.watch(harness.now + ms(key.into()), key, TIMING);
        }
        let mut wake_ups = 0;
        let mut begun = 0;
        while begun < 3000 {
            harness.sleep(Duration::from_micros(700));
            wake_ups += 1;
            for due in harness.due() {
                let Due::Begin(key) = due else { panic!("{due:?}") };
                harness.schedule.finished(harness.now, key);
                begun += 1;
            }
        }
        assert_eq!(wake_ups, 3000 / 8 + 1);
    }

    #[test]
    fn a_watch_replaces_an_earlier_one() {
        let mut harness = Harness::new(TIMING);
        harness.step(5000, Due::Begin(1));
        harness.schedule.watch(harness.now, 1, Timing { initial_delay: ms(70), ..TIMING });
        // The end of the earlier check's probe changes nothing.
        harness.finish();
        harness.step(70, Due::Begin(1));
        harness.schedule.unwatch(1);
        harness.finish();
        assert_eq!(harness.schedule.sleep(), None);
        assert!(harness.schedule.checks.is_empty() && harness.schedule.deadlines.is_empty());
    }

    #[test]
    fn the_initial_delay_counts_from_the_watch() {
        let mut harness = Harness::new(TIMING);
        harness.works_for(ms(100));
        harness.schedule.watch(harness.now - ms(100), 2, Timing { initial_delay: ms(50), ..TIMING });
        assert_eq!(harness.due(), [Due::Begin(2)]);
    }

    #[test]
    fn the_longest_times_do_not_overflow() {
        let mut harness = Harness::new(Timing { initial_delay: Duration::MAX, interval: ms(1), timeout: ms(1) });
        assert_eq!(harness.schedule.sleep(), Some(Duration::MAX));
        harness.schedule.watch(
            harness.now,
            1,
            Timing { initial_delay: ms(0), interval: Duration::MAX, timeout: Duration::MAX },
        );
        harness.now += ms(1);
        assert_eq!(harness.due(), [Due::Begin(1)]);
        harness.finish();
        assert_eq!(harness.schedule.sleep(), Some(Duration::MAX));
    }

    /// Walks every path of six steps for two checks. Whatever the clock does, a probe begins only if none is in
    /// progress, each ends at most once, none fails because of a gap, and there is a deadline while there is a check.
    #[test]
    fn no_sequence_of_steps_and_clock_jumps_breaks_an_invariant() {
        #[derive(Clone, Copy, Debug)]
        enum Step {
            Pass(u64),
            Sleep(u64),
            Finish(u32),
            Watch(u32),
            Unwatch(u32),
        }
        use Step::*;
        let steps = [Pass(0), Pass(40), Pass(9000), Sleep(0), Sleep(100), Sleep(9000), Finish(1), Watch(2), Unwatch(2)];
        let timing = Timing { initial_delay: ms(50), interval: ms(100), timeout: ms(30) };
        let depth = 6;
        let mut walked = 0;
        for path in 0..steps.len().pow(depth) {
            let mut harness = Harness::new(timing);
            let mut in_flight = BTreeSet::new();
            let mut watched = BTreeSet::from([1]);
            let mut code = path;
            for _ in 0..depth {
                let step = steps[code % steps.len()];
                code /= steps.len();
                let trace = || format!("path {path}, {step:?}");
                let before = harness.now;
                let mut void = Vec::new();
                let mut late = 0;
                match step {
                    Pass(time) => {
                        harness.now += ms(time);
                        void = harness.schedule.observe(harness.now);
                        late = time;
                    }
                    Sleep(time) => {
                        void = harness.sleep(ms(time)).1;
                        late = time;
                    }
                    Finish(key) => {
                        harness.schedule.finished(harness.now, key);
                        in_flight.remove(&key);
                    }
                    Watch(key) => {
                        harness.schedule.watch(harness.now, key, timing);
                        in_flight.remove(&key);
                        watched.insert(key);
                    }
                    Unwatch(key) => {
                        harness.schedule.unwatch(key);
                        in_flight.remove(&key);
                        watched.remove(&key);
                    }
                }
                if late > 250 {
                    assert!(in_flight.iter().eq(void.iter()), "{}", trace());
                    in_flight.clear();
                } else {
                    assert!(void.is_empty(), "{}", trace());
                }
                let mut said = BTreeSet::new();
                for due in harness.due() {
                    let (Due::Begin(key) | Due::Expired(key)) = due;
                    assert!(watched.contains(&key) && said.insert(key), "{}: {due:?}", trace());
                    match due {
                        Due::Begin(_) => assert!(in_flight.insert(key), "{}: two at once", trace()),
                        Due::Expired(_) => {
                            assert!(late <= 250, "{}: failed because of a gap", trace());
                            assert!(in_flight.remove(&key) && harness.now > before, "{}", trace());
                            harness.schedule.finished(harness.now, key);
                        }
                    }
                }
                assert_eq!(harness.schedule.checks.len(), watched.len(), "{}", trace());
                assert_eq!(harness.schedule.deadlines.len(), watched.len(), "{}", trace());
                walked += 1;
                if watched.is_empty() {
                    break;
                }
            }
        }
        assert!(walked >= steps.len().pow(depth));
    }
}
