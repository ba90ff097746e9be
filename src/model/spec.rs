//! [`ProcessSpec`]: a process to start, validated once.

use std::sync::Arc;
use std::time::Duration;

use super::{Leftovers, Limits, ManagedSpec, RequestKey, Stdio, UserSpec};
use crate::error::SpecError;

/// The longest timeout of a process: ten years.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A process to start: [`ProcessSpec::command`] begins one, and [`SpecBuilder::build`] validates it.
///
/// ```
/// use tl_supervisor::ProcessSpec;
///
/// let spec = ProcessSpec::command("sh").args(["-c", "echo hello"]).env("KEY", "value").build()?;
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSpec {
    pub(crate) command: Arc<str>,
    pub(crate) args: Arc<[String]>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) working_dir: Option<String>,
    pub(crate) user: Option<UserSpec>,
    pub(crate) stdio: Stdio,
    pub(crate) timeout: Option<Duration>,
    pub(crate) managed: Option<Arc<ManagedSpec>>,
    pub(crate) leftovers: Leftovers,
    /// None if there is no limit.
    pub(crate) limits: Option<Arc<Limits>>,
    pub(crate) no_new_privs: bool,
    /// The idempotency key of the request for it.
    pub(crate) request: Option<Arc<RequestKey>>,
}

impl ProcessSpec {
    /// Begins the spec of a process that runs `program`. A name without `/` is searched for in the `PATH` of the
    /// process.
    ///
    /// By default it has no arguments, runs as the supervisor's default user in that user's home directory, has no
    /// input, and both of its outputs are captured.
    pub fn command(program: impl Into<Arc<str>>) -> SpecBuilder {
        SpecBuilder {
            spec: ProcessSpec {
                command: program.into(),
                args: Arc::default(),
                env: Vec::new(),
                working_dir: None,
                user: None,
                stdio: Stdio::default(),
                timeout: None,
                managed: None,
                leftovers: Leftovers::Keep,
                limits: None,
                no_new_privs: false,
                request: None,
            },
        }
    }

    /// Checks that the spec can be started as a process.
    pub(crate) fn check_process(&self) -> Result<(), SpecError> {
        match self.stdio {
            Stdio::Terminal(_) => {
                Err(SpecError::new("terminal", "is valid only for a terminal session; open it with `open_pty`"))
            }
            Stdio::Pipes(_) | Stdio::Inherit => Ok(()),
        }
    }

    /// Checks that the spec can be opened as a terminal session.
    pub(crate) fn check_session(&self) -> Result<(), SpecError> {
        if self.stdio.terminal().is_none() {
            return Err(SpecError::new("stdio", "must be a terminal for a terminal session"));
        }
        match (self.timeout, &self.managed) {
            (Some(_), _) => Err(SpecError::new("timeout", "is not valid for a terminal session")),
            (None, Some(_)) => Err(SpecError::new("managed", "is not valid for a terminal session")),
            (None, None) => Ok(()),
        }
    }

    /// Has a repetition of the request with this key answered with what this spec starts.
    pub(crate) fn with_request(self, request: Option<RequestKey>) -> ProcessSpec {
        ProcessSpec { request: request.map(Arc::new), ..self }
    }

    /// Approximate memory use of the spec, in bytes.
    pub(crate) fn size(&self) -> usize {
        // Overhead of each string besides its text: its own fields and, estimated, the overhead of its heap block.
        const STRING: usize = size_of::<String>() + 32;
        let args = self.args.iter().map(|arg| STRING + arg.len());
        let env = self.env.iter().map(|(key, value)| 2 * STRING + key.len() + value.len());
        let request = self.request.as_ref().map_or(0, |request| request.size());
        size_of::<ProcessSpec>() + self.command.len() + args.chain(env).sum::<usize>() + request
    }
}

/// Collects the parts of a [`ProcessSpec`].
///
/// ```
/// use std::time::Duration;
/// use tl_supervisor::{Leftovers, ProcessSpec};
///
/// let spec = ProcessSpec::command("make")
///     .args(["-j4"])
///     .env("CC", "clang")
///     .working_dir("/src")
///     .user("1000:1000".parse()?)
///     .timeout(Duration::from_secs(600))
///     .leftovers(Leftovers::Kill)
///     .no_new_privs(true)
///     .build()?;
///
/// let error = ProcessSpec::command("make").timeout(Duration::MAX).build().unwrap_err();
/// assert_eq!(error.field, "timeout");
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct SpecBuilder {
    spec: ProcessSpec,
}

