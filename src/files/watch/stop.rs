//! Why the work of a watch ends.

use std::io;

use crate::error::Error;
use crate::files::FileError;

/// Why the work ends.
#[derive(Debug)]
pub(super) enum Stop {
    /// The root is gone.
    Gone,
    /// The watch cannot go on.
    Failed(FileError),
    /// What was reported was not taken.
    Report(io::Error),
}

impl From<FileError> for Stop {
    fn from(error: FileError) -> Stop {
        Stop::Failed(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Failed(error.into())
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Stop {
        Stop::Report(error)
    }
}
