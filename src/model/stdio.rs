//! [`Stdio`]: the standard streams of a process.

use super::terminal_size::TerminalSize;

/// The standard input, output and error of a process.
///
/// ```
/// use tl_supervisor::{OutputMode, Pipes, ProcessSpec, StdinMode, TerminalSize};
///
/// // `cat` with a pipe as its stdin; its stderr is discarded.
/// let pipes = Pipes { stdin: StdinMode::Pipe, stderr: OutputMode::Discard, ..Pipes::default() };
/// let cat = ProcessSpec::command("cat").stdio(pipes).build()?;
/// // A shell on a terminal of 24 rows and 80 columns, for `Handle::open_pty`.
/// let shell = ProcessSpec::command("sh").stdio(TerminalSize::default()).build()?;
/// # Ok::<(), tl_supervisor::SpecError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stdio {
    /// A pipe or `/dev/null` for each stream. The default: no input, and both outputs are captured.
    Pipes(Pipes),
    /// The supervisor's own standard streams: for the main process of a container.
    Inherit,
    /// A terminal of this size; valid only for [`Handle::open_pty`](crate::Handle::open_pty).
    Terminal(TerminalSize),
}

/// A pipe or `/dev/null` for each standard stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pipes {
    /// Standard input.
    pub stdin: StdinMode,
    /// Standard output.
    pub stdout: OutputMode,
    /// Standard error.
    pub stderr: OutputMode,
}

impl Stdio {
    /// Whether standard input is a pipe that the supervisor writes to.
    pub(crate) fn has_stdin_pipe(self) -> bool {
        matches!(self, Stdio::Pipes(Pipes { stdin: StdinMode::Pipe, .. }))
    }

    /// The size of the terminal, if it is one.
    pub(crate) fn terminal(self) -> Option<TerminalSize> {
        match self {
            Stdio::Terminal(size) => Some(size),
            Stdio::Pipes(_) | Stdio::Inherit => None,
        }
    }
}

impl Default for Stdio {
    fn default() -> Stdio {
        Stdio::Pipes(Pipes::default())
    }
}

impl From<Pipes> for Stdio {
    fn from(pipes: Pipes) -> Stdio {
        Stdio::Pipes(pipes)
    }
}

impl From<TerminalSize> for Stdio {
    fn from(size: TerminalSize) -> Stdio {
        Stdio::Terminal(size)
    }
}

/// The kind of the standard input of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StdinMode {
    /// `/dev/null`.
    #[default]
    Closed,
    /// A pipe, written to with [`Handle::stdin`](crate::Handle::stdin).
    Pipe,
}

/// The kind of the standard output or error of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OutputMode {
    /// A pipe; everything written to it goes into the log of the process.
    #[default]
    Capture,
    /// `/dev/null`.
    Discard,
}
