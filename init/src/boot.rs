//! The duties of a boot, as a table. Each can be done twice, and none is needed for the next.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use tl_os::cgroup::{self, Settled};
use tl_os::thread;
use tl_os::{loopback, resource_limits};

use crate::files;
use crate::mounts::{self, Mount};
use crate::report::Report;
use crate::role::Role;
use crate::seed;

/// Where a duty is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    /// On a machine only: in a container it was done, or would change the machine around it.
    Machine,
    /// In a container too, as far as it is missing there and allowed.
    Both,
    /// There only: a machine does it [`LATER`].
    Container,
}

enum Duty {
    Mount(&'static Mount),
    Do(&'static str, On, fn() -> io::Result<String>),
}

use Duty::{Do, Mount as Provide};

/// All of them, in order.
const DUTIES: &[Duty] = &[
    Do("root", On::Machine, mounts::make_root_writable),
    Provide(&mounts::SYS),
    Provide(&mounts::DEV),
    Provide(&mounts::PTS),
    Provide(&mounts::SHM),
    Provide(&mounts::MQUEUE),
    Do("device links", On::Both, link_devices),
    Provide(&mounts::RUN),
    Do("/run/lock", On::Both, || made("/run/lock")),
    Provide(&mounts::TMP),
    Provide(&mounts::CGROUP),
    Do("oom score", On::Both, || set("/proc/self/oom_score_adj", "-1000")),
    Do("descriptors", On::Machine, raise_descriptors),
    Do("loopback", On::Container, set_loopback_up),
    Do("hostname", On::Machine, set_hostname),
    Do("ctrl-alt-del", On::Machine, take_over_ctrl_alt_del),
    // Errors, and what is worse, are shown on the console (syslog(2)).
    Do("console", On::Machine, || set("/proc/sys/kernel/printk", "4")),
];

/// What a machine does once the API is there, because it takes long: no client comes before the network does, and no
/// random bytes come before the kernel's generator is ready (getrandom(2)), seed or not.
const LATER: &[Duty] = &[Do("loopback", On::Machine, set_loopback_up)];

/// Does them. Gives what we have of cgroups.
pub(crate) fn boot(place: Role, report: &Report) -> Option<Settled> {
    perform(DUTIES, place, report);
    let mut found = None;
    report.step("cgroup", || {
        let settled = cgroup::settle().map(|settled| {
            let told = match settled.controllers[..] {
                [] => "no controllers here".to_owned(),
                _ => format!("controllers: {}", settled.controllers.join(" ")),
            };
            found = Some(settled);
            told
        });
        tolerate(place, settled)
    });
    found
}

/// Mixes the random seed in, on a thread of its own: the disk that it is on may not answer.
pub(crate) fn load_seed(report: &Report) {
    let reported = report.clone();
    let load = move || {
        reported.step("random seed", seed::load);
        Ok(())
    };
    if let Err(error) = thread::spawn("seed", load, || {}) {
        report.failed("random seed", &error.to_string());
    }
}

/// Does the rest.
pub(crate) fn finish(place: Role, leaf: Option<&Path>, report: &Report) {
    perform(LATER, place, report);
    if let Some(leaf) = leaf {
        report.step("own cgroup", || cgroup::enter(leaf).map(|()| leaf.display().to_string()));
    }
}

fn perform(duties: &[Duty], place: Role, report: &Report) {
    for duty in duties {
        match duty {
            Provide(mount) => report.step(mount.target, || tolerate(place, mount.provide(place))),
            Do(_, On::Machine, _) if place != Role::Machine => {}
            Do(_, On::Container, _) if place == Role::Machine => {}
            Do(name, _, run) => report.step(name, || tolerate(place, run())),
        }
    }
}

/// What a container does not let us do is not ours to do.
fn tolerate(place: Role, result: io::Result<String>) -> io::Result<String> {
    match result {
        Err(error) if place == Role::Container && is_refusal(&error) => Ok(format!("not for us: {error}")),
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

fn made(dir: &str) -> io::Result<String> {
    match fs::create_dir(dir) {
        Ok(()) => Ok("made".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok("there already".to_owned()),
        Err(error) => Err(error),
    }
}

/// What programs expect in /dev and the kernel does not make.
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
            // devtmpfs has a node for ptmx, which works as well.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(if done.is_empty() { "there already".to_owned() } else { done.join(" ") })
}

/// The kernel starts us with 4,096 (INR_OPEN_MAX). The soft limit is the supervisor's to raise, for itself only.
fn raise_descriptors() -> io::Result<String> {
    const ENOUGH: u64 = 512 << 10;
    Ok(format!("up to {}", resource_limits::raise_hard_nofile(ENOUGH)?))
}

fn set_loopback_up() -> io::Result<String> {
    Ok(if loopback::up()? { "set up" } else { "up already" }.to_owned())
}

fn set_hostname() -> io::Result<String> {
    let text = match files::read_regular(Path::new("/etc/hostname")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        result => result?,
    };
    let text = String::from_utf8_lossy(&text);
    let name = hostname(&text);
    nix::unistd::sethostname(name)?;
    Ok(name.to_owned())
}

/// The first line that says something, as hostname(5) has it.
fn hostname(text: &str) -> &str {
    let lines = text.lines().map(str::trim);
    lines.into_iter().find(|line| !line.is_empty() && !line.starts_with('#')).unwrap_or("localhost")
}

/// The kernel tells us by SIGINT instead of restarting at once (reboot(2)).
fn take_over_ctrl_alt_del() -> io::Result<String> {
    nix::sys::reboot::set_cad_enabled(false)?;
    Ok("SIGINT".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_the_hostname() {
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
    fn a_machine_tolerates_nothing_in_silence() {
        let refused = || Err(io::Error::from_raw_os_error(libc::EPERM));
        assert!(tolerate(Role::Machine, refused()).is_err());
        assert!(tolerate(Role::Container, refused()).unwrap().starts_with("not for us"));
        assert!(tolerate(Role::Container, Err(io::Error::from_raw_os_error(libc::EIO))).is_err());
    }
}
