//! Opens descriptors 0, 1 and 2 if they are closed. Otherwise the first files that the program opens would get these
//! numbers.

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;

use crate::mounts::{self, MountTable};
use crate::role::Role;

/// Opens the closed ones of descriptors 0, 1 and 2: on the console, else on /dev/null, else on a descriptor that can be
/// neither read nor written.
pub(crate) fn open() {
    // The kernel assigns the lowest free number: one above 2 shows that these are open.
    while let Some(file) = open_any()
        && file.as_raw_fd() <= 2
    {
        // The descriptor stays open for the life of the process.
        let _ = file.into_raw_fd();
    }
}

fn open_any() -> Option<std::fs::File> {
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
            // There is no /dev, as in an initramfs: only PID 1 of a machine starts in one.
            if std::process::id() == 1 {
                let _ = mounts::DEV.provide(Role::Machine, &mut MountTable::default());
            }
            device()
        })
        .or_else(|| open("/", OFlag::O_PATH))
}
