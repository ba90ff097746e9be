//! The thread that watches signals, and what each signal means, as one table.

use std::time::Instant;

use crossbeam_channel::Sender;
use tl_os::signal_thread::{Received, SignalThread};
use tl_supervisor::RateLimit;
use tl_supervisor::http::EndAction;

use crate::event::Event;
use crate::exit_status::of_signal;
use crate::report::Report;
use crate::role::Role;

/// SIGRTMIN as the C library defines it. It uses the two signals below for itself.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// What to do about a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Shut down.
    End {
        action: EndAction,
        /// Whether processes have the configured grace, rather than none.
        grace: bool,
        /// The exit status.
        status: u8,
    },
    /// Send it to the main process.
    Forward {
        /// Whether it asks the main process to end. The second such signal shuts down without grace.
        ends: bool,
    },
    /// Read the service files again.
    Reload,
    /// Ignore it.
    Nothing,
}

/// The signals that have a meaning in any role. Not among them: signals that the kernel sends for a fault in this
/// process, which keep their default action; SIGCHLD, which the supervisor watches; SIGTTIN and SIGTTOU, which the
/// kernel would send again at each access to a terminal from the background.
pub(crate) fn all() -> Vec<i32> {
    const EXCLUDED: [i32; 13] = [
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
    (1..RTMIN - 2).chain(RTMIN..=RTMAX).filter(|signal| !EXCLUDED.contains(signal)).collect()
}

/// Starts the thread that sends each signal to the main thread. On a machine it is no error if that fails: everything but
/// the signals works.
///
/// # Errors
/// One sentence about why the thread cannot be started.
pub(crate) fn watch(sender: Sender<Event>, role: Role, report: &Report) -> Result<Option<SignalThread>, String> {
    let notice = move |received| drop(sender.send(Event::Signal(received)));
    match SignalThread::start("signals", &all(), notice) {
        Ok(thread) => Ok(Some(thread)),
        Err(error) if role == Role::Machine => {
            report.failed("signals", &error.to_string());
            Ok(None)
        }
        Err(error) => Err(format!("cannot watch signals: {error}")),
    }
}

/// Logs signals whose sender is not authorised. Any process can send them in a loop, so the lines are limited.
pub(crate) struct Ignored {
    limit: RateLimit<()>,
    created: Instant,
}

impl Ignored {
    pub(crate) fn new() -> Ignored {
        Ignored { limit: RateLimit::default(), created: Instant::now() }
    }

    pub(crate) fn log(&mut self, Received { signal, sender, .. }: Received) {
        if self.limit.admits(&(), self.created.elapsed()) {
            log::warn!("signal {signal} from {sender:?} is ignored: the sender is not authorised");
        }
    }

    /// When [`Ignored::log_left_out`] has something to log.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.limit.due().map(|due| self.created + due)
    }

    /// Logs how many lines were left out.
    pub(crate) fn log_left_out(&mut self) {
        for (_, count) in self.limit.take_due(self.created.elapsed()) {
            log::warn!("{count} more signals from senders that are not authorised");
        }
    }
}

/// Whether the sender of the signal may control this process: the kernel, root, a process of the daemon's user, or a
/// process outside of this PID namespace, whose UID may not be mapped here.
pub(crate) fn is_authorised(received: Received, daemon_uid: u32) -> bool {
    received.sender.is_none_or(|sender| sender.pid == 0 || sender.uid == 0 || sender.uid == daemon_uid)
}

/// The meaning of a signal. `has_main`: there is a main process that signals are forwarded to.
pub(crate) fn meaning(role: Role, has_main: bool, signal: i32) -> Meaning {
    use EndAction::{Exit, Halt, PowerOff, Reboot};
    let end = |action, status| Meaning::End { action, grace: true, status };
    let at_once = |action| Meaning::End { action, grace: false, status: 0 };
    match (role, has_main) {
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
            libc::SIGINT => end(Exit, of_signal(libc::SIGINT)),
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

    /// The signals that shut down in this role.
    fn table(role: Role, has_main: bool) -> Vec<(i32, EndAction, bool, u8)> {
        let ends = all().into_iter().filter_map(|signal| match meaning(role, has_main, signal) {
            Meaning::End { action, grace, status } => Some((signal, action, grace, status)),
            _ => None,
        });
        ends.collect()
    }

    #[test]
    fn on_a_machine_signals_power_off_restart_or_halt() {
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
    fn elsewhere_signals_exit() {
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
    fn all_signals_are_forwarded_to_a_main_process() {
        for signal in all() {
            let right = Meaning::Forward { ends: signal == 15 || signal == 2 };
            assert_eq!(meaning(Role::Container, true, signal), right, "{signal}");
        }
    }

    #[test]
    fn sighup_reads_the_service_files_again() {
        for role in [Role::Machine, Role::Container, Role::Process] {
            assert_eq!(meaning(role, false, 1), Meaning::Reload);
        }
    }

    #[test]
    fn only_the_kernel_root_the_daemons_user_and_outer_processes_are_authorised() {
        let from = |pid, uid| is_authorised(Received { signal: 15, sender: Some(Sender { pid, uid }) }, 7);
        assert!(is_authorised(Received { signal: 15, sender: None }, 7));
        assert!(from(5, 0) && from(5, 7) && from(0, 65534));
        assert!(!from(5, 1000) && !from(5, 65534));
    }
}
