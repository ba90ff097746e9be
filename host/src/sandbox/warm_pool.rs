//! Containers of the default image and the default resources that are started ahead of the next create.
//!
//! A warm container has its id and its token already; a create that asks for nothing else takes it as it is.
//! No record is kept of them: after a restart they are known by their label, which has their shape.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{Container, ContainerState};
use crate::sandbox::create::Source;
use crate::sandbox::error::SandboxError;
use crate::sandbox::launch::Launch;
use crate::sandbox::model::{Resources, SandboxSpec};
use crate::sandbox::pool::{Next, Shape, Warm};
use crate::sandbox::registry::Launched;
use crate::sandbox::{LABEL_SANDBOX, LABEL_WARM, Sandboxes, container_name, health, label, name};

/// The first and the longest pause after a failure to start one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Sandboxes {
    pub(crate) fn start_warm_pool(self: &Arc<Self>) -> io::Result<()> {
        let sandboxes = Arc::clone(self);
        let body = move || {
            sandboxes.keep_pool_full();
            Ok(())
        };
        tl_os::thread::spawn_persistent("warm-pool", body).map(drop)
    }

    fn keep_pool_full(&self) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(next) = self.pool.next() else {
                self.pool.changed.wait(None);
                continue;
            };
            let done = match next {
                Next::Remove(id) => self.remove_warm(&id),
                Next::Start => self.start_warm(),
            };
            match done {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    log::warn!("the warm pool: {error}; next attempt in {pause:?}");
                    self.pause(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn pause(&self, pause: Duration) {
        let end = Instant::now().checked_add(pause);
        while end.is_some_and(|end| Instant::now() < end) {
            self.pool.changed.wait(end);
        }
    }

    fn start_warm(&self) -> Result<(), SandboxError> {
        let _starting = self.pool.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pool.lock().is_closed {
            return Ok(());
        }
        let spec = self.default_spec();
        let source = self.source("", &spec)?;
        let id = name::new_id()?;
        let Some(shape) = self.shape(&source, &spec) else {
            let details = format!("{} cannot be read", self.settings.init.display());
            return Err(SandboxError::Failed { id, details });
        };
        self.pool.lock().known.insert(id.clone());
        let launched = self.launch(&Launch {
            id: &id,
            image: &source.image,
            resources: spec.resources,
            entrypoint: &[],
            network_policy: spec.network_policy,
            warm_label: Some(&format!("{id} {shape}")),
        });
        match launched {
            Ok(launched) => {
                self.pool.give_back(Warm { id, launched, shape });
                Ok(())
            }
            Err(error) => {
                self.pool.discard(&id);
                Err(SandboxError::Failed { id, details: error.to_string() })
            }
        }
    }

    /// What a warm container is made from.
    fn default_spec(&self) -> SandboxSpec {
        SandboxSpec::plain(self.settings.default_image.clone(), self.settings.default_resources)
    }

    /// The shape of the container that a request asks for; None if no warm container can have it.
    pub(crate) fn shape(&self, source: &Source, spec: &SandboxSpec) -> Option<Shape> {
        let is_plain = spec.entrypoint.is_empty()
            && source.snapshot_id.is_none()
            && spec.network_policy.allow_internet_access
            && spec.resources == self.settings.default_resources;
        let init = std::fs::metadata(&self.settings.init).ok()?;
        let Resources { cpus, memory_mb, disk_mb } = spec.resources;
        let limits = format!("{cpus} {memory_mb} {disk_mb:?} {:?}", self.settings.ulimits);
        let runtime = self.settings.runtime.as_deref().unwrap_or("default");
        let init = format!("{} {} {}", self.settings.init.display(), init.len(), init.mtime());
        is_plain.then(|| format!("{} {limits} {runtime} {init}", source.image_id))
    }

    /// At the start: takes over the warm containers of an earlier run that are as good as new ones.
    pub(crate) fn adopt_warm(&self, containers: &[Container]) {
        let spec = self.default_spec();
        let Some(shape) = self.source("", &spec).ok().and_then(|source| self.shape(&source, &spec)) else { return };
        for container in containers {
            let Some(id) = label(&container.labels, LABEL_SANDBOX) else { continue };
            // An image that was made from a warm container has its labels, but another id.
            let is_warm = label(&container.labels, LABEL_WARM) == Some(format!("{id} {shape}").as_str());
            if !is_warm || container.state != ContainerState::Running || self.registry.lock().sandboxes.contains_key(id)
            {
                continue;
            }
            let Ok(token) = self.store.token(id) else { continue };
            let Some(daemon) = self.daemon(container, token) else { continue };
            if health::is_up(daemon.address).is_ok() {
                let launched = Launched { container: container.id.clone(), daemon };
                self.pool.lock().known.insert(id.to_owned());
                self.pool.give_back(Warm { id: id.to_owned(), launched, shape: shape.clone() });
            }
        }
    }

    /// After the engine was gone: discards what does not run any more.
    pub(crate) fn forget_dead_warm(&self, containers: &[Container]) {
        let runs = |warm: &Warm| {
            let found = containers.iter().find(|container| container.id == warm.launched.container);
            // One that is not listed was started after the list was made, or is gone: a claim finds that out.
            found.is_none_or(|container| container.state == ContainerState::Running)
        };
        let dead: Vec<String> = {
            let state = self.pool.lock();
            state.ready.values().filter(|warm| !runs(warm)).map(|warm| warm.id.clone()).collect()
        };
        dead.iter().for_each(|id| self.pool.discard(id));
    }

    /// Removes a container of the pool.
    fn remove_warm(&self, id: &str) -> Result<(), SandboxError> {
        if let Err(error) = self.engine.remove(&container_name(id)) {
            self.pool.lock().discarded.push(id.to_owned());
            return Err(self.engine_error(error));
        }
        self.store.remove_token(id);
        self.pool.lock().known.remove(id);
        Ok(())
    }

    /// Has containers started ahead again.
    pub(crate) fn open_pool(&self) {
        self.pool.lock().is_closed = false;
        self.pool.changed.ring();
    }

    /// Removes all containers of the pool; it starts no others.
    pub(crate) fn close_pool(&self) {
        self.pool.lock().is_closed = true;
        // The pool's thread may be starting one, which is discarded then.
        drop(self.pool.starting.lock().unwrap_or_else(PoisonError::into_inner));
        loop {
            let id = {
                let mut state = self.pool.lock();
                state.discarded.pop().or_else(|| state.ready.pop_first().map(|(id, _)| id))
            };
            let Some(id) = id else { break };
            if let Err(error) = self.remove_warm(&id) {
                log::error!("the warm container {id} cannot be removed: {error}");
                break;
            }
        }
    }
}
