//! What this process uses of the machine: memory, descriptors and CPU time.

use std::fs;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::resource::{Resource, getrlimit};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::kernel_file;
use crate::procfs::{look_at, ticks_now};

/// What this process uses. What cannot be known, as without `/proc`, is None.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SelfUsage {
    /// CPU time of all its threads.
    pub cpu: Option<Duration>,
    /// Number of open descriptors.
    pub open_fds: Option<u64>,
    /// The soft limit on descriptors.
    pub max_fds: Option<u64>,
    /// Virtual memory in bytes.
    pub virtual_memory: Option<u64>,
    /// Resident memory in bytes.
    pub resident_memory: Option<u64>,
    /// Time from the Unix epoch to its start.
    pub started: Option<Duration>,
}

/// When this process has started, as computed at the first call: computed again, it would differ by up to a tick, and by
/// every change of the clock, which looks like a restart.
static STARTED: OnceLock<Option<Duration>> = OnceLock::new();

/// What this process uses now.
pub fn self_usage() -> SelfUsage {
    let memory = kernel_file::read_to_string("/proc/self/statm").ok();
    let pages = |field: usize| memory.as_ref()?.split_ascii_whitespace().nth(field)?.parse::<u64>().ok();
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
    let bytes = |field| Some(pages(field)?.saturating_mul(page?));
    let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).ok();
    SelfUsage {
        cpu: cpu.map(Duration::from),
        // The descriptor that reads the directory is not counted.
        open_fds: fs::read_dir("/proc/self/fd").ok().map(|entries| (entries.count() as u64).saturating_sub(1)),
        max_fds: getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft),
        virtual_memory: bytes(0),
        resident_memory: bytes(1),
        started: *STARTED.get_or_init(started),
    }
}

fn started() -> Option<Duration> {
    let pid = i32::try_from(std::process::id()).ok()?;
    let start = look_at(pid)?.start;
    let ticks = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok().flatten()?).ok()?;
    let age = Duration::from_millis(ticks_now().saturating_sub(start).saturating_mul(1000).checked_div(ticks)?);
    SystemTime::now().duration_since(UNIX_EPOCH).ok()?.checked_sub(age)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_this_process_does_not_change() {
        let started = self_usage().started;
        assert!(started.is_some());
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(7));
            assert_eq!(self_usage().started, started);
        }
    }

    #[test]
    fn this_process_uses_something() {
        let usage = self_usage();
        assert!(usage.cpu > Some(Duration::ZERO), "{usage:?}");
        assert!(usage.open_fds.unwrap() >= 3 && usage.open_fds <= usage.max_fds, "{usage:?}");
        assert!(usage.resident_memory.unwrap() > 1 << 16 && usage.resident_memory <= usage.virtual_memory, "{usage:?}");
        let age = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() - usage.started.unwrap();
        assert!(age < Duration::from_secs(3600), "{usage:?}");
    }
}
