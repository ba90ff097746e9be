//! Ends what is due: sandboxes whose time is over, and the records of those that were terminated an hour ago.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sandbox::alarm::Alarm;
use crate::sandbox::error::SandboxError;
use crate::sandbox::expiry::{self, MAX_TERMINATED};
use crate::sandbox::model::{Reason, Status};
use crate::sandbox::registry::{Operation, Registry};
use crate::sandbox::{Sandboxes, now};

/// When a sandbox that could not be ended is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// A sandbox whose time is over and which is being ended: it is not due meanwhile. However that ends, also with a panic, it
/// can be due again, and if its time is over still it is, after [`RETRY`]: it was not ended, or it is in a state in which
/// it cannot be.
struct TimingOut {
    registry: Arc<Registry>,
    deadlines: Arc<Alarm>,
    id: String,
}

impl TimingOut {
    fn begin(registry: &Arc<Registry>, deadlines: &Arc<Alarm>, id: String) -> TimingOut {
        registry.change(|state| state.begin_timing_out(&id));
        TimingOut { registry: Arc::clone(registry), deadlines: Arc::clone(deadlines), id }
    }
}

impl Drop for TimingOut {
    fn drop(&mut self) {
        let now = Instant::now();
        self.registry.change(|state| state.end_timing_out(&self.id, now, now.checked_add(RETRY)));
        self.deadlines.ring();
    }
}

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
            let timing_out = TimingOut::begin(&self.registry, &self.deadlines, id);
            let end = move |sandboxes: &Arc<Sandboxes>| {
                sandboxes.end_if_due(&timing_out.id);
                drop(timing_out);
            };
            // Without a thread, the closure is dropped, and what is due is tried again.
            if let Err(error) = self.spawn("timeout", end) {
                log::error!("no thread to end a sandbox whose time is over: {error}");
                return begun.checked_add(RETRY);
            }
        }
        [next, next_old].into_iter().flatten().min()
    }

    /// Ends a sandbox if its time is over still: it may have been suspended and resumed meanwhile.
    fn end_if_due(&self, id: &str) {
        // It may have ended by itself.
        let Ok(mut operation) = self.registry.begin(None, id, &self.store, None) else { return };
        if let Err(error) = self.end_now_if_due(&mut operation) {
            log::error!("sandbox {id} cannot be ended although its time is over: {error}");
        }
    }

    fn end_now_if_due(&self, operation: &mut Operation) -> Result<(), SandboxError> {
        let is_due = operation.deadline().is_some_and(|deadline| deadline <= Instant::now());
        let record = operation.record();
        let seconds = record.spec.timeout_secs.unwrap_or_default();
        match (&record.spec.name, record.status) {
            (None, Status::Running) if is_due => {
                self.end(operation, Reason::Timeout, format!("its time of {seconds} s was over"))
            }
            (Some(_), Status::Running) if is_due => self.suspend_now(operation),
            _ => Ok(()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::testing::record;

    #[test]
    fn after_a_panic_a_sandbox_is_due_again_but_not_at_once() {
        let deadlines = Arc::new(Alarm::default());
        let (registry, id) = (Registry::new(vec![record("a", Status::Running)], Vec::new()), "a".repeat(21));
        let state = || {
            let state = registry.lock();
            let entry = &state.sandboxes[&id];
            (entry.is_timing_out, entry.deadline)
        };
        let over = Instant::now();
        registry.change(|state| state.sandboxes.get_mut(&id).unwrap().deadline = Some(over));
        let begin = || TimingOut::begin(&registry, &deadlines, id.clone());
        // In a state in which it cannot be ended yet, it is not due again at once.
        let done = begin();
        assert_eq!(state(), (true, Some(over)));
        drop(done);
        let (is_timing_out, deadline) = state();
        assert!(!is_timing_out && deadline >= Some(over + RETRY), "{deadline:?}");
        // One that was resumed meanwhile has the deadline that it was given.
        let later = Instant::now() + RETRY / 2;
        registry.change(|state| state.sandboxes.get_mut(&id).unwrap().deadline = Some(later));
        drop(begin());
        assert_eq!(state(), (false, Some(later)));
        registry.change(|state| state.sandboxes.get_mut(&id).unwrap().deadline = Some(over));
        let timing_out = begin();
        let end = move || {
            let _timing_out = timing_out;
            panic!("in the middle");
        };
        std::thread::spawn(end).join().unwrap_err();
        let (is_timing_out, deadline) = state();
        assert!(!is_timing_out && deadline >= Some(over + RETRY), "{deadline:?}");
        // The thread that waits for deadlines was woken: this returns at once.
        deadlines.wait(None);
        // One that was suspended meanwhile has no deadline.
        registry.change(|state| state.sandboxes.get_mut(&id).unwrap().deadline = None);
        drop(begin());
        assert_eq!(state(), (false, None));
    }
}
