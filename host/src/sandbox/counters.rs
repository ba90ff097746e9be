//! What `/metrics` shows of sandboxes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sandbox::model::Status;

/// Upper limits of the classes in which the durations of creates are counted, in milliseconds.
pub(crate) const CREATE_CLASSES: [u64; 9] = [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000];

#[derive(Default)]
pub(crate) struct Counters {
    created: AtomicU64,
    failed: AtomicU64,
    from_warm_pool: AtomicU64,
    create_micros: AtomicU64,
    classes: [AtomicU64; CREATE_CLASSES.len()],
    engine_errors: AtomicU64,
    ended_from_outside: AtomicU64,
}

/// All numbers at one moment. Those that are not of a moment count from the start of tl-host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Metrics {
    pub(crate) sandboxes: [(Status, usize); Status::ALL.len()],
    /// Containers that are ready for the next create.
    pub(crate) warm: usize,
    pub(crate) created: u64,
    pub(crate) create_failed: u64,
    /// How many of the created ones have come from the warm pool.
    pub(crate) created_from_warm_pool: u64,
    /// Sum of the durations of all successful creates.
    pub(crate) create_seconds: f64,
    /// How many successful creates took at most so many milliseconds (cumulative, as in a Prometheus histogram).
    pub(crate) create_classes: [(u64, u64); CREATE_CLASSES.len()],
    /// Calls of sandboxes to the engine that failed, unless a client was to blame.
    pub(crate) engine_errors: u64,
    /// Sandboxes that have ended without having been asked to.
    pub(crate) ended_from_outside: u64,
}

impl Counters {
    pub(crate) fn created(&self, took: Duration, is_warm: bool) {
        add(&self.created, 1);
        add(&self.from_warm_pool, u64::from(is_warm));
        add(&self.create_micros, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        let classes = CREATE_CLASSES.iter().zip(&self.classes);
        for (_, class) in classes.filter(|(limit, _)| took <= Duration::from_millis(**limit)) {
            add(class, 1);
        }
    }

    pub(crate) fn create_failed(&self) {
        add(&self.failed, 1);
    }

    pub(crate) fn ended_from_outside(&self) {
        add(&self.ended_from_outside, 1);
    }

    /// Counts an error of the engine.
    pub(crate) fn engine_failed(&self) {
        add(&self.engine_errors, 1);
    }

    pub(crate) fn metrics(&self, sandboxes: [(Status, usize); Status::ALL.len()], warm: usize) -> Metrics {
        let mut create_classes = CREATE_CLASSES.map(|limit| (limit, 0));
        for ((_, count), class) in create_classes.iter_mut().zip(&self.classes) {
            *count = get(class);
        }
        Metrics {
            sandboxes,
            warm,
            created: get(&self.created),
            create_failed: get(&self.failed),
            created_from_warm_pool: get(&self.from_warm_pool),
            create_seconds: Duration::from_micros(get(&self.create_micros)).as_secs_f64(),
            create_classes,
            engine_errors: get(&self.engine_errors),
            ended_from_outside: get(&self.ended_from_outside),
        }
    }
}

fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
