//! The sandboxes: their records on disk, and what can be done with them.
//!
//! | file | what |
//! |---|---|
//! | `model`, `error` | records, specifications and states, as plain data; what can go wrong |
//! | `name` | which names are valid (pure) |
//! | `decision` | what is right for a record and a container: the table of all pairs (pure) |
//! | `expiry` | whose time is over, and which terminated sandboxes are forgotten (pure) |
//! | `store` | the files of the state directory |
//! | `registry` | all sandboxes in memory, by id and by name; one operation at a time for each |
//! | `launch`, `slots`, `health` | a container from an image, until its tl-init answers; how many at a time |
//! | `create`, `suspend`, `end`, `snapshots`, `copy`, `update` | a file for each operation |
//! | `recovery` | at the start: finishes or undoes what an earlier run has left half done |
//! | `monitor` | follows the engine's events: sandboxes that end from outside |
//! | `timeouts` | terminates or suspends sandboxes whose time is over |
//! | `pool`, `warm_pool` | containers that are ready for the next `create`: which there are; keeping them so |
//! | `directory` | the sandboxes as the proxy sees them |
//! | `tenure` | whether the container of a sandbox still has its address |
//! | `counters` | what `/metrics` shows |
//!
//! Every operation writes what it is about to do before it does it, so that the next start can finish or undo it.

pub(crate) mod counters;
pub(crate) mod error;
pub(crate) mod model;
pub(crate) mod name;

mod alarm;
mod copy;
mod create;
mod decision;
mod directory;
mod end;
mod expiry;
pub(crate) mod health;
mod launch;
mod monitor;
mod pool;
mod recovery;
mod registry;
mod slots;
mod snapshots;
mod store;
mod suspend;
mod tenure;
#[cfg(test)]
pub(crate) mod testing;
mod timeouts;
mod update;
mod warm_pool;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::unistd::geteuid;

use crate::engine::{Engine, EngineInfo};
pub(crate) use registry::MAX_SANDBOXES;
pub(crate) use snapshots::is_image_name;
pub(crate) use store::remove_all;

use alarm::Alarm;
use counters::{Counters, Metrics};
use error::{OpenError, SandboxError};
use model::{Millis, Record, Resources, Status};
use pool::WarmPool;
use registry::{Entry, Operation, Registry};
use slots::Slots;
use store::Store;

/// The label of everything that is made for a state directory: its instance.
pub(crate) const LABEL_INSTANCE: &str = "tl-host.instance";
/// The label of a container with the id of its sandbox.
const LABEL_SANDBOX: &str = "tl-host.sandbox";
/// The label of an image with the id of its snapshot.
const LABEL_SNAPSHOT: &str = "tl-host.snapshot";
/// The label of a container that was started ahead.
const LABEL_WARM: &str = "tl-host.warm";

/// What the command line says of sandboxes.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The image of a sandbox whose request names none.
    pub(crate) default_image: String,
    /// The resources of a sandbox whose request names none: those of the warm pool.
    pub(crate) default_resources: Resources,
    /// The static tl-init, which is mounted into every container.
    pub(crate) init: PathBuf,
    pub(crate) state_dir: PathBuf,
    /// Limits of every container: name, soft, hard.
    pub(crate) ulimits: Vec<(String, u64, u64)>,
    /// The OCI runtime; the engine's default if None.
    pub(crate) runtime: Option<String>,
    /// How many containers of the default image and resources are kept ready.
    pub(crate) warm: usize,
    /// How long a new sandbox may take until its tl-init answers.
    pub(crate) start_limit: Duration,
    /// From SIGTERM to SIGKILL when a sandbox is ended. More than the grace of its tl-init (10 s).
    pub(crate) stop_grace: Duration,
}

/// All sandboxes of a state directory. The operations block until they are done.
pub(crate) struct Sandboxes {
    engine: Engine,
    info: EngineInfo,
    settings: Settings,
    store: Arc<Store>,
    registry: Arc<Registry>,
    slots: Slots,
    pool: WarmPool,
    counters: Counters,
    /// How many threads suspend and resume, or wait to do so.
    waiting: Arc<AtomicUsize>,
    /// Rung when a deadline of a sandbox has been set, or one was terminated.
    deadlines: Arc<Alarm>,
    /// Until when the engine may still make something whose call has reached its time limit; rung when that is set.
    doubted_until: Mutex<Option<Instant>>,
    doubts: Alarm,
    /// The boot that the machine is in.
    boot: String,
}

