//! What a signal means, as one table.

use tl_os::signal_thread::Received;
use tl_supervisor::http::EndAction;

use crate::role::Role;

/// SIGRTMIN as the C library counts it: two below are its own.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// What is to be done about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Everything ends.
    End {
        action: EndAction,
        grace: bool,
        code: u8,
    },
    /// The main process gets it. `ends`: a second one is for us.
    Forward {
        ends: bool,
    },
    /// The services are looked at again.
    Reload,
    Nothing,
}

/// All that mean something anywhere. What the kernel sends for a fault of ours stays what it is, SIGCHLD is the
/// supervisor's, and who writes to a terminal from the background is not to be told so again and again.
pub(crate) fn all() -> Vec<i32> {
    const NOT_OURS: [i32; 13] = [
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGSEGV,
        libc::SIGSYS,
        libc::SIGCHLD,
        libc::SIGPIPE,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ];
    (1..RTMIN - 2).chain(RTMIN..=RTMAX).filter(|signal| !NOT_OURS.contains(signal)).collect()
}

/// Whether somebody sent it whose word counts: the kernel, one outside of our PID namespace (whose UID may have no
/// number in here), root, or we ourselves.
pub(crate) fn counts(received: Received, our_uid: u32) -> bool {
    received.sender.is_none_or(|sender| sender.pid == 0 || sender.uid == 0 || sender.uid == our_uid)
}

/// The table. `entry`: there is a main process that has not ended.
pub(crate) fn meaning(place: Role, entry: bool, signal: i32) -> Meaning {
    use EndAction::{Exit, Halt, PowerOff, Reboot};
    let end = |action, code| Meaning::End { action, grace: true, code };
    let at_once = |action| Meaning::End { action, grace: false, code: 0 };
    const INTERRUPTED: u8 = 128 + libc::SIGINT as u8;
    match (place, entry) {
        (Role::Machine, _) => match signal {
            libc::SIGTERM | libc::SIGPWR | libc::SIGUSR2 => end(PowerOff, 0),
            libc::SIGINT => end(Reboot, 0),
            libc::SIGUSR1 => end(Halt, 0),
            libc::SIGHUP => Meaning::Reload,
            _ => match signal - RTMIN {
                3 => end(Halt, 0),
                4 => end(PowerOff, 0),
                5 => end(Reboot, 0),
                13 => at_once(Halt),
                14 => at_once(PowerOff),
                15 => at_once(Reboot),
                _ => Meaning::Nothing,
            },
        },
        (_, true) => Meaning::Forward { ends: matches!(signal, libc::SIGTERM | libc::SIGINT) },
        (_, false) => match signal {
            libc::SIGTERM | libc::SIGPWR | libc::SIGUSR2 | libc::SIGUSR1 => end(Exit, 0),
            libc::SIGINT => end(Exit, INTERRUPTED),
            libc::SIGHUP => Meaning::Reload,
            _ => match signal - RTMIN {
                3..=5 => end(Exit, 0),
                13..=15 => at_once(Exit),
                _ => Meaning::Nothing,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use tl_os::signal_thread::Sender;

    use super::*;
    use EndAction::{Exit, Halt, PowerOff, Reboot};

    /// Everything that means something, for each of the three places.
    fn table(place: Role, entry: bool) -> Vec<(i32, EndAction, bool, u8)> {
        let ends = all().into_iter().filter_map(|signal| match meaning(place, entry, signal) {
            Meaning::End { action, grace, code } => Some((signal, action, grace, code)),
            _ => None,
        });
        ends.collect()
    }

    #[test]
    fn on_a_machine() {
        let right = [
            (2, Reboot, true, 0),
            (10, Halt, true, 0),
            (12, PowerOff, true, 0),
            (15, PowerOff, true, 0),
            (30, PowerOff, true, 0),
            (37, Halt, true, 0),
            (38, PowerOff, true, 0),
            (39, Reboot, true, 0),
            (47, Halt, false, 0),
            (48, PowerOff, false, 0),
            (49, Reboot, false, 0),
        ];
        assert_eq!(table(Role::Machine, false), right);
        assert_eq!(table(Role::Machine, true), right);
    }

    #[test]
    fn in_a_container() {
        let graceful = [(2, 130), (10, 0), (12, 0), (15, 0), (30, 0), (37, 0), (38, 0), (39, 0)];
        let graceful = graceful.map(|(signal, code)| (signal, Exit, true, code));
        let at_once = [47, 48, 49].map(|signal| (signal, Exit, false, 0));
        let right = [&graceful[..], &at_once[..]].concat();
        assert_eq!(table(Role::Container, false), right);
        assert_eq!(table(Role::Process, false), right);
        for signal in [3, 18, 28, 40, 64] {
            assert_eq!(meaning(Role::Container, false, signal), Meaning::Nothing, "{signal}");
        }
    }

    #[test]
    fn with_a_main_process_it_gets_them_all() {
        for signal in all() {
            let right = Meaning::Forward { ends: signal == 15 || signal == 2 };
            assert_eq!(meaning(Role::Container, true, signal), right, "{signal}");
        }
    }

    #[test]
    fn hup_reads_the_services_again() {
        for place in [Role::Machine, Role::Container, Role::Process] {
            assert_eq!(meaning(place, false, 1), Meaning::Reload);
        }
    }

    #[test]
    fn whose_word_counts() {
        let from = |pid, uid| counts(Received { signal: 15, sender: Some(Sender { pid, uid }) }, 7);
        assert!(counts(Received { signal: 15, sender: None }, 7));
        assert!(from(5, 0) && from(5, 7) && from(0, 65534));
        assert!(!from(5, 1000) && !from(5, 65534));
    }
}
