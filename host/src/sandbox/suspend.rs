//! Suspends and resumes sandboxes: the engine pauses and unpauses all processes of the container.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::engine::EngineError;
use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Progress, Record, Status};
use crate::sandbox::registry::Operation;
use crate::sandbox::{Sandboxes, container_name, millis, now};

/// How many milliseconds a sandbox must have left to go on with them when it is resumed. Others begin anew.
const LEAST_TIME_LEFT: u64 = 1000;

/// The maximum number of threads that suspend and resume, or wait to do so: each can outlive its request.
const MAX_WAITING: usize = 512;

/// One of these threads.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn begin(count: &Arc<AtomicUsize>) -> Result<Waiting, SandboxError> {
        let waiting = Waiting(Arc::clone(count));
        if count.fetch_add(1, Ordering::SeqCst) >= MAX_WAITING {
            return Err(SandboxError::TooManyWaiting(MAX_WAITING));
        }
        Ok(waiting)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Sandboxes {
    /// Suspends a sandbox that has a name; returns after `wait` at the latest.
    pub(crate) fn suspend(
        self: &Arc<Self>,
        namespace: &str,
        id_or_name: &str,
        wait: Option<Duration>,
    ) -> Result<Progress, SandboxError> {
        let id = self.named(namespace, id_or_name, "suspended")?;
        self.within(wait, move |sandboxes| {
            let mut operation = sandboxes.registry.begin(None, &id, &sandboxes.store, None)?;
            sandboxes.suspend_now(&mut operation)
        })
    }

    /// Resumes a sandbox; returns after `wait` at the latest.
    pub(crate) fn resume(
        self: &Arc<Self>,
        namespace: &str,
        id_or_name: &str,
        wait: Option<Duration>,
    ) -> Result<Progress, SandboxError> {
        let id = self.named(namespace, id_or_name, "resumed")?;
        self.within(wait, move |sandboxes| {
            let mut operation = sandboxes.registry.begin(None, &id, &sandboxes.store, None)?;
            sandboxes.resume_now(&mut operation)
        })
    }

    /// The id of a sandbox that can be suspended and resumed.
    fn named(&self, namespace: &str, id_or_name: &str, operation: &'static str) -> Result<String, SandboxError> {
        let record = self.get(namespace, id_or_name).ok_or_else(|| SandboxError::Unknown(id_or_name.to_owned()))?;
        if record.status == Status::Terminated {
            return Err(SandboxError::InvalidState { id: record.id, status: record.status, operation });
        }
        if record.spec.name.is_none() {
            return Err(SandboxError::Unnamed(record.id));
        }
        Ok(record.id)
    }

    /// Does something here or, if it must not take longer than `wait`, in a thread of its own.
    fn within(
        self: &Arc<Self>,
        wait: Option<Duration>,
        body: impl FnOnce(&Sandboxes) -> Result<(), SandboxError> + Send + 'static,
    ) -> Result<Progress, SandboxError> {
        let Some(wait) = wait else {
            return body(self).map(|()| Progress::Done);
        };
        let turn = Waiting::begin(&self.waiting)?;
        let (tell, told) = channel();
        self.spawn("suspend", move |sandboxes| {
            let _turn = turn;
            let result = body(sandboxes);
            if let Err(error) = &result {
                log::warn!("{error}");
            }
            // The caller may have stopped waiting.
            let _ = tell.send(result);
        })?;
        match told.recv_timeout(wait) {
            Ok(result) => result.map(|()| Progress::Done),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(Progress::GoesOn),
        }
    }

    /// Pauses the container of a running sandbox.
    pub(crate) fn suspend_now(&self, operation: &mut Operation) -> Result<(), SandboxError> {
        match operation.record().status {
            Status::Running => {}
            Status::Suspended => return Ok(()),
            status => return Err(invalid(operation.record(), status, "suspended")),
        }
        operation.save(|record| record.status = Status::Suspending)?;
        if let Err(error) = self.engine.pause(&container_name(operation.id())) {
            if matches!(error, EngineError::Unreachable { .. }) {
                // Should it be paused nevertheless, the next comparison with the engine finds out.
                self.record(operation, |record| record.status = Status::Running, |_| {});
            }
            return Err(self.settle(operation, error));
        }
        self.set_suspended(operation);
        Ok(())
    }

    /// Unpauses the container of a suspended sandbox.
    pub(crate) fn resume_now(&self, operation: &mut Operation) -> Result<(), SandboxError> {
        match operation.record().status {
            Status::Suspended => {}
            Status::Running => return Ok(()),
            status => return Err(invalid(operation.record(), status, "resumed")),
        }
        if let Err(error) = self.engine.unpause(&container_name(operation.id())) {
            let error = self.settle(operation, error);
            // It was unpaused already.
            return if operation.record().status == Status::Running { Ok(()) } else { Err(error) };
        }
        self.set_running(operation);
        Ok(())
    }

    /// Finds out what has become of a sandbox after a failed call, and returns the error.
    pub(crate) fn settle(&self, operation: &mut Operation, error: EngineError) -> SandboxError {
        match &error {
            // To ask now would only take as long again.
            EngineError::Unreachable { .. } | EngineError::TimedOut(..) => self.check_later(operation.id()),
            _ => self.check_or_later(operation),
        }
        self.engine_error(error)
    }

    /// The container is paused: the time of the sandbox does not go on.
    pub(crate) fn set_suspended(&self, operation: &mut Operation) {
        let left = operation.deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        self.record(
            operation,
            |record| {
                record.status = Status::Suspended;
                record.returns_to = None;
                record.expires_at = None;
                record.time_left = left.map(millis).or(record.time_left);
            },
            |entry| entry.deadline = None,
        );
    }

    /// The container runs: the time of the sandbox goes on, or begins anew if it was over.
    pub(crate) fn set_running(&self, operation: &mut Operation) {
        let whole = operation.record().spec.timeout_secs.map(|seconds| seconds.saturating_mul(1000));
        let left = operation.record().time_left.filter(|left| *left >= LEAST_TIME_LEFT).or(whole);
        let has_deadline = operation.deadline().is_some();
        self.record(
            operation,
            |record| {
                record.status = Status::Running;
                record.returns_to = None;
                if !has_deadline {
                    record.expires_at = left.map(|left| now().saturating_add(left));
                    record.time_left = None;
                }
            },
            |entry| {
                if !has_deadline {
                    entry.deadline = left.and_then(|left| Instant::now().checked_add(Duration::from_millis(left)));
                }
            },
        );
        self.deadlines.ring();
    }
}

fn invalid(record: &Record, status: Status, operation: &'static str) -> SandboxError {
    SandboxError::InvalidState { id: record.id.clone(), status, operation }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_wait_at_a_time() {
        let count = Arc::default();
        let mut waiting: Vec<Waiting> = (0..MAX_WAITING).map(|_| Waiting::begin(&count).unwrap()).collect();
        assert!(matches!(Waiting::begin(&count), Err(SandboxError::TooManyWaiting(_))));
        waiting.pop();
        waiting.push(Waiting::begin(&count).unwrap());
        drop(waiting);
        assert_eq!(count.load(Ordering::SeqCst), 0);
    }
}
