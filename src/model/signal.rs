//! [`Signal`]: the number of a signal.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, SpecError};

/// A Linux signal, with a number from 1 to 64.
///
/// ```
/// use tl_supervisor::Signal;
///
/// assert_eq!("TERM".parse(), Ok(Signal::TERM));
/// assert_eq!("SIGTERM".parse(), Ok(Signal::TERM));
/// assert_eq!(Signal::try_from(15), Ok(Signal::TERM));
/// assert_eq!(Signal::TERM.to_string(), "SIGTERM");
/// assert!(Signal::try_from(65).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(i32);

/// Declares a constant for each named signal, and the table of the names.
macro_rules! signals {
    ($($name:ident = $number:ident: $doc:literal;)+) => {
        impl Signal {
            $(#[doc = $doc] pub const $name: Signal = Signal(libc::$number);)+
        }

        const NAMES: &[(&str, Signal)] = &[$((stringify!($number), Signal::$name)),+];
    };
}

signals! {
    HUP = SIGHUP: "Hang-up of the controlling terminal; for many daemons: reload the configuration.";
    INT = SIGINT: "Interrupt from the keyboard.";
    QUIT = SIGQUIT: "Quit from the keyboard, with a core dump.";
    ILL = SIGILL: "Illegal instruction.";
    TRAP = SIGTRAP: "Breakpoint.";
    ABRT = SIGABRT: "`abort(3)`.";
    BUS = SIGBUS: "Access to memory that does not exist.";
    FPE = SIGFPE: "Erroneous arithmetic operation.";
    KILL = SIGKILL: "Ends a process; cannot be caught.";
    USR1 = SIGUSR1: "For the program's own use.";
    SEGV = SIGSEGV: "Invalid access to memory.";
    USR2 = SIGUSR2: "For the program's own use.";
    PIPE = SIGPIPE: "Write to a pipe without a reader.";
    ALRM = SIGALRM: "Timer of `alarm(2)`.";
    TERM = SIGTERM: "Asks a process to end.";
    STKFLT = SIGSTKFLT: "Unused.";
    CHLD = SIGCHLD: "A child has ended or stopped.";
    CONT = SIGCONT: "Continues a stopped process.";
    STOP = SIGSTOP: "Stops a process; cannot be caught.";
    TSTP = SIGTSTP: "Stop from the keyboard.";
    TTIN = SIGTTIN: "Read of the terminal by a process in the background.";
    TTOU = SIGTTOU: "Write to the terminal by a process in the background.";
    URG = SIGURG: "Urgent data on a socket.";
    XCPU = SIGXCPU: "The CPU time limit is exceeded.";
    XFSZ = SIGXFSZ: "The file size limit is exceeded.";
    VTALRM = SIGVTALRM: "Virtual timer of `setitimer(2)`.";
    PROF = SIGPROF: "Profiling timer of `setitimer(2)`.";
    WINCH = SIGWINCH: "The size of the terminal has changed.";
    IO = SIGIO: "Input or output is possible.";
    PWR = SIGPWR: "Power failure.";
    SYS = SIGSYS: "Bad system call.";
}

impl Signal {
    /// The highest signal number.
    const MAX: i32 = 64;

    /// The number, from 1 to 64.
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl TryFrom<i64> for Signal {
    type Error = Error;

    /// # Errors
    /// [`Error::InvalidSignal`] for a number outside of 1 to 64.
    fn try_from(number: i64) -> Result<Signal, Error> {
        match i32::try_from(number) {
            Ok(valid @ 1..=Signal::MAX) => Ok(Signal(valid)),
            _ => Err(Error::InvalidSignal(number)),
        }
    }
}

impl TryFrom<i32> for Signal {
    type Error = Error;

    /// # Errors
    /// [`Error::InvalidSignal`] for a number outside of 1 to 64.
    fn try_from(number: i32) -> Result<Signal, Error> {
        Signal::try_from(i64::from(number))
    }
}

impl FromStr for Signal {
    type Err = SpecError;

    /// Reads a name with or without `SIG`, or a number.
    ///
    /// # Errors
    /// [`SpecError`] about `signal` for anything else.
    fn from_str(text: &str) -> Result<Signal, SpecError> {
        let named = || NAMES.iter().find(|(name, _)| *name == text || name.strip_prefix("SIG") == Some(text));
        let numbered = || text.parse::<i64>().ok().and_then(|number| Signal::try_from(number).ok());
        let signal = named().map(|(_, signal)| *signal).or_else(numbered);
        signal.ok_or_else(|| SpecError::new("signal", "must be a name such as `TERM`, or a number from 1 to 64"))
    }
}

impl fmt::Display for Signal {
    /// `SIGTERM`; a real-time signal, which has no name, is shown as `signal 34`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, signal)| signal == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_numbers_1_to_64_are_signals() {
        for number in [i64::MIN, -1, 0, 65, i64::MAX] {
            assert_eq!(Signal::try_from(number), Err(Error::InvalidSignal(number)));
        }
        for number in 1..=64 {
            assert_eq!(Signal::try_from(number).map(Signal::number), Ok(number));
        }
    }

    #[test]
    fn a_signal_parses_from_its_displayed_name_and_from_its_number() {
        for number in 1..=31 {
            let signal = Signal::try_from(number).unwrap();
            assert_eq!(signal.to_string().parse(), Ok(signal));
            assert_eq!(number.to_string().parse(), Ok(signal));
        }
        assert_eq!(Signal::try_from(40).unwrap().to_string(), "signal 40");
        for wrong in ["", "term", "SIG", "SIGSIGTERM", "0", "65", "-9", "RTMIN"] {
            assert_eq!(wrong.parse::<Signal>().unwrap_err().field, "signal", "{wrong}");
        }
    }
}
