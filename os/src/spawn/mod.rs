//! Starts a program in a child process, and reports how its exec went without waiting for it.
//!
//! The outcome of the exec comes through a pipe that the kernel closes when the exec succeeds. So a program or a
//! working directory on a file system that hangs holds up only its own process.
//!
//! - `launch`: the program that the child becomes, prepared before the fork;
//! - `streams`: standard input, output and error, on both sides;
//! - `clone`: the fork itself;
//! - `child`: what the child does between the fork and the exec;
//! - `exec_failure`: the child's report of why it could not become the program;
//! - `error`: why there was no fork.

mod child;
pub(crate) mod clone;
mod error;
mod exec_failure;
mod launch;
mod streams;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

pub use error::SpawnError;
pub use exec_failure::{ExecFailure, ReportBuffer, Stage};
pub use launch::{Launch, StringArray};
pub use streams::Stdio;

use self::child::Inherited;
use self::streams::{Streams, nonblocking, pipe};
use crate::Pid;
use crate::cgroup::Leaf;
use crate::resource_limits::OriginalLimits;
use crate::user_namespace::may_set_groups;

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
    limits: Option<OriginalLimits>,
    nproc: Option<libc::rlimit>,
    set_groups: bool,
}

impl Spawner {
    /// Opens `/dev/null`, and makes sure that descriptors 0, 1 and 2 are open: no pipe may get one of these numbers.
    /// Those that are closed stay open on `/dev/null` for the life of the process.
    ///
    /// `limits` are set in the children: those of this process before it raised its own.
    ///
    /// # Errors
    /// When `/dev/null` cannot be opened.
    pub fn new(limits: Option<OriginalLimits>) -> io::Result<Spawner> {
        let open = || File::options().read(true).write(true).open("/dev/null");
        let mut null = open()?;
        while null.as_raw_fd() <= 2 {
            std::mem::forget(null);
            null = open()?;
        }
        Ok(Spawner { null, limits, nproc: None, set_groups: may_set_groups() })
    }

    /// Sets the RLIMIT_NPROC of later children; `None` leaves it as this process has it. It applies to children that
    /// are not root's, for whom the kernel ignores it, and that have no cgroup which limits their tasks.
    pub fn limit_tasks(&mut self, nproc: Option<libc::rlimit>) {
        self.nproc = nproc;
    }

    /// Forks a child that executes `launch`, in the cgroup `leaf` if that is given, and returns at once.
    ///
    /// The child leads a new session. All its descriptors but 0, 1 and 2 are closed, its signal dispositions, signal
    /// mask and `oom_score_adj` are the defaults, its umask is 022. Pipes that it gets become its user's.
    ///
    /// # Errors
    /// When nothing was forked. [`SpawnError::Cgroup`] says that the same call could succeed without `leaf`, or in
    /// another one.
    pub fn spawn(&self, stdio: Stdio, launch: &Launch, leaf: Option<&Leaf>) -> Result<Child, SpawnError> {
        let failed = SpawnError::Other;
        if launch.uid == u32::MAX || launch.gid == u32::MAX {
            return Err(failed(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        let streams = Streams::open(stdio, launch, &self.null).map_err(failed)?;
        let (report, report_write) = pipe().map_err(failed)?;
        let report = nonblocking(report).map_err(failed)?;
        let inherited = Inherited {
            stdio: streams.child.each_ref().map(AsFd::as_fd),
            terminal: streams.terminal,
            report: report_write.as_fd(),
            cgroup: None,
            limits: self.limits,
            nproc: self.nproc.filter(|_| launch.uid != 0 && !leaf.is_some_and(Leaf::limits_tasks)),
            set_groups: self.set_groups,
        };
        let pid = fork(launch, inherited, leaf)?;
        // The child's ends close here, before a later fork could inherit them.
        let Streams { stdin, stdout, stderr, .. } = streams;
        Ok(Child { pid, stdin, stdout, stderr, report })
    }
}

/// Forks the child into the leaf. It is created there; where the kernel cannot do that, it joins the leaf first of all.
fn fork(launch: &Launch, inherited: Inherited<'_>, leaf: Option<&Leaf>) -> Result<Pid, SpawnError> {
    let Some(leaf) = leaf else { return start(launch, inherited, None).map_err(SpawnError::Other) };
    if leaf.can_clone_into() {
        let dir = leaf.open().map_err(SpawnError::in_cgroup)?;
        return start(launch, inherited, Some(dir.as_fd())).map_err(SpawnError::in_cgroup);
    }
    let procs = leaf.procs().map_err(SpawnError::in_cgroup)?;
    start(launch, Inherited { cgroup: Some(procs.as_fd()), ..inherited }, None).map_err(SpawnError::Other)
}

fn start(launch: &Launch, inherited: Inherited<'_>, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Pid> {
    let child = || {
        // SAFETY: this closure runs in a child that was just forked, and in no other process.
        unsafe { child::run(launch, &inherited) }
    };
    // SAFETY: `child::run` is async-signal-safe, allocates nothing and cannot panic.
    unsafe { clone::fork(cgroup, child) }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn an_id_that_the_kernel_would_ignore_is_refused() {
        let spawner = Spawner::new(None).unwrap();
        let strings = || StringArray::new(vec![CString::from(c"/bin/true")]);
        for (uid, gid) in [(u32::MAX, 0), (0, u32::MAX)] {
            let (programs, argv, envp) = (strings(), strings(), StringArray::new(Vec::new()));
            let launch =
                Launch { programs, argv, envp, dir: None, home: CString::from(c"/"), uid, gid, groups: Vec::new() };
            let stdio = Stdio::Pipes { stdin: false, stdout: false, stderr: false };
            let result = spawner.spawn(stdio, &launch, None);
            assert!(matches!(result, Err(SpawnError::Other(error)) if error.raw_os_error() == Some(libc::EINVAL)));
        }
    }
}
