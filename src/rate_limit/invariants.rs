//! What must hold for every sequence of lines that are to be logged (`crate::fuzzing`).

#![allow(clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use super::{ALL, OWN, REPORT_AFTER, Rate, RateLimit};
use crate::fuzzing::Choices;

/// Every line is logged, reported as left out, or will be reported. No source, and not all together, log more than they
/// may, from any line on.
pub(crate) fn rate_limit(input: &[u8]) {
    let mut choices = Choices(input);
    let (mut limit, mut now) = (RateLimit::default(), Duration::ZERO);
    let (mut admitted, mut left_out, mut reported) = (Vec::new(), 0, 0);
    while !choices.is_done() {
        let source = choices.byte() % 5;
        for _ in 0..=choices.below(40) {
            if limit.admits(&source, now) {
                admitted.push((source, now));
            } else {
                left_out += 1;
                assert!(limit.due().is_some(), "lines are left out and never reported");
            }
        }
        now += Duration::from_millis(choices.number() >> 40);
        reported += report(&mut limit, now);
    }
    while let Some(due) = limit.due() {
        assert!(due <= now + REPORT_AFTER);
        now = now.max(due);
        let count = report(&mut limit, now);
        assert!(count > 0, "a report without lines");
        reported += count;
    }
    assert_eq!(left_out, reported);
    check_rate(&admitted.iter().map(|(_, at)| *at).collect::<Vec<_>>(), ALL);
    for source in 0..5 {
        check_rate(&admitted.iter().filter(|(own, _)| *own == source).map(|(_, at)| *at).collect::<Vec<_>>(), OWN);
    }
}

fn report(limit: &mut RateLimit<u8>, now: Duration) -> u64 {
    let counts = limit.take_due(now);
    assert!(limit.due().is_none_or(|due| due > now), "the report is due again");
    assert!(counts.iter().all(|(_, count)| *count > 0));
    counts.iter().map(|(_, count)| count).sum()
}

/// In any span of time at most a burst is logged, and one more line for each period in it.
fn check_rate(times: &[Duration], rate: Rate) {
    for (first, begun) in times.iter().enumerate().step_by(7) {
        for (last, ended) in times.iter().enumerate().skip(first).step_by(5) {
            let most = u128::from(rate.burst) + (*ended - *begun).as_nanos() / rate.period.as_nanos() + 1;
            assert!((last - first) as u128 <= most, "{} lines from {begun:?} to {ended:?}", last - first + 1);
        }
    }
}
