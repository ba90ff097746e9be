//! The metrics of this process: counters and histograms that every thread updates, and their text form.
//!
//! The counters are those of the process, as in other Prometheus clients: they go on if a supervisor is dropped and
//! another one is started. An update is one or two relaxed atomic additions: it neither locks nor allocates. This module
//! reads no clock and asks no other thread; what is only known at the time of a scrape is added in `http/api/metrics.rs`.

mod encode;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

pub use encode::{Format, Kind, Page};

use crate::model::{Occurrence, Stream};

/// A number that only grows.
#[derive(Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// A counter at 0.
    #[must_use]
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Adds to the counter.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// Adds 1.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Number of buckets of a histogram, without the last one, which has no bound.
const BUCKETS: usize = 12;

/// The bounds of the buckets: in microseconds, and as they are written, in seconds.
pub(crate) const BOUNDS: [(u64, &str); BUCKETS] = [
    (1_000, "0.001"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (500_000, "0.5"),
    (1_000_000, "1.0"),
    (5_000_000, "5.0"),
    (10_000_000, "10.0"),
    (60_000_000, "60.0"),
    (600_000_000, "600.0"),
    (3_600_000_000, "3600.0"),
];

/// Durations, counted in buckets with fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    /// The numbers of durations up to each bound and above the bound before it. The last bucket has no bound.
    buckets: [Counter; BUCKETS + 1],
    sum_micros: Counter,
}

impl Default for Counter {
    fn default() -> Counter {
        Counter::new()
    }
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

impl Histogram {
    /// A histogram without a duration.
    #[must_use]
    pub const fn new() -> Histogram {
        Histogram { buckets: [const { Counter::new() }; BUCKETS + 1], sum_micros: Counter::new() }
    }

    /// Counts a duration.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS.iter().position(|(bound, _)| micros <= *bound).unwrap_or(BUCKETS);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.increment();
        }
        self.sum_micros.add(micros);
    }
}

/// The kinds of units, as values of the label `kind`.
pub(crate) const KINDS: [&str; 3] = ["plain", "managed", "terminal"];

/// The reasons of the ends of runs, and of restarts: words of `RunEnd::reason` and `RestartReason::word`.
pub(crate) const REASONS: [&str; 7] =
    ["exited", "signaled", "oom_killed", "timed_out", "unhealthy", "start_failed", "requested"];

/// Number of words of [`REASONS`] that are reasons of ends.
const ENDS: usize = 4;

/// The sources of output, as values of the label `stream`.
pub(crate) const STREAMS: [&str; 3] = ["stdout", "stderr", "terminal"];

/// The results of health probes.
pub(crate) const RESULTS: [&str; 2] = ["success", "failure"];

/// The counters of processes.
#[derive(Debug)]
pub(crate) struct Metrics {
    starts: [Counter; 3],
    start_failures: [Counter; 3],
    restarts: [Counter; REASONS.len()],
    ends: [Counter; ENDS],
    run_durations: [Histogram; 3],
    health_checks: [Counter; 2],
    output_bytes: [Counter; 3],
    pub(crate) truncations: Counter,
    pub(crate) orphans: Counter,
    pub(crate) tunnels_opened: Counter,
    pub(crate) tunnels_closed: Counter,
}

/// The metrics of this process.
pub(crate) static METRICS: Metrics = Metrics {
    starts: [const { Counter::new() }; 3],
    start_failures: [const { Counter::new() }; 3],
    restarts: [const { Counter::new() }; REASONS.len()],
    ends: [const { Counter::new() }; ENDS],
    run_durations: [const { Histogram::new() }; 3],
    health_checks: [const { Counter::new() }; 2],
    output_bytes: [const { Counter::new() }; 3],
    truncations: Counter::new(),
    orphans: Counter::new(),
    tunnels_opened: Counter::new(),
    tunnels_closed: Counter::new(),
};

/// The kind of a unit, as an index of [`KINDS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnitKind {
    Plain,
    Managed,
    Terminal,
}

/// Adds one to the counter of `word` among those of `words`.
fn count(counters: &[Counter], words: &[&str], word: &str) {
    if let Some(counter) = words.iter().position(|known| *known == word).and_then(|at| counters.get(at)) {
        counter.increment();
    }
}

impl Metrics {
    /// Counts what has happened to a unit.
    pub(crate) fn record(&self, kind: UnitKind, occurrence: &Occurrence) {
        match occurrence {
            Occurrence::Started { .. } => add_at(&self.starts, kind as usize, 1),
            Occurrence::Ended { end, lasted } => {
                count(&self.ends, &REASONS, end.reason());
                if let Some(histogram) = self.run_durations.get(kind as usize) {
                    histogram.observe(*lasted);
                }
            }
            Occurrence::Restarting { reason, .. } => count(&self.restarts, &REASONS, reason.word()),
            Occurrence::Stopped { .. } | Occurrence::Paused | Occurrence::Resumed | Occurrence::Health { .. } => {}
        }
    }

    /// Counts a start that has failed.
    pub(crate) fn start_failed(&self, kind: UnitKind) {
        add_at(&self.start_failures, kind as usize, 1);
    }

