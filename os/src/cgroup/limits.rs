//! Limits of the cgroup of one run (the kernel's cgroup-v2.rst).

use std::io;

use super::controllers::Controllers;
use super::directory::is_gone;
use super::leaf::Leaf;

/// The period of `cpu.max` in microseconds: a cgroup that has used up its quota waits for the next one.
pub const CPU_PERIOD: u64 = 100_000;

/// Limits for all processes of a leaf together. None leaves the setting as it is in a new leaf.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafLimits {
    /// Bytes of memory. Beyond it, the kernel kills all processes of the leaf. None of them is swapped out.
    pub memory_max: Option<u64>,
    /// Bytes of memory. Beyond it, the kernel slows the processes down and reclaims their memory.
    pub memory_high: Option<u64>,
    /// CPU time in microseconds for each [`CPU_PERIOD`]; the kernel takes at least 1,000.
    pub cpu_quota: Option<u64>,
    /// Share of the CPU time where other leaves want some too: 1 to 10,000; that of a new leaf is 100.
    pub cpu_weight: Option<u64>,
    /// Number of tasks: processes and threads.
    pub pids_max: Option<u64>,
}

/// A limit that could not be set.
#[derive(Debug)]
pub struct LimitError {
    /// The file of the leaf that was written to.
    pub file: &'static str,
    /// What the kernel says.
    pub error: io::Error,
}

impl LeafLimits {
    /// Whether no limit is set.
    pub fn is_empty(&self) -> bool {
        *self == LeafLimits::default()
    }
}

impl LimitError {
    /// Whether the leaf does not have the file: its controller was taken away, or the leaf was removed.
    pub fn is_missing(&self) -> bool {
        is_gone(&self.error)
    }
}

impl Leaf {
    /// Sets limits, before a process is in the leaf. A leaf with limits is not kept as a spare one.
    ///
    /// # Errors
    /// The first one that the kernel refuses. The leaf may have a part of the limits then.
    pub fn set_limits(&self, limits: &LeafLimits) -> Result<(), LimitError> {
        let set = |file: &'static str, value: &str| self.write(file, value).map_err(|error| LimitError { file, error });
        let set_number = |file, limit: Option<u64>| limit.map_or(Ok(()), |limit| set(file, &limit.to_string()));
        if limits.memory_max.is_some() {
            set("memory.oom.group", "1")?;
            match set("memory.swap.max", "0") {
                // The kernel has no swap, or does not count it.
                Err(error) if error.is_missing() => {}
                result => result?,
            }
        }
        set_number("memory.max", limits.memory_max)?;
        set_number("memory.high", limits.memory_high)?;
        if let Some(quota) = limits.cpu_quota {
            set("cpu.max", &format!("{quota} {CPU_PERIOD}"))?;
        }
        set_number("cpu.weight", limits.cpu_weight)?;
        set_number("pids.max", limits.pids_max)
    }

    /// The controllers that the leaf was made with.
    pub fn controllers(&self) -> Controllers {
        self.slice().controllers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Slice;

    #[test]
    fn a_limit_without_its_controller_is_missing_and_not_an_error_of_another_kind() {
        let Ok(slice) = Slice::below(None) else { return };
        // Its controllers were not enabled.
        let leaf = slice.new_leaf().unwrap();
        let limits = LeafLimits { pids_max: Some(5), ..LeafLimits::default() };
        let error = leaf.set_limits(&limits).unwrap_err();
        assert!(error.file == "pids.max" && error.is_missing(), "{error:?}");
        assert!(leaf.set_limits(&LeafLimits::default()).is_ok() && LeafLimits::default().is_empty());
        assert_eq!(leaf.controllers(), Controllers::default());
        assert_eq!(leaf.usage(), None);
    }
}
