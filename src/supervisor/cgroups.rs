//! The cgroups of the units: creates the slice, replaces it when it becomes unusable, and continues without cgroups if
//! no slice can be created.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::mailbox::MessageSender;
use super::message::Message;
use super::task_limit;
use crate::oom::OomThread;
use tl_os::cgroup::{Controllers, Leaf, Slice, probe};
use tl_os::spawn::SpawnError;
use tl_os::task_limits;
use tl_os::user_namespace::has_own_users;

/// Consequence of having no cgroup, for warnings.
const WITHOUT: &str = "a process that leaves its session and its environment may escape a kill";
/// Number of slices that one start tries before it continues without a cgroup.
const TRIES: usize = 2;
/// Minimum time between two attempts to create another slice after one was lost. Only starts of runs make attempts.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// The slice, and what is needed to create another.
#[derive(Debug)]
pub(super) struct Cgroups {
    parent: Option<PathBuf>,
    messages: MessageSender,
    max_tasks: u64,
    state: State,
    /// Watches the current slice for out-of-memory kills.
    oom: Option<OomThread>,
    /// Set while a [`Message::OomKill`] is in the supervisor's queue.
    oom_pending: Arc<AtomicBool>,
}

#[derive(Debug)]
enum State {
    Usable(Slice),
    /// There was no usable slice at the start of the supervisor.
    Never,
    /// The slice became unusable, and no other could be created: the time of the last attempt.
    Lost(Instant),
}

impl Cgroups {
    /// Records that the supervisor handles a [`Message::OomKill`]. A later kill is announced again.
    pub(super) fn begin_oom_check(&self) {
        self.oom_pending.store(false, Ordering::SeqCst);
    }

    /// No cgroups.
    #[cfg(test)]
    pub(super) fn none() -> Cgroups {
        Cgroups {
            parent: None,
            messages: super::mailbox::mailbox().unwrap().0,
            max_tasks: 0,
            state: State::Never,
            oom: None,
            oom_pending: Arc::default(),
        }
    }

    /// Creates a slice below `parent`, or else below the cgroup of this process. Returns a warning if that is not
    /// possible.
    pub(super) fn make(parent: Option<PathBuf>, messages: MessageSender) -> (Cgroups, Option<String>) {
        let (state, warning) = match Slice::below(parent.as_deref()) {
            Ok(slice) => (State::Usable(slice), None),
            Err(error) => (State::Never, Some(format!("no writable cgroup v2 ({error}): {WITHOUT}"))),
        };
        let oom_pending = Arc::default();
        (Cgroups { parent, messages, max_tasks: u64::MAX, state, oom: None, oom_pending }, warning)
    }

    /// Tests whether a process can be put into the slice, and sets it up with a limit of `max_tasks` tasks for all
    /// units together. Forks a child, so it must run on the supervisor thread.
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

    /// Whether the slice limits the number of tasks.
    pub(super) fn limit_tasks(&self) -> bool {
        matches!(&self.state, State::Usable(slice) if slice.limits_tasks())
    }

    /// The controllers that limit units; none without a slice.
    pub(super) fn controllers(&self) -> Controllers {
        match &self.state {
            State::Usable(slice) => slice.controllers(),
            State::Never | State::Lost(_) => Controllers::default(),
        }
    }

