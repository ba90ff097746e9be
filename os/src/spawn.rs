//! The parent's half of a spawn: pipes, the fork, and what a failed exec means. It never waits for the child.
//!
//! The outcome of the exec comes through a pipe that the kernel closes when the exec succeeds: a hanging program or
//! directory holds up nobody but its own process.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use crate::Pid;
use crate::cgroup::Leaf;
use crate::child::{Controlling, Inherited, REPORT, Stage};
use crate::fork::{self, Failure};
use crate::launch::Launch;
use crate::limits::Found;
use crate::pipe::{give, give_inherited};
use crate::pty::{self, Owner, Pty};

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

/// What 0, 1 and 2 of a child are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// A pipe where it is true, else /dev/null.
    Pipes {
        /// Descriptor 0.
        stdin: bool,
        /// Descriptor 1.
        stdout: bool,
        /// Descriptor 2.
        stderr: bool,
    },
    /// What this process itself has.
    Inherit,
    /// A terminal of this size, which the group `tty` may write to.
    Terminal {
        /// Its size.
        size: pty::Size,
        /// The id of the group `tty`, if there is one.
        tty: Option<u32>,
    },
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

    /// Forks a child for `launch`, in `leaf` if there is one, and returns at once.
    ///
    /// # Errors
    /// [`Failure::Cgroup`] when it could do so without the leaf, or in another.
    pub fn spawn(&self, stdio: Stdio, launch: &Launch, leaf: Option<&Leaf>) -> Result<Child, Failure> {
        let failed = Failure::Fork;
        let streams = match stdio {
            Stdio::Terminal { size, tty } => Streams::terminal(size, Owner { uid: launch.uid, tty }),
            Stdio::Inherit => Ok(Streams::ours(launch)),
            Stdio::Pipes { stdin, stdout, stderr } => {
                Streams::pipes([stdin, stdout, stderr], launch, self.null.as_raw_fd())
            }
        };
        let terminal = match stdio {
            Stdio::Terminal { .. } => Controlling::Yes,
            Stdio::Inherit => Controlling::IfFree,
            Stdio::Pipes { .. } => Controlling::No,
        };
        let Streams { stdio, theirs, stdin, stdout, stderr } = streams.map_err(failed)?;
        let (report, report_write) = pipe().map_err(failed)?;
        let report = unblocking(report).map_err(failed)?;
        let inherited = Inherited {
            stdio,
            terminal,
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

    fn pipes(wanted: [bool; 3], launch: &Launch, null: RawFd) -> io::Result<Streams> {
        let mut streams = Streams::of([null; 3]);
        let [stdin, stdout, stderr] = &mut streams.stdio;
        let [has_stdin, has_stdout, has_stderr] = wanted;
        if has_stdin {
            let (read, write) = pipe()?;
            give(&read, launch.uid, launch.gid);
            *stdin = read.as_raw_fd();
            streams.theirs.push(read);
            streams.stdin = Some(unblocking(write)?);
        }
        let outputs = [(has_stdout, stdout, &mut streams.stdout), (has_stderr, stderr, &mut streams.stderr)];
        for (has, slot, ours) in outputs {
            if has {
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
    fn terminal(size: pty::Size, owner: Owner) -> io::Result<Streams> {
        let Pty { master, slave } = pty::open(size, owner)?;
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
    /// What the child was doing.
    pub stage: Stage,
    /// Why it could not.
    pub errno: i32,
}

impl ExecFailure {
    /// Reads what the child has reported; none means that the exec has succeeded (or that the child was killed).
    pub fn read(bytes: &[u8]) -> Option<ExecFailure> {
        let (stage, errno) = bytes.split_first()?;
        let errno = errno.try_into().map_or(0, i32::from_ne_bytes);
        Some(ExecFailure { stage: Stage::from_byte(*stage).unwrap_or(Stage::Setup), errno })
    }
}

/// A buffer that holds a report, and one byte more.
pub type ReportBuffer = [u8; REPORT + 1];
