//! Ends a sandbox: tl-init's ordered shutdown, then its container, its token and, in time, its record. To end is the word
//! for sandboxes, to remove that for containers, images and files, and to forget that for records.

use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::engine::{ContainerState, EngineError};
use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Progress, Reason, Status, Termination};
use crate::sandbox::registry::Operation;
use crate::sandbox::{Sandboxes, container_name, now};

/// How many sandboxes are ended at a time by `stop_all`.
const PARALLEL: usize = 4;

/// New sandboxes are refused. When this is dropped, also by a panic, they are made again.
struct Stopping<'a>(&'a Sandboxes);

impl Stopping<'_> {
    /// They are refused from now on.
    fn stay(self) {
        std::mem::forget(self);
    }
}

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.registry.change(|state| state.is_stopping = false);
        self.0.open_pool();
    }
}

impl Sandboxes {
    /// Ends a sandbox on request. One that is terminated is unknown. If the engine is gone at the beginning, that is an
    /// error, and nothing was done; if it is gone later, the ending goes on when it is there again.
    pub(crate) fn delete(&self, namespace: &str, id_or_name: &str) -> Result<Progress, SandboxError> {
        let mut operation = self.begin(namespace, id_or_name, None)?;
        // A client repeats a call whose error is that the engine is gone, and must not find the sandbox deleted meanwhile.
        if operation.record().ending.is_none()
            && let Err(error @ EngineError::Unreachable { .. }) = self.engine.inspect(&container_name(operation.id()))
        {
            return Err(self.engine_error(error));
        }
        match self.end(&mut operation, Reason::Deleted, "it was deleted".to_owned()) {
            Ok(()) => Ok(Progress::Done),
            Err(SandboxError::Engine(error @ (EngineError::Unreachable { .. } | EngineError::TimedOut(..)))) => {
                log::warn!("the end of sandbox {} comes later: {error}", operation.id());
                Ok(Progress::GoesOn)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends all sandboxes and removes the containers that were started ahead. Snapshots stay. New sandboxes are refused
    /// from now on, unless a sandbox could not be ended.
    pub(crate) fn stop_all(&self) -> Result<(), SandboxError> {
        let stopping = Stopping(self);
        let ids: Vec<String> = self.registry.change(|state| {
            state.is_stopping = true;
            state.living().map(|entry| entry.record.id.clone()).collect()
        });
        self.close_pool();
        let ids = Mutex::new(ids);
        let next = || ids.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let stop = || {
            while let Some(id) = next() {
                match self.registry.begin(None, &id, &self.store, None) {
                    Ok(mut operation) => self.end_logged(&mut operation, Reason::Deleted, "tl-host stop --all"),
                    // It has ended by itself.
                    Err(_) => continue,
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..PARALLEL {
                // Without another thread it only takes longer.
                let _ = thread::Builder::new().spawn_scoped(scope, stop);
            }
            stop();
        });
        let left = self.registry.lock().living().count();
        match self.remove_kept() {
            _ if left > 0 => return Err(SandboxError::NotEnded(left)),
            kept => kept.map_err(|error| self.engine_error(error))?,
        }
        stopping.stay();
        Ok(())
    }

    /// Ends a sandbox for another reason than a request.
    pub(crate) fn end_logged(&self, operation: &mut Operation, reason: Reason, details: &str) {
        if let Err(error) = self.end(operation, reason, details.to_owned()) {
            log::error!("sandbox {} cannot be ended: {error}", operation.id());
        }
    }

    /// Ends a sandbox: its processes get the time to end that tl-init gives them.
    pub(crate) fn end(&self, operation: &mut Operation, reason: Reason, details: String) -> Result<(), SandboxError> {
        self.write_ending(operation, reason, details);
        let container = container_name(operation.id());
        match self.stop(&container) {
            // What is wrong with it does not matter any more: it is removed.
            Ok(()) | Err(EngineError::NotFound(_) | EngineError::Conflict(_) | EngineError::Refused { .. }) => {}
            Err(error) => {
                self.check_later(operation.id());
                return Err(self.engine_error(error));
            }
        }
        self.finish_ending(operation)
    }

    /// Goes on with an ending that was interrupted: what still runs gets the time that it would have got.
    pub(crate) fn continue_ending(&self, operation: &mut Operation, is_alive: bool) -> Result<(), SandboxError> {
        let has_started = operation.record().ending.as_ref().is_none_or(|ending| ending.reason != Reason::Failed);
        if is_alive && has_started {
            match self.stop(&container_name(operation.id())) {
                Err(error @ EngineError::Unreachable { .. }) => {
                    self.check_later(operation.id());
                    return Err(self.engine_error(error));
                }
                // It was asked before, and is removed now.
                Err(error) => log::warn!("sandbox {} is ended by force: {error}", operation.id()),
                Ok(()) => {}
            }
        }
        self.finish_ending(operation)
    }

    /// Ends a sandbox whose processes have ended already, or need no time for it.
    pub(crate) fn end_at_once(
        &self,
        operation: &mut Operation,
        reason: Reason,
        details: String,
    ) -> Result<(), SandboxError> {
        self.write_ending(operation, reason, details);
        self.finish_ending(operation)
    }

    /// Writes the intent: the next start finishes it. A full disk does not keep a sandbox alive.
    fn write_ending(&self, operation: &mut Operation, reason: Reason, details: String) {
        if operation.record().ending.is_none() {
            let ending = Termination { at: now(), reason, details };
            self.record(operation, |record| record.ending = Some(ending.clone()), |_| {});
        }
    }

    fn stop(&self, container: &str) -> Result<(), EngineError> {
        // A paused process does not see SIGTERM.
        if self.engine.inspect(container)?.state == ContainerState::Paused {
            self.engine.unpause(container)?;
        }
        self.engine.stop(container, self.settings.stop_grace)
    }

    /// The second half of every end: removes the container of a sandbox whose `ending` is written, and makes the record
    /// that of a terminated one.
    pub(crate) fn finish_ending(&self, operation: &mut Operation) -> Result<(), SandboxError> {
        if let Err(error) = self.engine.remove(&container_name(operation.id())) {
            self.check_later(operation.id());
            return Err(self.engine_error(error));
        }
        let termination = operation.record().ending.clone();
        let termination = termination.map(|ending| Termination { at: now(), ..ending });
        self.record(
            operation,
            |record| {
                record.status = Status::Terminated;
                record.termination.clone_from(&termination);
                record.container = None;
                record.expires_at = None;
                record.time_left = None;
                record.returns_to = None;
                record.ending = None;
            },
            |entry| {
                entry.daemon = None;
                entry.deadline = None;
            },
        );
        self.store.remove_token(operation.id());
        self.deadlines.ring();
        if let Some(snapshot) = &operation.record().spec.snapshot_id {
            self.remove_unused_snapshot(snapshot);
        }
        Ok(())
    }
}