impl SpecBuilder {
    /// The arguments, without the program name.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.spec.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Adds a variable to the environment. It takes precedence over the supervisor's base environment.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.env.push((key.into(), value.into()));
        self
    }

    /// The working directory, which must exist. A relative path is below the user's home directory.
    pub fn working_dir(mut self, dir: impl Into<String>) -> Self {
        self.spec.working_dir = Some(dir.into());
        self
    }

    /// The user that the process runs as, instead of the supervisor's default user.
    pub fn user(mut self, user: UserSpec) -> Self {
        self.spec.user = Some(user);
        self
    }

    /// The standard streams.
    pub fn stdio(mut self, stdio: impl Into<Stdio>) -> Self {
        self.spec.stdio = stdio.into();
        self
    }

    /// Time from each start after which the whole tree is killed with SIGKILL: more than zero, at most ten years.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.timeout = Some(timeout);
        self
    }

    /// Makes the process managed.
    pub fn managed(mut self, managed: ManagedSpec) -> Self {
        self.spec.managed = Some(Arc::new(managed));
        self
    }

    /// What happens to the other processes of the tree when the leader exits by itself; they are kept by default.
    pub fn leftovers(mut self, leftovers: Leftovers) -> Self {
        self.spec.leftovers = leftovers;
        self
    }

    /// Limits for each run; by default those of [`Builder::default_limits`](crate::Builder::default_limits), if any.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.spec.limits = (!limits.is_empty()).then(|| Arc::new(limits));
        self
    }

    /// Whether the process, and what it executes, can gain no privileges by programs with set-user-ID, set-group-ID or
    /// file capabilities, such as sudo (PR_SET_NO_NEW_PRIVS). By default it can, unless
    /// [`Builder::no_new_privs`](crate::Builder::no_new_privs) denies it to all processes.
    pub fn no_new_privs(mut self, deny: bool) -> Self {
        self.spec.no_new_privs = deny;
        self
    }

    /// Validates everything that does not depend on the state of the machine.
    ///
    /// # Errors
    /// [`SpecError`] about the first field that is invalid.
    pub fn build(self) -> Result<ProcessSpec, SpecError> {
        let spec = self.spec;
        if spec.command.is_empty() {
            return Err(SpecError::new("command", "must not be empty"));
        }
        no_nul("command", &spec.command)?;
        for (i, arg) in spec.args.iter().enumerate() {
            no_nul(&format!("args[{i}]"), arg)?;
        }
        for (key, value) in &spec.env {
            if key.is_empty() || key.contains('=') {
                return Err(SpecError::new(
                    "env",
                    format!("must not have the name {key:?}: a name is not empty and has no `=`"),
                ));
            }
            no_nul("env", key)?;
            no_nul(&format!("env.{key}"), value)?;
        }
        if let Some(dir) = &spec.working_dir {
            if dir.is_empty() {
                return Err(SpecError::new("working_dir", "must not be empty"));
            }
            no_nul("working_dir", dir)?;
        }
        spec.user.as_ref().map_or(Ok(()), UserSpec::validate)?;
        if spec.timeout == Some(Duration::ZERO) {
            return Err(SpecError::new("timeout", "must be more than 0 seconds"));
        }
        if spec.timeout.is_some_and(|timeout| timeout > MAX_TIMEOUT) {
            let problem = format!("must be at most {} seconds, ten years", MAX_TIMEOUT.as_secs());
            return Err(SpecError::new("timeout", problem));
        }
        spec.limits.as_deref().map_or(Ok(()), Limits::validate)?;
        spec.managed.as_deref().map_or(Ok(()), ManagedSpec::validate)?;
        Ok(spec)
    }
}

fn no_nul(field: &str, text: &str) -> Result<(), SpecError> {
    if text.contains('\0') { Err(SpecError::new(field, "must not contain a NUL character")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Policy, TerminalSize};

    fn plain() -> SpecBuilder {
        ProcessSpec::command("x")
    }

    #[track_caller]
    fn refused(spec: Result<impl Sized, SpecError>, field: &str) {
        assert_eq!(spec.err().map(|error| error.field).as_deref(), Some(field));
    }

    #[test]
    fn a_timeout_is_more_than_zero_and_at_most_ten_years() {
        assert!(plain().timeout(MAX_TIMEOUT).build().is_ok());
        for timeout in [Duration::MAX, MAX_TIMEOUT + Duration::from_nanos(1), Duration::ZERO] {
            refused(plain().timeout(timeout).build(), "timeout");
        }
    }

    #[test]
    fn build_validates_every_part() {
        refused(ProcessSpec::command("").build(), "command");
        refused(ProcessSpec::command("a\0b").build(), "command");
        refused(plain().args(["a", "b\0"]).build(), "args[1]");
        refused(plain().env("", "x").build(), "env");
        refused(plain().env("A=B", "x").build(), "env");
        refused(plain().env("A", "\0").build(), "env.A");
        refused(plain().working_dir("").build(), "working_dir");
        refused(plain().user(UserSpec::from(u32::MAX)).build(), "user");
        let limits = Limits { processes: Some(0), ..Limits::default() };
        refused(plain().limits(limits).build(), "limits.processes");
        let managed = ManagedSpec { stop_grace: Duration::MAX, ..ManagedSpec::new(Policy::Never) };
        refused(plain().managed(managed).build(), "stop_grace_ms");
    }

    #[test]
    fn sessions_and_processes_reject_fields_that_do_not_apply_to_them() {
        let terminal = || plain().stdio(TerminalSize::default());
        let session = |spec: SpecBuilder| spec.build().unwrap().check_session();
        assert_eq!(session(terminal()), Ok(()));
        refused(session(plain()), "stdio");
        refused(session(plain().stdio(Stdio::Inherit)), "stdio");
        refused(session(terminal().timeout(Duration::from_secs(1))), "timeout");
        refused(session(terminal().managed(ManagedSpec::new(Policy::Always))), "managed");
        let process = |spec: SpecBuilder| spec.build().unwrap().check_process();
        assert_eq!((process(plain()), process(plain().stdio(Stdio::Inherit))), (Ok(()), Ok(())));
        refused(process(terminal()), "terminal");
    }
}
