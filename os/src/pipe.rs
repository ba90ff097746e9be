//! Questions to a pipe, and whose it is.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Gid, Uid, fchown, geteuid};

use crate::poll::{Events, wait};

/// The file system of pipes without a name (statfs(2)).
const PIPEFS_MAGIC: FsType = FsType(0x5049_5045);

/// Makes a pipe of ours the user's, so that it can open `/dev/stdout` and the like, which opens the pipe once more.
/// Both ends have one owner; the mode, 0600, stays.
///
/// Without the privilege it stays ours, and works as it is.
pub fn give(pipe: &impl AsFd, uid: u32, gid: u32) {
    if uid == geteuid().as_raw() {
        return;
    }
    if let Err(errno) = fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        log::debug!("a pipe stays the daemon's: {errno}");
    }
}

/// The same for a stream that we were started with, if it is a pipe that is ours to give: it has no name, so that it is
/// nobody's file, and it belongs to us.
pub fn give_inherited(stream: &impl AsFd, uid: u32, gid: u32) {
    let is_ours = |stream: &_| {
        let stat = fstat(stream)?;
        let is_pipe = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO;
        let may = is_pipe && stat.st_uid == geteuid().as_raw();
        Ok::<bool, nix::Error>(may && fstatfs(stream)?.filesystem_type() == PIPEFS_MAGIC)
    };
    // One that is closed is no pipe either.
    if is_ours(stream).unwrap_or(false) {
        give(stream, uid, gid);
    }
}

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
