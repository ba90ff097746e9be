//! [`Builder`]: options of a supervisor, and its start.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use nix::unistd::{getegid, geteuid};

use super::Supervisor;
use super::actor::{Actor, Parts};
use super::cgroups::{Cgroups, limit_tasks};
use super::fd_budget::{self, Budget, Share};
use super::handle::Handle;
use super::limits::DefaultLimits;
use super::mailbox::{MessageSender, mailbox};
use super::message::Message;
use super::ports;
use super::probes::{Probes, VerdictFilter};
use super::replies::Started;
use super::single_instance::SingleInstance;
use super::threads;
use super::trace::TraceStop;
use crate::events::EventLog;
use crate::health::Health;
use crate::logs::{LogLimits, LogStore};
use crate::metrics::METRICS;
use crate::model::{Limits, UserSpec};
use crate::unit::fleet::{Bounds, Fleet};
use tl_os::resource_limits;
use tl_os::spawn::Spawner;
use tl_os::thread;
use tl_os::wait::become_subreaper;

/// Options of a [`Supervisor`], created by [`Supervisor::builder`]. The defaults are those of docs/api.md, Limits.
///
/// ```
/// use std::time::Duration;
/// use tl_supervisor::{LogLimits, Supervisor, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs"))
///     .default_user(UserSpec::current())
///     .base_env([("LANG", "C")])
///     .log_limits(LogLimits { per_unit: 1 << 20, total: 16 << 20 })
///     .max_processes(100)
///     .start()?;
/// for warning in supervisor.warnings() {
///     eprintln!("{warning}");
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a builder does nothing until `start` is called"]
pub struct Builder {
    default_user: UserSpec,
    base_env: Vec<(String, String)>,
    log_dir: PathBuf,
    log_limits: LogLimits,
    max_processes: usize,
    keep_ended: usize,
    max_connections: usize,
    max_sessions: usize,
    max_tasks: Option<u64>,
    session_idle: Duration,
    pub(super) run_grace: Duration,
    cgroup: Option<PathBuf>,
    no_new_privs: bool,
    default_limits: Limits,
    callbacks: Callbacks,
}

/// Functions of the embedding program that the supervisor thread calls.
struct Callbacks {
    on_main_thread: Box<dyn Fn(TraceStop) + Send>,
    on_end: Option<OnEnd>,
    on_managed_start: Box<dyn FnMut(Started) + Send>,
}

impl fmt::Debug for Callbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callbacks").finish_non_exhaustive()
    }
}

type OnEnd = Box<dyn FnOnce() + Send>;

/// Calls the function of [`Builder::on_end`] when dropped, even if the thread that owns it panics.
struct CallOnEnd(Option<OnEnd>);

impl Drop for CallOnEnd {
    fn drop(&mut self) {
        if let Some(notify) = self.0.take() {
            notify();
        }
    }
}

impl UserSpec {
    /// The effective user and group of this process. A process that runs as them has no supplementary groups.
    ///
    /// ```
    /// use tl_supervisor::UserSpec;
    ///
    /// assert!(matches!(UserSpec::current(), UserSpec::Uid { gid: Some(_), .. }));
    /// ```
    pub fn current() -> UserSpec {
        UserSpec::Uid { uid: geteuid().as_raw(), gid: Some(getegid().as_raw()) }
    }
}

impl Builder {
    pub(super) fn new(log_dir: PathBuf) -> Builder {
        Builder {
            default_user: UserSpec::Name { name: "tl-user".to_owned(), gid: None },
            base_env: Vec::new(),
            log_dir,
            log_limits: LogLimits { per_unit: 256 << 20, total: 1 << 30 },
            max_processes: 4_096,
            keep_ended: 1_000,
            max_connections: 1_024,
            max_sessions: 64,
            max_tasks: None,
            session_idle: Duration::from_secs(300),
            run_grace: Duration::from_secs(10),
            cgroup: None,
            no_new_privs: false,
            default_limits: Limits::default(),
            callbacks: Callbacks { on_main_thread: Box::new(drop), on_end: None, on_managed_start: Box::new(drop) },
        }
    }

    /// The user of processes whose spec names none; `tl-user` by default.
    pub fn default_user(mut self, user: UserSpec) -> Self {
        self.default_user = user;
        self
    }

    /// Environment variables of every process. They take precedence over `PATH`, `HOME`, `USER`, `LOGNAME`, `SHELL` and
    /// `LANG`, which each process has anyway.
    pub fn base_env<K: Into<String>, V: Into<String>>(mut self, env: impl IntoIterator<Item = (K, V)>) -> Self {
        self.base_env = env.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        self
    }

    /// Limits on the output that is kept. By default 256 MiB for each unit and 1 GiB together.
    pub fn log_limits(mut self, limits: LogLimits) -> Self {
        self.log_limits = limits;
        self
    }

