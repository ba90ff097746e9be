//! Makes records and engine agree again: at the start, for what an earlier run has left half done; after the engine was
//! gone; and for one sandbox whenever something has happened to its container.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::engine::{Container, ContainerState, EngineError};
use crate::sandbox::decision::{Decision, decide};
use crate::sandbox::error::{OpenError, SandboxError};
use crate::sandbox::launch::INTERNAL_NETWORK;
use crate::sandbox::model::{Snapshot, Status};
use crate::sandbox::registry::Operation;
use crate::sandbox::snapshots::image_name;
use crate::sandbox::{
    LABEL_INSTANCE, LABEL_SANDBOX, LABEL_SNAPSHOT, LABEL_WARM, Sandboxes, container_name, label, now, sandbox_of,
};

impl Sandboxes {
    /// At the start: nothing else is going on.
    pub(crate) fn recover(&self) -> Result<(), OpenError> {
        let (containers, broken) = self.containers()?;
        let ids: Vec<String> = self.registry.lock().sandboxes.keys().cloned().collect();
        for id in ids {
            let container = containers.iter().find(|container| label(&container.labels, LABEL_SANDBOX) == Some(&id));
            if broken.contains(&container_name(&id)) {
                // It is there, but not known how: not to be taken for one that is gone.
                self.check_later(&id);
                continue;
            }
            let Some(mut operation) = self.registry.begin_any(&id, &self.store) else { continue };
            if operation.record().ending.is_some() && is_alive(container) {
                // It takes as long as its processes need: the start does not wait for that.
                self.check_later(&id);
                continue;
            }
            if let Err(error) = self.make_right(&mut operation, container) {
                log::error!("sandbox {id} cannot be put in order yet: {error}");
                self.check_later(&id);
            }
        }
        self.adopt_warm(&containers);
        self.remove_strays(&containers)?;
        self.remove_stray_tokens();
        Ok(())
    }

    /// The containers that tl-host has made, and the names of those that the engine cannot show. A container that somebody else has made of a snapshot has the snapshot's
    /// labels too, but another name.
    fn containers(&self) -> Result<(Vec<Container>, Vec<String>), EngineError> {
        let (mut containers, mut broken) = self.engine.list((LABEL_INSTANCE, self.store.instance()))?;
        containers.retain(|container| {
            label(&container.labels, LABEL_SANDBOX).is_some_and(|id| container.name == container_name(id))
        });
        broken.retain(|name| sandbox_of(name).is_some());
        Ok((containers, broken))
    }

    /// Once the engine is there again.
    pub(crate) fn reconcile(&self) -> Result<(), EngineError> {
        // Those that cannot be shown are checked one by one, as all.
        let (containers, _) = self.containers()?;
        let with_container: HashSet<&str> =
            containers.iter().filter_map(|container| label(&container.labels, LABEL_SANDBOX)).collect();
        self.registry.change(|state| {
            let is_doubtful =
                |id: &String, status| status != Status::Terminated || with_container.contains(id.as_str());
            let entries = state.sandboxes.iter();
            let ids: Vec<String> =
                entries.filter(|(id, entry)| is_doubtful(id, entry.record.status)).map(|(id, _)| id.clone()).collect();
            ids.iter().for_each(|id| state.ask_for_check(id));
        });
        self.forget_dead_warm(&containers);
        self.remove_strays(&containers)
    }

    /// Compares a sandbox with its container, and makes them agree.
    pub(crate) fn check(&self, operation: &mut Operation) -> Result<(), SandboxError> {
        match self.engine.inspect(&container_name(operation.id())) {
            Ok(container) => self.make_right(operation, Some(&container)),
            Err(EngineError::NotFound(_)) => self.make_right(operation, None),
            Err(error) => Err(self.engine_error(error)),
        }
    }

    /// Compares a sandbox with its container now or, if the engine does not answer, later.
    pub(crate) fn check_or_later(&self, operation: &mut Operation) {
        if let Err(error) = self.check(operation) {
            log::debug!("sandbox {} is checked later: {error}", operation.id());
            self.check_later(operation.id());
        }
    }

    /// Has a sandbox compared with its container after the operation that is going on.
    pub(crate) fn check_later(&self, id: &str) {
        self.registry.change(|state| state.ask_for_check(id));
    }

    fn make_right(&self, operation: &mut Operation, container: Option<&Container>) -> Result<(), SandboxError> {
        let decision = decide(operation.record(), container, &self.boot);
        if decision != Decision::Keep {
            log::info!("sandbox {} is {}: {decision:?}", operation.id(), operation.record().status.as_str());
        }
        match decision {
            Decision::Keep => {
                self.keep(operation, container);
                Ok(())
            }
            Decision::Become(status) => {
                self.keep(operation, container);
                if status == Status::Suspended {
                    self.set_suspended(operation)
                } else {
                    self.set_running(operation)
                }
                Ok(())
            }
            Decision::Unpause => self.unpause_left(operation, container),
            Decision::End(reason, details) => {
                if operation.record().status != Status::Pending {
                    self.counters.ended_from_outside();
                }
                self.end_at_once(operation, reason, details)
            }
            Decision::FinishEnding => self.continue_ending(operation, is_alive(container)),
            Decision::RemoveContainer => {
                self.engine.remove(&container_name(operation.id())).map_err(|error| self.engine_error(error))
            }
        }
    }

