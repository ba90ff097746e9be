//! The main process: in a container the program that the container runs; on a machine a managed process like any other.

use std::io;

use tl_os::pty;
use tl_os::thread;
use tl_supervisor::{Error, Handle, ManagedSpec, Policy, ProcessSpec, SpecError, Stdio, UnitId};

use crate::exit_status::{FAILURE, of_exit};
use crate::options::PREFIX;
use crate::role::Role;

/// Variables that describe the user rather than the container: they are set from `/etc/passwd`.
const USER_VARIABLES: [&str; 5] = ["HOME", "USER", "LOGNAME", "SHELL", "PWD"];

/// How the main process has ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It has ended with this exit status, as a shell reports it.
    Exited(u8),
    /// It could not be started.
    NotStarted(Error),
}

/// The spec of the main process. Except on a machine, it has the standard streams, the environment and the working
/// directory of this process: those that the image and the container runtime have set are meant for it.
///
/// # Errors
/// When the spec is not valid.
pub(crate) fn spec(role: Role, command: &str, args: &[String]) -> Result<ProcessSpec, SpecError> {
    let mut spec = ProcessSpec::command(command).args(args);
    if role == Role::Machine {
        return spec.managed(ManagedSpec::new(Policy::Never).named("main")).build();
    }
    for (key, value) in std::env::vars_os() {
        if let (Ok(key), Ok(value)) = (key.into_string(), value.into_string())
            && !USER_VARIABLES.contains(&key.as_str())
            && !key.starts_with(PREFIX)
        {
            spec = spec.env(key, value);
        }
    }
    if let Some(dir) = std::env::current_dir().ok().and_then(|dir| dir.into_os_string().into_string().ok()) {
        spec = spec.working_dir(dir);
    }
    spec.stdio(Stdio::Inherit).build()
}

/// Gives up the controlling terminal that a container may be started with, so that it can become that of the main
/// process. Call it before signals are watched: it makes the kernel send SIGHUP.
pub(crate) fn leave_terminal(role: Role) {
    if role == Role::Container {
        pty::give_up_controlling();
    }
}

/// Starts the main process. A thread waits for its end, or for the failure of its start, and reports it: the main
/// thread must not wait for the supervisor. `report` returns false if the report has no receiver.
///
/// # Errors
/// When the thread cannot be started.
pub(crate) fn start(
    handle: &Handle,
    spec: ProcessSpec,
    report: impl Fn(End) -> bool + Clone + Send + 'static,
) -> Result<UnitId, Error> {
    let (unit, started) = handle.begin_start(spec);
    let if_wait_fails = report.clone();
    let wait = move || {
        let end = match started.wait() {
            Ok(started) => started.wait(None).map(|end| End::Exited(of_exit(end.exit))),
            Err(error) => Some(End::NotStarted(error)),
        };
        thread::fault_point();
        if end.is_none_or(report) { Ok(()) } else { Err(io::Error::other("the main thread has ended")) }
    };
    // Without a report, the end of the main process would go unnoticed.
    let died = move || {
        if_wait_fails(End::Exited(FAILURE));
    };
    thread::spawn("main-process", wait, died)
        .map_err(|error| Error::from_io("waiting for the main process", &error))?;
    Ok(unit)
}