    /// Maximum number of processes that run at the same time; 4,096 by default.
    pub fn max_processes(mut self, max: usize) -> Self {
        self.max_processes = max;
        self
    }

    /// Maximum number of ended processes that are remembered, with their output; 1,000 by default.
    pub fn keep_ended(mut self, max: usize) -> Self {
        self.keep_ended = max;
        self
    }

    /// Number of connections of a front end that descriptors are reserved for; 1,024 by default. If RLIMIT_NOFILE is
    /// too low for that, fewer are reserved: give the front end [`Supervisor::max_connections`].
    pub fn max_connections(mut self, max: usize) -> Self {
        self.max_connections = max;
        self
    }

    /// Maximum number of terminal sessions that run at the same time; 64 by default.
    pub fn max_sessions(mut self, max: usize) -> Self {
        self.max_sessions = max;
        self
    }

    /// Maximum number of tasks (processes and threads) of all processes together if a cgroup can limit them, otherwise
    /// of each user except root. By default what the kernel allows, less a reserve for this process.
    pub fn max_tasks(mut self, max: u64) -> Self {
        self.max_tasks = Some(max);
        self
    }

    /// Time after which a terminal session without an attached client is ended. The default is 300 s.
    pub fn session_idle(mut self, time: Duration) -> Self {
        self.session_idle = time;
        self
    }

    /// The cgroup below which each run of a process gets its own cgroup; by default the cgroup of this process.
    pub fn cgroup(mut self, parent: PathBuf) -> Self {
        self.cgroup = Some(parent);
        self
    }

    /// Whether no process can gain privileges by what it executes, as with
    /// [`SpecBuilder::no_new_privs`](crate::SpecBuilder::no_new_privs), whatever its spec says. False by default.
    pub fn no_new_privs(mut self, deny: bool) -> Self {
        self.no_new_privs = deny;
        self
    }

