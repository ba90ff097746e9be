//! Enables controllers for the children of a cgroup.

use std::fs;
use std::path::Path;

use crate::kernel_file;

/// The controllers that units use, if the kernel has them and lets this process enable them.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "io", "pids"];

/// Which of the controllers are enabled for leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controllers {
    /// CPU time can be limited. It is counted anyway.
    pub cpu: bool,
    /// Memory is counted and can be limited.
    pub memory: bool,
    /// Tasks are counted and can be limited.
    pub pids: bool,
}

impl Controllers {
    /// Those with these names.
    pub(super) fn named(names: &[&str]) -> Controllers {
        let has = |name| names.contains(&name);
        Controllers { cpu: has("cpu"), memory: has("memory"), pids: has("pids") }
    }
}

/// The file that enables controllers for the children of a cgroup. Every cgroup of version 2 has it.
pub(super) const CONTROL: &str = "cgroup.subtree_control";

/// Enables [`CONTROLLERS`] for the children of the cgroup `dir`, as far as possible. Returns those that are enabled
/// then.
pub(super) fn enable(dir: &Path) -> Vec<&'static str> {
    let control = dir.join(CONTROL);
    let words = CONTROLLERS.map(|controller| format!("+{controller}"));
    // One write for all of them costs the kernel a quarter of the work of four; it fails if one is not available.
    if fs::write(&control, words.join(" ")).is_err() {
        for word in words {
            // A controller that cannot be enabled is missing from what is read back below.
            let _ = fs::write(&control, word);
        }
    }
    known(&kernel_file::read_to_string(&control).unwrap_or_default())
}

/// Those of [`CONTROLLERS`] that are among these words.
pub(super) fn known(words: &str) -> Vec<&'static str> {
    CONTROLLERS.into_iter().filter(|name| words.split_whitespace().any(|word| word == *name)).collect()
}
