//! The containers that are kept ready, as data: which there are, and what is to be done next.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sandbox::alarm::Alarm;
use crate::sandbox::health;
use crate::sandbox::registry::Launched;

/// What a warm container is; one with another shape is of no use.
pub(crate) type Shape = String;

pub(crate) struct WarmPool {
    state: Mutex<State>,
    /// Held while a container is being started.
    pub(super) starting: Mutex<()>,
    /// Something is to be started or removed.
    pub(super) changed: Alarm,
    size: usize,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) ready: BTreeMap<String, Warm>,
    /// Those that are ready, being started, or on their way to a record: they are no strays.
    pub(super) known: HashSet<String>,
    /// Those that are of no use and still to be removed.
    pub(super) discarded: Vec<String>,
    pub(super) is_closed: bool,
}

/// A container that is ready for a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Warm {
    pub(crate) id: String,
    pub(crate) launched: Launched,
    pub(super) shape: Shape,
}

impl WarmPool {
    pub(crate) fn new(size: usize) -> WarmPool {
        WarmPool { state: Mutex::default(), starting: Mutex::default(), changed: Alarm::default(), size }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// Whether the container of this id belongs to the pool.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.lock().known.contains(id)
    }

    /// Takes a container of this shape that still answers. It stays known until it is released or given back.
    pub(crate) fn claim(&self, shape: &str) -> Option<Warm> {
        loop {
            let mut state = self.lock();
            let id = state.ready.values().find(|warm| warm.shape == shape)?.id.clone();
            let warm = state.ready.remove(&id)?;
            drop(state);
            self.changed.ring();
            match health::is_up(warm.launched.daemon.address) {
                Ok(()) => return Some(warm),
                Err(error) => {
                    log::warn!("the warm container {id} does not answer: {error}");
                    self.discard(&id);
                }
            }
        }
    }

    /// The container has a record now.
    pub(crate) fn release(&self, id: &str) {
        self.lock().known.remove(id);
    }

    /// The container was not needed after all.
    pub(crate) fn give_back(&self, warm: Warm) {
        let mut state = self.lock();
        if state.is_closed {
            state.discarded.push(warm.id);
        } else {
            state.ready.insert(warm.id.clone(), warm);
        }
        drop(state);
        self.changed.ring();
    }

    pub(super) fn discard(&self, id: &str) {
        let mut state = self.lock();
        state.ready.remove(id);
        state.discarded.push(id.to_owned());
        drop(state);
        self.changed.ring();
    }

    /// Something has happened to a container from outside.
    pub(crate) fn lost(&self, container: &str) {
        let id = {
            let state = self.lock();
            state.ready.values().find(|warm| warm.launched.container == container).map(|warm| warm.id.clone())
        };
        if let Some(id) = id {
            self.discard(&id);
        }
    }

    /// What is to be done next: an id to remove, or room for a new one.
    pub(super) fn next(&self) -> Option<Next> {
        let mut state = self.lock();
        if let Some(id) = state.discarded.pop() {
            return Some(Next::Remove(id));
        }
        if state.ready.len() > self.size {
            let (id, _) = state.ready.pop_first()?;
            return Some(Next::Remove(id));
        }
        (!state.is_closed && state.ready.len() < self.size).then_some(Next::Start)
    }
}

pub(super) enum Next {
    Start,
    Remove(String),
}
