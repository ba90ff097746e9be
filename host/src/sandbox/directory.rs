//! The sandboxes as the proxy sees them: ready when they are returned.

use std::time::Instant;

use crate::engine::{ContainerState, EngineError};
use crate::proxy::{Directory, Exposure, ReachError, Reached};
use crate::sandbox::Sandboxes;
use crate::sandbox::error::SandboxError;
use crate::sandbox::model::Status;
use crate::sandbox::registry::Entry;

impl Directory for Sandboxes {
    fn reach(&self, id_or_name: &str, deadline: Instant) -> Result<Reached, ReachError> {
        loop {
            let (id, is_suspended) = {
                let state = self.registry.lock();
                let entry = state.find(id_or_name).filter(|entry| entry.record.ending.is_none());
                let entry = entry.ok_or_else(|| ReachError::Unknown(id_or_name.to_owned()))?;
                match entry.record.status {
                    Status::Running => {
                        if let Some(reached) = self.reached(entry) {
                            return Ok(reached);
                        }
                    }
                    Status::Terminated => return Err(ReachError::Unknown(id_or_name.to_owned())),
                    Status::Pending | Status::Suspending | Status::Suspended | Status::Snapshotting => {}
                }
                (entry.record.id.clone(), entry.record.status == Status::Suspended)
            };
            if is_suspended {
                self.resume_for(&id, id_or_name, deadline)?;
                continue;
            }
            let is_settled = |entry: &Entry| match entry.record.status {
                Status::Running => entry.daemon.is_some(),
                Status::Suspended | Status::Terminated => true,
                Status::Pending | Status::Suspending | Status::Snapshotting => false,
            };
            if !self.registry.wait_for(&id, deadline, is_settled) {
                return Err(ReachError::NotReady(id_or_name.to_owned()));
            }
        }
    }

    fn has_address(&self, reached: &Reached) -> bool {
        self.keeps_address(reached)
    }

    fn exposure(&self, id_or_name: &str) -> Option<Exposure> {
        let state = self.registry.lock();
        let record = &state.find(id_or_name).filter(|entry| entry.record.status != Status::Terminated)?.record;
        let spec = &record.spec;
        Some(Exposure {
            ports: spec.exposed_ports.clone(),
            allow_unauthenticated_access: spec.allow_unauthenticated_access,
        })
    }
}

impl Sandboxes {
    fn reached(&self, entry: &Entry) -> Option<Reached> {
        let daemon = entry.daemon.as_ref()?;
        Some(Reached {
            id: entry.record.id.clone(),
            daemon: daemon.address,
            is_direct: !self.info.is_rootless,
            token: daemon.token.clone(),
            exposed_ports: entry.record.spec.exposed_ports.clone(),
            allow_unauthenticated_access: entry.record.spec.allow_unauthenticated_access,
        })
    }

    /// Whether the sandbox that was reached still has its address ([`tenure`](crate::sandbox::tenure)).
    fn keeps_address(&self, reached: &Reached) -> bool {
        let tenure = {
            let state = self.registry.lock();
            let daemon = state.sandboxes.get(&reached.id).and_then(|entry| entry.daemon.as_ref());
            daemon.filter(|daemon| daemon.address == reached.daemon).map(|daemon| daemon.tenure.clone())
        };
        let Some(tenure) = tenure else { return false };
        let has_it = tenure.goes_on().unwrap_or_else(|| self.engine_confirms(&tenure.container, reached));
        if !has_it {
            self.check_later(&reached.id);
        }
        has_it
    }

    fn engine_confirms(&self, container: &str, reached: &Reached) -> bool {
        match self.engine.inspect(container) {
            Ok(found) => {
                matches!(found.state, ContainerState::Running | ContainerState::Paused)
                    && self.daemon_address(&found) == Some(reached.daemon)
            }
            Err(error @ EngineError::NotFound(_)) => {
                log::debug!("the container of sandbox {} is gone: {error}", reached.id);
                false
            }
            Err(error) => {
                log::warn!("nothing is sent to sandbox {}: {}", reached.id, self.engine_error(error));
                false
            }
        }
    }

    /// Resumes a sandbox for a request of the proxy.
    fn resume_for(&self, id: &str, asked: &str, deadline: Instant) -> Result<(), ReachError> {
        let resumed = self
            .registry
            .begin(None, id, &self.store, Some(deadline))
            .and_then(|mut operation| self.resume_now(&mut operation));
        resumed.map_err(|error| match error {
            SandboxError::Unknown(_) => ReachError::Unknown(asked.to_owned()),
            SandboxError::Busy(_) => ReachError::NotReady(asked.to_owned()),
            error => ReachError::Engine(asked.to_owned(), error.to_string()),
        })
    }
}
