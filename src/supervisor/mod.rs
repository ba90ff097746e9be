//! The supervisor: its builder, and the [`Handle`] through which everybody asks it.

mod actions;
mod actor;
mod cgroups;
mod entry;
pub(crate) mod fd_budget;
mod handle;
mod launch;
mod message;
mod probes;
mod pty;
mod sessions;
mod shutdown;
pub(crate) mod task_limit;
#[cfg(test)]
mod tests;
mod trees;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

pub use handle::{Counts, Handle, Started, Stdin};
pub use pty::{Attached, SessionKey};

use crate::health::Health;
use crate::logs::{Limits, LogStore};
use crate::model::UserSpec;
use crate::output::Output;
use crate::supervisor::fd_budget::{Budget, Share};
use crate::trees::Trees;
use crate::unit::fleet::{Bounds, Fleet};
use actor::{Actor, Parts};
use cgroups::Cgroups;
use message::{Command, Message};
use probes::{News, Probes};
use tl_os::resource_limits;
use tl_os::signal_thread::SignalThread;
use tl_os::spawn::Spawner;
use tl_os::task_limits;
use tl_os::thread;
use tl_os::user_namespace::has_own_users;
use tl_os::wait::{TraceStop, become_subreaper};

/// What a supervisor is made of; the defaults are those of section 7.
#[derive(Debug)]
pub struct Builder {
    default_user: UserSpec,
    base_env: Vec<(String, String)>,
    log_dir: PathBuf,
    log_limits: Limits,
    max_processes: usize,
    keep_ended: usize,
    max_connections: usize,
    max_sessions: usize,
    max_tasks: Option<u64>,
    session_idle: Duration,
    cgroup: Option<PathBuf>,
    on_main_thread: OnMainThread,
}

/// What [`Builder::on_main_thread`] was given.
struct OnMainThread(Box<dyn Fn(TraceStop) + Send>);

impl fmt::Debug for OnMainThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a function")
    }
}

impl Builder {
    /// Whom a process runs as that does not say; `tl-user` by default.
    pub fn default_user(mut self, user: UserSpec) -> Self {
        self.default_user = user;
        self
    }

    /// Variables on top of the base environment of every process.
    pub fn base_env(mut self, env: Vec<(String, String)>) -> Self {
        self.base_env = env;
        self
    }

    /// How many bytes of output are kept.
    pub fn log_limits(mut self, limits: Limits) -> Self {
        self.log_limits = limits;
        self
    }

    /// Processes that may run at once.
    pub fn max_processes(mut self, most: usize) -> Self {
        self.max_processes = most;
        self
    }

    /// Ended processes that are remembered.
    pub fn keep_ended(mut self, most: usize) -> Self {
        self.keep_ended = most;
        self
    }

    /// Connections of a front-end that descriptors are to be left for.
    pub fn max_connections(mut self, most: usize) -> Self {
        self.max_connections = most;
        self
    }

    /// Terminal sessions that may run at once.
    pub fn max_sessions(mut self, most: usize) -> Self {
        self.max_sessions = most;
        self
    }

    /// Tasks (processes and threads) that all units may have together, where a cgroup can limit them; each user but root,
    /// where not. By default what the kernel allows, less a reserve.
    pub fn max_tasks(mut self, most: u64) -> Self {
        self.max_tasks = Some(most);
        self
    }

    /// A terminal session that nobody is attached to ends after this time.
    pub fn session_idle(mut self, time: Duration) -> Self {
        self.session_idle = time;
        self
    }

    /// The cgroup below which units get theirs; by default the one that this process is in.
    pub fn cgroup(mut self, parent: PathBuf) -> Self {
        self.cgroup = Some(parent);
        self
    }

