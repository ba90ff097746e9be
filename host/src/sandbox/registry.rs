//! All sandboxes and snapshots in memory, by id and by name.
//!
//! Reads take the lock for the time of a look-up only. A record is changed by the holder of its [`Operation`], of which
//! there is at most one at a time for each sandbox: it writes the file first, then memory, so that nobody sees what a
//! crash could take back.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::sandbox::error::SandboxError;
use crate::sandbox::model::{Record, Snapshot, Status};
use crate::sandbox::store::Store;
use crate::sandbox::tenure::Tenure;

/// The maximum number of sandboxes that are not terminated.
pub(crate) const MAX_SANDBOXES: usize = 4096;

pub(crate) struct Registry {
    state: Mutex<State>,
    /// A record has changed, or an operation has ended.
    changed: Condvar,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) sandboxes: HashMap<String, Entry>,
    pub(crate) snapshots: HashMap<String, Snapshot>,
    /// The ids of those that are neither terminated nor being ended, by name. A name that is here before the record has it is reserved.
    names: HashMap<String, String>,
    /// Ids of sandboxes that are compared with the engine as soon as no operation is going on, but not before a moment.
    unchecked: BTreeMap<String, Instant>,
    /// After `stop_all` has begun: no new sandboxes.
    pub(crate) is_stopping: bool,
}

/// A sandbox in memory.
pub(crate) struct Entry {
    pub(crate) record: Record,
    /// How its tl-init is reached; None unless it has a container that has been ready.
    pub(crate) daemon: Option<Daemon>,
    /// When its time is over; None unless it is running and has a time limit.
    pub(crate) deadline: Option<Instant>,
    /// Its time is over, and it is being ended.
    pub(crate) is_timing_out: bool,
    is_busy: bool,
}

/// How the tl-init of a sandbox is reached.
#[derive(Clone, Debug)]
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    pub(crate) token: String,
    /// Whether its container still has that address.
    pub(crate) tenure: Arc<Tenure>,
}

/// A container whose tl-init answers.
#[derive(Clone, Debug)]
pub(crate) struct Launched {
    pub(crate) container: String,
    pub(crate) daemon: Daemon,
}

/// The right to change a sandbox: nobody else has it until this is dropped.
pub(crate) struct Operation {
    registry: Arc<Registry>,
    store: Arc<Store>,
    /// The record as it is now: only this operation changes it.
    record: Record,
}

impl State {
    /// Finds a sandbox by its id, or one that is neither terminated nor being ended by its name.
    pub(crate) fn find(&self, id_or_name: &str) -> Option<&Entry> {
        let by_name = || self.sandboxes.get(self.names.get(id_or_name)?).filter(|entry| entry.has_name(id_or_name));
        self.sandboxes.get(id_or_name).or_else(by_name)
    }

    /// Those that are not terminated.
    pub(crate) fn living(&self) -> impl Iterator<Item = &Entry> {
        self.sandboxes.values().filter(|entry| entry.record.status != Status::Terminated)
    }

    /// Takes a name for the sandbox `id`.
    fn reserve_name(&mut self, name: &str, id: &str) -> Result<(), SandboxError> {
        match self.names.entry(name.to_owned()).or_insert_with(|| id.to_owned()) {
            owner if owner == id => Ok(()),
            _ => Err(SandboxError::NameTaken(name.to_owned())),
        }
    }

    /// Gives up all names of the sandbox but the one that its record has.
    fn release_names(&mut self, id: &str) {
        let kept = match self.sandboxes.get(id).map(|entry| &entry.record) {
            Some(record) if has_its_name(record) => record.spec.name.clone(),
            _ => None,
        };
        self.names.retain(|name, owner| owner != id || kept.as_ref() == Some(name));
    }

    /// Finds a snapshot by its id or its name.
    pub(crate) fn find_snapshot(&self, namespace: &str, id_or_name: &str) -> Option<&Snapshot> {
        let is_it = |snapshot: &&Snapshot| {
            !snapshot.is_hidden
                && snapshot.namespace == namespace
                && (snapshot.id == id_or_name || snapshot.name.as_deref() == Some(id_or_name))
        };
        self.snapshots.values().find(is_it)
    }

    /// Whether a sandbox that is not terminated was made from the snapshot.
    pub(crate) fn is_snapshot_used(&self, id: &str) -> bool {
        self.living().any(|entry| entry.record.spec.snapshot_id.as_deref() == Some(id))
    }

    pub(crate) fn is_living(&self, id: &str) -> bool {
        self.sandboxes.get(id).is_some_and(|entry| entry.record.status != Status::Terminated)
    }

    /// The sandbox is being ended because its time is over.
    pub(crate) fn begin_timing_out(&mut self, id: &str) {
        if let Some(entry) = self.sandboxes.get_mut(id) {
            entry.is_timing_out = true;
        }
    }

