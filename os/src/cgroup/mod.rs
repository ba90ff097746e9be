//! cgroup v2: one leaf for each run of a unit, so that its whole tree can be killed and its end detected (cgroups(7)).
//!
//! - `membership`: which cgroup this process is in, and where it is mounted;
//! - `settle`: moves this process into a leaf of its own, so that controllers can be enabled for units;
//! - `controllers`: enables controllers;
//! - `slice`: the cgroup that holds all leaves;
//! - `slice_dir`: its directory, which the slice and its leaves share;
//! - `leaf`: the cgroup of one run;
//! - `limits`, `usage`: the limits of a leaf, and what its processes use;
//! - `memory_events`: the kills by the out-of-memory killer in a cgroup;
//! - `spare`: the empty leaves of ended runs, kept for the next runs;
//! - `probe`: checks by a fork whether processes can be put into a slice;
//! - `directory`: walks and removes the directories of nested cgroups.

mod controllers;
mod directory;
mod freezer;
mod leaf;
mod limits;
pub(crate) mod membership;
mod memory_events;
mod probe;
mod settle;
mod slice;
mod slice_dir;
mod spare;
mod usage;

pub use controllers::Controllers;
pub use leaf::Leaf;
pub use limits::{CPU_PERIOD, LeafLimits, LimitError};
pub use memory_events::oom_kills;
pub use probe::probe;
pub use settle::{Settled, enter, settle};
pub use slice::Slice;
