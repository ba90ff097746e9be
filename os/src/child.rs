//! The child's half of a spawn: from the fork to the exec, with async-signal-safe calls only.
//!
//! Raw system calls for credentials and signals: glibc's wrappers of `setgroups` and its like signal the other
//! threads, which a forked child believes to have, and its `sigaction` refuses signals 32 and 33. Nothing here
//! allocates, locks or can panic.

use std::ffi::{CStr, c_char};
use std::os::fd::RawFd;

use crate::launch::Launch;
use crate::limits::Found;

/// What the child was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Session, descriptors, dispositions and the like: nothing of it depends on the request.
    Setup = 1,
    /// Becoming the user.
    User = 2,
    /// The working directory.
    Directory = 3,
    /// No candidate was there.
    NotFound = 4,
    /// A candidate was there and could not be executed.
    Exec = 5,
}

impl Stage {
    /// Back from the wire.
    pub fn from_byte(byte: u8) -> Option<Stage> {
        [Stage::Setup, Stage::User, Stage::Directory, Stage::NotFound, Stage::Exec]
            .into_iter()
            .find(|stage| *stage as u8 == byte)
    }
}

/// The report's length: a stage and an errno.
pub const REPORT: usize = 5;

/// Where the report pipe is while everything else is closed.
const REPORT_FD: RawFd = 3;

/// A controlling terminal for the child's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controlling {
    /// None.
    No,
    /// If stdin is a terminal that is nobody's.
    IfFree,
    /// Stdin, which is a terminal.
    Yes,
}

/// What the child takes over besides its [`Launch`].
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// The descriptors for 0, 1 and 2.
    pub stdio: [RawFd; 3],
    /// Whether these are a terminal that becomes the controlling one.
    pub terminal: Controlling,
    /// The writing end of the report pipe.
    pub report: RawFd,
    /// `cgroup.procs` of the leaf to join, or -1: the child was born in it.
    pub cgroup: RawFd,
    /// The limits as the supervisor found them, before it raised its own.
    pub limits: Option<Found>,
    /// RLIMIT_NPROC, where it is not to be the supervisor's own.
    pub nproc: Option<libc::rlimit>,
    /// Whether the kernel lets us set groups (not in a user namespace that denies it).
    pub set_groups: bool,
}

type Failure = (Stage, i32);

/// Becomes the program, or reports why not and exits as a shell would: 127 not found, 126 not executable.
pub(super) fn run(launch: &Launch, inherited: &Inherited) -> ! {
    let (stage, errno) = match become_program(launch, inherited) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let mut report = [0; REPORT];
    if let Some((first, rest)) = report.split_first_mut() {
        *first = stage as u8;
        for (to, from) in rest.iter_mut().zip(errno.to_ne_bytes()) {
            *to = from;
        }
    }
    // SAFETY: the buffer is valid for its length; the pipe is empty, so the write is whole and cannot block.
    unsafe { libc::write(REPORT_FD, report.as_ptr().cast(), REPORT) };
    let code = if stage == Stage::NotFound { 127 } else { 126 };
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

enum Never {}

fn become_program(launch: &Launch, inherited: &Inherited) -> Result<Never, Failure> {
    set_up(launch, inherited).map_err(|errno| (Stage::Setup, errno))?;
    become_user(launch, inherited.set_groups).map_err(|errno| (Stage::User, errno))?;
    if let Some(limit) = &inherited.nproc {
        limit_tasks(limit).map_err(|errno| (Stage::User, errno))?;
    }
    unblock_signals().map_err(|errno| (Stage::Setup, errno))?;
    // From here on it can hang, with nothing of the supervisor's in hand but the report pipe, and SIGTERM works.
    enter_directory(launch).map_err(|errno| (Stage::Directory, errno))?;
    Err(exec(launch))
}

fn set_up(launch: &Launch, inherited: &Inherited) -> Result<(), i32> {
    if inherited.cgroup >= 0 {
        // SAFETY: the buffer is valid for its length. "0" is the writer itself (cgroups(7)).
        check(unsafe { libc::write(inherited.cgroup, b"0".as_ptr().cast(), 1) } as i32)?;
    }
    // SAFETY: no memory involved. Cannot fail: a fresh child leads no group.
    check(unsafe { libc::setsid() })?;
    for (target, source) in (0..).zip(inherited.stdio) {
        if source != target {
            // SAFETY: no memory involved. The copy is not close-on-exec.
            check(unsafe { libc::dup2(source, target) })?;
        }
    }
    if inherited.terminal != Controlling::No {
        // SAFETY: no memory involved. We lead a new session.
        let taken = check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) });
        match inherited.terminal {
            Controlling::IfFree if taken.is_ok() => give_terminal(launch.uid),
            Controlling::Yes => taken?,
            _ => {}
        }
    }
    if inherited.report != REPORT_FD {
        // SAFETY: no memory involved. 3 is none of the sources any more: those have been copied.
        check(unsafe { libc::dup3(inherited.report, REPORT_FD, libc::O_CLOEXEC) })?;
    }
    // A kernel without it (before 5.9) leaves us with close-on-exec, which all descriptors of ours are.
    // SAFETY: no memory involved.
    unsafe { libc::syscall(libc::SYS_close_range, REPORT_FD + 1, u32::MAX, 0) };
    reset_dispositions();
    // SAFETY: no memory involved; it cannot fail.
    unsafe { libc::umask(0o022) };
    if let Some(limit) = inherited.nproc {
        // The exec is refused (EAGAIN) if the user has more tasks than this when this process becomes one of its own, and
        // more than the real limit after that (execve(2)): so the user never has more than the real limit.
        limit_tasks(&libc::rlimit { rlim_cur: limit.rlim_cur.saturating_sub(1), ..limit })?;
    }
    reset_oom_score();
    inherited.limits.as_ref().map_or(Ok(()), Found::put_back)
}