    /// That is over at the time `now`. If its deadline has passed still, it is due again at `retry`.
    pub(crate) fn end_timing_out(&mut self, id: &str, now: Instant, retry: Option<Instant>) {
        if let Some(entry) = self.sandboxes.get_mut(id) {
            entry.is_timing_out = false;
            entry.deadline = entry.deadline.map(|deadline| retry.filter(|_| deadline <= now).unwrap_or(deadline));
        }
    }

    /// Whether an operation on the sandbox is going on.
    pub(crate) fn is_busy(&self, id: &str) -> bool {
        self.sandboxes.get(id).is_some_and(|entry| entry.is_busy)
    }

    /// Asks for a comparison of the sandbox with the engine.
    pub(crate) fn ask_for_check(&mut self, id: &str) {
        self.unchecked.insert(id.to_owned(), Instant::now());
    }

    /// Asks for the next comparison of the sandbox with the engine, not before `at`.
    pub(crate) fn postpone_check(&mut self, id: &str, at: Instant) {
        self.unchecked.insert(id.to_owned(), at);
    }
}

impl Entry {
    fn has_name(&self, name: &str) -> bool {
        self.record.spec.name.as_deref() == Some(name)
    }
}

/// Whether the sandbox has its name still. Once its end has begun, another one can have it.
fn has_its_name(record: &Record) -> bool {
    record.status != Status::Terminated && record.ending.is_none()
}

impl Registry {
    pub(crate) fn new(sandboxes: Vec<Record>, snapshots: Vec<Snapshot>) -> Arc<Registry> {
        let is_living = |record: &&Record| has_its_name(record);
        let name = |record: &Record| Some((record.spec.name.clone()?, record.id.clone()));
        let names = sandboxes.iter().filter(is_living).filter_map(name).collect();
        let entry = |record: Record| {
            (record.id.clone(), Entry { record, daemon: None, deadline: None, is_timing_out: false, is_busy: false })
        };
        let state = State {
            sandboxes: sandboxes.into_iter().map(entry).collect(),
            names,
            snapshots: snapshots.into_iter().map(|snapshot| (snapshot.id.clone(), snapshot)).collect(),
            ..State::default()
        };
        Arc::new(Registry { state: Mutex::new(state), changed: Condvar::new() })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something that others wait for.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_all();
        result
    }

