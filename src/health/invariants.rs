//! What must hold for every schedule of health checks, and for every response to a probe (`crate::fuzzing`).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::HashMap;
use std::time::Duration;

use super::schedule::{Due, GAP, Schedule, Timing};
use crate::fuzzing::Choices;
use crate::probe::status_line::{self, Reading};

/// Longest time by which a deadline is rounded up.
const ROUNDING: Duration = Duration::from_millis(8);

/// A check, as a simple model knows it.
#[derive(Debug)]
struct Known {
    timing: Timing,
    /// No probe begins before this.
    not_before: Duration,
    /// The begin of the probe in progress, and whether it has been reported as expired.
    probe: Option<(Duration, bool)>,
}

/// A check has one probe at a time, none before its initial delay, and none sooner after the last than its interval,
/// unless a gap has voided that one. A probe expires once, at its timeout. What was done is not due again.
pub(crate) fn health(input: &[u8]) {
    let mut choices = Choices(input);
    if choices.below(4) == 0 {
        return status(choices.0);
    }
    let mut model = Model { schedule: Schedule::default(), known: HashMap::new(), now: Duration::from_secs(1) };
    let _ = model.schedule.observe(model.now);
    while !choices.is_done() {
        let key = choices.byte() % 4;
        match choices.below(5) {
            0 => model.watch(key, &mut choices),
            1 => {
                model.schedule.unwatch(key);
                model.known.remove(&key);
            }
            2 => model.finish(key),
            _ => model.sleep(&mut choices),
        }
    }
}

struct Model {
    schedule: Schedule<u8>,
    known: HashMap<u8, Known>,
    now: Duration,
}

impl Model {
    fn watch(&mut self, key: u8, choices: &mut Choices) {
        let mut ms = |least: u64| Duration::from_millis((choices.number() >> 32).clamp(least, crate::model::MAX_MS));
        let timing = Timing { initial_delay: ms(0), interval: ms(1), timeout: ms(1) };
        let since = self.now.saturating_sub(ms(0));
        self.schedule.watch(since, key, timing);
        self.known.insert(key, Known { timing, not_before: since + timing.initial_delay, probe: None });
    }

    fn finish(&mut self, key: u8) {
        self.schedule.finished(self.now, key);
        if let Some(known) = self.known.get_mut(&key) {
            known.probe = None;
        }
    }

    /// Sleeps until the next deadline, or for another time, and does what is due then.
    fn sleep(&mut self, choices: &mut Choices) {
        let next = self.schedule.sleep();
        let is_waiting = |known: &Known| !matches!(known.probe, Some((_, true)));
        assert_eq!(next.is_some(), self.known.values().any(is_waiting), "{:?}", self.known);
        let late = Duration::from_millis(choices.number() >> 48);
        let before = self.now;
        self.now = match choices.below(3) {
            0 => self.now + late,
            _ => next.unwrap_or(self.now).max(self.now) + if choices.below(2) == 0 { Duration::ZERO } else { late },
        };
        let void = self.schedule.observe(self.now);
        let is_gap = self.now > next.unwrap_or(Duration::MAX).max(before).saturating_add(GAP);
        assert!(void.is_empty() || is_gap, "a gap was made up");
        for key in void {
            let known = self.known.get_mut(&key).unwrap();
            assert!(known.probe.take().is_some(), "{key} had no probe: {known:?}");
            known.not_before = self.now;
        }
        while let Some(due) = self.schedule.due(self.now) {
            self.perform(due);
        }
        assert!(self.schedule.sleep().is_none_or(|next| next > self.now), "it is due again");
        assert!(self.schedule.observe(self.now).is_empty());
    }

    fn perform(&mut self, due: Due<u8>) {
        let now = self.now;
        match due {
            Due::Begin(key) => {
                let known = self.known.get_mut(&key).unwrap();
                assert!(known.probe.is_none(), "two probes of {key}: {known:?}");
                assert!(now >= known.not_before, "{key} is early at {now:?}: {known:?}");
                known.probe = Some((now, false));
                // The next one counts from when this one was due, which is at most by the rounding earlier.
                known.not_before = (now + known.timing.interval).saturating_sub(2 * ROUNDING);
            }
            Due::Expired(key) => {
                let known = self.known.get_mut(&key).unwrap();
                let (begun, expired) = known.probe.as_mut().unwrap();
                assert!(!*expired && now >= *begun + known.timing.timeout, "{key} at {now:?}: {begun:?}");
                *expired = true;
            }
        }
    }
}

/// A status line is read alike however its bytes arrive, and what follows it changes nothing.
fn status(response: &[u8]) {
    let whole = status_line::read(response);
    if let Reading::Status(status) = whole {
        assert!((100..1000).contains(&status));
        let digits = status.to_string();
        assert_eq!(response.get(9..12), Some(digits.as_bytes()));
        assert!(response.starts_with(b"HTTP/1."));
    }
    let mut last = Reading::Incomplete;
    for end in 0..=response.len() {
        let reading = status_line::read(&response[..end]);
        assert!(last == Reading::Incomplete || last == reading, "{last:?} became {reading:?} after {end} bytes");
        last = reading;
    }
    assert_eq!(last, whole);
    let more = status_line::read(&[response, b"x\n"].concat());
    assert!(whole == Reading::Incomplete || whole == more);
}
