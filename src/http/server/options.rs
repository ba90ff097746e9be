//! Limits and timeouts of a server.

use std::time::Duration;

/// Longest timeout: a day. A longer one could overflow a deadline.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Limits and timeouts of a [`Server`](crate::http::server::Server). The defaults are those of docs/api.md, Limits.
///
/// ```
/// use std::time::Duration;
/// use tl_supervisor::http::server::Options;
///
/// let options = Options::new().max_connections(100).idle_timeout(Duration::from_secs(10));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    pub(crate) max_connections: usize,
    pub(crate) max_body: usize,
    pub(crate) max_head: usize,
    pub(crate) head_timeout: Duration,
    pub(crate) idle_timeout: Duration,
    pub(crate) server_name: String,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            max_connections: 1024,
            max_body: 1 << 20,
            max_head: 64 << 10,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            server_name: "tl-init".to_owned(),
        }
    }
}

impl Options {
    /// The defaults.
    pub fn new() -> Options {
        Options::default()
    }

    /// Maximum number of connections (1024), each of which has a thread. When it is reached, further clients wait in
    /// the kernel's queue, and an idle connection is evicted for each.
    pub fn max_connections(self, max_connections: usize) -> Options {
        Options { max_connections, ..self }
    }

    /// Maximum length of a body that is read [as a whole](crate::http::message::Request::whole_body), in bytes (1 MiB).
    pub fn max_body(self, max_body: usize) -> Options {
        Options { max_body, ..self }
    }

    /// Maximum length of a request head, in bytes (64 KiB).
    pub fn max_head(self, max_head: usize) -> Options {
        Options { max_head, ..self }
    }

    /// Maximum time for a request head to arrive (10 s), from its first byte or from the beginning of the connection;
    /// at most a day.
    pub fn head_timeout(self, timeout: Duration) -> Options {
        Options { head_timeout: timeout.min(MAX_TIMEOUT), ..self }
    }

    /// Maximum time between two requests, between two pieces of a body, and between two pieces of a response that the
    /// client takes (75 s); at most a day.
    pub fn idle_timeout(self, timeout: Duration) -> Options {
        Options { idle_timeout: timeout.min(MAX_TIMEOUT), ..self }
    }

    /// Value of the header `Server` (`tl-init`): ASCII without control characters.
    pub fn server_name(self, name: impl Into<String>) -> Options {
        Options { server_name: name.into(), ..self }
    }
}
