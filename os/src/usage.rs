//! What a process, or all processes of a cgroup, use of the machine.

use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use crate::Pid;
use crate::kernel_file;
use crate::procfs::{shows_this_namespace, stat_fields};

/// What processes use of the machine. What cannot be known is None.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in user mode.
    pub cpu_user: Option<Duration>,
    /// CPU time in the kernel.
    pub cpu_system: Option<Duration>,
    /// Memory in use now, in bytes.
    pub memory: Option<u64>,
    /// The most memory that was in use at the same time, in bytes.
    pub memory_peak: Option<u64>,
    /// Number of tasks: processes and threads.
    pub tasks: Option<u64>,
    /// Bytes read from storage devices.
    pub read_bytes: Option<u64>,
    /// Bytes written to storage devices.
    pub written_bytes: Option<u64>,
    /// Number of processes that were killed because memory had run out.
    pub oom_kills: Option<u64>,
}

/// What the process that has this PID now has used since its start, as /proc shows it (proc_pid_stat(5)). As in the
/// usage that `wait4(2)` reports at its end, its CPU time includes that of its children that it has waited for. None if
/// there is no such process, or if /proc does not show this PID namespace.
pub fn of_process(pid: Pid) -> Option<Usage> {
    let stat = kernel_file::read(format!("/proc/{pid}/stat")).ok()?;
    if !shows_this_namespace() {
        return None;
    }
    let (cpu_user, cpu_system, tasks) = times(&stat)?;
    let status = kernel_file::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    // It is not readable for a process that has gained privileges, or without the capability for that.
    let io = kernel_file::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let kibibytes = |name| value(&status, name).map(|kib| kib.saturating_mul(1024));
    Some(Usage {
        cpu_user: Some(cpu_user),
        cpu_system: Some(cpu_system),
        memory: kibibytes("VmRSS:"),
        memory_peak: kibibytes("VmHWM:"),
        tasks: Some(tasks),
        read_bytes: value(&io, "read_bytes:"),
        written_bytes: value(&io, "write_bytes:"),
        oom_kills: None,
    })
}

/// The CPU times in the text of a `/proc/<pid>/stat`, and the number of threads.
fn times(stat: &[u8]) -> Option<(Duration, Duration, u64)> {
    // By the manual's numbers: utime, stime, cutime and cstime are the fields 14 to 17, the number of threads is 20.
    let mut fields = stat_fields(stat)?.skip(11).map(|field| field.parse::<u64>().ok());
    let mut next = || fields.next()?;
    let (user, system, of_children) = (next()?, next()?, (next()?, next()?));
    let tasks = fields.nth(2)??;
    Some((ticks(user.saturating_add(of_children.0)), ticks(system.saturating_add(of_children.1)), tasks))
}

fn ticks(count: u64) -> Duration {
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let micros = u128::from(count) * 1_000_000 / u128::from(per_second.filter(|ticks| *ticks > 0).unwrap_or(100));
    Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
}

/// The number after `name` at the beginning of a line.
pub(crate) fn value(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_stat_are_found_after_any_name() {
        let stat = b"7 (a) b) R 1 7 7 0 -1 4194304 100 0 0 0 300 50 20 5 20 0 3 0 1000 0 0";
        let ms = Duration::from_millis;
        let per_tick = 1000 / u64::try_from(sysconf(SysconfVar::CLK_TCK).unwrap().unwrap()).unwrap();
        assert_eq!(times(stat), Some((ms(320 * per_tick), ms(55 * per_tick), 3)));
        assert_eq!(times(b"7 (x) R 1 7"), None);
        assert_eq!(times(b""), None);
    }

    #[test]
    fn a_value_is_that_of_a_whole_name() {
        let text = "VmPeak:\t  9 kB\nVmRSS:\t     1234 kB\nread_bytes: 4096\n";
        assert_eq!(
            (value(text, "VmRSS:"), value(text, "read_bytes:"), value(text, "bytes:")),
            (Some(1234), Some(4096), None)
        );
    }

    #[test]
    fn this_process_uses_memory_and_has_a_thread() {
        let usage = of_process(std::process::id() as Pid).unwrap();
        assert!(usage.memory > Some(1 << 16) && usage.memory <= usage.memory_peak, "{usage:?}");
        assert!(usage.tasks >= Some(1) && usage.cpu_user.is_some(), "{usage:?}");
        assert_eq!(of_process(Pid::MAX), None);
    }
}
