//! Ends what is due: sandboxes whose time is over, and the records of those that were terminated an hour ago.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sandbox::expiry::{self, MAX_TERMINATED};
use crate::sandbox::model::{Reason, Status};
use crate::sandbox::registry::Operation;
use crate::sandbox::{Sandboxes, now};

/// When a sandbox that could not be ended is tried again.
const RETRY: Duration = Duration::from_secs(10);

impl Sandboxes {
    pub(crate) fn start_timeouts(self: &Arc<Self>) -> io::Result<()> {
        let sandboxes = Arc::clone(self);
        let body = move || {
            loop {
                let next = sandboxes.end_what_is_due();
                sandboxes.deadlines.wait(next);
            }
        };
        tl_os::thread::spawn_persistent("timeouts", body).map(drop)
    }

    /// Begins to end what is due, and returns when the next is.
    fn end_what_is_due(self: &Arc<Self>) -> Option<Instant> {
        let next_old = self.forget_old();
        let begun = Instant::now();
        let (due, next) = {
            let state = self.registry.lock();
            let waiting = state.living().filter(|entry| !entry.is_timing_out);
            let deadlines = waiting.filter_map(|entry| Some((entry.record.id.as_str(), entry.deadline?)));
            expiry::due(deadlines, begun)
        };
        for id in due {
            let sandbox = id.clone();
            let end = move |sandboxes: &Arc<Sandboxes>| {
                // It may have ended by itself.
                if let Ok(mut operation) = sandboxes.registry.begin(None, &sandbox, &sandboxes.store, None) {
                    sandboxes.end_if_due(&mut operation);
                }
            };
            self.registry.change(|state| state.set_timing_out(&id, true));
            if let Err(error) = self.spawn("timeout", end) {
                log::error!("no thread to end a sandbox whose time is over: {error}");
                self.registry.change(|state| state.set_timing_out(&id, false));
                return begun.checked_add(RETRY);
            }
        }
        [next, next_old].into_iter().flatten().min()
    }

    /// Ends a sandbox if its time is over still: it may have been suspended and resumed meanwhile.
    fn end_if_due(&self, operation: &mut Operation) {
        let is_due = operation.deadline().is_some_and(|deadline| deadline <= Instant::now());
        let record = operation.record();
        let seconds = record.spec.timeout_secs.unwrap_or_default();
        let ended = match (&record.spec.name, record.status) {
            (None, Status::Running) if is_due => {
                self.remove(operation, Reason::Timeout, format!("its time of {seconds} s was over"))
            }
            (Some(_), Status::Running) if is_due => self.suspend_now(operation),
            _ => Ok(()),
        };
        let retry = ended.is_err().then(|| Instant::now().checked_add(RETRY)).flatten();
        if let Err(error) = ended {
            log::error!("sandbox {} cannot be ended although its time is over: {error}", operation.id());
        }
        operation.change(|entry| {
            entry.is_timing_out = false;
            entry.deadline = retry.or(entry.deadline);
        });
        self.deadlines.ring();
    }

    /// Forgets sandboxes that were terminated long ago, and returns when the next is due.
    fn forget_old(self: &Arc<Self>) -> Option<Instant> {
        let (old, next) = {
            let state = self.registry.lock();
            let terminated = state
                .sandboxes
                .values()
                .filter_map(|entry| Some((entry.record.id.as_str(), entry.record.termination.as_ref()?.at)));
            expiry::forgotten(terminated, now(), MAX_TERMINATED)
        };
        for id in old {
            self.forget(&id);
        }
        Instant::now().checked_add(Duration::from_millis(next?))
    }

    fn forget(&self, id: &str) {
        let Some(operation) = self.registry.begin_any(id, &self.store) else { return };
        if let Err(error) = operation.forget() {
            log::warn!("the record of sandbox {id} cannot be removed: {error}");
        }
    }
}
