//! What is left when every process has ended: of a machine its disks and its power, of a container an exit status.

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

use crate::role::Role;
use crate::{mounts, seed};

/// What everything ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) action: EndAction,
    /// The exit status, where there is one.
    pub(crate) code: u8,
}

/// A disk that does not answer must not keep the machine.
pub(crate) const DISK_PATIENCE: Duration = Duration::from_secs(10);

/// Ends the machine, which does not return; elsewhere gives the exit status.
pub(crate) fn finish(place: Role, ending: Ending) -> u8 {
    if place != Role::Machine {
        return ending.code;
    }
    if within(DISK_PATIENCE, "disks", settle_disks).is_none() {
        log::error!("a disk does not answer: not waited for");
    }
    log::logger().flush();
    let Err(errno) = end_machine(ending.action);
    log::error!("the kernel does not end the machine: {errno}");
    if errno == Errno::EPERM {
        // A machine's init may: this is a container without /proc, which could not be told from one.
        return ending.code;
    }
    loop {
        std::thread::park();
    }
}

/// Leaves the disks as they are to be found again.
fn settle_disks() {
    if let Err(error) = seed::save() {
        log::warn!("the random seed is not saved: {error}");
    }
    sync();
    mounts::unmount_all();
    sync();
}

/// Does it on a thread that may be left behind. Gives the result, if it is there in time.
pub(crate) fn within<T: Send + 'static>(
    patience: Duration,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (tell, done) = bounded(1);
    let body = move || {
        // Nobody waits for it any more where it took too long.
        let _ = tell.send(body());
        Ok(())
    };
    if let Err(error) = thread::spawn(name, body, || {}) {
        log::error!("no thread for {name}: {error}");
    }
    done.recv_timeout(patience).ok()
}

fn end_machine(action: EndAction) -> Result<Infallible, Errno> {
    reboot(match action {
        EndAction::Reboot => RebootMode::RB_AUTOBOOT,
        EndAction::Halt => RebootMode::RB_HALT_SYSTEM,
        EndAction::PowerOff | EndAction::Exit => RebootMode::RB_POWER_OFF,
    })
}

/// Without a supervisor there is nobody left to end things in order.
pub(crate) fn last_resort() -> Ending {
    kill_everything(Supervisor::SHUTDOWN_MARGIN);
    Ending { action: EndAction::PowerOff, code: 1 }
}

/// The main thread has panicked, which has been told.
pub(crate) fn after_panic(place: Role) -> u8 {
    finish(place, last_resort())
}
