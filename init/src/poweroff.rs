//! Ends the program after every process has ended: powers off a machine, returns an exit status elsewhere.

use std::convert::Infallible;
use std::time::Duration;

use crossbeam_channel::bounded;
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;
use tl_os::process_tree::kill_everything;
use tl_os::thread;
use tl_supervisor::Supervisor;
use tl_supervisor::http::EndAction;

use crate::exit_status::FAILURE;
use crate::role::Role;
use crate::{mounts, seed};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) action: EndAction,
    /// The exit status, except on a machine.
    pub(crate) status: u8,
}

impl Ending {
    /// The end after a failure of the program itself: a power-off, because on a machine an exit of PID 1 is a kernel
    /// panic.
    pub(crate) const FAILURE: Ending = Ending { action: EndAction::PowerOff, status: FAILURE };
}

/// Maximum time to wait for a disk that does not respond.
pub(crate) const DISK_TIMEOUT: Duration = Duration::from_secs(10);

/// Powers off, restarts or halts a machine, and does not return. Elsewhere returns the exit status.
pub(crate) fn finish(role: Role, ending: Ending) -> u8 {
    if role != Role::Machine {
        return ending.status;
    }
    if within(DISK_TIMEOUT, "disks", sync_disks).is_none() {
        log::error!("a disk does not respond within {} s; continuing without it", DISK_TIMEOUT.as_secs());
    }
    log::logger().flush();
    let Err(errno) = end_machine(ending.action);
    log::error!("the machine cannot be powered off, restarted or halted: {errno}");
    if errno == Errno::EPERM {
        // PID 1 of a machine is permitted to do this, so this process is in a container without /proc, which was taken
        // for a machine.
        return ending.status;
    }
    loop {
        std::thread::park();
    }
}

/// Saves the random seed, writes all data to the disks, and unmounts them.
fn sync_disks() {
    if let Err(error) = seed::save() {
        log::warn!("cannot save the random seed: {error}");
    }
    sync();
    mounts::unmount_all();
    sync();
}

/// Runs `body` on a thread of its own, and waits for its result until the timeout. Then the thread is left behind.
pub(crate) fn within<T: Send + 'static>(
    timeout: Duration,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (result, done) = bounded(1);
    let body = move || {
        // After the timeout the result has no receiver.
        let _ = result.send(body());
        Ok(())
    };
    if let Err(error) = thread::spawn(name, body, || {}) {
        log::error!("cannot start the thread {name}: {error}");
    }
    done.recv_timeout(timeout).ok()
}

fn end_machine(action: EndAction) -> Result<Infallible, Errno> {
    reboot(match action {
        EndAction::Reboot => RebootMode::RB_AUTOBOOT,
        EndAction::Halt => RebootMode::RB_HALT_SYSTEM,
        EndAction::PowerOff | EndAction::Exit => RebootMode::RB_POWER_OFF,
    })
}

/// Kills all processes when no supervisor can end them in order.
pub(crate) fn last_resort() -> Ending {
    kill_everything(Supervisor::SHUTDOWN_MARGIN);
    Ending::FAILURE
}

/// Ends the program after the main thread has panicked, which the panic hook has logged.
pub(crate) fn after_panic(role: Role) -> u8 {
    finish(role, last_resort())
}
