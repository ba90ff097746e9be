//! The random seed: random bytes that are saved at shutdown and fed to the kernel's generator at the next boot
//! (random(4)).

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use tl_os::random;

const DIR: &str = "/var/lib/tl-init";
const FILE: &str = "/var/lib/tl-init/random-seed";
/// Length of the seed in bytes: the size of the generator's state.
const LENGTH: u64 = 32;

/// Feeds the seed to the kernel, and replaces it by a new one at once: no seed is used twice, even after a power
/// failure.
///
/// # Errors
/// When a seed exists and cannot be read, or a new one cannot be written.
pub(crate) fn load() -> io::Result<String> {
    let found = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        result => Some(result?),
    };
    if let Some(file) = &found {
        let mut seed = Vec::new();
        file.take(LENGTH).read_to_end(&mut seed)?;
        OpenOptions::new().write(true).open("/dev/urandom")?.write_all(&seed)?;
    }
    save()?;
    Ok(if found.is_some() { "loaded" } else { "none yet" }.to_owned())
}

/// Saves a new seed for the next boot.
///
/// # Errors
/// When the seed cannot be written.
pub(crate) fn save() -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(DIR)?;
    let seed = random::bytes::<{ LENGTH as usize }>()?;
    let new = format!("{FILE}.new");
    let _ = fs::remove_file(&new);
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?.write_all(&seed)?;
    fs::rename(new, FILE)
}
