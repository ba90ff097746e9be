//! Snapshots: images that the engine commits from the file system of a sandbox, which is paused meanwhile.

use crate::engine::EngineError;
use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Record, Snapshot, Status};
use crate::sandbox::registry::Operation;
use crate::sandbox::{LABEL_SNAPSHOT, Sandboxes, container_name, name, now};

/// Snapshots are images of this repository whose tag is the id of the snapshot.
const REPOSITORY: &str = "localhost/tl-snapshot";

/// The maximum number of snapshots.
const MAX_SNAPSHOTS: usize = 4096;

impl Sandboxes {
    /// Makes a snapshot of the file system of a sandbox.
    pub(crate) fn snapshot(
        &self,
        namespace: &str,
        id_or_name: &str,
        name: Option<String>,
    ) -> Result<Snapshot, SandboxError> {
        if let Some(name) = &name {
            name::check(name)?;
        }
        let mut operation = self.begin_unless_terminated(namespace, id_or_name, "snapshotted")?;
        self.take_snapshot(&mut operation, name, false)
    }

    /// The snapshots of a namespace, or of one of its sandboxes by id or name; oldest first.
    pub(crate) fn snapshots(&self, namespace: &str, of: Option<&str>) -> Vec<Snapshot> {
        let state = self.registry.lock();
        // The sandbox may be forgotten already.
        let of = of.map(|of| state.find(of).map_or(of, |entry| entry.record.id.as_str()));
        let is_shown = |snapshot: &&Snapshot| {
            !snapshot.is_hidden && snapshot.namespace == namespace && of.is_none_or(|id| snapshot.sandbox_id == id)
        };
        let mut snapshots: Vec<Snapshot> = state.snapshots.values().filter(is_shown).cloned().collect();
        snapshots.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        snapshots
    }

    /// Finds a snapshot by its id or its name.
    pub(crate) fn get_snapshot(&self, namespace: &str, id_or_name: &str) -> Option<Snapshot> {
        self.registry.lock().find_snapshot(namespace, id_or_name).cloned()
    }

    /// Deletes a snapshot. Its image stays, and is not listed, while sandboxes that were made from it exist.
    pub(crate) fn delete_snapshot(&self, namespace: &str, id_or_name: &str) -> Result<(), SandboxError> {
        let unknown = || SandboxError::UnknownSnapshot(id_or_name.to_owned());
        // At once: for a second deletion it is unknown.
        let snapshot = self.registry.change(|state| {
            let snapshot = state.find_snapshot(namespace, id_or_name).ok_or_else(unknown)?;
            if !snapshot.is_complete {
                return Err(SandboxError::Busy(snapshot.sandbox_id.clone()));
            }
            let hidden = Snapshot { is_hidden: true, ..snapshot.clone() };
            state.snapshots.insert(hidden.id.clone(), hidden.clone());
            Ok(hidden)
        })?;
        if let Err(error) = self.store.save(&snapshot) {
            self.hide_snapshot(&snapshot.id, false);
            return Err(error.into());
        }
        if !self.registry.lock().snapshots.contains_key(&snapshot.id) {
            // It was not used any more, and was removed before its record was written.
            self.forget_snapshot(&snapshot.id);
        }
        self.remove_unused_snapshot(&snapshot.id);
        Ok(())
    }

    fn hide_snapshot(&self, id: &str, is_hidden: bool) {
        self.registry.change(|state| {
            if let Some(snapshot) = state.snapshots.get_mut(id) {
                snapshot.is_hidden = is_hidden;
            }
        });
    }

    /// Commits the file system of a sandbox, which is paused meanwhile.
    pub(crate) fn take_snapshot(
        &self,
        operation: &mut Operation,
        name: Option<String>,
        is_hidden: bool,
    ) -> Result<Snapshot, SandboxError> {
        let record = operation.record();
        let before = record.status;
        if !matches!(before, Status::Running | Status::Suspended) {
            let id = record.id.clone();
            return Err(SandboxError::InvalidState { id, status: before, operation: "snapshotted" });
        }
        let id = name::new_id()?;
        let snapshot = Snapshot {
            image: image_name(&id),
            id,
            namespace: record.namespace.clone(),
            name,
            sandbox_id: record.id.clone(),
            base_image: record.spec.image.clone(),
            is_complete: false,
            is_hidden,
            size_bytes: 0,
            created_at: now(),
            resources: record.spec.resources,
            entrypoint: record.spec.entrypoint.clone(),
            exposed_ports: record.spec.exposed_ports.clone(),
            allow_unauthenticated_access: record.spec.allow_unauthenticated_access,
        };
        self.add_snapshot(&snapshot)?;
        let result = self.commit(operation, before, snapshot.clone());
        if result.is_err() {
            self.undo_snapshot(&snapshot);
        }
        result
    }

    /// Writes the record of a new snapshot, if its name is free.
    fn add_snapshot(&self, snapshot: &Snapshot) -> Result<(), SandboxError> {
        self.registry.change(|state| {
            if state.snapshots.len() >= MAX_SNAPSHOTS {
                return Err(SandboxError::TooManySnapshots(MAX_SNAPSHOTS));
            }
            if let Some(name) = &snapshot.name
                && state.find_snapshot(&snapshot.namespace, name).is_some()
            {
                return Err(SandboxError::NameTaken(name.clone()));
            }
            state.snapshots.insert(snapshot.id.clone(), snapshot.clone());
            Ok(())
        })?;
        if let Err(error) = self.store.save(snapshot) {
            self.registry.change(|state| state.snapshots.remove(&snapshot.id));
            return Err(error.into());
        }
        Ok(())
    }