/// The terminal that we were started on, and that has become the child's, belongs to its user from now on, if it was
/// ours to give. Without the privilege it stays ours.
fn give_terminal(uid: u32) {
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is valid for writing.
    let found = unsafe { libc::fstat(0, &raw mut stat) };
    // SAFETY: no memory involved; it cannot fail.
    let own = unsafe { libc::geteuid() };
    if found == 0 && stat.st_uid == own && uid != own {
        // SAFETY: no memory involved. The group stays.
        unsafe { libc::fchown(0, uid, u32::MAX) };
    }
}

fn reset_dispositions() {
    // An ignored signal stays ignored over exec; the kernel's struct for the default action is all zeroes.
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the struct is at least as long as the kernel's and valid for reading. KILL and STOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, 8) };
    }
}

fn unblock_signals() -> Result<(), i32> {
    let none = 0u64;
    // SAFETY: the set is valid for reading and 8 bytes long, as the kernel's is.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0, 8) } as i32)
}

/// Back to 0. Without the privilege to lower it, or without /proc, it stays what it was.
fn reset_oom_score() {
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: the buffer is valid for its length.
        unsafe { libc::write(fd, b"0".as_ptr().cast(), 1) };
        // SAFETY: the descriptor is ours and is not used again.
        unsafe { libc::close(fd) };
    }
}

fn become_user(launch: &Launch, set_groups: bool) -> Result<(), i32> {
    if set_groups {
        // SAFETY: the groups are valid for reading for that length.
        check(unsafe { libc::syscall(libc::SYS_setgroups, launch.groups.len(), launch.groups.as_ptr()) } as i32)?;
    }
    // SAFETY: no memory involved.
    check(unsafe { libc::syscall(libc::SYS_setresgid, launch.gid, launch.gid, launch.gid) } as i32)?;
    // SAFETY: no memory involved. The last privilege to go, with all capabilities unless the user is root.
    check(unsafe { libc::syscall(libc::SYS_setresuid, launch.uid, launch.uid, launch.uid) } as i32)
}

fn limit_tasks(limit: &libc::rlimit) -> Result<(), i32> {
    // SAFETY: the limit is valid for reading. Lowering it needs no privilege, nor does raising it up to its maximum.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NPROC, limit) })
}

fn enter_directory(launch: &Launch) -> Result<(), i32> {
    match &launch.dir {
        Some(dir) => change_directory(dir),
        None => change_directory(&launch.home).or_else(|_| change_directory(c"/")),
    }
}

fn change_directory(dir: &CStr) -> Result<(), i32> {
    // SAFETY: a C string.
    check(unsafe { libc::chdir(dir.as_ptr()) })
}

/// Tries each candidate, as `execvp(3)` does. One that is there but cannot be executed is what is reported if no later
/// one can be.
fn exec(launch: &Launch) -> Failure {
    let mut failure = (Stage::NotFound, libc::ENOENT);
    for program in launch.programs.iter() {
        // SAFETY: C strings and null-terminated arrays of them, all alive.
        unsafe { libc::execve(program.as_ptr(), launch.argv.as_ptr(), launch.envp.as_ptr()) };
        match errno() {
            // With the file there, it is its interpreter that is missing.
            libc::ENOENT if exists(program.as_ptr()) => failure = (Stage::Exec, libc::ENOENT),
            libc::EACCES => failure = (Stage::Exec, libc::EACCES),
            // Not there, or in a directory that is not: the others are what a dead network directory gives.
            libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            errno => return (Stage::Exec, errno),
        }
    }
    failure
}

fn exists(path: *const c_char) -> bool {
    // SAFETY: `path` is a C string of the launch, which is alive.
    unsafe { libc::access(path, libc::F_OK) == 0 }
}

fn check(result: i32) -> Result<(), i32> {
    if result < 0 { Err(errno()) } else { Ok(()) }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