    /// Limits for each run of processes and terminal sessions whose spec does not set the same limit. One that is not
    /// available here is left out, and logged once.
    ///
    /// ```
    /// use tl_supervisor::{Limits, Supervisor, UserSpec};
    ///
    /// let mut limits = Limits::default();
    /// limits.open_files = Some(256);
    /// let dir = tempfile::tempdir()?;
    /// let builder = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current());
    /// let supervisor = builder.default_limits(limits).start()?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn default_limits(mut self, limits: Limits) -> Self {
        self.default_limits = limits;
        self
    }

    /// Sets a function that is called with each [`TraceStop`] that only the main thread of this process can end. It
    /// must pass the stop to the main thread, which calls [`TraceStop::resume`]. It runs on the supervisor thread: it
    /// must not block, and a panic shuts the supervisor down.
    ///
    /// An orphan that calls `PTRACE_TRACEME` makes the main thread of its new parent, this process, its tracer
    /// (ptrace(2)). Without this function such a process stays stopped until it is killed.
    pub fn on_main_thread(mut self, hand_over: impl Fn(TraceStop) + Send + 'static) -> Self {
        self.callbacks.on_main_thread = Box::new(hand_over);
        self
    }

    /// Sets a function that is called when the supervisor thread ends: after the [`Supervisor`] was dropped, or because
    /// that thread or another thread of the supervisor has panicked. It runs on the supervisor thread and must not
    /// block.
    pub fn on_end(mut self, notify: impl FnOnce() + Send + 'static) -> Self {
        self.callbacks.on_end = Some(Box::new(notify));
        self
    }

    /// Sets a function that is called whenever a run of a managed process has started, with the process and its output.
    /// A follower of that output goes on over all runs of the process until it is stopped. The function runs on the
    /// supervisor thread: it must not block, and a panic shuts the supervisor down.
    pub fn on_managed_start(mut self, notify: impl FnMut(Started) + Send + 'static) -> Self {
        self.callbacks.on_managed_start = Box::new(notify);
        self
    }

    /// Starts the supervisor and its threads. Raises the resource limits of this process (its children get the original
    /// limits), and makes this process the one to which orphaned descendants are reparented.
    ///
    /// From then on the supervisor waits for *every* child of this process: no other code in it may wait for a child,
    /// as [`std::process::Child::wait`] does. SIGCHLD is blocked for the calling thread; a thread that has it unblocked
    /// and hangs in a system call could delay the reaping.
    ///
    /// The processes are forked by the *fork server*, a small child of this process that is forked here and ends with
    /// the supervisor. So they start with the namespaces, root directory, bounding set of capabilities, nice value, CPU
    /// affinity and the like that the calling thread has now, whatever this process changes later. They are children of
    /// this process all the same.
    ///
    /// # Errors
    /// Another supervisor runs in this process (`ResourceBusy`); the log directory cannot be created, contains
    /// other files, or belongs to another supervisor or user; the default user is malformed, for example an empty name;
    /// or threads or descriptors have run out. A default user that does not exist is no error here but at each start.
    ///
    /// ```
    /// use std::io::ErrorKind;
    /// use tl_supervisor::{Supervisor, UserSpec};
    ///
    /// let dir = tempfile::tempdir()?;
    /// let start = |name| Supervisor::builder(dir.path().join(name)).default_user(UserSpec::current()).start();
    /// let first = start("first")?;
    /// assert_eq!(start("second").unwrap_err().kind(), ErrorKind::ResourceBusy);
    /// drop(first);
    /// start("second")?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn start(self) -> io::Result<Supervisor> {
        self.default_user.validate().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let instance = SingleInstance::register()?;
        let (original, max_files) = resource_limits::raise()?;
        let (budget, mut warnings) = self.fit_budget(max_files);
        let bounds = self.bounds(budget);
        if std::process::id() != 1 {
            become_subreaper()?;
        }
        let mut spawner = Spawner::new(Some(original), self.no_new_privs)?;
        let logs = LogStore::open(&self.log_dir, self.log_limits)?;
        let (messages, mut inbox) = mailbox()?;
        inbox.watch_children()?;
        let output = threads::output(&messages)?;
        let remover = output.remover();
        threads::report_truncation(&logs, &messages);
        let events = EventLog::new();
        let ports = ports::ports(messages.clone(), &events);
        let closing = (events.close_on_drop(), ports.close_on_drop());
        let (its_events, its_ports) = (Arc::clone(&events), ports.clone());
        logs.set_remove_files(move |removal| remover.remove(removal));
        let probes = probes(messages.clone())?;
        let trees = threads::trees(&messages)?;
        let resolver = threads::resolver(&messages)?;
        let (cgroups, warning) = Cgroups::make(self.cgroup, messages.clone());
        warnings.extend(warning);
        let (default_limits, left_out) = DefaultLimits::new(self.default_limits);
        warnings.extend(left_out);
        let default_user = Arc::new(self.default_user.clone());
        let Callbacks { on_main_thread, on_end, on_managed_start } = self.callbacks;
        let body = move || {
            let _call_on_end = CallOnEnd(on_end);
            let _closing = closing;
            inbox.unblock()?;
            // The slice is still empty here: no unit can start before `start` returns a handle.
            let (cgroups, nproc) = limit_tasks(cgroups, self.max_tasks, budget.connections);
            spawner.limit_tasks(nproc);
            spawner.start_server();
            let parts = Parts {
                inbox,
                fleet: Fleet::new(bounds),
                logs,
                events,
                ports,
                output,
                probes,
                trees,
                resolver,
                on_main_thread,
                on_managed_start,
                spawner,
                default_limits: default_limits.reported(cgroups.controllers()),
                cgroups,
                default_user: self.default_user,
                base_env: self.base_env,
                descriptors: Share::of(max_files, budget.connections),
                session_idle: self.session_idle,
            };
            let mut actor = Actor::new(parts, self.run_grace);
            // A child may have ended before SIGCHLD was watched.
            actor.reap_scan.request(Duration::ZERO);
            actor.run_despite_panic();
            Ok(())
        };
        let thread = thread::spawn("supervisor", body, || {})?;
        let ids = AtomicU64::new(1).into();
        let handle = Handle { messages, ids, default_user, events: its_events, ports: its_ports };
        Ok(Supervisor { handle, budget, warnings, thread: Some(thread), _instance: instance })
    }

    fn bounds(&self, budget: Budget) -> Bounds {
        Bounds { max_running: budget.processes, keep_ended: self.keep_ended, max_sessions: self.max_sessions }
    }

    /// The numbers of processes and connections for which `max_files` descriptors suffice, with a warning if these are
    /// fewer than requested.
    fn fit_budget(&self, max_files: u64) -> (Budget, Vec<String>) {
        let requested = Budget { processes: self.max_processes, connections: self.max_connections };
        let budget = fd_budget::fit(requested, max_files);
        if budget == requested {
            return (budget, Vec::new());
        }
        let (processes, connections) = (budget.processes, budget.connections);
        let warning = format!(
            "RLIMIT_NOFILE is {max_files}: at most {processes} processes and {connections} connections, not {} and {}",
            requested.processes, requested.connections
        );
        (budget, vec![warning])
    }
}
pub(super) fn probes(messages: MessageSender) -> io::Result<Probes> {
    Probes::new(move |filter: VerdictFilter| {
        let (to_self, died) = (messages.clone(), messages.clone());
        Health::start(
            move |verdict| {
                METRICS.probed(verdict.outcome.is_ok());
                if filter.admits(&verdict) {
                    to_self.send(Message::Health(verdict));
                }
            },
            move || died.send(Message::HealthDied),
        )
    })
}
