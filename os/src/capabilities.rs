//! The capabilities of the calling thread (capabilities(7)).

use std::io;

use nix::errno::Errno;

/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h): sets of 64 bits, in two halves.
const VERSION_3: u32 = 0x2008_0522;

/// The number of `CAP_SYS_RESOURCE` (linux/capability.h).
pub(crate) const CAP_SYS_RESOURCE: u32 = 24;

/// One half of the sets: the kernel's `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) effective: u32,
    pub(crate) permitted: u32,
    pub(crate) inheritable: u32,
}

/// The kernel's `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// The sets of the calling thread. Async-signal-safe.
pub(crate) fn get() -> io::Result<[Capabilities; 2]> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Capabilities::default(); 2];
    // SAFETY: the header and both halves are laid out as the kernel's are, and valid for reading and writing.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    Errno::result(got)?;
    Ok(sets)
}

/// Sets those of the calling thread. Async-signal-safe.
pub(crate) fn set(sets: &[Capabilities; 2]) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    // PID 0 is the calling thread.
    // SAFETY: the header and both halves are laid out as the kernel's are, and valid for reading and writing.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    Ok(Errno::result(set).map(drop)?)
}

/// Whether the calling thread has this capability, one of the first 32.
pub(crate) fn has_effective(capability: u32) -> bool {
    get().is_ok_and(|[low, _]| low.effective >> capability & 1 == 1)
}

/// Removes the inheritable capabilities of the calling thread, and with them the ambient ones: programs that it executes
/// as a user other than root get none. Needs no privilege. Async-signal-safe.
pub(crate) fn drop_inheritable() -> io::Result<()> {
    set(&get()?.map(|half| Capabilities { inheritable: 0, ..half }))
}

/// Takes CAP_SYS_PTRACE from the calling thread.
#[cfg(test)]
pub(crate) fn without_ptrace() {
    let mut sets = get().unwrap();
    sets[0].effective &= !(1 << 19);
    set(&sets).unwrap();
}
