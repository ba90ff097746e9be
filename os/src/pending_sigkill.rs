//! Whether a process has a SIGKILL pending, from `/proc/<pid>/stat` (proc_pid_stat(5)).

use crate::Pid;
use crate::kernel_file;
use crate::procfs::stat_fields;

/// `PF_EXITING` in the field `flags` (the kernel's include/linux/sched.h).
const EXITING: u64 = 0x4;
/// The bit of SIGKILL in a set of pending signals.
const KILL: u64 = 1 << (libc::SIGKILL - 1);

/// Whether a SIGKILL is pending for the process, or the process is ending or gone. Also true if that cannot be found
/// out.
///
/// The out-of-memory killer counts its victim and sends the SIGKILL under one lock (`task_lock` of the victim, in
/// `__oom_kill_process`), and the kernel takes the same lock when this file is read. So this is true of the victim of
/// every kill that was counted before the call.
pub(crate) fn has_pending_sigkill(pid: Pid) -> bool {
    kernel_file::read(format!("/proc/{pid}/stat")).ok().and_then(|stat| parse(&stat)).unwrap_or(true)
}

fn parse(stat: &[u8]) -> Option<bool> {
    // `fields` begins with the field that the manual numbers 3.
    let fields: Vec<&str> = stat_fields(stat)?.collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let number = |at: usize| field(at)?.parse::<u64>().ok();
    let ended = matches!(field(3)?, "Z" | "X");
    // Where the kernel shows the exit code of the process, it is set from the moment at which the signal is sent.
    let doomed = number(52).is_some_and(|status| status & 0x7f == libc::SIGKILL as u64);
    Some(ended || number(9)? & EXITING != 0 || number(31)? & KILL != 0 || doomed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(state: &str, flags: u64, pending: u64, exit_code: u64) -> Vec<u8> {
        let mut fields = vec!["0".to_owned(); 50];
        fields[0] = state.to_owned();
        fields[9 - 3] = flags.to_string();
        fields[31 - 3] = pending.to_string();
        fields[52 - 3] = exit_code.to_string();
        format!("17 (a) b ( c) {}\n", fields.join(" ")).into_bytes()
    }

    #[test]
    fn a_sigkill_shows_from_the_moment_it_is_sent() {
        let alive = 0x0040_0000;
        assert_eq!(parse(&stat("S", alive, 0, 0)), Some(false));
        assert_eq!(parse(&stat("T", alive, 1 << 14, 19)), Some(false), "stopped, and another signal pending");
        assert_eq!(parse(&stat("R", alive, 1 << 8, 0)), Some(true));
        assert_eq!(parse(&stat("D", alive, 0, 9)), Some(true));
        assert_eq!(parse(&stat("R", alive | 4, 0, 0)), Some(true));
        assert_eq!(parse(&stat("Z", alive, 0, 0)), Some(true));
        assert_eq!(parse(b"17 (short) S 1"), None);
    }

    #[test]
    fn a_live_process_has_none_and_a_missing_one_counts_as_killed() {
        assert!(!has_pending_sigkill(std::process::id() as Pid));
        assert!(has_pending_sigkill(Pid::MAX));
    }
}
