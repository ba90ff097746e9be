//! The parent's half of a spawn: pipes, the fork, and what a failed exec means. It never waits for the child.
//!
//! The outcome of the exec comes through a pipe that the kernel closes when the exec succeeds: a hanging program or
//! directory holds up nobody but its own process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::accounts;
use super::cgroup::Leaf;
use super::child::{Controlling, Inherited, REPORT, Stage};
use super::fork::{self, Failure};
use super::launch::Launch;
use super::limits::Found;
use super::pipe::{give, give_inherited};
use super::pty::{self, Owner, Pty};
use crate::error::{Error, is_want_of_resources};
use crate::model::terminal_size::Window;
use crate::model::{OutputMode, Pid, ProcessSpec, StdinMode};

/// A child that is on its way to its exec, with our ends of its pipes, which do not block.
#[derive(Debug)]
pub struct Child {
    /// Its PID; also its session and its process group.
    pub pid: Pid,
    /// To write to: a pipe, or the terminal's master.
    pub stdin: Option<OwnedFd>,
    /// To read from: a pipe, or the terminal's master.
    pub stdout: Option<OwnedFd>,
    /// To read from.
    pub stderr: Option<OwnedFd>,
    /// Ends without a byte when the exec has succeeded, or holds an [`ExecFailure`].
    pub report: OwnedFd,
}

/// What of the machine every spawn needs, found out once.
#[derive(Debug)]
pub struct Spawner {
    null: File,
    limits: Option<Found>,
    nproc: Option<libc::rlimit>,
    set_groups: bool,
}

impl Spawner {
    /// Opens /dev/null and sees that descriptors 0, 1 and 2 are taken, so that no pipe ever gets one of these numbers.
    /// `limits` are for the children: what the supervisor's own were before it raised them.
    ///
    /// # Errors
    /// When /dev/null cannot be opened.
    pub fn new(limits: Option<Found>) -> io::Result<Spawner> {
        let open = || File::options().read(true).write(true).open("/dev/null");
        let mut null = open()?;
        while null.as_raw_fd() <= 2 {
            // Stays open for good, in the place of what was closed.
            std::mem::forget(null);
            null = open()?;
        }
        // In a user namespace groups are what they are (user_namespaces(7)).
        let denied = std::fs::read("/proc/self/setgroups").is_ok_and(|word| word.starts_with(b"deny"));
        let set_groups = nix::unistd::geteuid().is_root() && !denied;
        Ok(Spawner { null, limits, nproc: None, set_groups })
    }

    /// Sets RLIMIT_NPROC of children that no cgroup limits in the number of their tasks, and that are not root's: as root,
    /// the kernel does not ask for it.
    pub fn limit_tasks(&mut self, nproc: Option<libc::rlimit>) {
        self.nproc = nproc;
    }

    /// Forks a child for `spec`, in `leaf` if there is one, and returns at once.
    ///
    /// # Errors
    /// [`Failure::Cgroup`] when it could do so without the leaf, or in another.
    pub fn spawn(&self, spec: &ProcessSpec, launch: &Launch, leaf: Option<&Leaf>) -> Result<Child, Failure> {
        let failed = Failure::Fork;
        let streams = match spec.terminal {
            Some(window) => Streams::terminal(window, Owner { uid: launch.uid, tty: accounts::group("tty") }),
            None if spec.inherit => Ok(Streams::ours(launch)),
            None => Streams::pipes(spec, launch, self.null.as_raw_fd()),
        };
        let Streams { stdio, theirs, stdin, stdout, stderr } = streams.map_err(failed)?;
        let (report, report_write) = pipe().map_err(failed)?;
        let report = unblocking(report).map_err(failed)?;
        let inherited = Inherited {
            stdio,
            terminal: match spec.terminal {
                Some(_) => Controlling::Yes,
                None if spec.inherit => Controlling::IfFree,
                None => Controlling::No,
            },
            report: report_write.as_raw_fd(),
            cgroup: -1,
            limits: self.limits,
            nproc: self.nproc.filter(|_| launch.uid != 0 && !leaf.is_some_and(Leaf::limits_tasks)),
            set_groups: self.set_groups,
        };
        let pid = fork::fork(launch, inherited, leaf)?;
        // The child's ends close here, before the next fork could carry them on.
        drop((theirs, report_write));
        Ok(Child { pid, stdin, stdout, stderr, report })
    }
}

/// 0, 1 and 2 of a child, and our ends of them.
struct Streams {
    stdio: [RawFd; 3],
    theirs: Vec<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    fn of(stdio: [RawFd; 3]) -> Streams {
        Streams { stdio, theirs: Vec::new(), stdin: None, stdout: None, stderr: None }
    }

    fn ours(launch: &Launch) -> Streams {
        give_inherited(&std::io::stdin(), launch.uid, launch.gid);
        give_inherited(&std::io::stdout(), launch.uid, launch.gid);
        give_inherited(&std::io::stderr(), launch.uid, launch.gid);
        Streams::of([0, 1, 2])
    }

