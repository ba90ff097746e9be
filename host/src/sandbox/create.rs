//! Makes a sandbox: checks the request, writes the record, starts the container, and waits until its tl-init answers.
//! If any of that fails, what was made is removed, and the record says why.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SendError, channel};
use std::time::{Duration, Instant};

use crate::engine::EngineError;
use crate::sandbox::error::SandboxError;
use crate::sandbox::launch::{Launch, LaunchError};
use crate::sandbox::model::{Reason, Record, SandboxSpec, Status};
use crate::sandbox::pool::Warm;
use crate::sandbox::registry::{Launched, Operation};
use crate::sandbox::{Sandboxes, millis, name, now};

/// What a sandbox is made from.
pub(crate) struct Source {
    /// The image, by the name that the engine knows.
    pub(crate) image: String,
    /// Changes when the name is given to another image.
    pub(crate) image_id: String,
    pub(crate) snapshot_id: Option<String>,
}

impl Sandboxes {
    /// Makes a sandbox and waits until it is ready.
    pub(crate) fn create(&self, namespace: &str, spec: SandboxSpec) -> Result<Record, SandboxError> {
        let begin = Instant::now();
        let (operation, claim) = self.admit(namespace, spec)?;
        self.bring_up(operation, claim, begin)
    }

    /// Makes a sandbox and waits until it is ready, but not longer than `wait`: then the rest goes on in the background,
    /// and the record is that of a pending sandbox.
    pub(crate) fn create_within(
        self: &Arc<Self>,
        namespace: &str,
        spec: SandboxSpec,
        wait: Duration,
    ) -> Result<Record, SandboxError> {
        let begin = Instant::now();
        let (operation, claim) = self.admit(namespace, spec)?;
        let pending = operation.record().clone();
        let (tell, told) = channel();
        self.spawn("create", move |sandboxes| {
            let result = sandboxes.bring_up(operation, claim, begin);
            // The caller may have stopped waiting.
            if let Err(SendError(Err(error))) = tell.send(result) {
                log::warn!("{error}");
            }
        })?;
        match told.recv_timeout(wait.saturating_sub(begin.elapsed())) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Ok(pending),
        }
    }

    /// Makes a sandbox and returns as soon as its record is written; the rest goes on in the background.
    pub(crate) fn begin_create(self: &Arc<Self>, namespace: &str, spec: SandboxSpec) -> Result<Record, SandboxError> {
        let begin = Instant::now();
        let (operation, claim) = self.admit(namespace, spec)?;
        let record = operation.record().clone();
        self.spawn("create", move |sandboxes| {
            if let Err(error) = sandboxes.bring_up(operation, claim, begin) {
                log::warn!("{error}");
            }
        })?;
        Ok(record)
    }

    /// Checks the request and writes the record of the new sandbox.
    pub(crate) fn admit(
        &self,
        namespace: &str,
        mut spec: SandboxSpec,
    ) -> Result<(Operation, Option<Warm>), SandboxError> {
        if let Some(name) = &spec.name {
            name::check(name)?;
        }
        let source = self.source(namespace, &spec)?;
        let claim = self.shape(&source, &spec).and_then(|shape| self.pool.claim(&shape));
        spec.snapshot_id = source.snapshot_id;
        let id = match &claim {
            Some(claim) => claim.id.clone(),
            None => name::new_id()?,
        };
        let record = Record {
            id,
            namespace: namespace.to_owned(),
            spec,
            status: Status::Pending,
            created_at: now(),
            container: None,
            source: source.image,
            boot: self.boot.clone(),
            expires_at: None,
            time_left: None,
            returns_to: None,
            ending: None,
            termination: None,
        };
        match self.add(record) {
            Ok(operation) => {
                claim.iter().for_each(|claim| self.pool.release(&claim.id));
                Ok((operation, claim))
            }
            Err(error) => {
                claim.into_iter().for_each(|claim| self.pool.give_back(claim));
                Err(error)
            }
        }
    }

    /// Adds a record to memory and to disk.
    fn add(&self, record: Record) -> Result<Operation, SandboxError> {
        let mut operation = self.registry.add(record, &self.store)?;
        if let Err(error) = operation.save(|_| {}) {
            // Nothing was made yet, so it does not matter what is left of the file.
            let _ = operation.forget();
            return Err(error.into());
        }
        Ok(operation)
    }

    /// Finds what a sandbox is made from: its snapshot, a snapshot that has the name of its image, or that image.
    pub(crate) fn source(&self, namespace: &str, spec: &SandboxSpec) -> Result<Source, SandboxError> {
        let state = self.registry.lock();
        let wanted = spec.snapshot_id.as_deref().unwrap_or(&spec.image);
        let found = state.find_snapshot(namespace, wanted).or_else(|| {
            // A copy is made from a hidden one.
            state.snapshots.get(spec.snapshot_id.as_ref()?).filter(|snapshot| snapshot.namespace == namespace)
        });
        let snapshot =
            found.filter(|snapshot| snapshot.is_complete).map(|found| (found.id.clone(), found.image.clone()));
        drop(state);
        if let (None, Some(wanted)) = (&snapshot, &spec.snapshot_id) {
            return Err(SandboxError::UnknownSnapshot(wanted.clone()));
        }
        let (snapshot_id, image) = snapshot.map_or((None, spec.image.clone()), |(id, image)| (Some(id), image));
        let found = self.engine.image(&image).map_err(|error| match error {
            EngineError::NotFound(_) => SandboxError::UnknownImage(image.clone()),
            error => self.engine_error(error),
        })?;
        let needed = &self.info.architecture;
        if !found.architecture.is_empty() && found.architecture != *needed {
            return Err(SandboxError::WrongArchitecture {
                image,
                image_architecture: found.architecture,
                machine_architecture: needed.clone(),
            });
        }
        Ok(Source { image, image_id: found.id, snapshot_id })
    }

    /// Starts the container of a pending sandbox.
    pub(crate) fn bring_up(
        &self,
        mut operation: Operation,
        claim: Option<Warm>,
        begin: Instant,
    ) -> Result<Record, SandboxError> {
        let is_warm = claim.is_some();
        let launched = match claim {
            Some(claim) => Ok(claim.launched),
            None => self.launch_pending(&operation),
        };
        let saved =
            launched.and_then(|launched| self.save_running(&mut operation, launched).map_err(LaunchError::Record));
        match saved {
            Ok(()) => {
                self.counters.created(begin.elapsed(), is_warm);
                Ok(operation.record().clone())
            }
            Err(error) => Err(self.give_up(&mut operation, error)),
        }
    }

    fn launch_pending(&self, operation: &Operation) -> Result<Launched, LaunchError> {
        let record = operation.record();
        self.launch(&Launch {
            id: &record.id,
            image: &record.source,
            resources: record.spec.resources,
            entrypoint: &record.spec.entrypoint,
            network_policy: record.spec.network_policy,
            warm_label: None,
        })
    }

    fn save_running(&self, operation: &mut Operation, launched: Launched) -> io::Result<()> {
        let Launched { container, daemon } = launched;
        let time = operation.record().spec.timeout_secs.map(Duration::from_secs);
        operation.save_with(
            |record| {
                record.status = Status::Running;
                record.container = Some(container);
                record.expires_at = time.map(|time| now().saturating_add(millis(time)));
            },
            |entry| {
                entry.daemon = Some(daemon);
                entry.deadline = time.and_then(|time| Instant::now().checked_add(time));
            },
        )?;
        self.deadlines.ring();
        Ok(())
    }

    /// Removes what was made of a sandbox that could not be started.
    fn give_up(&self, operation: &mut Operation, error: LaunchError) -> SandboxError {
        self.counters.create_failed();
        let id = operation.id().to_owned();
        let details = error.to_string();
        if let Err(error) = self.end_at_once(operation, Reason::Failed, details.clone()) {
            log::error!("what was made of sandbox {id} is removed as soon as the engine allows it: {error}");
        }
        match error {
            LaunchError::Engine(error @ (EngineError::Unreachable { .. } | EngineError::TimedOut(..))) => {
                self.engine_error(error)
            }
            LaunchError::Token(error) | LaunchError::Record(error) => error.into(),
            _ => SandboxError::Failed { id, details },
        }
    }

    /// Counts an error of the engine.
    pub(crate) fn engine_error(&self, error: EngineError) -> SandboxError {
        self.counters.engine_failed();
        if matches!(error, EngineError::TimedOut(..)) {
            self.doubt();
        }
        SandboxError::Engine(error)
    }
}