    fn save_snapshot(&self, snapshot: &Snapshot) -> Result<(), SandboxError> {
        self.store.save(snapshot)?;
        self.registry.change(|state| state.snapshots.insert(snapshot.id.clone(), snapshot.clone()));
        Ok(())
    }

    fn commit(
        &self,
        operation: &mut Operation,
        before: Status,
        mut snapshot: Snapshot,
    ) -> Result<Snapshot, SandboxError> {
        operation.save(|record| {
            record.status = Status::Snapshotting;
            record.returns_to = Some(before);
        })?;
        if before == Status::Running
            && let Err(error) = self.engine.pause(&container_name(operation.id()))
        {
            // Should it be paused nevertheless, the next comparison with the engine finds out.
            self.leave_snapshotting(operation, before);
            return Err(self.settle(operation, error));
        }
        let committed = self.commit_paused(operation.id(), &snapshot);
        if let Ok(size) = &committed {
            snapshot.size_bytes = *size;
            snapshot.is_complete = true;
        }
        let saved = committed.map_err(|error| self.engine_error(error)).and_then(|_| self.save_snapshot(&snapshot));
        self.return_from_snapshot(operation, before);
        saved.map(|()| snapshot)
    }

    fn commit_paused(&self, id: &str, snapshot: &Snapshot) -> Result<u64, EngineError> {
        let container = container_name(id);
        let labels = self.labels(&[(LABEL_SNAPSHOT, &snapshot.id)]);
        self.engine.commit(&container, REPOSITORY, &snapshot.id, &labels)?;
        Ok(self.engine.image(&snapshot.image)?.size_bytes)
    }

    /// The sandbox goes on as before, whatever has come of the snapshot.
    fn return_from_snapshot(&self, operation: &mut Operation, before: Status) {
        if before == Status::Suspended {
            self.set_suspended(operation);
            return;
        }
        match self.engine.unpause(&container_name(operation.id())) {
            Ok(()) => self.set_running(operation),
            // It was not paused at all, or it has ended, or the engine is gone: then the next check sees to it.
            Err(_) => self.check_or_later(operation),
        }
    }

    fn leave_snapshotting(&self, operation: &mut Operation, status: Status) {
        let change = |record: &mut Record| {
            record.status = status;
            record.returns_to = None;
        };
        self.record(operation, change, |_| {});
    }

    fn undo_snapshot(&self, snapshot: &Snapshot) {
        match self.engine.remove_image(&snapshot.image) {
            Ok(()) => self.forget_snapshot(&snapshot.id),
            // An incomplete one is removed when the engine is there again, and is not listed until then.
            Err(error) => {
                log::warn!("the image of the failed snapshot {} is removed later: {error}", snapshot.id);
                let hidden = Snapshot { is_hidden: true, ..snapshot.clone() };
                self.registry.change(|state| state.snapshots.insert(hidden.id.clone(), hidden));
            }
        }
    }

    pub(crate) fn forget_snapshot(&self, id: &str) {
        if let Err(error) = self.store.forget::<Snapshot>(id) {
            log::warn!("the record of snapshot {id} cannot be removed: {error}");
        }
        self.registry.change(|state| state.snapshots.remove(id));
    }

    /// Removes a snapshot that is deleted, or was made for a copy, once no sandbox was made from it any more.
    pub(crate) fn remove_unused_snapshot(&self, id: &str) {
        let unused = self.registry.change(|state| {
            let snapshot = state.snapshots.get(id).filter(|snapshot| snapshot.is_hidden && snapshot.is_complete)?;
            let snapshot = (!state.is_snapshot_used(id)).then(|| snapshot.clone())?;
            // No new sandbox can be made from it now.
            state.snapshots.get_mut(id)?.is_complete = false;
            Some(snapshot)
        });
        let Some(snapshot) = unused else { return };
        match self.engine.remove_image(&snapshot.image) {
            Ok(()) => self.forget_snapshot(id),
            Err(error) => {
                log::warn!("the image of snapshot {id} is removed later: {error}");
                self.registry.change(|state| state.snapshots.insert(id.to_owned(), snapshot));
            }
        }
    }

    /// Begins an operation; a terminated sandbox is in the wrong state.
    pub(crate) fn begin_unless_terminated(
        &self,
        namespace: &str,
        id_or_name: &str,
        operation: &'static str,
    ) -> Result<Operation, SandboxError> {
        match self.get(namespace, id_or_name) {
            Some(record) if record.status == Status::Terminated => {
                Err(SandboxError::InvalidState { id: record.id, status: record.status, operation })
            }
            Some(_) | None => self.begin(namespace, id_or_name, None),
        }
    }
}

/// Whether the name of an image is that of a snapshot. What somebody has built from a snapshot has its labels, but another
/// name.
pub(crate) fn is_image_name(name: &str) -> bool {
    name.strip_prefix(REPOSITORY).is_some_and(|tag| tag.starts_with(':'))
}

/// The name of the image of a snapshot.
pub(crate) fn image_name(id: &str) -> String {
    format!("{REPOSITORY}:{id}")
}
