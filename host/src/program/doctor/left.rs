//! Containers of `tl-host doctor`, of which one that was killed leaves its last.

use std::fs;

use tl_os::procfs;

use crate::engine::Engine;

/// The label of all containers of `doctor`, and its value.
pub(super) const LABEL: (&str, &str) = ("tl-host.doctor", "trial");

/// The label with the process that removes the container.
pub(super) const LABEL_OWNER: &str = "tl-host.doctor.owner";

/// This process, as the value of [`LABEL_OWNER`]: the boot of the machine, the PID and the start time.
pub(super) fn this_process() -> Option<String> {
    let (pid, start) = procfs::look_at(i32::try_from(std::process::id()).ok()?)?.identity();
    Some(format!("{} {pid} {start}", boot()?))
}

fn boot() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

/// Whether the process of this label still runs.
fn is_alive(owner: &str) -> bool {
    let mut words = owner.split(' ');
    let (Some(boot_then), Some(pid), Some(start)) = (words.next(), words.next(), words.next()) else { return false };
    let identity = pid.parse().ok().zip(start.parse().ok());
    boot().is_some_and(|boot| boot == boot_then) && identity.is_some_and(procfs::is_alive)
}

/// Removes the containers that were left by a `doctor` that does not run any more. It is no error if that fails: the next
/// one does it.
pub(crate) fn remove_left(engine: &Engine) {
    let (containers, _) = match engine.list(LABEL) {
        Ok(containers) => containers,
        Err(error) => return log::debug!("the containers of `tl-host doctor` cannot be listed: {error}"),
    };
    for container in containers {
        let owner = container.labels.iter().find(|(name, _)| name == LABEL_OWNER);
        if owner.is_some_and(|(_, owner)| is_alive(owner)) {
            continue;
        }
        match engine.remove(&container.id) {
            Ok(()) => log::info!("container {} was left by `tl-host doctor`: it is removed", container.name),
            Err(error) => {
                log::warn!("container {}, left by `tl-host doctor`, cannot be removed: {error}", container.name)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_alive_until_it_has_ended() {
        let own = this_process().unwrap();
        assert!(is_alive(&own));
        let (boot_and_pid, start) = own.rsplit_once(' ').unwrap();
        assert!(!is_alive(&format!("{boot_and_pid} {}", start.parse::<u64>().unwrap() + 1)), "the PID of another one");
        assert!(!is_alive(&own.replacen('-', "x", 1)), "of another boot");
        assert!(!is_alive("") && !is_alive("a b c"));
    }
}