    fn pipes(spec: &ProcessSpec, launch: &Launch, null: RawFd) -> io::Result<Streams> {
        let mut streams = Streams::of([null; 3]);
        let [stdin, stdout, stderr] = &mut streams.stdio;
        if spec.stdin == StdinMode::Pipe {
            let (read, write) = pipe()?;
            give(&read, launch.uid, launch.gid);
            *stdin = read.as_raw_fd();
            streams.theirs.push(read);
            streams.stdin = Some(unblocking(write)?);
        }
        let outputs = [(spec.stdout, stdout, &mut streams.stdout), (spec.stderr, stderr, &mut streams.stderr)];
        for (mode, slot, ours) in outputs {
            if mode == OutputMode::Capture {
                let (read, write) = pipe()?;
                give(&write, launch.uid, launch.gid);
                *slot = write.as_raw_fd();
                streams.theirs.push(write);
                *ours = Some(unblocking(read)?);
            }
        }
        Ok(streams)
    }

    /// The master twice, once for each direction.
    fn terminal(window: Window, owner: Owner) -> io::Result<Streams> {
        let Pty { master, slave } = pty::open(window, owner)?;
        let mut streams = Streams::of([slave.as_raw_fd(); 3]);
        streams.stdin = Some(master.try_clone()?);
        streams.stdout = Some(master);
        streams.theirs.push(slave);
        Ok(streams)
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// Only our end: the child's must block as programs expect.
fn unblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd)
}

/// Why a program does not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecFailure {
    stage: Stage,
    errno: i32,
}

impl ExecFailure {
    /// Reads what the child has reported; none means that the exec has succeeded (or that the child was killed).
    pub fn read(bytes: &[u8]) -> Option<ExecFailure> {
        let (stage, errno) = bytes.split_first()?;
        let errno = errno.try_into().map_or(0, i32::from_ne_bytes);
        Some(ExecFailure { stage: Stage::from_byte(*stage).unwrap_or(Stage::Setup), errno })
    }

    /// What it means for the one who asked.
    pub fn explain(self, spec: &ProcessSpec) -> Error {
        let command = || spec.command.to_string();
        let dir = || spec.working_dir.clone().unwrap_or_default();
        let why = Errno::from_raw(self.errno).desc().to_owned();
        let other = |doing: &str| Error::from_io(doing, &io::Error::from_raw_os_error(self.errno));
        match (self.stage, self.errno) {
            (Stage::Exec, libc::EAGAIN) => {
                Error::OutOfResources("this user has as many processes and threads as it may (RLIMIT_NPROC)".to_owned())
            }
            (_, errno) if is_want_of_resources(errno) => other("starting a process"),
            (Stage::Setup, _) => other("preparing a process"),
            (Stage::User, libc::EPERM) => {
                Error::PermissionDenied("`user`: the daemon has not the privilege to become another user".to_owned())
            }
            (Stage::User, libc::EINVAL) => {
                Error::PermissionDenied("`user`: this user namespace has no such user or group".to_owned())
            }
            (Stage::User, _) => other("becoming the user"),
            (Stage::Directory, libc::EACCES | libc::EPERM) => {
                Error::PermissionDenied(format!("`working_dir`: the user may not enter {:?}", dir()))
            }
            (Stage::Directory, _) => Error::WorkingDirNotFound(dir()),
            (Stage::NotFound, _) => Error::CommandNotFound(command()),
            (Stage::Exec, libc::E2BIG) => Error::ArgumentsTooLong,
            (Stage::Exec, libc::ENOENT) => {
                Error::NotExecutable { command: command(), why: "its interpreter does not exist".to_owned() }
            }
            (Stage::Exec, libc::ENOEXEC) => Error::NotExecutable {
                command: command(),
                why: "it is neither a program for this machine nor a script that begins with `#!`".to_owned(),
            },
            (Stage::Exec, _) => Error::NotExecutable { command: command(), why },
        }
    }
}

/// A buffer that holds a report, and one byte more.
pub type ReportBuffer = [u8; REPORT + 1];

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(stage: Stage, errno: i32) -> Error {
        let spec = ProcessSpec::command("prog").working_dir("/dir").build().unwrap();
        let mut bytes = vec![stage as u8];
        bytes.extend(errno.to_ne_bytes());
        ExecFailure::read(&bytes).unwrap().explain(&spec)
    }

    #[test]
    fn every_failure_has_its_meaning() {
        assert_eq!(ExecFailure::read(&[]), None);
        assert_eq!(explain(Stage::NotFound, libc::ENOENT), Error::CommandNotFound("prog".into()));
        assert!(matches!(explain(Stage::Exec, libc::EACCES), Error::NotExecutable { .. }));
        assert!(matches!(explain(Stage::Exec, libc::ENOEXEC), Error::NotExecutable { .. }));
        assert!(matches!(explain(Stage::Exec, libc::ENOENT), Error::NotExecutable { .. }));
        assert_eq!(explain(Stage::Exec, libc::E2BIG), Error::ArgumentsTooLong);
        assert_eq!(explain(Stage::Directory, libc::ENOENT), Error::WorkingDirNotFound("/dir".into()));
        assert_eq!(explain(Stage::Directory, libc::ENOTDIR), Error::WorkingDirNotFound("/dir".into()));
        assert!(matches!(explain(Stage::Directory, libc::EACCES), Error::PermissionDenied(_)));
        assert!(matches!(explain(Stage::User, libc::EPERM), Error::PermissionDenied(_)));
        for (stage, errno) in [(Stage::Exec, libc::ENOMEM), (Stage::Exec, libc::EAGAIN), (Stage::User, libc::EAGAIN)] {
            assert!(matches!(explain(stage, errno), Error::OutOfResources(_)), "{stage:?} {errno}");
        }
    }
}
