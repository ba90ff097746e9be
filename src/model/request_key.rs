//! [`RequestKey`]: by what a request is recognised as a repetition of an earlier one.

use std::sync::Arc;

/// What a request asks for. A key that was used for one of these cannot be used for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// To start a process.
    Start,
    /// To run a command, whose output is the response.
    Run,
    /// To open a terminal session.
    OpenPty,
}

/// The idempotency key of a request, and what the request asks for. Two requests with the same key are the same request
/// if the rest is equal too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestKey {
    /// The key that the client has chosen.
    pub(crate) key: Arc<str>,
    pub(crate) operation: Operation,
    /// A digest of the body. The body itself can be as long as a request may be.
    pub(crate) body: [u8; 20],
}

impl RequestKey {
    /// Approximate memory use, with that of its entry in an index, in bytes.
    pub(crate) fn size(&self) -> usize {
        2 * size_of::<RequestKey>() + 64 + self.key.len()
    }
}
