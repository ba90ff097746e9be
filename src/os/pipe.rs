//! Questions to a pipe.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use super::poll::{Events, wait};

/// The bytes that are in it (FIONREAD, pipe(7)).
pub fn bytes_in(pipe: &impl AsFd) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, and `count` is valid for that.
    let result = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result < 0 { 0 } else { usize::try_from(count).unwrap_or(0) }
}

/// Whether anybody holds the reading end of what we hold the writing end of.
pub fn has_reader(pipe: &impl AsFd) -> bool {
    match wait([(pipe.as_fd(), Events::NONE)], Some(Instant::now())) {
        Ok([events]) => !events.any(Events::GONE),
        Err(_) => true,
    }
}
