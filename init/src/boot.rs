//! The table of boot duties. Each can be repeated without harm, and none depends on another.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use tl_os::cgroup::{self, Settled};
use tl_os::thread;
use tl_os::{loopback, regular_file, resource_limits};

use crate::files;
use crate::mounts::{self, Mount, MountTable};
use crate::report::Report;
use crate::role::Role;
use crate::seed;

/// The roles in which this process has a duty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// On a machine only: in a container the runtime has done it, or it would change the machine outside of the
    /// container.
    Machine,
    /// On a machine, and in a container that lacks it and allows it.
    Both,
    /// In a container only; on a machine it is one of the [`LATER`] duties.
    Container,
}

enum Duty {
    Mount(&'static Mount),
    Do(&'static str, On, fn() -> io::Result<String>),
}

use Duty::{Do, Mount as Provide};

/// The duties before the API listens, in order.
const DUTIES: &[Duty] = &[
    Do("root", On::Machine, mounts::make_root_writable),
    Provide(&mounts::SYS),
    Provide(&mounts::DEV),
    Provide(&mounts::PTS),
    Provide(&mounts::SHM),
    Provide(&mounts::MQUEUE),
    Do("device links", On::Both, link_devices),
    Provide(&mounts::RUN),
    Do("/run/lock", On::Both, || make_dir("/run/lock")),
    Provide(&mounts::TMP),
    Provide(&mounts::CGROUP),
    Do("oom score", On::Both, || set("/proc/self/oom_score_adj", "-1000")),
    Do("descriptors", On::Machine, raise_descriptors),
    Do("loopback", On::Container, set_loopback_up),
    Do("hostname", On::Machine, set_hostname),
    Do("ctrl-alt-del", On::Machine, take_over_ctrl_alt_del),
    // The console shows kernel messages of level error and worse (syslog(2)).
    Do("console", On::Machine, || set("/proc/sys/kernel/printk", "4")),
];

/// The duties of a machine once the API listens. They take long, and most clients can connect only when the network is
/// up, which is later.
const LATER: &[Duty] = &[Do("loopback", On::Machine, set_loopback_up)];

/// Performs [`DUTIES`], and prepares the cgroups for units. Returns `None` if there are no usable cgroups.
pub(crate) fn boot(role: Role, report: &Report) -> Option<Settled> {
    perform(DUTIES, role, report);
    let mut found = None;
    report.step("cgroup", || {
        let settled = cgroup::settle().map(|settled| {
            let detail = match settled.controllers[..] {
                [] => "no controllers here".to_owned(),
                _ => format!("controllers: {}", settled.controllers.join(" ")),
            };
            found = Some(settled);
            detail
        });
        tolerate(role, settled)
    });
    found
}

/// Feeds the saved random seed to the kernel, on a thread of its own: the disk that holds it may not respond.
pub(crate) fn load_seed(report: &Report) {
    let boot_report = report.clone();
    let load = move || {
        boot_report.step("random seed", seed::load);
        Ok(())
    };
    if let Err(error) = thread::spawn("seed", load, || {}) {
        report.failed("random seed", &error.to_string());
    }
}

/// Performs the [`LATER`] duties, and enters the cgroup `leaf`.
pub(crate) fn finish(role: Role, leaf: Option<&Path>, report: &Report) {
    perform(LATER, role, report);
    if let Some(leaf) = leaf {
        report.step("own cgroup", || cgroup::enter(leaf).map(|()| leaf.display().to_string()));
    }
}

fn perform(duties: &[Duty], role: Role, report: &Report) {
    let mut table = MountTable::default();
    for duty in duties {
        match duty {
            Provide(mount) => report.step(mount.target, || tolerate(role, mount.provide(role, &mut table))),
            Do(_, On::Machine, _) if role != Role::Machine => {}
            Do(_, On::Container, _) if role == Role::Machine => {}
            Do(name, _, run) => report.step(name, || tolerate(role, run())),
        }
    }
}

/// Turns a refusal by a container into success: a duty that a container does not allow is that of its runtime.
fn tolerate(role: Role, result: io::Result<String>) -> io::Result<String> {
    match result {
        Err(error) if role == Role::Container && is_refusal(&error) => Ok(format!("not allowed here: {error}")),
        result => result,
    }
}

fn is_refusal(error: &io::Error) -> bool {
    let refusals = [libc::EPERM, libc::EACCES, libc::EROFS, libc::ENOENT, libc::ENODEV, libc::EBUSY];
    error.raw_os_error().is_some_and(|errno| refusals.contains(&errno)) || error.kind() == io::ErrorKind::NotFound
}

fn set(file: &str, value: &str) -> io::Result<String> {
    fs::write(file, value)?;
    Ok(value.to_owned())
}

fn make_dir(dir: &str) -> io::Result<String> {
    match fs::create_dir(dir) {
        Ok(()) => Ok("made".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok("there already".to_owned()),
        Err(error) => Err(error),
    }
}

/// Creates the links that programs expect in /dev and that the kernel does not create.
fn link_devices() -> io::Result<String> {
    let mut done = Vec::new();
    for (link, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
    ] {
        match symlink(target, link) {
            Ok(()) => done.push(link),
            // devtmpfs has a device node for ptmx, which works too.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(if done.is_empty() { "there already".to_owned() } else { done.join(" ") })
}

/// Raises the hard limit of descriptors from the kernel's 4,096 (INR_OPEN_MAX). The supervisor raises the soft limit,
/// for itself only.
fn raise_descriptors() -> io::Result<String> {
    const ENOUGH: u64 = 512 << 10;
    Ok(format!("up to {}", resource_limits::raise_hard_nofile(ENOUGH)?))
}

fn set_loopback_up() -> io::Result<String> {
    Ok(if loopback::up()? { "set up" } else { "up already" }.to_owned())
}

fn set_hostname() -> io::Result<String> {
    let text = match regular_file::read(Path::new("/etc/hostname"), files::MAX_LENGTH) {
        Err(error) if error.is_not_found() => Vec::new(),
        result => result?,
    };
    let text = String::from_utf8_lossy(&text);
    let name = hostname(&text);
    nix::unistd::sethostname(name)?;
    Ok(name.to_owned())
}

/// The first line that is neither empty nor a comment (hostname(5)); `localhost` if there is none.
fn hostname(text: &str) -> &str {
    let lines = text.lines().map(str::trim);
    lines.into_iter().find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or("localhost")
}

/// Makes the kernel send SIGINT at Ctrl-Alt-Del instead of restarting the machine at once (reboot(2)).
fn take_over_ctrl_alt_del() -> io::Result<String> {
    nix::sys::reboot::set_cad_enabled(false)?;
    Ok("SIGINT".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hostname_is_the_first_line_that_is_not_a_comment() {
        for (text, right) in [
            ("box\n", "box"),
            ("# a comment\n\n  box.local  \nother", "box.local"),
            ("", "localhost"),
            ("#\n", "localhost"),
        ] {
            assert_eq!(hostname(text), right, "{text:?}");
        }
    }

    #[test]
    fn only_a_container_tolerates_a_refusal() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
        assert!(tolerate(Role::Machine, refused()).is_err());
        assert!(tolerate(Role::Container, refused()).unwrap().starts_with("not allowed here"));
        assert!(tolerate(Role::Container, Err(io::Error::from_raw_os_error(libc::EIO))).is_err());
    }
}
