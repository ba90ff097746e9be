//! Errors of the supervisor, as types. The HTTP front end maps each variant to a status and a code in one place,
//! `src/http/api/errors.rs`.

use std::error;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io;
use std::sync::Arc;

use thiserror::Error;

use crate::model::Target;

/// A field of a [`ProcessSpec`](crate::ProcessSpec) that has an invalid value.
///
/// ```
/// use tl_supervisor::ProcessSpec;
///
/// let error = ProcessSpec::command("").build().unwrap_err();
/// assert_eq!(error.field, "command");
/// assert_eq!(error.to_string(), "`command` must not be empty");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
#[error("`{field}` {problem}")]
#[non_exhaustive]
pub struct SpecError {
    /// Path of the field, as in the JSON body: `restart.max_backoff_ms`.
    pub field: String,
    /// The rule that the value breaks, to be read after the name of the field: `must not be empty`.
    pub problem: String,
}

impl SpecError {
    /// An error about `field`. `problem` is read after the name of the field: `must not be empty`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
        SpecError { field: field.into(), problem: problem.into() }
    }
}

/// Why an operation of the supervisor failed.
///
/// The message of each error is a sentence for the client that made the request. An error caused by the operating
/// system has the [`io::Error`] as its [`source`](error::Error::source).
///
/// ```
/// use tl_supervisor::{Error, ProcessSpec, Supervisor, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// match supervisor.handle().start(ProcessSpec::command("/no/such/program").build()?) {
///     Err(Error::CommandNotFound(command)) => assert_eq!(command, "/no/such/program"),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum Error {
    /// The spec is invalid, or does not fit the operation.
    #[error(transparent)]
    Invalid(#[from] SpecError),
    /// The user has no entry in `/etc/passwd`.
    #[error("`user`: there is no user {0:?} in /etc/passwd")]
    UserNotFound(String),
    /// The program does not exist; a name without `/` was searched in the `PATH` of the child.
    #[error("`command`: there is no program {0:?}")]
    CommandNotFound(String),
    /// The program exists, but the kernel refused to execute it.
    #[error("`command`: {command:?} cannot be executed: {why}")]
    NotExecutable {
        /// The program, as it was requested.
        command: String,
        /// The kernel's reason.
        why: String,
    },
    /// The arguments and the environment are longer than the kernel accepts (E2BIG).
    #[error("`args` and `env` are longer than the kernel accepts: together, or one of their strings")]
    ArgumentsTooLong,
    /// The working directory does not exist or is not a directory.
    #[error("`working_dir`: there is no directory {0:?}")]
    WorkingDirNotFound(String),
    /// A limit needs a cgroup with a controller that is not available. Nothing was started.
    #[error("`limits.{limit}` is not available here: there is no cgroup with the controller `{controller}`")]
    LimitNotAvailable {
        /// The name of the limit.
        limit: &'static str,
        /// The name of the controller.
        controller: &'static str,
    },
    /// The operation needs a privilege that the supervisor or the user does not have.
    #[error(transparent)]
    PermissionDenied(SystemFailure),
    /// No process has this handle, PID or name.
    #[error("there is no process with {0}")]
    NotFound(Target),
    /// Another managed process that is not stopped has the name.
    #[error("`name`: {0:?} is taken by a managed process that is not stopped")]
    NameInUse(String),
    /// The process is not managed, so it cannot be restarted.
    #[error("the process with {0} is not managed; start it with `name`, `restart` or `health_check`")]
    NotManaged(Target),
    /// The process has ended.
    #[error("the process with {0} has ended")]
    NotRunning(Target),
    /// The standard input was closed, or the process has ended.
    #[error("stdin of the process with {0} is closed")]
    StdinClosed(Target),
    /// The process was started without a pipe as its standard input.
    #[error("stdin of the process with {0} is not a pipe; start it with `stdin_mode`: `pipe`")]
    StdinNotWritable(Target),
    /// The number is not a signal number.
    #[error("`signal` must be a whole number from 1 to 64, not {0}")]
    InvalidSignal(i64),
    /// The number of running processes has reached its limit.
    #[error("the limit of {0} running processes is reached; end one first")]
    TooManyProcesses(usize),
    /// No terminal session has this id.
    #[error("there is no session {0:?}")]
    SessionNotFound(String),
    /// The session token is missing or wrong.
    #[error("this request needs the token of the session, in `X-PTY-Token` or as the query parameter `token`")]
    InvalidToken,
    /// The number of running terminal sessions has reached its limit.
    #[error("the limit of {0} running terminal sessions is reached; end one first")]
    TooManySessions(usize),
    /// The idempotency key belongs to another request, whose process or session is remembered.
    #[error("`Idempotency-Key`: the key {0:?} was used for another request; repeat that one exactly, or use a new key")]
    IdempotencyKeyReused(String),
    /// The shutdown has begun: no process or session is started any more.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// Descriptors, processes, threads or memory have run out. Nothing was started.
    #[error(transparent)]
    OutOfResources(SystemFailure),
    /// A bug in the supervisor, or a system call that failed for a reason that no other variant covers.
    #[error(transparent)]
    Internal(SystemFailure),
}