impl Sandboxes {
    /// Locks and loads the state directory, finishes or undoes what an earlier run has left half done, and starts the
    /// threads that watch the sandboxes.
    pub(crate) fn open(engine: Engine, settings: Settings) -> Result<Arc<Sandboxes>, OpenError> {
        // First what can fail and leaves nothing behind.
        let boot = boot_id().map_err(OpenError::Boot)?;
        let info = engine.info()?;
        let store = Arc::new(Store::open(&settings.state_dir)?);
        if !geteuid().is_root() && !info.is_rootless {
            log::warn!(
                "the user with the UID {} in a sandbox can read its token: the engine runs as root, and this does not",
                geteuid()
            );
        }
        let failed = |cause| OpenError::Disk { path: settings.state_dir.clone(), cause };
        let registry = Registry::new(store.load().map_err(failed)?, store.load().map_err(failed)?);
        let sandboxes = Arc::new(Sandboxes {
            info,
            engine,
            store,
            registry,
            slots: Slots::new(),
            pool: WarmPool::new(settings.warm),
            counters: Counters::default(),
            waiting: Arc::default(),
            deadlines: Arc::default(),
            doubted_until: Mutex::default(),
            doubts: Alarm::default(),
            boot,
            settings,
        });
        sandboxes.recover()?;
        sandboxes.start_timeouts().and_then(|()| sandboxes.start_monitor()).map_err(OpenError::Thread)?;
        sandboxes.start_warm_pool().map_err(OpenError::Thread)?;
        Ok(sandboxes)
    }

    /// What the engine has said about itself at the start.
    pub(crate) fn engine_info(&self) -> &EngineInfo {
        &self.info
    }

    /// All sandboxes of a namespace, oldest first; terminated ones for an hour.
    pub(crate) fn list(&self, namespace: &str) -> Vec<Record> {
        let state = self.registry.lock();
        let records = state.sandboxes.values().map(|entry| &entry.record);
        let mut records: Vec<Record> = records.filter(|record| record.namespace == namespace).cloned().collect();
        drop(state);
        records.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        records
    }

    /// Finds a sandbox by its id, or one that is not terminated by its name.
    pub(crate) fn get(&self, namespace: &str, id_or_name: &str) -> Option<Record> {
        let state = self.registry.lock();
        state.find(id_or_name).map(|entry| &entry.record).filter(|record| record.namespace == namespace).cloned()
    }

    /// What `/metrics` shows.
    pub(crate) fn metrics(&self) -> Metrics {
        let state = self.registry.lock();
        let count = |status| state.sandboxes.values().filter(|entry| entry.record.status == status).count();
        let sandboxes = Status::ALL.map(|status| (status, count(status)));
        drop(state);
        self.counters.metrics(sandboxes, self.pool.len())
    }

    /// Begins an operation on a sandbox, after the one that is going on.
    fn begin(&self, namespace: &str, id_or_name: &str, deadline: Option<Instant>) -> Result<Operation, SandboxError> {
        self.registry.begin(Some(namespace), id_or_name, &self.store, deadline)
    }

    /// Starts a thread for an operation that goes on after the request that has asked for it.
    fn spawn(
        self: &Arc<Self>,
        name: &str,
        body: impl FnOnce(&Arc<Sandboxes>) + Send + 'static,
    ) -> Result<(), SandboxError> {
        let sandboxes = Arc::clone(self);
        let body = move || {
            body(&sandboxes);
            Ok(())
        };
        tl_os::thread::spawn(name, body, || {}).map(drop).map_err(SandboxError::Thread)
    }

    /// Saves what has happened already. If the disk does not take it, memory does: the next start finds out again.
    fn record(&self, operation: &mut Operation, change: impl Fn(&mut Record), along: impl FnOnce(&mut Entry)) {
        if let Err(error) = operation.save_anyway(change, along) {
            log::error!("the record of sandbox {} cannot be written: {error}", operation.id());
        }
    }

    /// The labels of everything that is made in the engine.
    fn labels(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let labels = [(LABEL_INSTANCE, self.store.instance())];
        labels.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }
}

/// The name of the container of a sandbox.
fn container_name(id: &str) -> String {
    format!("tl-{id}")
}

/// The id of the sandbox whose container has this name.
fn sandbox_of(container: &str) -> Option<&str> {
    container.strip_prefix("tl-").filter(|id| name::is_id(id))
}

/// The value of a label.
fn label<'a>(labels: &'a [(String, String)], name: &str) -> Option<&'a str> {
    labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// The time, in milliseconds since 1970.
fn now() -> Millis {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Tells the boot that the machine is in from all others.
fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}
