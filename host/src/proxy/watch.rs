//! Looks after a sandbox while its response is awaited: it may be suspended after the request has been sent to it. Its
//! kernel takes the bytes all the same, and nobody else would resume it.
//!
//! A request that may wait for long is looked after only once. If the sandbox runs then, the request has been taken, and
//! like everything else in the sandbox it stands still while that is suspended later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::proxy::directory::{Directory, ReachError};

/// Time between two looks at a sandbox from which nothing has arrived.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the engine may fail to resume the sandbox.
const MAX_FAILING: Duration = Duration::from_secs(30);

/// Why a response is awaited no longer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Nothing has arrived for so long.
    TooLong(Duration),
    /// The sandbox has ended, or cannot be resumed.
    Unreachable(ReachError),
}

/// The state of the wait for one response.
pub(crate) struct Watch {
    directory: Arc<dyn Directory>,
    /// Id of the sandbox: another one may have its name by now.
    id: String,
    /// Maximum time without any progress; None if the response may take any time.
    limit: Option<Duration>,
    silent_since: Instant,
    /// None once a request that may wait for long was looked after.
    next_look: Option<Instant>,
    /// The time since which the engine has failed to resume the sandbox.
    failing_since: Option<Instant>,
}

impl Watch {
    pub(crate) fn new(directory: Arc<dyn Directory>, id: String, limit: Option<Duration>) -> Watch {
        let now = Instant::now();
        Watch { directory, id, limit, silent_since: now, next_look: Some(now + INTERVAL), failing_since: None }
    }

    /// Whether the response must come soon.
    pub(crate) fn has_limit(&self) -> bool {
        self.limit.is_some()
    }

    /// When to call [`Watch::look`], unless something happens before.
    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.next_look
    }

    /// The sandbox has sent or taken something.
    pub(crate) fn progress(&mut self) {
        let now = Instant::now();
        (self.silent_since, self.next_look, self.failing_since) = (now, Some(now + INTERVAL), None);
    }

    /// Looks whether the sandbox runs, and resumes it if it is suspended. Waits up to [`INTERVAL`] for a sandbox with which
    /// something else is being done.
    ///
    /// # Errors
    /// Why there is nothing to wait for any more.
    pub(crate) fn look(&mut self) -> Result<(), Silence> {
        let now = Instant::now();
        if let Some(limit) = self.limit.filter(|limit| now.saturating_duration_since(self.silent_since) >= *limit) {
            return Err(Silence::TooLong(limit));
        }
        let reached = self.directory.reach(&self.id, now + INTERVAL);
        self.next_look = Some(Instant::now() + INTERVAL);
        match reached {
            Ok(_) => {
                self.failing_since = None;
                if self.limit.is_none() {
                    self.next_look = None;
                }
            }
            // A snapshot of it is being made, for example.
            Err(ReachError::NotReady(_)) => {}
            Err(error @ ReachError::Unknown(_)) => return Err(Silence::Unreachable(error)),
            Err(error @ ReachError::Engine(..)) => {
                let since = *self.failing_since.get_or_insert(now);
                if now.saturating_duration_since(since) >= MAX_FAILING {
                    return Err(Silence::Unreachable(error));
                }
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("id", &self.id).field("limit", &self.limit).finish_non_exhaustive()
    }
}