    /// Hands a [`TraceStop`] to the main thread of this process, which has to call [`TraceStop::detach`]. It is called on
    /// the supervisor thread and must not block.
    ///
    /// An orphan that calls `PTRACE_TRACEME` makes the main thread of its new parent the tracer, and only that can let it
    /// go when it stops (ptrace(2)). Without this function, such a process stays stopped until it is killed.
    pub fn on_main_thread(mut self, hand_over: impl Fn(TraceStop) + Send + 'static) -> Self {
        self.on_main_thread = OnMainThread(Box::new(hand_over));
        self
    }

    /// Raises this process's own resource limits, which its children do not notice, makes it the one that orphans come to,
    /// and starts the threads.
    ///
    /// From here on the supervisor reaps *every* child of this process: nobody else in it may wait for one. SIGCHLD is
    /// blocked for the calling thread; a thread that has it unblocked and hangs in a system call could hold up the reaping.
    ///
    /// # Errors
    /// When the log directory cannot be made or is another supervisor's, or a thread or descriptor cannot be had.
    ///
    /// ```no_run
    /// # use tl_supervisor::*;
    /// let supervisor = Supervisor::builder("/tmp/logs").start()?;
    /// let handle = supervisor.handle();
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn start(self) -> io::Result<Supervisor> {
        let (original, most_files) = resource_limits::raise()?;
        let wanted = Budget { processes: self.max_processes, connections: self.max_connections };
        let budget = fd_budget::fit(wanted, most_files);
        let mut warnings = Vec::new();
        if budget != wanted {
            let (processes, connections) = (budget.processes, budget.connections);
            warnings.push(format!(
                "RLIMIT_NOFILE is {most_files}: at most {processes} processes and {connections} connections"
            ));
        }
        if std::process::id() != 1 {
            become_subreaper()?;
        }
        let mut spawner = Spawner::new(Some(original))?;
        let logs = LogStore::open(&self.log_dir, self.log_limits)?;
        let (messages, inbox) = unbounded();
        let child_pending = Arc::new(AtomicBool::new(false));
        let signals = watch_children(messages.clone(), Arc::clone(&child_pending))?;
        let (to_self, died) = (messages.clone(), messages.clone());
        let output = Output::start(
            move |run, notice| drop(to_self.send(Message::Output(run, notice))),
            move || drop(died.send(Message::Died("output"))),
        )?;
        let probes = probe_for(messages.clone())?;
        let (to_self, died) = (messages.clone(), messages.clone());
        let trees = Trees::start(
            move |report| drop(to_self.send(Message::Trees(report))),
            move || drop(died.send(Message::Died("trees"))),
        )?;
        let (cgroups, warning) = Cgroups::make(self.cgroup, messages.clone());
        warnings.extend(warning);
        let (tell, ended) = bounded(1);
        let default_user = Arc::new(self.default_user.clone());
        let (max_running, max_sessions) = (budget.processes, self.max_sessions);
        let max_tasks = self.max_tasks;
        let bounds = Bounds { max_running, keep_ended: self.keep_ended, max_sessions };
        let body = move || {
            // Not before anybody can be told that we are here: nothing is in the slice yet.
            let (cgroups, nproc) = limit_tasks(cgroups, max_tasks, budget.connections);
            spawner.limit_tasks(nproc);
            let parts = Parts {
                inbox,
                child_pending,
                fleet: Fleet::new(bounds),
                logs,
                output,
                probes,
                trees,
                on_main_thread: self.on_main_thread.0,
                spawner,
                cgroups,
                default_user: self.default_user,
                base_env: self.base_env,
                descriptors: Share::of(most_files, budget.connections),
                session_idle: self.session_idle,
            };
            Actor::new(parts).run();
            drop(tell);
            Ok(())
        };
        let thread = thread::spawn("supervisor", body, || {})?;
        // A child that ended before the signals were watched.
        let _ = messages.send(Message::Child);
        let handle = Handle { messages, ids: Arc::new(AtomicU64::new(1)), default_user };
        Ok(Supervisor { handle, budget, warnings, ended, signals: Some(signals), thread: Some(thread) })
    }
}