    fn unpause_left(&self, operation: &mut Operation, container: Option<&Container>) -> Result<(), SandboxError> {
        self.engine.unpause(&container_name(operation.id())).map_err(|error| self.engine_error(error))?;
        self.keep(operation, container);
        self.set_running(operation);
        Ok(())
    }

    /// Completes what memory has of a sandbox that goes on: how its tl-init is reached, and when its time is over.
    fn keep(&self, operation: &Operation, container: Option<&Container>) {
        if operation.record().status == Status::Terminated {
            return;
        }
        let Some(container) = container else { return };
        let token = match self.store.token(operation.id()) {
            Ok(token) => token,
            Err(error) => {
                log::error!("the token of sandbox {} cannot be read: {error}", operation.id());
                return;
            }
        };
        let Some(daemon) = self.daemon(container, token) else { return };
        let left = operation.record().expires_at.map(|at| Duration::from_millis(at.saturating_sub(now())));
        operation.change(|entry| {
            entry.daemon = Some(daemon);
            entry.deadline = entry.deadline.or(left.and_then(|left| Instant::now().checked_add(left)));
        });
        self.deadlines.ring();
    }

    /// Removes containers and images of this instance that belong to nothing.
    fn remove_strays(&self, containers: &[Container]) -> Result<(), EngineError> {
        for container in containers {
            let id = label(&container.labels, LABEL_SANDBOX).unwrap_or_default();
            if self.store.is_damaged(id) {
                log::warn!("container {} is kept, although its record is damaged", container_name(id));
                continue;
            }
            // In this order: a warm container passes from the pool to the registry.
            if !self.pool.has(id) && !self.registry.lock().sandboxes.contains_key(id) {
                let level =
                    if label(&container.labels, LABEL_WARM).is_some() { log::Level::Info } else { log::Level::Warn };
                log::log!(level, "container {} belongs to no sandbox: it is removed", container.id);
                // One that cannot be removed must not keep the sandboxes from being managed.
                if let Err(error) = self.engine.remove(&container.id) {
                    log::warn!("container {} cannot be removed: {error}", container.id);
                }
            }
        }
        for image in self.engine.images((LABEL_INSTANCE, self.store.instance()))? {
            let id = label(&image.labels, LABEL_SNAPSHOT).unwrap_or_default();
            let name = image_name(id);
            // An image that somebody has built from a snapshot has its labels too, but another name.
            if image.names.contains(&name)
                && !self.store.is_damaged(id)
                && !self.registry.lock().snapshots.contains_key(id)
            {
                log::warn!("image {name} belongs to no snapshot: it is removed");
                self.remove_left_image(&name);
            }
        }
        self.remove_left_snapshots();
        Ok(())
    }

    /// Removes snapshots that were not completed, and hidden ones that no sandbox uses any more.
    pub(crate) fn remove_left_snapshots(&self) {
        let (unfinished, hidden): (Vec<Snapshot>, Vec<Snapshot>) = {
            let state = self.registry.lock();
            let is_idle = |snapshot: &&Snapshot| !state.is_busy(&snapshot.sandbox_id);
            let left = state.snapshots.values().filter(|snapshot| !snapshot.is_complete || snapshot.is_hidden);
            left.filter(is_idle).cloned().partition(|snapshot| !snapshot.is_complete)
        };
        for snapshot in unfinished {
            if self.remove_left_image(&snapshot.image) {
                self.forget_snapshot(&snapshot.id);
            }
        }
        for snapshot in hidden {
            self.remove_unused_snapshot(&snapshot.id);
        }
    }

    /// For `stop --all`: removes containers that were kept because their records are damaged, and the network.
    pub(crate) fn remove_kept(&self) -> Result<(), EngineError> {
        let (containers, broken) = self.containers()?;
        let names = containers.iter().map(|container| &container.id).chain(&broken);
        names.map(String::as_str).try_for_each(|name| self.engine.remove(name))?;
        // Another tl-host may use it.
        if let Err(error) = self.engine.remove_network(INTERNAL_NETWORK) {
            log::debug!("the network stays: {error}");
        }
        Ok(())
    }

    fn remove_left_image(&self, name: &str) -> bool {
        let removed = self.engine.remove_image(name);
        removed.inspect_err(|error| log::warn!("image {name} cannot be removed: {error}")).is_ok()
    }

    fn remove_stray_tokens(&self) {
        match self.store.token_ids() {
            Ok(ids) => {
                let is_stray = |id: &&String| {
                    !self.store.is_damaged(id) && !self.pool.has(id) && !self.registry.lock().is_living(id)
                };
                ids.iter().filter(is_stray).for_each(|id| self.store.remove_token(id));
            }
            Err(error) => log::warn!("the tokens cannot be listed: {error}"),
        }
    }
}

/// Whether processes of the container live.
fn is_alive(container: Option<&Container>) -> bool {
    container.is_some_and(|container| matches!(container.state, ContainerState::Running | ContainerState::Paused))
}
