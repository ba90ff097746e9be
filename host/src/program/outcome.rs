//! How the program ends, and what it prints.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;

use tl_supervisor::program_log::Escaped;

/// Exit status for a command line that is not valid.
const USAGE: u8 = 2;

/// Why the program ends without success.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line is wrong: exit status 2.
    Usage(String),
    /// Exit status 1, with one sentence.
    Failed(String),
}

/// Prints to stdout.
pub(crate) fn print(text: &str) -> ExitCode {
    let printed = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
    if printed.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints an error to stderr. `eprintln!` would panic if stderr is closed.
pub(crate) fn fail(failure: &Failure) -> ExitCode {
    let (status, sentence) = match failure {
        Failure::Usage(sentence) => (ExitCode::from(USAGE), sentence),
        Failure::Failed(sentence) => (ExitCode::FAILURE, sentence),
    };
    // The name of a file can have control characters.
    let mut line = "tl-host: ".to_owned();
    let _ = Escaped(&mut line).write_str(sentence);
    line.push('\n');
    let _ = io::stderr().write_all(line.as_bytes());
    status
}
