//! What the processes of a leaf use of the machine (the kernel's cgroup-v2.rst).

use std::time::Duration;

use super::leaf::Leaf;
use super::memory_events::oom_kills;
use crate::usage::{Usage, value};

impl Leaf {
    /// What all processes of the leaf have used since the leaf was made, those that have ended included. None without
    /// the memory controller, and if the leaf no longer exists.
    pub fn usage(&self) -> Option<Usage> {
        if !self.controllers().memory {
            return None;
        }
        let read = |file| self.read(file).ok();
        let number = |file| read(file)?.trim_end().parse().ok();
        let memory = number("memory.current")?;
        let cpu = read("cpu.stat").unwrap_or_default();
        let micros = |name| value(&cpu, name).map(Duration::from_micros);
        let io = read("io.stat");
        Some(Usage {
            cpu_user: micros("user_usec"),
            cpu_system: micros("system_usec"),
            memory: Some(memory),
            memory_peak: number("memory.peak"),
            tasks: number("pids.current"),
            read_bytes: io.as_deref().map(|io| sum(io, "rbytes=")),
            written_bytes: io.as_deref().map(|io| sum(io, "wbytes=")),
            oom_kills: read("memory.events").map(|events| oom_kills(&events)),
        })
    }
}

/// The sum over all devices of the numbers after `key` in the text of an `io.stat`.
fn sum(io: &str, key: &str) -> u64 {
    let words = io.split_ascii_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok());
    words.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_of_all_devices_are_added() {
        let io =
            "8:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=7 dios=0\n8:0 rbytes=100 wbytes=1 rios=3 wios=4\n7:0\n";
        assert_eq!((sum(io, "rbytes="), sum(io, "wbytes="), sum("", "rbytes=")), (4196, 8193, 0));
    }
}
