//! What can go wrong, as types. The front-end maps each to a status and a code once (`http/message/response_head`).

use std::io;

use thiserror::Error;

use crate::model::Target;

/// A field of a [`ProcessSpec`](crate::ProcessSpec) that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
#[error("`{field}` {problem}")]
pub struct SpecError {
    /// The path of the field, as in the JSON body: `restart.max_backoff_ms`.
    pub field: String,
    /// What would be right.
    pub problem: String,
}

impl SpecError {
    /// `field` and what would be right.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
        SpecError { field: field.into(), problem: problem.into() }
    }
}

/// Why an operation on the supervisor failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum Error {
    /// A bad spec.
    #[error(transparent)]
    Invalid(#[from] SpecError),
    /// `user` names nobody in `/etc/passwd`.
    #[error("`user`: there is no user {0:?} in /etc/passwd")]
    UserNotFound(String),
    /// No such program, in the `PATH` of the child where it has no `/`.
    #[error("`command`: there is no program {0:?}")]
    CommandNotFound(String),
    /// The program is there but the kernel would not run it.
    #[error("`command`: {command:?} cannot be executed: {why}")]
    NotExecutable {
        /// As it was asked for.
        command: String,
        /// The kernel's reason.
        why: String,
    },
    /// The argument list is longer than the kernel takes (E2BIG).
    #[error("`args` and `env` together are longer than the kernel takes")]
    ArgumentsTooLong,
    /// The working directory does not exist or is not a directory.
    #[error("`working_dir`: there is no directory {0:?}")]
    WorkingDirNotFound(String),
    /// The kernel would not let us: a sentence about what.
    #[error("{0}")]
    PermissionDenied(String),
    /// No process is addressed so.
    #[error("there is no process with {0}")]
    NotFound(Target),
    /// Another managed process that is not stopped has the name.
    #[error("`name`: {0:?} is taken by a managed process that is not stopped")]
    NameInUse(String),
    /// Only a managed process can be restarted.
    #[error("the process with {0} is not managed; start it with `name`, `restart` or `health_check`")]
    NotManaged(Target),
    /// The process has ended.
    #[error("the process with {0} has ended")]
    NotRunning(Target),
    /// stdin is closed, or the process has ended.
    #[error("stdin of the process with {0} is closed")]
    StdinClosed(Target),
    /// stdin was never a pipe.
    #[error("stdin of the process with {0} is not a pipe; start it with `stdin_mode`: `pipe`")]
    StdinNotWritable(Target),
    /// Not a signal number.
    #[error("`signal` must be a whole number from 1 to 64, not {0}")]
    InvalidSignal(i64),
    /// As many run as may.
    #[error("{0} processes are running, which is the limit; end one first")]
    TooManyProcesses(usize),
    /// No terminal session has this id.
    #[error("there is no session {0:?}")]
    SessionNotFound(String),
    /// The session's token is missing or wrong.
    #[error("this needs the session's own token, in `X-PTY-Token` or as the query parameter `token`")]
    InvalidToken,
    /// As many sessions run as may.
    #[error("{0} sessions are running, which is the limit; end one first")]
    TooManySessions(usize),
    /// The shutdown has begun.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// No descriptor, process, thread or memory left; nothing was started.
    #[error("the machine is out of resources: {0}")]
    OutOfResources(String),
    /// A fault of ours or of the kernel.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Whether this errno says that something is used up that others may give back: descriptors, memory, processes, and, by
/// ENOSPC, terminals (ptmx(4)) and cgroups.
pub fn is_want_of_resources(errno: i32) -> bool {
    let wants = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::ENOBUFS, libc::ENOSPC, libc::EUSERS];
    wants.contains(&errno)
}

impl Error {
    /// What a system call's failure means for the one who asked, with what we were doing.
    pub fn from_io(doing: &str, error: &io::Error) -> Error {
        match error.raw_os_error() {
            Some(errno) if is_want_of_resources(errno) => Error::OutOfResources(format!("{doing}: {error}")),
            Some(libc::EPERM | libc::EACCES) => Error::PermissionDenied(format!("{doing}: {error}")),
            _ => Error::Internal(format!("{doing}: {error}")),
        }
    }
}
