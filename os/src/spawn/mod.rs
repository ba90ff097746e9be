//! Starts a program in a child process, and reports how its exec went without waiting for it.
//!
//! The outcome of the exec comes through a pipe that the kernel closes when the exec succeeds. So a program or a
//! working directory on a file system that hangs holds up only its own process.
//!
//! - `launch`: the program that the child becomes, prepared before the fork; `program`: pointers to it;
//! - `streams`: standard input, output and error, on both sides;
//! - `fork_server`: a small process that forks the children, because a fork of this process takes longer;
//! - `clone`: the fork itself;
//! - `child`: what the child does between the fork and the exec;
//! - `exec_failure`: the child's report of why it could not become the program;
//! - `error`: why there was no fork.

mod child;
pub(crate) mod clone;
mod error;
mod exec_failure;
mod fork_server;
mod launch;
mod program;
mod streams;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::unistd::geteuid;

pub use error::SpawnError;
pub use exec_failure::{ExecFailure, ReportBuffer, Stage};
pub use fork_server::is_fork_server;
pub use launch::{Launch, StringArray};
pub use streams::Stdio;

use self::child::{ControllingTerminal, Setup};
use self::fork_server::{ForkServer, Outcome};
use self::program::Program;
use self::streams::{Streams, nonblocking, pipe};
use crate::Pid;
use crate::cgroup::Leaf;
use crate::resource_limits::OriginalLimits;
use crate::user_namespace::{has_own_users, may_set_groups};
use crate::wait::Reaped;

/// A forked child that may not have executed its program yet, with this process's ends of its pipes, which do not
/// block.
#[derive(Debug)]
pub struct Child {
    /// The child's PID, which is also the number of its session and of its process group.
    pub pid: Pid,
    /// For writing to its stdin: a pipe, or the terminal's master.
    pub stdin: Option<OwnedFd>,
    /// For reading its stdout: a pipe, or the terminal's master.
    pub stdout: Option<OwnedFd>,
    /// For reading its stderr.
    pub stderr: Option<OwnedFd>,
    /// Reaches end-of-file without a byte when the exec has succeeded; else holds an [`ExecFailure`].
    pub report: OwnedFd,
}

/// Starts children. Holds what all of them need from the system, determined once.
#[derive(Debug)]
pub struct Spawner {
    null: File,
    forker: Forker,
    nproc: Option<libc::rlimit>,
    no_new_privs: bool,
}

impl Spawner {
    /// Opens `/dev/null`, and makes sure that descriptors 0, 1 and 2 are open: no pipe may get one of these numbers.
    /// Those that are closed stay open on `/dev/null` for the life of the process.
    ///
    /// `limits` are set in the children: those of this process before it raised its own. `no_new_privs` says whether
    /// PR_SET_NO_NEW_PRIVS is set in all of them.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened.
    pub fn new(limits: Option<OriginalLimits>, no_new_privs: bool) -> io::Result<Spawner> {
        let open = || File::options().read(true).write(true).open("/dev/null");
        let mut null = open()?;
        while null.as_raw_fd() <= 2 {
            std::mem::forget(null);
            null = open()?;
        }
        Ok(Spawner { null, forker: Forker::new(limits), nproc: None, no_new_privs })
    }

    /// Starts the fork server, a child of this process. The calling thread must be the one that spawns.
    pub fn start_server(&mut self) {
        self.forker.server.start();
    }

    /// Ends the fork server for good. Later children are forked by this process.
    pub fn stop_server(&mut self) {
        self.forker.server.stop();
    }

    /// Records that a child was reaped, which may have been the fork server. Returns whether it was.
    pub fn reaped(&mut self, reaped: Reaped) -> bool {
        self.forker.server.reaped(reaped)
    }

    /// Sets the RLIMIT_NPROC of later children; `None` leaves it as this process has it. It applies to children that
    /// are not root's, for whom the kernel ignores it, and that have no cgroup which limits their tasks.
    pub fn limit_tasks(&mut self, nproc: Option<libc::rlimit>) {
        self.nproc = nproc;
    }

