//! [`ProcessSpec`]: what is asked for, validated once.

use std::sync::Arc;
use std::time::Duration;

use super::{HealthKind, Leftovers, ManagedSpec, OutputMode, StdinMode, UserSpec};
use crate::error::SpecError;
use crate::model::terminal_size::TerminalSize;

/// The longest duration that a spec may ask for: a day, in milliseconds.
pub const MAX_MS: u64 = 86_400_000;

/// The longest timeout of a process: ten years, which is as good as none.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(10 * 365 * 86_400);

/// A process to start, valid by construction: see [`ProcessSpec::command`].
///
/// ```
/// use tl_supervisor::ProcessSpec;
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
    pub(crate) stdin: StdinMode,
    pub(crate) stdout: OutputMode,
    pub(crate) stderr: OutputMode,
    pub(crate) inherit: bool,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) managed: Option<ManagedSpec>,
    pub(crate) leftovers: Leftovers,
}

impl ProcessSpec {
    /// Begins the spec of a plain process: `program` is looked up in the `PATH` that the child will have.
    pub fn command(program: impl Into<Arc<str>>) -> SpecBuilder {
        SpecBuilder {
            spec: ProcessSpec {
                command: program.into(),
                args: Arc::default(),
                env: Vec::new(),
                working_dir: None,
                user: None,
                stdin: StdinMode::Closed,
                stdout: OutputMode::Capture,
                stderr: OutputMode::Capture,
                inherit: false,
                terminal: None,
                timeout: None,
                managed: None,
                leftovers: Leftovers::Keep,
            },
        }
    }
}

impl ProcessSpec {
    /// Whether it can be started as a process.
    pub(crate) fn check_process(&self) -> Result<(), SpecError> {
        match self.terminal {
            Some(_) => Err(SpecError::new("terminal", "goes only with a terminal session; open it with `open_pty`")),
            None => Ok(()),
        }
    }

    /// Whether it can be opened as a terminal session, which has a terminal even if it does not say so.
    pub(crate) fn check_session(&self) -> Result<(), SpecError> {
        let void = [
            ("inherit_stdio", self.inherit),
            ("stdin_mode", self.stdin != StdinMode::default()),
            ("stdout_mode", self.stdout != OutputMode::default()),
            ("stderr_mode", self.stderr != OutputMode::default()),
            ("timeout", self.timeout.is_some()),
            ("managed", self.managed.is_some()),
        ];
        match void.into_iter().find(|(_, said)| *said) {
            Some((field, _)) => Err(SpecError::new(field, "does not go with a terminal session")),
            None => Ok(()),
        }
    }

    /// About the bytes of memory that it takes.
    pub(crate) fn size(&self) -> usize {
        // A string costs its own fields and the allocator's least piece even if it is empty.
        const STRING: usize = size_of::<String>() + 32;
        let args = self.args.iter().map(|arg| STRING + arg.len());
        let env = self.env.iter().map(|(key, value)| 2 * STRING + key.len() + value.len());
        size_of::<ProcessSpec>() + self.command.len() + args.chain(env).sum::<usize>()
    }
}

/// Collects a [`ProcessSpec`]; [`SpecBuilder::build`] validates it.
#[derive(Clone, Debug)]
pub struct SpecBuilder {
    spec: ProcessSpec,
}