    /// Waits until the next change, or until `deadline`: then it returns None.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, deadline: Option<Instant>) -> Option<MutexGuard<'a, State>> {
        let Some(deadline) = deadline else {
            return Some(self.changed.wait(state).unwrap_or_else(PoisonError::into_inner));
        };
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Some(self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Adds a new sandbox with an operation on it, if its name is free and its snapshot is still there.
    pub(crate) fn add(self: &Arc<Self>, record: Record, store: &Arc<Store>) -> Result<Operation, SandboxError> {
        let mut state = self.lock();
        if state.is_stopping {
            return Err(SandboxError::Stopping);
        }
        if state.living().count() >= MAX_SANDBOXES {
            return Err(SandboxError::TooMany(MAX_SANDBOXES));
        }
        if let Some(snapshot) = &record.spec.snapshot_id
            && !state.snapshots.get(snapshot).is_some_and(|snapshot| snapshot.is_complete)
        {
            return Err(SandboxError::UnknownSnapshot(snapshot.clone()));
        }
        if let Some(name) = &record.spec.name {
            state.reserve_name(name, &record.id)?;
        }
        let entry = Entry { record: record.clone(), daemon: None, deadline: None, is_timing_out: false, is_busy: true };
        state.sandboxes.insert(record.id.clone(), entry);
        Ok(Operation { registry: Arc::clone(self), store: Arc::clone(store), record })
    }

    /// Begins an operation on a sandbox that is not terminated, after the one that is going on has ended.
    pub(crate) fn begin(
        self: &Arc<Self>,
        namespace: Option<&str>,
        id_or_name: &str,
        store: &Arc<Store>,
        deadline: Option<Instant>,
    ) -> Result<Operation, SandboxError> {
        let unknown = || SandboxError::Unknown(id_or_name.to_owned());
        let mut state = self.lock();
        // By its id from now on: its name may pass to another one.
        let is_in_namespace = |entry: &&Entry| namespace.is_none_or(|namespace| entry.record.namespace == namespace);
        let id = state.find(id_or_name).filter(is_in_namespace).ok_or_else(unknown)?.record.id.clone();
        loop {
            let entry = state.sandboxes.get_mut(&id).ok_or_else(unknown)?;
            if entry.record.status == Status::Terminated {
                return Err(unknown());
            }
            if !entry.is_busy {
                return Ok(self.take(entry, store));
            }
            state = self.wait(state, deadline).ok_or(SandboxError::Busy(id.clone()))?;
        }
    }

    fn take(self: &Arc<Self>, entry: &mut Entry, store: &Arc<Store>) -> Operation {
        entry.is_busy = true;
        Operation { registry: Arc::clone(self), store: Arc::clone(store), record: entry.record.clone() }
    }

    /// Begins an operation on a sandbox in any state, if none is going on.
    pub(crate) fn begin_any(self: &Arc<Self>, id: &str, store: &Arc<Store>) -> Option<Operation> {
        let mut state = self.lock();
        let entry = state.sandboxes.get_mut(id).filter(|entry| !entry.is_busy)?;
        Some(self.take(entry, store))
    }

    /// Waits for a sandbox that is to be compared with the engine, and begins an operation on it: the first by its id
    /// after `last`, or the first of all.
    pub(crate) fn begin_check(self: &Arc<Self>, last: &str, store: &Arc<Store>) -> Operation {
        let mut state = self.lock();
        loop {
            let State { sandboxes, unchecked, .. } = &mut *state;
            // Those that have been forgotten meanwhile.
            unchecked.retain(|id, _| sandboxes.contains_key(id));
            let is_free = |id: &String| sandboxes.get(id).is_some_and(|entry| !entry.is_busy);
            let after = (Bound::Excluded(last), Bound::Unbounded);
            let now = Instant::now();
            let mut in_turn = unchecked.range::<str, _>(after).chain(unchecked.iter());
            let next = in_turn.find(|(id, at)| **at <= now && is_free(id)).map(|(id, _)| id.clone());
            let due = unchecked.iter().filter(|(id, _)| is_free(id)).map(|(_, at)| *at).min();
            if let Some(id) = next {
                unchecked.remove(&id);
                if let Some(entry) = sandboxes.get_mut(&id) {
                    return self.take(entry, store);
                }
            }
            state = match due {
                Some(due) => {
                    let left = due.saturating_duration_since(now);
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Waits until `is_it` is true of a sandbox, or until `deadline`; returns whether it is.
    pub(crate) fn wait_for(&self, id: &str, deadline: Instant, is_it: impl Fn(&Entry) -> bool) -> bool {
        let mut state = self.lock();
        loop {
            match state.sandboxes.get(id) {
                Some(entry) if is_it(entry) => return true,
                None => return false,
                Some(_) => {}
            }
            match self.wait(state, Some(deadline)) {
                Some(guard) => state = guard,
                None => return false,
            }
        }
    }
}

impl Operation {
    pub(crate) fn id(&self) -> &str {
        &self.record.id
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    /// Changes what is kept in memory only.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Entry)) {
        self.registry.change(|state| state.sandboxes.get_mut(&self.record.id).map(change));
    }

    /// Changes the record: on disk first, then in memory.
    pub(crate) fn save(&mut self, change: impl FnOnce(&mut Record)) -> io::Result<()> {
        self.save_with(change, |_| {})
    }

    /// Changes the record, on disk first, and together with it what is kept in memory only.
    pub(crate) fn save_with(
        &mut self,
        change: impl FnOnce(&mut Record),
        along: impl FnOnce(&mut Entry),
    ) -> io::Result<()> {
        let mut record = self.record.clone();
        change(&mut record);
        self.store.save(&record)?;
        self.record = record;
        self.publish(along);
        Ok(())
    }

    /// Changes the record in memory even if the disk does not take it.
    pub(crate) fn save_anyway(
        &mut self,
        change: impl FnOnce(&mut Record),
        along: impl FnOnce(&mut Entry),
    ) -> io::Result<()> {
        change(&mut self.record);
        let saved = self.store.save(&self.record);
        self.publish(along);
        saved
    }

    fn publish(&self, along: impl FnOnce(&mut Entry)) {
        self.registry.change(|state| {
            if let Some(entry) = state.sandboxes.get_mut(&self.record.id) {
                entry.record = self.record.clone();
                along(entry);
            }
            state.release_names(&self.record.id);
        });
    }

    /// When the time of the sandbox is over.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.registry.lock().sandboxes.get(&self.record.id)?.deadline
    }

    /// Takes a name for the sandbox; nobody sees it before the record has it.
    pub(crate) fn reserve_name(&self, name: &str) -> Result<(), SandboxError> {
        self.registry.lock().reserve_name(name, &self.record.id)
    }

    /// Removes the sandbox from memory and from disk.
    pub(crate) fn forget(self) -> io::Result<()> {
        let forgotten = self.store.forget::<Record>(&self.record.id);
        self.registry.change(|state| {
            state.sandboxes.remove(&self.record.id);
            state.release_names(&self.record.id);
        });
        forgotten
    }
}

impl Drop for Operation {
    /// An operation that ends in the middle, by a panic or because there is no thread for it, leaves a sandbox that must
    /// be compared with the engine.
    fn drop(&mut self) {
        self.registry.change(|state| {
            if let Some(entry) = state.sandboxes.get_mut(&self.record.id) {
                entry.is_busy = false;
                if entry.record.is_in_transition() {
                    state.ask_for_check(&self.record.id);
                }
            }
            state.release_names(&self.record.id);
        });
    }
}

#[cfg(test)]
mod tests;
