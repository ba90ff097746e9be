//! What the boot did, for the log and for `GET /boot`.

use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tl_supervisor::http::{BootReport, BootService, BootStep};

/// The report, shared by those who add to it and those who show it.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    begun: Instant,
    report: Arc<Mutex<BootReport>>,
}

impl Report {
    /// An empty one. `begun`: our first instruction.
    pub(crate) fn new(begun: Instant) -> Report {
        Report { begun, report: Arc::default() }
    }

    /// Does a step, and says whether it went well.
    pub(crate) fn step<E: Display>(&self, name: &str, step: impl FnOnce() -> Result<String, E>) {
        let begun = Instant::now();
        let result = step();
        self.add(name, begun, result.map_err(|error| error.to_string()));
    }

    /// A step that went wrong, in no time.
    pub(crate) fn failed(&self, name: &str, detail: &str) {
        self.add(name, Instant::now(), Err(detail.to_owned()));
    }

    /// A step that took from our first instruction until now.
    pub(crate) fn reached(&self, name: &str, detail: String) {
        self.add(name, self.begun, Ok(detail));
    }

    /// Replaces what is said of the services.
    pub(crate) fn set_services(&self, services: Vec<BootService>) {
        self.lock().services = services;
    }

    /// What there is so far.
    pub(crate) fn so_far(&self) -> BootReport {
        self.lock().clone()
    }

    fn add(&self, name: &str, begun: Instant, result: Result<String, String>) {
        // To the microsecond: more digits say nothing.
        let ms = begun.elapsed().as_micros() as f64 / 1e3;
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        self.lock().steps.push(BootStep { name: name.to_owned(), ok, detail, ms });
    }

    fn lock(&self) -> MutexGuard<'_, BootReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
