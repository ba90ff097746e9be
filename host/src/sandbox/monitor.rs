//! Follows the engine's events: sandboxes that are ended, paused or removed from outside.
//!
//! | thread | waits for |
//! |---|---|
//! | `monitor` | the next event, or the engine to be there again |
//! | `checks` | a sandbox to which something has happened and on which no operation is going on |
//! | `doubts` | a call that has reached its time limit, and then for some minutes for what the engine makes of it late |

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::engine::{ContainerEvent, EngineError};
use crate::sandbox::model::Status;
use crate::sandbox::{LABEL_INSTANCE, Sandboxes, alarm::Alarm, sandbox_of};

/// The first and the longest pause before the engine is asked again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Pause after a sandbox that could not be compared with the engine.
const FIRST_CHECK_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_CHECK_PAUSE: Duration = Duration::from_secs(10);
/// How long, and how often, containers and images are looked for that the engine makes late.
const DOUBT: Duration = Duration::from_secs(10 * 60);
const DOUBT_INTERVAL: Duration = Duration::from_secs(30);

impl Sandboxes {
    pub(crate) fn start_monitor(self: &Arc<Self>) -> io::Result<()> {
        let sandboxes = Arc::clone(self);
        tl_os::thread::spawn_persistent("monitor", move || sandboxes.follow_events()).map(drop)?;
        let sandboxes = Arc::clone(self);
        tl_os::thread::spawn_persistent("checks", move || sandboxes.check_what_is_doubtful()).map(drop)?;
        let sandboxes = Arc::clone(self);
        tl_os::thread::spawn_persistent("doubts", move || sandboxes.remove_what_comes_late()).map(drop)
    }

    fn check_what_is_doubtful(&self) -> io::Result<()> {
        // The pauses of those that could not be compared.
        let mut pauses: HashMap<String, Duration> = HashMap::new();
        let mut last = String::new();
        loop {
            // After the last one, so that one that fails again and again does not keep the others waiting.
            let mut operation = self.registry.begin_check(&last, &self.store);
            let checked = self.check(&mut operation);
            operation.id().clone_into(&mut last);
            drop(operation);
            if let Err(error) = checked {
                let pause = pauses.get(&last).map_or(FIRST_CHECK_PAUSE, |pause| (*pause * 2).min(LONGEST_CHECK_PAUSE));
                log::debug!("sandbox {last} is checked again in {pause:?}: {error}");
                self.registry.change(|state| state.postpone_check(&last, Instant::now() + pause));
                pauses.insert(last.clone(), pause);
            } else {
                pauses.remove(&last);
                // While a check or another operation was going on, what was left of the sandbox's snapshots had to stay.
                self.remove_left_snapshots();
            }
        }
    }

    fn follow_events(&self) -> io::Result<()> {
        let nobody_rings = Alarm::default();
        let mut pause = FIRST_PAUSE;
        loop {
            let begin = Instant::now();
            let Err(error) = self.follow_once();
            if begin.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
                log::warn!("the engine's events have ended: {error}");
            } else {
                log::debug!("the engine's events cannot be followed: {error}");
            }
            self.counters.engine_failed();
            nobody_rings.wait(Instant::now().checked_add(pause));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Compares everything with the engine, and then follows its events until they end.
    fn follow_once(&self) -> Result<std::convert::Infallible, EngineError> {
        let since = SystemTime::now();
        self.reconcile()?;
        for event in self.engine.events((LABEL_INSTANCE, self.store.instance()), since) {
            self.see(&event?);
        }
        Err(EngineError::Invalid { request: "GET /events".to_owned(), cause: "it has ended".to_owned() })
    }

    fn see(&self, event: &ContainerEvent) {
        if matches!(event.action.as_str(), "create" | "start") {
            return self.see_new(event);
        }
        if !matches!(event.action.as_str(), "die" | "died" | "remove" | "destroy" | "pause" | "unpause") {
            return;
        }
        // By its name: the record of a sandbox that is being made does not have its container yet.
        if let Some(id) = sandbox_of(&event.name) {
            self.registry.change(|state| {
                if state.is_living(id) {
                    state.ask_for_check(id);
                }
            });
        }
        if event.action != "unpause" {
            self.pool.lost(&event.container);
        }
    }

    /// A container has come. The engine may have made it after all, long after the call had reached its time limit and
    /// what was made of the sandbox was removed.
    fn see_new(&self, event: &ContainerEvent) {
        let Some(id) = sandbox_of(&event.name) else { return };
        // In this order: a warm container passes from the pool to the registry.
        let is_warm = self.pool.has(id);
        let is_known = self.registry.change(|state| {
            let record = state.sandboxes.get(id).map(|entry| &entry.record)?;
            if record.status == Status::Terminated || record.ending.is_some() {
                state.ask_for_check(id);
            }
            Some(())
        });
        if is_warm || is_known.is_some() || self.store.is_damaged(id) {
            return;
        }
        log::warn!("container {} belongs to no sandbox: it is removed", event.container);
        if let Err(error) = self.engine.remove(&event.container) {
            log::warn!("container {} cannot be removed: {error}", event.container);
            self.doubt();
        }
    }

    /// A call to the engine has reached its time limit: what it may still make is looked for, for a while.
    pub(crate) fn doubt(&self) {
        *self.doubted_until.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now().checked_add(DOUBT);
        self.doubts.ring();
    }

    fn remove_what_comes_late(&self) -> io::Result<()> {
        loop {
            let until = *self.doubted_until.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if until.is_none_or(|until| until <= now) {
                self.doubts.wait(None);
                continue;
            }
            self.doubts.wait(now.checked_add(DOUBT_INTERVAL));
            if let Err(error) = self.reconcile() {
                log::debug!("what the engine has made late is looked for again: {error}");
            }
        }
    }
}
