//! The state and the owner of a pipe.

use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::{SFlag, fstat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{Gid, Uid, fchown, geteuid};

use crate::poll::{Events, wait};

/// The magic number of the file system that anonymous pipes are in (statfs(2)).
const PIPEFS_MAGIC: FsType = FsType(0x5049_5045);

/// Makes the user the owner of both ends of a pipe, so that the user's processes can open `/dev/stdout` and the like:
/// that opens the pipe again, with a check of permissions. The mode stays the same, 0600 for a new pipe.
///
/// Without the privilege the owner stays the same. The pipe works, but cannot be opened by path.
pub(crate) fn give(pipe: &impl AsFd, uid: u32, gid: u32) {
    if uid == geteuid().as_raw() {
        return;
    }
    if let Err(errno) = fchown(pipe, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))) {
        log::debug!("cannot change the owner of a pipe: {errno}");
    }
}

/// Makes the user the owner of a stream that this process was started with, if it is an anonymous pipe that this
/// process's user owns. Named pipes and files keep their owner: other programs may rely on it.
pub(crate) fn give_inherited(stream: &impl AsFd, uid: u32, gid: u32) {
    let may_give = |stream: &_| {
        let stat = fstat(stream)?;
        let is_pipe = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO;
        let is_own = is_pipe && stat.st_uid == geteuid().as_raw();
        Ok::<bool, nix::Error>(is_own && fstatfs(stream)?.filesystem_type() == PIPEFS_MAGIC)
    };
    // An error means that the stream is closed.
    if may_give(stream).unwrap_or(false) {
        give(stream, uid, gid);
    }
}

/// The number of bytes in a pipe (FIONREAD, pipe(7)); 0 if it cannot be determined.
pub fn bytes_in(pipe: &impl AsFd) -> usize {
    count_bytes(pipe).unwrap_or(0)
}

fn count_bytes(pipe: &impl AsFd) -> Option<usize> {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int, which `count` is valid for.
    let result = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut count) };
    if result < 0 { None } else { usize::try_from(count).ok() }
}

/// Raises the capacity of a pipe to at least `bytes`; a larger capacity stays. Returns whether it has that capacity now:
/// the kernel refuses when the user has too many large pipes (pipe(7)).
pub fn enlarge(pipe: &impl AsFd, bytes: usize) -> bool {
    let has = |size: libc::c_int| usize::try_from(size).is_ok_and(|size| size >= bytes);
    let Ok(wanted) = libc::c_int::try_from(bytes) else { return false };
    // The kernel would also lower the capacity.
    fcntl(pipe, FcntlArg::F_GETPIPE_SZ).is_ok_and(has) || fcntl(pipe, FcntlArg::F_SETPIPE_SZ(wanted)).is_ok_and(has)
}

/// Whether a pipe is empty and has no open writing end, so that a read would return its end. `pipe` is the reading
/// end. False if it cannot be determined.
pub fn is_at_end(pipe: &impl AsFd) -> bool {
    let has_writer = match wait([(pipe.as_fd(), Events::NONE)], Some(Instant::now())) {
        Ok([events]) => !events.any(Events::GONE),
        Err(_) => true,
    };
    // The bytes are counted last: a pipe without a writer gets no more of them.
    !has_writer && matches!(count_bytes(pipe), Some(0))
}

/// Whether the reading end of a pipe is open anywhere. `pipe` is the writing end. Also true if it cannot be determined.
pub fn has_reader(pipe: &impl AsFd) -> bool {
    match wait([(pipe.as_fd(), Events::NONE)], Some(Instant::now())) {
        Ok([events]) => !events.any(Events::GONE),
        Err(_) => true,
    }
}
