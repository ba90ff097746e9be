//! The cgroups of the units: the slice is found unusable, made anew when it was taken away, and done without otherwise.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::actor::Actor;
use super::entry::Tree;
use super::message::Message;
use crate::model::{Pid, UnitId};
use crate::oom::OomThread;
use tl_os::cgroup::{Leaf, Slice, probe};
use tl_os::spawn::SpawnError;

/// What it means for a unit to have no cgroup.
const WITHOUT: &str = "a process that leaves its session and its environment may escape a kill";
/// Slices tried for one start before it does without.
const TRIES: usize = 2;
/// When a slice was lost and no other could be made: from one attempt to the next. Only a start makes one.
const AGAIN: Duration = Duration::from_secs(60);

/// The slice, and how to make another.
#[derive(Debug)]
pub(super) struct Cgroups {
    parent: Option<PathBuf>,
    messages: Sender<Message>,
    max_tasks: u64,
    state: State,
    /// Watches the slice that there is.
    oom: Option<OomThread>,
    /// Set when [`Message::OomKill`] is on its way.
    oom_pending: Arc<AtomicBool>,
}

#[derive(Debug)]
enum State {
    Usable(Slice),
    /// There was none that could be used when we started.
    Never,
    /// It was taken away, and when it was found that there can be no other.
    Lost(Instant),
}

impl Cgroups {
    /// None.
    #[cfg(test)]
    pub(super) fn none() -> Cgroups {
        Cgroups {
            parent: None,
            messages: crossbeam_channel::unbounded().0,
            max_tasks: 0,
            state: State::Never,
            oom: None,
            oom_pending: Arc::default(),
        }
    }

    /// Makes a slice, below `parent` or else below our own cgroup. Gives a warning where there can be none.
    pub(super) fn make(parent: Option<PathBuf>, messages: Sender<Message>) -> (Cgroups, Option<String>) {
        let (state, warning) = match Slice::below(parent.as_deref()) {
            Ok(slice) => (State::Usable(slice), None),
            Err(error) => (State::Never, Some(format!("no writable cgroup v2 ({error}): {WITHOUT}"))),
        };
        let oom_pending = Arc::default();
        (Cgroups { parent, messages, max_tasks: u64::MAX, state, oom: None, oom_pending }, warning)
    }

    /// Finds out whether units can be put into the slice, and gets it ready for them, with `max_tasks` for all of them
    /// together. Forks: for the supervisor's thread.
    pub(super) fn prepared(mut self, max_tasks: u64) -> Cgroups {
        self.max_tasks = max_tasks;
        let State::Usable(slice) = &self.state else { return self };
        match self.prepare(slice) {
            Ok(oom) => self.oom = oom,
            Err(error) => {
                log::warn!("no process can be put into a cgroup in {}: {error}: {WITHOUT}", slice.dir().display());
                self.state = State::Never;
            }
        }
        self
    }

    /// Whether a cgroup limits the tasks of units.
    pub(super) fn limit_tasks(&self) -> bool {
        matches!(&self.state, State::Usable(slice) if slice.limits_tasks())
    }

    /// Starts something in a new leaf with this name, or without one where there is none. Gives the leaf too.
    ///
    /// # Errors
    /// Nothing was started, and the cgroup is not the reason.
    pub(super) fn start_in<T>(
        &mut self,
        name: &str,
        start: impl Fn(Option<&Leaf>) -> Result<T, SpawnError>,
    ) -> io::Result<(T, Option<Leaf>)> {
        if matches!(&self.state, State::Lost(at) if at.elapsed() > AGAIN) {
            // What is still wrong has been told.
            if let Ok(new) = self.make_anew() {
                log::info!("units have cgroups again, in {new}");
            }
        }
        for _ in 0..TRIES {
            let State::Usable(slice) = &self.state else { break };
            let started = slice.leaf(name).map_err(SpawnError::in_cgroup).and_then(|leaf| match start(Some(&leaf)) {
                Ok(started) => Ok((started, leaf)),
                Err(failure) => {
                    let _ = leaf.remove();
                    Err(failure)
                }
            });
            match started {
                Ok((started, leaf)) => return Ok((started, Some(leaf))),
                Err(SpawnError::Other(error)) => return Err(error),
                Err(SpawnError::Cgroup(error)) => self.replace(&error),
            }
        }
        if let State::Usable(slice) = &self.state {
            log::warn!("no process can be put into a cgroup in {}: {WITHOUT}", slice.dir().display());
            self.state = State::Lost(Instant::now());
        }
        match start(None) {
            Ok(started) => Ok((started, None)),
            Err(SpawnError::Other(error) | SpawnError::Cgroup(error)) => Err(error),
        }
    }

    /// The slice takes no more units: makes another, with one warning about both.
    fn replace(&mut self, why: &io::Error) {
        let State::Usable(slice) = &self.state else { return };
        let old = slice.dir().display().to_string();
        match self.make_anew() {
            Ok(new) => log::warn!("the cgroup {old} takes no more processes ({why}): {new} takes its place"),
            Err(error) => log::warn!(
                "the cgroup {old} takes no more processes ({why}), and there can be no other ({error}): {WITHOUT}"
            ),
        }
    }

    /// Gives its directory.
    fn make_anew(&mut self) -> io::Result<String> {
        // The old one is cleared away here, as far as nothing lives in it; what lives has its leaf still.
        self.state = State::Lost(Instant::now());
        let slice = Slice::below(self.parent.as_deref())?;
        self.oom = self.prepare(&slice)?;
        let dir = slice.dir().display().to_string();
        self.state = State::Usable(slice);
        Ok(dir)
    }

    /// Gives the thread that watches it, where there is anything to watch.
    fn prepare(&self, slice: &Slice) -> io::Result<Option<OomThread>> {
        probe(slice)?;
        slice.enable_controllers();
        if let Err(error) = slice.limit_tasks(self.max_tasks) {
            log::warn!("the cgroup of all units does not take a limit of {} tasks: {error}", self.max_tasks);
        }
        let (messages, pending) = (self.messages.clone(), Arc::clone(&self.oom_pending));
        let notice = move || {
            // One at a time, however fast they come.
            if !pending.swap(true, Ordering::SeqCst) {
                let _ = messages.send(Message::OomKill);
            }
        };
        let started = slice.memory_events().map(|events| OomThread::start(events, notice));
        // Without it, a kill for want of memory of one process of a tree is taken for that of any later one.
        Ok(started.transpose().unwrap_or_else(|error| {
            log::warn!("kills for want of memory are not watched: {error}");
            None
        }))
    }
}

impl Actor {
    /// Notes which kills for want of memory were not those of leaders, before anybody else kills these.
    pub(super) fn note_oom_kills(&mut self) {
        // Cleared before we look: a kill from now on is announced anew.
        self.parts.cgroups.oom_pending.store(false, Ordering::SeqCst);
        let fleet = &mut self.parts.fleet;
        let led: Vec<(UnitId, Pid)> = fleet.iter().filter_map(|(id, slot)| Some((id, slot.unit.leader()?))).collect();
        for (id, leader) in led {
            if let Some(Tree::Leaf(leaf)) = fleet.get_mut(id).map(|slot| &mut slot.data.tree) {
                leaf.note_oom_kills(leader);
            }
        }
    }
}