    /// Forks a child that executes `launch`, in the cgroup `leaf` if that is given, and returns at once.
    ///
    /// The child leads a new session. All its descriptors but 0, 1 and 2 are closed, its signal dispositions, signal
    /// mask and `oom_score_adj` are the defaults, its umask is 022, and it has no inheritable or ambient capabilities.
    /// Pipes that it gets become its user's.
    ///
    /// # Errors
    /// When nothing was forked. [`SpawnError::Cgroup`] says that the same call could succeed without `leaf`, or in
    /// another one.
    pub fn spawn(&mut self, stdio: Stdio, launch: &Launch, leaf: Option<&Leaf>) -> Result<Child, SpawnError> {
        let failed = SpawnError::Other;
        if launch.uid == u32::MAX || launch.gid == u32::MAX {
            return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let streams = Streams::open(stdio, launch, &self.null).map_err(failed)?;
        let (report, report_write) = pipe().map_err(failed)?;
        let report = nonblocking(report).map_err(failed)?;
        let cgroup = leaf.map(Cgroup::open).transpose().map_err(SpawnError::in_cgroup)?;
        let request = Request {
            launch,
            stdio: streams.child.each_ref().map(AsFd::as_fd),
            terminal: streams.terminal,
            report: report_write.as_fd(),
            cgroup: cgroup.as_ref(),
            open_files: launch.open_files,
            nproc: self.nproc.filter(|_| launch.uid != 0 && !leaf.is_some_and(Leaf::limits_tasks)),
            no_new_privs: self.no_new_privs || launch.no_new_privs,
        };
        let pid = self.forker.fork(&request).map_err(|error| match &cgroup {
            Some(Cgroup::CreateIn(_)) => SpawnError::in_cgroup(error),
            _ => SpawnError::Other(error),
        })?;
        // The child's ends close here, before a later fork could inherit them.
        let Streams { stdin, stdout, stderr, .. } = streams;
        Ok(Child { pid, stdin, stdout, stderr, report })
    }
}

/// Forks children, by the fork server if possible.
#[derive(Debug)]
struct Forker {
    server: ForkServer,
    /// Limits to be set in a child that this process forks itself.
    limits: Option<OriginalLimits>,
    /// Limits to be set in a child that the server forks.
    server_limits: Option<OriginalLimits>,
    set_groups: bool,
    /// Whether each child gets a session keyring of its own. One key for each process is much for a user, who may have
    /// 200 (`/proc/sys/kernel/keys/maxkeys`), and nothing for root outside of user namespaces.
    session_keyrings: bool,
}

impl Forker {
    fn new(limits: Option<OriginalLimits>) -> Forker {
        let (of_server, server_limits) = limits.map(OriginalLimits::for_fork_server).unzip();
        Forker {
            server: ForkServer::new(of_server),
            limits,
            server_limits,
            set_groups: may_set_groups(),
            session_keyrings: geteuid().is_root() && !has_own_users(),
        }
    }

    /// Has the fork server fork the child or, if that is not possible, forks it.
    fn fork(&mut self, request: &Request<'_>) -> io::Result<Pid> {
        let setup = Setup { limits: self.server_limits, by_server: true, ..self.setup(request, &IN_SERVER) };
        let create_in = request.create_in().map(|_| IN_SERVER.cgroup);
        match self.server.spawn(request.launch, &setup, create_in, &request.descriptors()) {
            Outcome::Forked(pid) => return Ok(pid),
            Outcome::Refused(error) => return Err(error),
            Outcome::Unavailable => {}
        }
        let setup = self.setup(request, &request.numbers());
        let program = Program::of(request.launch);
        let child = || {
            // SAFETY: this closure runs in a child that was just forked, and in no other process. `launch` lives there,
            // too.
            unsafe { child::run(&program, &setup) }
        };
        // SAFETY: `child::run` is async-signal-safe, allocates nothing and cannot panic.
        unsafe { clone::fork(request.create_in(), child) }
    }

