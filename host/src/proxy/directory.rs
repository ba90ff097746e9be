//! The sandboxes, as the proxy sees them.

use std::net::SocketAddr;
use std::time::Instant;

/// The sandboxes, as the proxy sees them.
pub(crate) trait Directory: Send + Sync + 'static {
    /// Finds a sandbox by its id or its name and makes it ready: one that is suspended is resumed, and one that is
    /// starting is waited for, until `deadline`.
    ///
    /// # Errors
    /// If there is no such sandbox, or it is not ready by then.
    fn reach(&self, id_or_name: &str, deadline: Instant) -> Result<Reached, ReachError>;

    /// Whether the sandbox still has the address by which it was reached: asked after a connection was made, and before
    /// anything is sent on it.
    fn has_address(&self, reached: &Reached) -> bool;

    /// What is open to clients of a sandbox, in whatever state it is. Does not wait, and does not resume it. None if there
    /// is no such sandbox.
    fn exposure(&self, id_or_name: &str) -> Option<Exposure>;
}

/// What is open to clients of a sandbox besides its daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exposure {
    pub(crate) ports: Vec<u16>,
    pub(crate) allow_unauthenticated_access: bool,
}

/// A sandbox that is running.
#[derive(Clone, Debug)]
pub(crate) struct Reached {
    pub(crate) id: String,
    /// The address of its tl-init.
    pub(crate) daemon: SocketAddr,
    /// Whether other ports have the same IP address as the daemon. If not, they are reached through the daemon's
    /// tunnel only.
    pub(crate) is_direct: bool,
    /// The token of its tl-init.
    pub(crate) token: String,
    pub(crate) exposed_ports: Vec<u16>,
    pub(crate) allow_unauthenticated_access: bool,
}

/// Why a sandbox cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReachError {
    /// 404 `SANDBOX_NOT_FOUND`: none with this id or name, or it is terminated.
    #[error("there is no sandbox {0:?}")]
    Unknown(String),
    /// 503: it is starting, or being suspended or resumed, and was not ready in time.
    #[error("the sandbox {0:?} is not ready yet")]
    NotReady(String),
    /// 503: the engine cannot be reached, or has refused to resume it.
    #[error("the sandbox {0:?} cannot be resumed: {1}")]
    Engine(String, String),
}