    /// Counts a health probe.
    pub(crate) fn probed(&self, succeeded: bool) {
        add_at(&self.health_checks, usize::from(!succeeded), 1);
    }

    /// Counts output that was read. `stream` is None for a terminal.
    pub(crate) fn read(&self, stream: Option<Stream>, bytes: usize) {
        let at = match stream {
            Some(Stream::Stdout) => 0,
            Some(Stream::Stderr) => 1,
            None => 2,
        };
        add_at(&self.output_bytes, at, bytes as u64);
    }

    /// Writes these metrics to a page.
    #[cold]
    pub(crate) fn write(&self, page: &mut Page) {
        by(page, "starts", "Runs that have started.", "kind", &KINDS, &self.starts);
        by(page, "start_failures", "Starts that have failed.", "kind", &KINDS, &self.start_failures);
        by(page, "restarts", "Restarts of managed processes, by their reason.", "reason", &REASONS, &self.restarts);
        by(page, "ends", "Runs that have ended, by how they ended.", "reason", &REASONS, &self.ends);
        page.family("run_duration_seconds", Kind::Histogram, "Time from the fork of a run to its end.");
        for (kind, histogram) in KINDS.iter().zip(&self.run_durations) {
            histogram.write(page, "kind", kind);
        }
        by(page, "health_checks", "Health probes, by their result.", "result", &RESULTS, &self.health_checks);
        by(page, "output_bytes", "Bytes of output that were read.", "stream", &STREAMS, &self.output_bytes);
        one(page, "output_truncations", "Parts of output that were dropped from logs.", &self.truncations);
        one(page, "reaped_orphans", "Ended processes that led no unit and were reaped.", &self.orphans);
        one(page, "tunnels_opened", "TCP tunnels that were opened.", &self.tunnels_opened);
        page.family("tunnels_open", Kind::Gauge, "TCP tunnels that are open.");
        page.sample(&[], self.tunnels_opened.get().saturating_sub(self.tunnels_closed.get()));
    }
}

/// Writes one counter for each word, which is the value of `label`.
#[cold]
#[inline(never)]
fn by(page: &mut Page, name: &str, help: &str, label: &str, words: &[&str], counters: &[Counter]) {
    page.family(name, Kind::Counter, help);
    for (word, counter) in words.iter().zip(counters) {
        page.sample(&[(label, word)], counter.get());
    }
}

#[cold]
#[inline(never)]
fn one(page: &mut Page, name: &str, help: &str, counter: &Counter) {
    page.family(name, Kind::Counter, help);
    page.sample(&[], counter.get());
}

fn add_at(counters: &[Counter], at: usize, more: u64) {
    if let Some(counter) = counters.get(at) {
        counter.add(more);
    }
}

impl Histogram {
    /// Writes the samples with one label.
    #[cold]
    #[inline(never)]
    pub fn write(&self, page: &mut Page, label: &str, value: &str) {
        let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
        let mut total = 0;
        for (bound, bucket) in bounds.zip(&self.buckets) {
            total += bucket.get();
            page.part("_bucket", &[(label, value), ("le", bound)], total);
        }
        page.part("_sum", &[(label, value)], self.sum_micros.get() as f64 / 1e6);
        page.part("_count", &[(label, value)], total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Exit, RestartReason, RunEnd};

    #[test]
    fn every_reason_has_a_counter() {
        let end = |exit, timed_out| RunEnd { exit, timed_out, ended_at: 0 };
        let ends = [
            end(Exit::Code(1), false),
            end(Exit::Signal(9), false),
            end(Exit::OomKilled, false),
            end(Exit::Signal(9), true),
        ];
        let more = [RestartReason::Unhealthy(None), RestartReason::StartFailed(None), RestartReason::Requested];
        let words: Vec<&str> = ends.iter().map(RunEnd::reason).chain(more.iter().map(RestartReason::word)).collect();
        assert_eq!(words, REASONS);
    }

    #[test]
    fn a_histogram_counts_each_duration_in_all_buckets_above_it() {
        let histogram = Histogram::new();
        for ms in [1, 5, 6, 7_200_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut page = Page::new(Format::Text);
        page.family("x_seconds", Kind::Histogram, "X.");
        histogram.write(&mut page, "kind", "plain");
        let text = page.finish();
        for line in [
            "tl_supervisor_x_seconds_bucket{kind=\"plain\",le=\"0.001\"} 1",
            "tl_supervisor_x_seconds_bucket{kind=\"plain\",le=\"0.005\"} 2",
            "tl_supervisor_x_seconds_bucket{kind=\"plain\",le=\"0.01\"} 3",
            "tl_supervisor_x_seconds_bucket{kind=\"plain\",le=\"3600.0\"} 3",
            "tl_supervisor_x_seconds_bucket{kind=\"plain\",le=\"+Inf\"} 4",
            "tl_supervisor_x_seconds_sum{kind=\"plain\"} 7200.012",
            "tl_supervisor_x_seconds_count{kind=\"plain\"} 4",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}:\n{text}");
        }
    }
}
