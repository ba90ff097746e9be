//! Why a command failed: the exit status, and the sentence that is printed.
//!
//! An error ends the program. So its texts are never freed, which keeps what handles errors small.

use std::fmt;
use std::io;

/// Why a command failed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Error {
    /// The command line is wrong. The sentence names the option or the operand.
    Usage(&'static str),
    /// Something on this side failed, or there is no daemon.
    Local(&'static str),
    /// The API has answered with an error.
    Api {
        /// The code of the error; empty if the response is not one of the API.
        code: &'static str,
        /// The sentence.
        message: &'static str,
    },
}

/// The text of an error.
#[inline(never)]
pub(crate) fn sentence(text: fmt::Arguments<'_>) -> &'static str {
    text.to_string().leak()
}

impl Error {
    /// A wrong command line.
    #[inline(never)]
    pub(crate) fn usage(text: fmt::Arguments<'_>) -> Error {
        Error::Usage(sentence(text))
    }

    /// Something that failed on this side.
    #[inline(never)]
    pub(crate) fn local(text: fmt::Arguments<'_>) -> Error {
        Error::Local(sentence(text))
    }

    /// Output that cannot be written.
    #[inline(never)]
    pub(crate) fn output(error: io::Error) -> Error {
        Error::local(format_args!("cannot write the output: {error}"))
    }

    /// The exit status of the program.
    pub(crate) fn exit_status(self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            _ => crate::exit_status::FAILURE,
        }
    }

    /// Whether the API has answered with this code.
    pub(crate) fn has_code(self, wanted: &str) -> bool {
        matches!(self, Error::Api { code, .. } if code == wanted)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Usage(message) => write!(out, "{message}; see tlctl --help"),
            Error::Local(message) | Error::Api { message, .. } => out.write_str(message),
        }
    }
}