/// Gets the cgroups ready, with a limit on the tasks of their units. Gives RLIMIT_NPROC for what no cgroup limits.
fn limit_tasks(cgroups: Cgroups, asked: Option<u64>, connections: usize) -> (Cgroups, Option<libc::rlimit>) {
    let kernel = task_limit::Kernel {
        pids: task_limits::pid_max(),
        threads: task_limits::threads_max(),
        cgroup: task_limits::lowest_pids_max(),
        own_users: has_own_users(),
    };
    let cgroups = cgroups.prepared(asked.unwrap_or_else(|| kernel.for_all(connections)));
    let most = asked.or_else(|| kernel.for_each_user(connections));
    let nproc = most.map_or(Ok(None), task_limits::lower_nproc).unwrap_or_else(|error| {
        log::warn!("RLIMIT_NPROC: {error}");
        None
    });
    if let (Some(asked), false) = (asked, cgroups.limit_tasks()) {
        match task_limits::nproc() {
            Ok(given) if given < asked => {
                log::warn!("RLIMIT_NPROC is {given}: at most {given} tasks of each user but root")
            }
            _ => log::warn!("no cgroup limits tasks: {asked} of each user but root (RLIMIT_NPROC)"),
        }
    }
    (cgroups, nproc)
}

fn probe_for(messages: Sender<Message>) -> io::Result<Probes> {
    Probes::new(move || {
        let (to_self, died) = (messages.clone(), messages.clone());
        let news = News::default();
        Health::start(
            move |verdict| {
                if news.has(&verdict) {
                    drop(to_self.send(Message::Health(verdict)));
                }
            },
            move || drop(died.send(Message::HealthDied)),
        )
    })
}

fn watch_children(messages: Sender<Message>, pending: Arc<AtomicBool>) -> io::Result<SignalThread> {
    let died = messages.clone();
    let notice = move |_| {
        // One announcement at a time, however fast they die.
        if !pending.swap(true, Ordering::SeqCst) {
            let _ = messages.send(Message::Child);
        }
    };
    SignalThread::start("sigchld", &[libc::SIGCHLD], notice, move || drop(died.send(Message::Died("sigchld"))))
}

/// A running supervisor. Dropped, its threads end; what it has started goes on without it: see [`Handle::shutdown`].
#[derive(Debug)]
pub struct Supervisor {
    handle: Handle,
    budget: Budget,
    warnings: Vec<String>,
    ended: Receiver<()>,
    signals: Option<SignalThread>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Begins to build one that keeps its logs below `log_dir`.
    pub fn builder(log_dir: impl Into<PathBuf>) -> Builder {
        Builder {
            default_user: UserSpec::Name { name: "tl-user".to_owned(), gid: None },
            base_env: Vec::new(),
            log_dir: log_dir.into(),
            log_limits: Limits { per_unit: 256 << 20, total: 1 << 30 },
            max_processes: 4_096,
            keep_ended: 1_000,
            max_connections: 1_024,
            max_sessions: 64,
            max_tasks: None,
            session_idle: Duration::from_secs(300),
            cgroup: None,
            on_main_thread: OnMainThread(Box::new(|_| {})),
        }
    }

    /// To ask it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// The connections that descriptors were left for.
    pub fn max_connections(&self) -> usize {
        self.budget.connections
    }

    /// What is less than it was asked for, or than it should be, a sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Gives nothing; disconnected when the supervisor thread has ended, which it does of itself only by a panic.
    pub fn ended(&self) -> Receiver<()> {
        self.ended.clone()
    }

    /// The longest that [`Handle::shutdown`] takes on top of its grace.
    pub const SHUTDOWN_MARGIN: Duration = Duration::from_secs(3);
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.handle.messages.send(Message::Command(Command::Quit));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        drop(self.signals.take());
    }
}
