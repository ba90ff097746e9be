//! Standard input, output and error of a child, and the daemon's ends of them.

use std::fs::File;
use std::io::{self, Stderr, Stdin, Stdout};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use super::child::ControllingTerminal;
use super::launch::Launch;
use crate::pipe::{give, give_inherited};
use crate::pty::{self, Owner, Pty};

/// What a child has as its descriptors 0, 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stdio {
    /// A pipe for each field that is true, `/dev/null` for the others.
    Pipes {
        /// Descriptor 0.
        stdin: bool,
        /// Descriptor 1.
        stdout: bool,
        /// Descriptor 2.
        stderr: bool,
    },
    /// The descriptors of this process.
    Inherit,
    /// A new terminal for all three, which is also the controlling terminal.
    Terminal {
        /// Its size.
        size: pty::Size,
        /// The id of the group `tty`, which may write to the terminal; `None` if there is no such group.
        tty: Option<u32>,
    },
}

/// The descriptors 0, 1 and 2 of a child, and this process's ends of them.
pub(super) struct Streams<'n> {
    /// What becomes the child's descriptors 0, 1 and 2. Closed in this process when dropped.
    pub(super) child: [ChildEnd<'n>; 3],
    /// Whether the child's stdin becomes its controlling terminal.
    pub(super) terminal: ControllingTerminal,
    /// The writing end of stdin, or the terminal's master; does not block.
    pub(super) stdin: Option<OwnedFd>,
    /// The reading end of stdout, or the terminal's master; does not block.
    pub(super) stdout: Option<OwnedFd>,
    /// The reading end of stderr; does not block.
    pub(super) stderr: Option<OwnedFd>,
}

/// The source of one of the child's descriptors.
pub(super) enum ChildEnd<'n> {
    /// `/dev/null`, which the spawner keeps open.
    Null(&'n File),
    /// An end of a pipe, or a terminal, that was opened for this child.
    Opened(Rc<OwnedFd>),
    /// Descriptor 0 of this process.
    Stdin(Stdin),
    /// Descriptor 1 of this process.
    Stdout(Stdout),
    /// Descriptor 2 of this process.
    Stderr(Stderr),
}

impl AsFd for ChildEnd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            ChildEnd::Null(null) => null.as_fd(),
            ChildEnd::Opened(fd) => fd.as_fd(),
            ChildEnd::Stdin(stdin) => stdin.as_fd(),
            ChildEnd::Stdout(stdout) => stdout.as_fd(),
            ChildEnd::Stderr(stderr) => stderr.as_fd(),
        }
    }
}

impl<'n> Streams<'n> {
    /// Opens what `stdio` asks for. `null` is an open `/dev/null`.
    pub(super) fn open(stdio: Stdio, launch: &Launch, null: &'n File) -> io::Result<Streams<'n>> {
        match stdio {
            Stdio::Terminal { size, tty } => Streams::terminal(size, Owner { uid: launch.uid, tty }),
            Stdio::Inherit => Ok(Streams::inherited(launch)),
            Stdio::Pipes { stdin, stdout, stderr } => Streams::pipes([stdin, stdout, stderr], launch, null),
        }
    }

    fn new(child: [ChildEnd<'n>; 3], terminal: ControllingTerminal) -> Streams<'n> {
        Streams { child, terminal, stdin: None, stdout: None, stderr: None }
    }

    fn inherited(launch: &Launch) -> Streams<'n> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        give_inherited(&stdin, launch.uid, launch.gid);
        give_inherited(&stdout, launch.uid, launch.gid);
        give_inherited(&stderr, launch.uid, launch.gid);
        let child = [ChildEnd::Stdin(stdin), ChildEnd::Stdout(stdout), ChildEnd::Stderr(stderr)];
        Streams::new(child, ControllingTerminal::IfFree)
    }

    fn pipes(wanted: [bool; 3], launch: &Launch, null: &'n File) -> io::Result<Streams<'n>> {
        let mut streams = Streams::new([(); 3].map(|()| ChildEnd::Null(null)), ControllingTerminal::None);
        let [stdin, stdout, stderr] = &mut streams.child;
        let [has_stdin, has_stdout, has_stderr] = wanted;
        if has_stdin {
            let (read, write) = pipe()?;
            give(&read, launch.uid, launch.gid);
            *stdin = ChildEnd::Opened(Rc::new(read));
            streams.stdin = Some(nonblocking(write)?);
        }
        let outputs = [(has_stdout, stdout, &mut streams.stdout), (has_stderr, stderr, &mut streams.stderr)];
        for (has, child, ours) in outputs {
            if has {
                let (read, write) = pipe()?;
                give(&write, launch.uid, launch.gid);
                *child = ChildEnd::Opened(Rc::new(write));
                *ours = Some(nonblocking(read)?);
            }
        }
        Ok(streams)
    }

    /// The master is kept twice, once for each direction.
    fn terminal(size: pty::Size, owner: Owner) -> io::Result<Streams<'n>> {
        let Pty { master, slave } = pty::open(size, owner)?;
        let slave = Rc::new(slave);
        let child = [(); 3].map(|()| ChildEnd::Opened(Rc::clone(&slave)));
        let mut streams = Streams::new(child, ControllingTerminal::Required);
        streams.stdin = Some(master.try_clone()?);
        streams.stdout = Some(master);
        Ok(streams)
    }
}

/// A pipe: its reading and its writing end, both close-on-exec and blocking.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// Makes this process's end of a pipe non-blocking. The child's end must block, as programs expect.
pub(super) fn nonblocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(fd)
}