impl SpecBuilder {
    /// The arguments after the program's own name.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.spec.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// One variable on top of the base environment (section 8).
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.spec.env.push((key.into(), value.into()));
        self
    }

    /// The working directory; a relative one is below the user's home. It must exist.
    pub fn working_dir(mut self, dir: impl Into<String>) -> Self {
        self.spec.working_dir = Some(dir.into());
        self
    }

    /// Whom it runs as, instead of the supervisor's default user.
    pub fn user(mut self, user: UserSpec) -> Self {
        self.spec.user = Some(user);
        self
    }

    /// What stdin is.
    pub fn stdin(mut self, mode: StdinMode) -> Self {
        self.spec.stdin = mode;
        self
    }

    /// What stdout is.
    pub fn stdout(mut self, mode: OutputMode) -> Self {
        self.spec.stdout = mode;
        self
    }

    /// What stderr is.
    pub fn stderr(mut self, mode: OutputMode) -> Self {
        self.spec.stderr = mode;
        self
    }

    /// Takes the supervisor's own stdin, stdout and stderr instead of pipes: for a container's main process.
    pub fn inherit_stdio(mut self) -> Self {
        self.spec.inherit = true;
        self
    }

    /// Takes a terminal of this size instead of pipes: for [`Handle::open_pty`](crate::Handle::open_pty).
    pub fn terminal(mut self, window: TerminalSize) -> Self {
        self.spec.terminal = Some(window);
        self
    }

    /// After this time, at most [`MAX_TIMEOUT`], the whole tree is killed with SIGKILL.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.spec.timeout = Some(timeout);
        self
    }

    /// Makes it managed.
    pub fn managed(mut self, managed: ManagedSpec) -> Self {
        self.spec.managed = Some(managed);
        self
    }

    /// What becomes of the rest of its tree when the leader ends by itself; it is kept by default.
    pub fn leftovers(mut self, leftovers: Leftovers) -> Self {
        self.spec.leftovers = leftovers;
        self
    }

    /// Validates everything that can be judged without looking at the machine.
    ///
    /// # Errors
    /// [`SpecError`] names the first field that is wrong and what would be right.
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
                return Err(SpecError::new("env", format!("the name {key:?} must not be empty and have no `=`")));
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
        if let Some(UserSpec::Name { name, .. }) = &spec.user
            && (name.is_empty() || name.contains([':', '\0', '\n']))
        {
            return Err(SpecError::new("user", "must be a name, a UID, `uid:gid` or an object with one of them"));
        }
        if spec.timeout == Some(Duration::ZERO) {
            return Err(SpecError::new("timeout", "must be more than 0 seconds"));
        }
        if spec.timeout.is_some_and(|timeout| timeout > MAX_TIMEOUT) {
            let problem = format!("must be at most {} seconds, ten years", MAX_TIMEOUT.as_secs());
            return Err(SpecError::new("timeout", problem));
        }
        validate_streams(&spec)?;
        if let Some(managed) = &spec.managed {
            validate_managed(managed)?;
        }
        Ok(spec)
    }
}

fn no_nul(field: &str, text: &str) -> Result<(), SpecError> {
    if text.contains('\0') { Err(SpecError::new(field, "must not contain a NUL character")) } else { Ok(()) }
}

/// What a terminal or inherited streams would make void is refused.
fn validate_streams(spec: &ProcessSpec) -> Result<(), SpecError> {
    let instead = match (spec.terminal.is_some(), spec.inherit) {
        (true, true) => return Err(SpecError::new("inherit_stdio", "does not go with `terminal`")),
        (true, false) => "terminal",
        (false, true) => "inherit_stdio",
        (false, false) => return Ok(()),
    };
    let pipes = [
        ("stdin_mode", spec.stdin != StdinMode::default()),
        ("stdout_mode", spec.stdout != OutputMode::default()),
        ("stderr_mode", spec.stderr != OutputMode::default()),
    ];
    match pipes.into_iter().find(|(_, said)| *said) {
        Some((field, _)) => Err(SpecError::new(field, format!("does not go with `{instead}`"))),
        None => Ok(()),
    }
}

