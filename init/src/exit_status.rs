//! The exit statuses of the program, which are those of a shell.

use tl_supervisor::{Error, Exit};

/// The program could not start, or has killed all processes without an ordered shutdown.
pub(crate) const FAILURE: u8 = 1;

/// The status of a process that this signal has killed: 128 + the signal's number.
pub(crate) const fn of_signal(signal: i32) -> u8 {
    // Signals are numbered 1 to 64.
    128 + signal as u8
}

/// The status of a process that has ended: its exit code, or that of the signal that has killed it.
pub(crate) fn of_exit(exit: Exit) -> u8 {
    u8::try_from(exit.shell_status()).unwrap_or(FAILURE)
}

/// The status for a process that could not be started: 127 if it was not found, 126 if it cannot be executed.
pub(crate) fn of_start_error(error: &Error) -> u8 {
    match error {
        Error::CommandNotFound(_) => 127,
        Error::NotExecutable { .. } | Error::PermissionDenied(_) => 126,
        _ => FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!([Exit::Code(0), Exit::Code(7), Exit::Signal(15), Exit::OomKilled].map(of_exit), [0, 7, 143, 137]);
        assert_eq!((of_signal(libc::SIGINT), of_signal(libc::SIGKILL)), (130, 137));
        assert_eq!(of_start_error(&Error::CommandNotFound("x".into())), 127);
        assert_eq!(of_start_error(&Error::NotExecutable { command: "x".into(), why: "y".into() }), 126);
        assert_eq!(of_start_error(&Error::UserNotFound("x".into())), FAILURE);
    }
}