    /// Calls `start` with an empty leaf, or with None if there is no usable slice. Returns its result and
    /// the leaf.
    ///
    /// # Errors
    /// The error of `start`, unless it was caused by the cgroup.
    pub(super) fn start_in<T>(
        &mut self,
        mut start: impl FnMut(Option<&Leaf>) -> Result<T, SpawnError>,
    ) -> io::Result<(T, Option<Leaf>)> {
        if matches!(&self.state, State::Lost(at) if at.elapsed() > RETRY_INTERVAL) {
            // A failure was logged when the slice was lost.
            if let Ok(new) = self.create_slice() {
                log::info!("units have cgroups again, in {new}");
            }
        }
        for _ in 0..TRIES {
            let State::Usable(slice) = &self.state else { break };
            let mut started = start_in_leaf(slice.leaf(), &mut start);
            if matches!(started, Err(SpawnError::Cgroup(_))) {
                // It may have been a spare leaf that somebody has removed meanwhile.
                slice.remove_spare_leaves();
                started = start_in_leaf(slice.new_leaf(), &mut start);
            }
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

    /// Records that somebody else has killed a leader with SIGKILL. It may have been done by a `cgroup.kill` of the whole
    /// slice, after which the kernel may kill the processes of later runs in the leaves that were spare then.
    pub(super) fn leader_was_killed(&self) {
        if let State::Usable(slice) = &self.state {
            slice.remove_spare_leaves();
        }
    }

    /// Replaces a slice that accepts no more processes, with one warning about both.
    fn replace(&mut self, why: &io::Error) {
        let State::Usable(slice) = &self.state else { return };
        let old = slice.dir().display().to_string();
        match self.create_slice() {
            Ok(new) => log::warn!("the cgroup {old} accepts no more processes ({why}): {new} replaces it"),
            Err(error) => log::warn!(
                "the cgroup {old} accepts no more processes ({why}), and no other can be created ({error}): {WITHOUT}"
            ),
        }
    }

    /// Creates another slice. Returns its directory.
    fn create_slice(&mut self) -> io::Result<String> {
        // Drops the old slice, which removes its empty leaves. Those with processes remain.
        self.state = State::Lost(Instant::now());
        let slice = Slice::below(self.parent.as_deref())?;
        self.oom = self.prepare(&slice)?;
        let dir = slice.dir().display().to_string();
        self.state = State::Usable(slice);
        Ok(dir)
    }

    /// Sets up a slice. Returns the thread that watches it for out-of-memory kills, if it has a memory controller.
    fn prepare(&self, slice: &Slice) -> io::Result<Option<OomThread>> {
        probe(slice)?;
        slice.enable_controllers();
        if let Err(error) = slice.limit_tasks(self.max_tasks) {
            log::warn!("the cgroup of all units does not accept a limit of {} tasks: {error}", self.max_tasks);
        }
        let (messages, pending) = (self.messages.clone(), Arc::clone(&self.oom_pending));
        let notice = move || {
            // At most one message is in the queue, however many kills there are.
            if !pending.swap(true, Ordering::SeqCst) {
                messages.send(Message::OomKill);
            }
        };
        let started = slice.memory_events().map(|events| OomThread::start(events, notice));
        // Without the thread, an out-of-memory kill of another process of the tree is attributed to a later kill of the
        // leader.
        Ok(started.transpose().unwrap_or_else(|error| {
            log::warn!("out-of-memory kills are not watched: {error}");
            None
        }))
    }
}

/// Prepares the cgroups, with a limit on the tasks of all units. Returns the RLIMIT_NPROC of each child where no cgroup
/// limits tasks.
pub(super) fn limit_tasks(
    cgroups: Cgroups,
    requested: Option<u64>,
    connections: usize,
) -> (Cgroups, Option<libc::rlimit>) {
    let kernel = task_limit::Kernel {
        pids: task_limits::pid_max(),
        threads: task_limits::threads_max(),
        cgroup: task_limits::lowest_pids_max(),
        own_users: has_own_users(),
    };
    let cgroups = cgroups.prepared(requested.unwrap_or_else(|| kernel.for_all(connections)));
    let max = requested.or_else(|| kernel.for_each_user(connections));
    let nproc = max.map_or(Ok(None), task_limits::lower_nproc).unwrap_or_else(|error| {
        log::warn!("RLIMIT_NPROC: {error}");
        None
    });
    if let (Some(requested), false) = (requested, cgroups.limit_tasks()) {
        match task_limits::nproc() {
            Ok(current) if current < requested => {
                log::warn!("RLIMIT_NPROC is {current}: at most {current} tasks of each user but root")
            }
            _ => log::warn!("no cgroup limits tasks: {requested} of each user but root (RLIMIT_NPROC)"),
        }
    }
    (cgroups, nproc)
}

/// Calls `start` with the leaf. Returns its result and the leaf; if it has failed, the leaf is given back.
fn start_in_leaf<T>(
    leaf: io::Result<Leaf>,
    mut start: impl FnMut(Option<&Leaf>) -> Result<T, SpawnError>,
) -> Result<(T, Leaf), SpawnError> {
    let leaf = leaf.map_err(SpawnError::in_cgroup)?;
    match start(Some(&leaf)) {
        Ok(started) => Ok((started, leaf)),
        Err(failure) => {
            let _ = leaf.give_back();
            Err(failure)
        }
    }
}
