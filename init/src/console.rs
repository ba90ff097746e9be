//! Descriptors 0, 1 and 2, before anything else: whatever is opened first without them would be one of them.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;

use crate::mounts;
use crate::role::Role;

/// Opens those that are closed: the console, else /dev/null, else what cannot be read or written.
pub(crate) fn open() {
    // The kernel gives the lowest number that is free, so that the first one above 2 shows that these are taken.
    while let Some(file) = something()
        && file.as_raw_fd() <= 2
    {
        // Stays open for good.
        let _ = file.into_raw_fd();
    }
}

fn something() -> Option<std::fs::File> {
    let open = |path: &str, flags: OFlag| {
        let mut options = OpenOptions::new();
        options.read(true).write(!flags.contains(OFlag::O_PATH)).custom_flags(flags.bits()).open(path).ok()
    };
    let device = || {
        let console = open("/dev/console", OFlag::O_NOCTTY);
        console.or_else(|| open("/dev/null", OFlag::O_NOCTTY))
    };
    device()
        .or_else(|| {
            // An initramfs without /dev: only the init of a machine sees that.
            if std::process::id() == 1 {
                let _ = mounts::DEV.provide(Role::Machine);
            }
            device()
        })
        .or_else(|| open("/", OFlag::O_PATH))
}
