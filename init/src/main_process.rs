//! The main process: of a container the one that it is there for, of a machine a service.

use std::io;

use crossbeam_channel::Sender;
use tl_os::pty;
use tl_os::thread;
use tl_supervisor::{Error, Exit, Handle, ManagedSpec, Policy, ProcessSpec, SpecError, Stdio, UnitId};

use crate::role::Role;
use crate::run::Event;

/// Variables that are the user's and not the container's.
const USERS: [&str; 5] = ["HOME", "USER", "LOGNAME", "SHELL", "PWD"];

/// What it is started as. In a container it has our stdin, stdout and stderr, our environment and our directory: what
/// the image and its user have put there was meant for it.
///
/// # Errors
/// When there can be no such process.
pub(crate) fn spec(place: Role, command: &str, args: &[String]) -> Result<ProcessSpec, SpecError> {
    let mut spec = ProcessSpec::command(command).args(args);
    if place == Role::Machine {
        return spec.managed(ManagedSpec::new(Policy::Never).named("main")).build();
    }
    for (key, value) in std::env::vars_os() {
        if let (Ok(key), Ok(value)) = (key.into_string(), value.into_string())
            && !USERS.contains(&key.as_str())
            && !key.starts_with("TL_INIT_")
        {
            spec = spec.env(key, value);
        }
    }
    if let Some(dir) = std::env::current_dir().ok().and_then(|dir| dir.into_os_string().into_string().ok()) {
        spec = spec.working_dir(dir);
    }
    spec.stdio(Stdio::Inherit).build()
}

/// Lets its session have the terminal that we may have been started on. Before signals are watched: the hang-up that
/// comes of it is not for anybody.
pub(crate) fn leave_terminal(place: Role) {
    if place == Role::Container {
        pty::give_up_controlling();
    }
}

/// Starts it, and tells when it has ended, or why it does not run. Waits for neither: whatever holds up the supervisor
/// must not hold up who ends everything.
///
/// # Errors
/// When there is nobody to wait for it.
pub(crate) fn start(handle: &Handle, spec: ProcessSpec, tell: Sender<Event>) -> Result<UnitId, Error> {
    let (unit, started) = handle.begin_start(spec);
    // Without anybody who waits for it, its end would go unnoticed.
    let lost = tell.clone();
    let wait = move || {
        let end = match started.wait() {
            Ok(started) => started.wait(None).map(|end| Event::EntryEnded(code(end.exit))),
            Err(error) => Some(Event::EntryFailed(error)),
        };
        end.map_or(Ok(()), |end| tell.send(end).map_err(io::Error::other))
    };
    thread::spawn("entry", wait, move || drop(lost.send(Event::EntryEnded(1))))
        .map_err(|error| Error::from_io("waiting for the main process", &error))?;
    Ok(unit)
}

/// As a shell says it: the code, or 128 and the signal.
fn code(exit: Exit) -> u8 {
    let code = exit.code().or(exit.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// What a shell gives for a command that does not run.
pub(crate) fn code_of_failure(error: &Error) -> u8 {
    match error {
        Error::CommandNotFound(_) => 127,
        Error::NotExecutable { .. } | Error::PermissionDenied(_) => 126,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!([Exit::Code(0), Exit::Code(7), Exit::Signal(15), Exit::OomKilled].map(code), [0, 7, 143, 137]);
        assert_eq!(code_of_failure(&Error::CommandNotFound("x".into())), 127);
        assert_eq!(code_of_failure(&Error::NotExecutable { command: "x".into(), why: "y".into() }), 126);
        assert_eq!(code_of_failure(&Error::UserNotFound("x".into())), 1);
    }
}
