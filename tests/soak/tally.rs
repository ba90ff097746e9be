//! Counts of what the clients have done and seen: for the report, and to compare them with `GET /metrics`.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::lines::LONGEST_WRITE;
use crate::worker::Progress;

/// What the clients know about a counter of the daemon: its value is from `sure` to `sure + unsure`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bounds {
    pub sure: u64,
    pub unsure: u64,
}

/// Counts by name. The names of `counters` are those of the metrics.
#[derive(Default)]
pub struct Tally {
    counters: Mutex<BTreeMap<String, Bounds>>,
    operations: Mutex<BTreeMap<&'static str, u64>>,
    faults: Mutex<BTreeMap<&'static str, u64>>,
    /// What the daemon has said that it lost, and what could not be checked.
    losses: Mutex<BTreeMap<&'static str, u64>>,
    /// Bytes that were compared with what they must be.
    pub bytes: AtomicU64,
    /// Longest time of `GET /health`, in microseconds, without the time for which the daemon was stopped.
    pub slowest_health: AtomicU64,
    pub health_checks: AtomicU64,
}

impl Tally {
    /// The daemon has counted one more.
    pub fn count(&self, counter: &str) {
        self.counters.lock().expect("a lock").entry(counter.to_owned()).or_default().sure += 1;
    }

    /// The daemon has counted `sure` more, and perhaps up to `unsure` more than that.
    pub fn count_many(&self, counter: &str, sure: u64, unsure: u64) {
        let mut counters = self.counters.lock().expect("a lock");
        let bounds = counters.entry(counter.to_owned()).or_default();
        (bounds.sure, bounds.unsure) = (bounds.sure + sure, bounds.unsure + unsure);
    }

    /// The daemon has read what these runs have written. `may_be_cut`: a last write of each may not have been counted.
    pub fn count_output(&self, runs: &[Progress], may_be_cut: bool) {
        for (stream, name) in ["stdout", "stderr"].iter().enumerate() {
            let sure = runs.iter().map(|run| run.bytes[stream]).sum();
            let unsure = if may_be_cut { runs.len() as u64 * LONGEST_WRITE } else { 0 };
            self.count_many(&format!("output_bytes_total{{stream=\"{name}\"}}"), sure, unsure);
        }
    }

    /// The daemon may have counted one more.
    pub fn count_unsure(&self, counter: &str) {
        self.counters.lock().expect("a lock").entry(counter.to_owned()).or_default().unsure += 1;
    }

    pub fn counters(&self) -> BTreeMap<String, Bounds> {
        self.counters.lock().expect("a lock").clone()
    }

    pub fn operation(&self, name: &'static str) {
        *self.operations.lock().expect("a lock").entry(name).or_default() += 1;
    }

    pub fn fault(&self, name: &'static str) {
        *self.faults.lock().expect("a lock").entry(name).or_default() += 1;
    }

    pub fn loss(&self, name: &'static str) {
        *self.losses.lock().expect("a lock").entry(name).or_default() += 1;
    }

    pub fn checked(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn operations(&self) -> BTreeMap<&'static str, u64> {
        self.operations.lock().expect("a lock").clone()
    }

    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.faults.lock().expect("a lock").clone()
    }

    pub fn losses(&self) -> BTreeMap<&'static str, u64> {
        self.losses.lock().expect("a lock").clone()
    }
}