    /// The setup of a child that this process forks. `numbers` are those of the descriptors in the process that forks it.
    fn setup(&self, request: &Request<'_>, numbers: &Numbers) -> Setup {
        Setup {
            stdio: numbers.stdio,
            terminal: request.terminal,
            report: numbers.report,
            cgroup: matches!(request.cgroup, Some(Cgroup::Join(_))).then_some(numbers.cgroup),
            limits: self.limits,
            open_files: request.open_files,
            nproc: request.nproc,
            set_groups: self.set_groups,
            by_server: false,
            session_keyring: self.session_keyrings,
            no_new_privs: request.no_new_privs,
        }
    }
}

/// How a child gets into its cgroup.
enum Cgroup {
    /// It is created there: the directory of the leaf.
    CreateIn(File),
    /// The kernel cannot do that. The child joins the leaf first of all: its `cgroup.procs`.
    Join(File),
}

impl Cgroup {
    fn open(leaf: &Leaf) -> io::Result<Cgroup> {
        if leaf.can_clone_into() { leaf.open().map(Cgroup::CreateIn) } else { leaf.procs().map(Cgroup::Join) }
    }
}

/// What a fork needs.
struct Request<'a> {
    launch: &'a Launch,
    stdio: [BorrowedFd<'a>; 3],
    terminal: ControllingTerminal,
    report: BorrowedFd<'a>,
    cgroup: Option<&'a Cgroup>,
    open_files: Option<u64>,
    nproc: Option<libc::rlimit>,
    no_new_privs: bool,
}

/// The numbers of the descriptors of a request in the process that forks.
struct Numbers {
    stdio: [RawFd; 3],
    report: RawFd,
    cgroup: RawFd,
}

/// In the fork server, they are those of [`Request::descriptors`] in order, from 0 on.
const IN_SERVER: Numbers = Numbers { stdio: [0, 1, 2], report: 3, cgroup: 4 };

impl<'a> Request<'a> {
    /// The descriptor that puts the child into its cgroup.
    fn cgroup_fd(&self) -> Option<BorrowedFd<'a>> {
        self.cgroup.map(|(Cgroup::CreateIn(file) | Cgroup::Join(file))| file.as_fd())
    }

    /// The directory of the cgroup that the child is created in.
    fn create_in(&self) -> Option<BorrowedFd<'a>> {
        match self.cgroup {
            Some(Cgroup::CreateIn(dir)) => Some(dir.as_fd()),
            _ => None,
        }
    }

    /// All descriptors.
    fn descriptors(&self) -> Vec<BorrowedFd<'a>> {
        self.stdio.into_iter().chain([self.report]).chain(self.cgroup_fd()).collect()
    }

    /// Their numbers in this process.
    fn numbers(&self) -> Numbers {
        let cgroup = self.cgroup_fd().map_or(-1, |fd| fd.as_raw_fd());
        Numbers { stdio: self.stdio.map(|fd| fd.as_raw_fd()), report: self.report.as_raw_fd(), cgroup }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn an_id_that_the_kernel_would_ignore_is_refused() {
        let mut spawner = Spawner::new(None, false).unwrap();
        let strings = || StringArray::new(vec![CString::from(c"/bin/true")]);
        for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
            let (programs, argv, envp) = (strings(), strings(), StringArray::new(Vec::new()));
            let (home, groups, open_files, no_new_privs) = (CString::from(c"/"), Vec::new(), None, false);
            let dir = None;
            let launch = Launch { programs, argv, envp, dir, home, uid, gid, groups, open_files, no_new_privs };
            let stdio = Stdio::Pipes { stdin: false, stdout: false, stderr: false };
            let result = spawner.spawn(stdio, &launch, None);
            assert!(matches!(result, Err(SpawnError::Other(error)) if error.raw_os_error() == Some(libc::EINVAL)));
        }
    }
}
