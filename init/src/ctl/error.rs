//! Why a command failed: the exit status, and the sentence that is printed.

use std::fmt;
use std::io;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Error {
    /// The command line is wrong. The sentence names the option or the operand.
    Usage(String),
    /// Something on this side failed, or there is no daemon.
    Local(String),
    /// The output cannot be written.
    Output(io::Error),
    /// The API has answered with an error.
    Api {
        /// The code of the error; empty if the response is not one of the API.
        code: String,
        /// The sentence.
        message: String,
    },
}

impl Error {
    /// The exit status of the program.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            _ => crate::exit_status::FAILURE,
        }
    }

    /// Whether the API has answered with this code.
    pub(crate) fn has_code(&self, wanted: &str) -> bool {
        matches!(self, Error::Api { code, .. } if code == wanted)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(message) => write!(out, "{message}; see tlctl --help"),
            Error::Local(message) | Error::Api { message, .. } => out.write_str(message),
            Error::Output(error) => write!(out, "cannot write the output: {error}"),
        }
    }
}
