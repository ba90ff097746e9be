//! Copies a sandbox: one snapshot that is not listed, and the requested number of sandboxes from it.

use std::io::ErrorKind;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crate::sandbox::Sandboxes;
use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Reason, Record, SandboxSpec};
use crate::sandbox::registry::Operation;
use crate::sandbox::slots::PARALLEL;

/// The maximum number of copies that a request can ask for.
pub(crate) const MAX_COPIES: u32 = 100;

impl Sandboxes {
    /// Makes `times` sandboxes with the file system, the resources and the settings of another. They have no names.
    /// If one of them cannot be made, none is.
    ///
    /// # Errors
    /// [`SandboxError::Failed`] with the id of a copy that could not be started, whatever the cause, unless the disk is
    /// full: a client sends a request again after the error of an engine that is gone, and here containers were made
    /// already.
    pub(crate) fn copy(&self, namespace: &str, id_or_name: &str, times: u32) -> Result<Vec<Record>, SandboxError> {
        if !(1..=MAX_COPIES).contains(&times) {
            return Err(SandboxError::InvalidTimes { times, max: MAX_COPIES });
        }
        let mut operation = self.begin_unless_terminated(namespace, id_or_name, "copied")?;
        let snapshot = self.take_snapshot(&mut operation, None, true)?;
        let spec =
            SandboxSpec { name: None, snapshot_id: Some(snapshot.id.clone()), ..operation.record().spec.clone() };
        // All have a record before the source is free again: nothing else keeps the snapshot.
        let admitted: Result<Vec<Operation>, SandboxError> =
            (0..times).map(|_| Ok(self.admit(namespace, spec.clone())?.0)).collect();
        drop(operation);
        let made = admitted.and_then(|operations| self.bring_up_all(operations));
        // Unless sandboxes use it now.
        self.remove_unused_snapshot(&snapshot.id);
        made
    }

    fn bring_up_all(&self, operations: Vec<Operation>) -> Result<Vec<Record>, SandboxError> {
        let begin = Instant::now();
        let count = operations.len();
        let waiting = Mutex::new(operations);
        let results = Mutex::new(Vec::new());
        let bring_up = || {
            let next = || waiting.lock().unwrap_or_else(PoisonError::into_inner).pop();
            while let Some(operation) = next() {
                let id = operation.id().to_owned();
                let result = self.bring_up(operation, None, begin).map_err(|error| not_started(id, error));
                if result.is_err() {
                    // The others are of no use: without a container they need only be compared with the engine.
                    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
                }
                results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
            }
        };
        thread::scope(|scope| {
            for _ in 1..PARALLEL.min(count) {
                // Without another thread it only takes longer.
                let _ = thread::Builder::new().spawn_scoped(scope, bring_up);
            }
            bring_up();
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (made, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let made: Vec<Record> = made.into_iter().flatten().collect();
        let Some(Err(error)) = failed.into_iter().next() else { return Ok(made) };
        for record in made {
            if let Ok(mut operation) = self.registry.begin(None, &record.id, &self.store, None) {
                self.end_logged(&mut operation, Reason::Deleted, "another copy of the same request has failed");
            }
        }
        Err(error)
    }
}

/// The error of a copy that could not be started.
fn not_started(id: String, error: SandboxError) -> SandboxError {
    match error {
        SandboxError::Disk(error) if error.kind() == ErrorKind::StorageFull => SandboxError::Disk(error),
        error @ SandboxError::Failed { .. } => error,
        error => SandboxError::Failed { id, details: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineError;

    #[test]
    fn a_copy_that_was_begun_fails_with_its_id_unless_the_disk_is_full() {
        let failed = |error: SandboxError| match not_started("x".to_owned(), error) {
            SandboxError::Failed { id, details } => Some((id, details)),
            _ => None,
        };
        let gone = EngineError::Unreachable { url: "unix:///e".to_owned(), cause: "refused".to_owned() };
        let (id, details) = failed(gone.into()).unwrap();
        assert!(id == "x" && details.contains("unix:///e"), "{details}");
        let ended = SandboxError::Failed { id: "y".to_owned(), details: "it has ended".to_owned() };
        assert_eq!(failed(ended), Some(("y".to_owned(), "it has ended".to_owned())));
        assert_eq!(failed(SandboxError::Disk(ErrorKind::StorageFull.into())), None);
        assert!(failed(SandboxError::Disk(ErrorKind::PermissionDenied.into())).is_some());
    }
}
