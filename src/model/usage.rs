//! [`Usage`]: what a process has used of the machine.

use serde::Serialize;

/// Which processes a [`Usage`] counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Hash)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UsageScope {
    /// The whole tree: the run has a cgroup that counts memory.
    Tree,
    /// The leader; in the CPU time and after its end, also its children that it has waited for.
    Leader,
}

/// What the current run of a process, or its last one, has used. Its `Serialize` form is that of docs/api.md, Process
/// control. What cannot be known is None.
///
/// ```
/// use tl_supervisor::{ProcessSpec, Supervisor, Target, UserSpec};
///
/// let dir = tempfile::tempdir()?;
/// let supervisor = Supervisor::builder(dir.path().join("logs")).default_user(UserSpec::current()).start()?;
/// let handle = supervisor.handle();
/// let target = Target::Unit(handle.start(ProcessSpec::command("true").build()?)?.handle);
/// handle.wait(&target, None)?;
/// assert!(handle.usage(&target)?.memory_peak_bytes > Some(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// CPU time in user mode, in milliseconds.
    pub cpu_user_ms: Option<u64>,
    /// CPU time in the kernel, in milliseconds.
    pub cpu_system_ms: Option<u64>,
    /// Memory in use at the time of the last measurement, in bytes.
    pub memory_bytes: Option<u64>,
    /// The most memory in use at the same time, in bytes.
    pub memory_peak_bytes: Option<u64>,
    /// Number of processes and threads at the time of the last measurement.
    pub processes: Option<u64>,
    /// Bytes read from storage devices.
    pub read_bytes: Option<u64>,
    /// Bytes written to storage devices.
    pub written_bytes: Option<u64>,
    /// Number of processes that the kernel has killed because memory had run out.
    pub oom_kills: Option<u64>,
    /// Which processes are counted.
    pub scope: UsageScope,
}
