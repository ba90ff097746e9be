//! What the fork server makes of a request.

use std::io;

use crate::Pid;

/// What became of a request.
#[derive(Debug)]
pub(in crate::spawn) enum Outcome {
    /// A child with this PID was forked.
    Forked(Pid),
    /// The kernel has refused to fork.
    Refused(io::Error),
    /// Nothing was forked, and the server cannot be used for this request.
    Unavailable,
}