/// A failure caused by the operating system, or one that no other variant covers: a sentence, and the [`io::Error`] as
/// the source if there is one.
///
/// Two failures are equal if their sentences and error numbers are equal.
///
/// ```
/// use std::error::Error as _;
/// use tl_supervisor::Error;
///
/// fn errno(error: &Error) -> Option<i32> {
///     error.source()?.downcast_ref::<std::io::Error>()?.raw_os_error()
/// }
/// assert_eq!(errno(&Error::ShuttingDown), None);
/// ```
#[derive(Clone, Debug)]
pub struct SystemFailure {
    sentence: String,
    source: Option<Arc<io::Error>>,
}

impl SystemFailure {
    fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(|error| error.raw_os_error())
    }
}

impl PartialEq for SystemFailure {
    fn eq(&self, other: &SystemFailure) -> bool {
        self.sentence == other.sentence && self.errno() == other.errno()
    }
}

impl Eq for SystemFailure {}

impl Hash for SystemFailure {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.sentence.hash(state);
        self.errno().hash(state);
    }
}

impl fmt::Display for SystemFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl error::Error for SystemFailure {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source.as_deref().map(|error| error as _)
    }
}

/// Whether `errno` means that a resource has run out that may become available again: descriptors, memory, processes,
/// and, with ENOSPC, terminals (ptmx(4)) and cgroups.
pub(crate) fn is_resource_exhaustion(errno: i32) -> bool {
    let exhausted = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN, libc::ENOBUFS, libc::ENOSPC, libc::EUSERS];
    exhausted.contains(&errno)
}

impl Error {
    /// [`Error::Internal`] without a source.
    pub(crate) fn internal(what: impl fmt::Display) -> Error {
        Error::Internal(SystemFailure { sentence: format!("internal error: {what}"), source: None })
    }

    /// [`Error::OutOfResources`] without a source. `what` says what has run out.
    pub(crate) fn out_of_resources(what: impl fmt::Display) -> Error {
        Error::OutOfResources(SystemFailure {
            sentence: format!("the machine is out of resources: {what}"),
            source: None,
        })
    }

    /// [`Error::PermissionDenied`] without a source. `sentence` says what was not allowed.
    pub(crate) fn permission_denied(sentence: impl Into<String>) -> Error {
        Error::PermissionDenied(SystemFailure { sentence: sentence.into(), source: None })
    }

    /// The error for a system call that failed: [`Error::OutOfResources`], [`Error::PermissionDenied`] or
    /// [`Error::Internal`], by the error number. `doing` names the operation: `starting a process`.
    ///
    /// ```
    /// use std::io;
    /// use tl_supervisor::Error;
    ///
    /// // EMFILE: no descriptor is left.
    /// let error = Error::from_io("opening a pipe", &io::Error::from_raw_os_error(24));
    /// assert!(matches!(error, Error::OutOfResources(_)));
    /// ```
    pub fn from_io(doing: &str, error: &io::Error) -> Error {
        let what = format!("{doing}: {error}");
        let failed = match error.raw_os_error() {
            Some(errno) if is_resource_exhaustion(errno) => Error::out_of_resources(what),
            Some(libc::EPERM | libc::EACCES) => Error::permission_denied(what),
            _ => Error::internal(what),
        };
        failed.with_source(error)
    }

    /// This error with a copy of `error` as its source, if the variant has a source.
    fn with_source(mut self, error: &io::Error) -> Error {
        let copy = match error.raw_os_error() {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        if let Error::Internal(failure) | Error::OutOfResources(failure) | Error::PermissionDenied(failure) = &mut self
        {
            failure.source = Some(Arc::new(copy));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn from_io_maps_the_errno_to_a_variant_and_keeps_the_source() {
        for (errno, sentence) in [
            (libc::EMFILE, "the machine is out of resources: forking: "),
            (libc::EPERM, "forking: "),
            (libc::EIO, "internal error: forking: "),
        ] {
            let error = Error::from_io("forking", &io::Error::from_raw_os_error(errno));
            assert!(error.to_string().starts_with(sentence), "{error}");
            let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
            assert_eq!(source.and_then(io::Error::raw_os_error), Some(errno));
            assert_eq!(error, Error::from_io("forking", &io::Error::from_raw_os_error(errno)));
        }
        assert!(Error::internal("x").source().is_none());
    }
}
