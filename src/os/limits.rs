//! What the kernel lets this process do: descriptors, and being the one that orphans come to.

use std::io;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises RLIMIT_NOFILE to its hard limit. Returns what it was, for the children, and what it is now.
///
/// # Errors
/// What `getrlimit(2)` says.
pub fn raise_nofile() -> io::Result<(libc::rlimit, u64)> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let before = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_err() {
        return Ok((before, soft));
    }
    Ok((before, hard))
}

/// Lifts the hard limit of RLIMIT_NOFILE to `enough` where it is lower, which takes CAP_SYS_RESOURCE. Returns what it
/// is then.
///
/// # Errors
/// What `setrlimit(2)` says.
pub fn lift_nofile(enough: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < enough {
        setrlimit(Resource::RLIMIT_NOFILE, soft, enough)?;
    }
    Ok(hard.max(enough))
}

/// Makes orphans of our descendants our children, as they are anyway where we are PID 1 (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// What `prctl(2)` says.
pub fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}
