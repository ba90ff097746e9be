//! Times that are not configurable.

use std::time::Duration;

/// Time after which an exec that hangs counts as started (docs/api.md, Processes).
pub(super) const EXEC_TIMEOUT: Duration = Duration::from_secs(5);

/// Time from the SIGHUP that ends a terminal session to the SIGKILL.
pub(super) const HANG_UP_GRACE: Duration = Duration::from_secs(5);

/// Time from that SIGHUP to the disconnection of the terminal, which also ends a shell that missed the signal between
/// its prompt and its read.
pub(super) const DISCONNECT: Duration = Duration::from_secs(1);

/// Longest time from the SIGKILL of a leader to the end of its run, even if the leader cannot be reaped. The last event
/// of a run comes within 1 s of its timeout (docs/api.md, Run).
pub(super) const REAP_TIMEOUT: Duration = Duration::from_millis(750);

/// Longest wait from the SIGKILL of the remaining processes of a run to the next run. Processes that have not ended by
/// then hang in the kernel.
pub(super) const TREE_TIMEOUT: Duration = Duration::from_secs(1);
