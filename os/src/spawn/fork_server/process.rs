//! The process of the fork server. All of it is async-signal-safe: it was forked from a process with several threads.

use std::os::fd::RawFd;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd;

use super::memory;
use super::region::{Mappings, UNUSABLE};
use crate::resource_limits::OriginalLimits;
use crate::spawn::child::{self, set_defaults};
use crate::spawn::clone;

/// The number of the socket in the server. All lower ones are free, so that the descriptors of a request get the
/// numbers from 0 on, which the kernel assigns in ascending order.
pub(super) const SOCKET: RawFd = 9;

/// The exit code of a server that cannot work here: the kernel or a seccomp filter does not permit what it needs.
pub(super) const UNSUPPORTED: i32 = 2;

/// Serves requests until the daemon closes the socket.
///
/// # Safety
/// Only for a process that was just forked, with all signals blocked: all its descriptors are closed, and its heap is
/// unmapped. The mappings must be valid.
pub(super) unsafe fn run(socket: RawFd, mappings: Mappings, limits: Option<OriginalLimits>) -> ! {
    // SAFETY: nothing in a process that was just forked uses its descriptors.
    if unsafe { set_up(socket, limits) }.is_err() {
        exit(UNSUPPORTED);
    }
    // Without /proc, the memory is kept.
    // SAFETY: the caller's contract.
    if unsafe { release_memory(mappings) } == Ok(true) {
        // Nothing secret is left. A daemon without CAP_SYS_PTRACE may now take back the descriptors of a request.
        // SAFETY: it takes integers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
    }
    // A child that has become another user must not be able to write requests.
    mappings.keep_from_children();
    loop {
        // SAFETY: the mappings are valid by contract.
        match unsafe { serve(mappings) } {
            Ok(()) => {}
            Err(Errno::EPIPE) => exit(0),
            Err(_) => exit(1),
        }
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: it takes an integer, and ends the process without running exit handlers of the parent's.
    unsafe { libc::_exit(code) }
}

/// Sets what every child needs and the server can have as well, so that the children inherit it.
///
/// # Safety
/// Nothing in this process may use a descriptor afterwards but `socket`, which becomes [`SOCKET`], even if it owns one.
unsafe fn set_up(socket: RawFd, limits: Option<OriginalLimits>) -> Result<(), Errno> {
    // It cannot fail: a forked child leads no group.
    let _ = unistd::setsid();
    // ps(1) shows it.
    let _ = prctl::set_name(c"fork-server");
    if socket != SOCKET {
        // SAFETY: it takes integers. By contract, what it replaces is not used again in this process.
        Errno::result(unsafe { libc::dup3(socket, SOCKET, libc::O_CLOEXEC) })?;
    }
    // Before Linux 5.9 there is no such call, and no server.
    // SAFETY: by contract, nothing uses these descriptors again.
    unsafe { close_range(SOCKET as u32 + 1, u32::MAX) }?;
    // SAFETY: as above.
    unsafe { close_range(0, SOCKET as u32 - 1) }?;
    set_defaults();
    if let Some(limits) = limits {
        limits.restore().map_err(Errno::from_raw)?;
    }
    Ok(())
}

/// Gives back all memory but the stack, the memory of the thread, the mappings and static data. Returns whether no heap is
/// left.
///
/// # Safety
/// As for [`run`]; the mappings are not in use yet.
unsafe fn release_memory(mappings: Mappings) -> Result<bool, Errno> {
    let stack = 0;
    // SAFETY: it takes no arguments. The address is in the memory of this thread (its TLS).
    let thread = unsafe { libc::__errno_location() } as usize;
    let [shared, private] = mappings.addresses();
    // SAFETY: the mappings are valid, and not in use yet.
    let buffer = unsafe { mappings.buffer() };
    // SAFETY: this process has one thread, which uses only what is kept.
    unsafe { memory::release(buffer, &[shared, private, thread, &raw const stack as usize]) }
}

/// Serves one request. EPIPE if the daemon has closed the socket.
///
/// # Safety
/// The mappings must be valid, and nothing else may refer to the private one.
unsafe fn serve(mappings: Mappings) -> Result<(), Errno> {
    let received = receive()?;
    // SAFETY: the mappings are valid by contract; after its message, the daemon waits for the answer.
    let shared = unsafe { mappings.shared() };
    // SAFETY: as above; the reference of the last call is gone.
    let request = unsafe { mappings.take() };
    let mut errno = UNUSABLE;
    if received == request.descriptors {
        let child = || {
            // SAFETY: this closure runs in a child that was just forked, and in no other process. The pointers of the
            // program are those to the private memory, which the child has a copy of.
            unsafe { child::run(&request.program, &request.setup) }
        };
        // SAFETY: `child::run` is async-signal-safe, allocates nothing and cannot panic. The PID is in shared memory.
        let forked = unsafe { clone::fork_sibling(shared.pid.as_ptr(), request.cgroup, child) };
        errno = forked.err().map_or(0, |errno| errno as i32);
    }
    shared.errno.store(errno, Ordering::SeqCst);
    // SAFETY: these descriptors came with the request, and only the child, which has copies, uses them.
    unsafe { close_range(0, SOCKET as u32 - 1) }?;
    // SAFETY: the buffer is valid for reading for one byte.
    Errno::result(unsafe { libc::send(SOCKET, b"!".as_ptr().cast(), 1, libc::MSG_NOSIGNAL) })?;
    Ok(())
}

/// Waits for a message. Returns how many descriptors came with it: they have the numbers from 0 on.
fn receive() -> Result<usize, Errno> {
    let mut byte = [0u8; 1];
    let mut iov = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // Room for the header and 8 descriptors, aligned as the header needs it.
    let mut control = [0u64; 8];
    // SAFETY: all zeroes is a valid value of this struct of integers and pointers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message points to buffers that are valid for writing for the lengths in it.
    if Errno::result(unsafe { libc::recvmsg(SOCKET, &raw mut message, 0) })? == 0 {
        return Err(Errno::EPIPE);
    }
    // SAFETY: the kernel has filled in the message, whose control buffer is still valid.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    if header.is_null() || message.msg_flags & libc::MSG_CTRUNC != 0 {
        return Ok(0);
    }
    // SAFETY: the header is in the control buffer; CMSG_LEN only computes.
    let length = unsafe { (*header).cmsg_len } as usize;
    // SAFETY: it only computes.
    let empty = unsafe { libc::CMSG_LEN(0) } as usize;
    Ok(length.saturating_sub(empty) / size_of::<RawFd>())
}

/// # Safety
/// Nothing in this process may use any of these descriptors afterwards, even if it owns one.
unsafe fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    // SAFETY: it takes integers. By contract, what it closes is not used again.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}