fn validate_managed(managed: &ManagedSpec) -> Result<(), SpecError> {
    if let Some(name) = &managed.name {
        if name.is_empty() || name.contains('/') || name.bytes().all(|b| b.is_ascii_digit()) {
            return Err(SpecError::new("name", "must not be empty, not be all digits and have no `/`"));
        }
        // Every client resolves these away in the path that would address it (RFC 3986, section 5.2.4).
        if matches!(name.as_str(), "." | "..") {
            return Err(SpecError::new("name", "must not be `.` or `..`"));
        }
        no_nul("name", name)?;
    }
    at_most_a_day("stop_grace_ms", managed.stop_grace.as_millis())?;
    at_most_a_day("restart.initial_backoff_ms", managed.restart.initial_backoff_ms.into())?;
    at_most_a_day("restart.max_backoff_ms", managed.restart.max_backoff_ms.into())?;
    let Some(health) = &managed.health else { return Ok(()) };
    if health.port == 0 {
        return Err(SpecError::new("health_check.port", "must be a whole number from 1 to 65535"));
    }
    match (health.kind, &health.path) {
        (HealthKind::Tcp, Some(_)) => {
            return Err(SpecError::new("health_check.path", "goes only with the type `http`"));
        }
        (HealthKind::Http, Some(path)) if !is_request_path(path) => {
            let right = "must begin with `/` and have no spaces or control characters";
            return Err(SpecError::new("health_check.path", right));
        }
        _ => {}
    }
    at_most_a_day("health_check.initial_delay_ms", health.initial_delay_ms.into())?;
    for (field, ms) in [("interval_ms", health.interval_ms), ("timeout_ms", health.timeout_ms)] {
        let field = format!("health_check.{field}");
        at_most_a_day(&field, ms.into())?;
        if ms == 0 {
            return Err(SpecError::new(field, "must be at least 1"));
        }
    }
    if health.failure_threshold == 0 {
        return Err(SpecError::new("health_check.failure_threshold", "must be at least 1"));
    }
    Ok(())
}

/// What can stand in a request line (RFC 9112, section 3) without breaking it.
fn is_request_path(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic())
}

fn at_most_a_day(field: &str, ms: u128) -> Result<(), SpecError> {
    if ms > u128::from(MAX_MS) {
        return Err(SpecError::new(field, format!("must be at most {MAX_MS} ms, a day")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Policy;

    fn plain() -> SpecBuilder {
        ProcessSpec::command("x")
    }

    #[track_caller]
    fn refused(spec: Result<impl Sized, SpecError>, field: &str) {
        assert_eq!(spec.err().map(|error| error.field).as_deref(), Some(field));
    }

    #[test]
    fn a_timeout_is_bounded() {
        assert!(plain().timeout(MAX_TIMEOUT).build().is_ok());
        for timeout in [Duration::MAX, MAX_TIMEOUT + Duration::from_nanos(1), Duration::ZERO] {
            refused(plain().timeout(timeout).build(), "timeout");
        }
        let graceful =
            |stop_grace| plain().managed(ManagedSpec { stop_grace, ..ManagedSpec::new(Policy::Never) }).build();
        assert!(graceful(Duration::from_millis(MAX_MS)).is_ok());
        refused(graceful(Duration::MAX), "stop_grace_ms");
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let terminal = || plain().terminal(TerminalSize::default());
        for (instead, ours) in [("terminal", terminal()), ("inherit_stdio", plain().inherit_stdio())] {
            assert!(ours.clone().build().is_ok(), "{instead}");
            refused(ours.clone().stdin(StdinMode::Pipe).build(), "stdin_mode");
            refused(ours.clone().stdout(OutputMode::Discard).build(), "stdout_mode");
            refused(ours.stderr(OutputMode::Discard).build(), "stderr_mode");
        }
        refused(terminal().inherit_stdio().build(), "inherit_stdio");
        let session = |spec: SpecBuilder| spec.build().unwrap().check_session();
        assert_eq!((session(plain()), session(terminal())), (Ok(()), Ok(())));
        refused(session(plain().inherit_stdio()), "inherit_stdio");
        refused(session(plain().stdin(StdinMode::Pipe)), "stdin_mode");
        refused(session(plain().stdout(OutputMode::Discard)), "stdout_mode");
        refused(session(plain().stderr(OutputMode::Discard)), "stderr_mode");
        refused(session(terminal().timeout(Duration::from_secs(1))), "timeout");
        refused(session(terminal().managed(ManagedSpec::new(Policy::Always))), "managed");
        let process = |spec: SpecBuilder| spec.build().unwrap().check_process();
        assert_eq!((process(plain()), process(plain().inherit_stdio())), (Ok(()), Ok(())));
        refused(process(terminal()), "terminal");
    }
}
