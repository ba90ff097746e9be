//! What a child does between the fork and the exec.
//!
//! Everything here is async-signal-safe: nothing allocates, locks or can panic. The functions of nix that are called do
//! no more than one system call with their arguments.
//!
//! Credentials and signals are set by raw system calls. glibc's functions, such as `setgroups`, would signal threads
//! that exist only in the parent; its `sigaction` refuses signals 32 and 33.

use std::ffi::c_char;
use std::os::fd::RawFd;
use std::ptr;

use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::unistd;

use super::exec_failure::{ExecFailure, LENGTH, Stage};
use super::program::Program;
use crate::capabilities;
use crate::resource_limits::OriginalLimits;

/// The length of a set of signals of the kernel, in bytes.
const SIGSET: usize = 8;

/// The number that the report pipe has in the child, which closes all higher ones.
const REPORT_FD: RawFd = 3;

/// Whether stdin becomes the controlling terminal of the child's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ControllingTerminal {
    /// It does not.
    None,
    /// It does if it is a terminal that controls no other session.
    IfFree,
    /// It does; otherwise the start fails.
    Required,
}

/// The descriptors and attributes that the child starts with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// The sources of descriptors 0, 1 and 2. Each has its own number or one above 2.
    pub(super) stdio: [RawFd; 3],
    /// Whether stdin becomes the controlling terminal.
    pub(super) terminal: ControllingTerminal,
    /// The writing end of the report pipe.
    pub(super) report: RawFd,
    /// `cgroup.procs` of the leaf to join; `None` if the child was created in its leaf or has none.
    pub(super) cgroup: Option<RawFd>,
    /// Resource limits to set: those of the daemon before it raised its own, unless the child has them already.
    pub(super) limits: Option<OriginalLimits>,
    /// RLIMIT_NOFILE to set, soft and hard; `None` leaves what `limits` sets.
    pub(super) open_files: Option<u64>,
    /// RLIMIT_NPROC to set; `None` leaves it as the daemon has it.
    pub(super) nproc: Option<libc::rlimit>,
    /// Whether to set the supplementary groups.
    pub(super) set_groups: bool,
    /// Whether the child was forked by the fork server, which has done [`set_defaults`] and has given the memory of the
    /// daemon back, or is not dumpable.
    pub(super) by_server: bool,
    /// Whether a child of the fork server gets a session keyring of its own. One that this process forks itself always
    /// does.
    pub(super) session_keyring: bool,
    /// Whether to set PR_SET_NO_NEW_PRIVS.
    pub(super) no_new_privs: bool,
}

/// Becomes the program. If that fails, reports why and exits as a shell would: with 127 if the program was not found,
/// else with 126.
///
/// # Safety
/// Only for a child that was just forked: all descriptors of the process above 3 are closed, even if owned, and 0
/// to 3 are replaced. The pointers in `program` must be valid.
pub(super) unsafe fn run(program: &Program, setup: &Setup) -> ! {
    // SAFETY: the contract is the same.
    let failure = match unsafe { become_program(program, setup) } {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let report = failure.to_bytes();
    // SAFETY: the buffer is valid for reading for its length. The pipe is empty, so the write is whole and cannot
    // block.
    unsafe { libc::write(REPORT_FD, report.as_ptr().cast(), LENGTH) };
    let code = if failure.stage == Stage::NotFound { 127 } else { 126 };
    // SAFETY: it takes an integer, and ends the process without running exit handlers of the parent's.
    unsafe { libc::_exit(code) }
}

enum Never {}

/// Becomes the program. Returns why that has failed.
///
/// # Safety
/// As for [`run`].
unsafe fn become_program(program: &Program, setup: &Setup) -> Result<Never, ExecFailure> {
    let failed = |stage| move |errno| ExecFailure { stage, errno };
    // SAFETY: nothing in a child that was just forked uses its descriptors.
    unsafe { set_up(program, setup) }.map_err(failed(Stage::Setup))?;
    if let Some(most) = setup.open_files {
        // Still with the privileges of the daemon.
        setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(|errno| failed(Stage::OpenFiles)(errno as i32))?;
    }
    become_user(program, setup.set_groups).map_err(failed(Stage::User))?;
    if let Some(limit) = &setup.nproc {
        limit_tasks(limit).map_err(failed(Stage::User))?;
    }
    if setup.no_new_privs {
        // SAFETY: it takes integers.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map_err(failed(Stage::Setup))?;
    }
    if !setup.by_server {
        // This memory is a copy of the daemon's, with the token in it. The kernel lets nobody but root read it after the
        // change of the user, unless fs.suid_dumpable is 1; with 2, a signal of the user could make it dump core.
        // SAFETY: it takes integers.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    }
    unblock_signals().map_err(failed(Stage::Setup))?;
    // From here on the child can hang in a file system. SIGTERM works by now, and the only open descriptor of the
    // daemon is the report pipe.
    enter_directory(program).map_err(failed(Stage::Directory))?;
    // SAFETY: the pointers are valid by contract.
    Err(unsafe { exec(program) })
}

/// Sets everything that the program starts with but its user and its working directory.
///
/// # Safety
/// Nothing in this process may use a descriptor afterwards but 0 to 3, which are those of `setup`, even if it owns one.
unsafe fn set_up(program: &Program, setup: &Setup) -> Result<(), i32> {
    if let Some(procs) = setup.cgroup {
        // "0" stands for the writing process (cgroups(7)).
        // SAFETY: the buffer is valid for reading for one byte.
        check(unsafe { libc::write(procs, b"0".as_ptr().cast(), 1) } as i32)?;
    }
    // It cannot fail: a forked child leads no group.
    unistd::setsid().map_err(|errno| errno as i32)?;
    for (target, source) in (0..).zip(setup.stdio) {
        if source != target {
            // The copy is not close-on-exec.
            // SAFETY: it takes integers. By contract, what it replaces is not used again in this process.
            check(unsafe { libc::dup2(source, target) })?;
        }
    }
    if setup.terminal != ControllingTerminal::None {
        // SAFETY: TIOCSCTTY takes an integer. This process leads a new session.
        let taken = check(unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) });
        match setup.terminal {
            ControllingTerminal::IfFree if taken.is_ok() => give_terminal(program.uid),
            ControllingTerminal::Required => taken?,
            _ => {}
        }
    }
    if setup.report == REPORT_FD {
        // SAFETY: it takes integers.
        check(unsafe { libc::fcntl(REPORT_FD, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    } else {
        // SAFETY: it takes integers. What is at number 3 is not used again by contract, nor here: the sources of 0 to 2
        // have been copied.
        check(unsafe { libc::dup3(setup.report, REPORT_FD, libc::O_CLOEXEC) })?;
    }
    // Before Linux 5.9 this fails; there the exec closes them, as all descriptors of the daemon are close-on-exec.
    // SAFETY: it takes integers. By contract, what it closes is not used again in this process.
    unsafe { libc::syscall(libc::SYS_close_range, REPORT_FD + 1, u32::MAX, 0) };
    if !setup.by_server {
        set_defaults();
    } else if setup.session_keyring {
        join_session_keyring();
    }
    if let Some(limit) = setup.nproc {
        // The kernel checks the limit twice: when this process becomes the user's, against this value, which marks the
        // process so that its exec fails with EAGAIN; and at the exec, against the real one (execve(2)). So the user
        // never has more tasks than the real limit.
        limit_tasks(&libc::rlimit { rlim_cur: limit.rlim_cur.saturating_sub(1), ..limit })?;
    }
    setup.limits.as_ref().map_or(Ok(()), OriginalLimits::restore)
}

/// Sets what is the same for every child: the default signal dispositions, the umask 022, the `oom_score_adj` 0, no
/// inheritable capabilities, and a new session keyring. Async-signal-safe.
pub(super) fn set_defaults() {
    reset_dispositions();
    // SAFETY: it takes an integer and cannot fail.
    unsafe { libc::umask(0o022) };
    reset_oom_score();
    // An older container runtime may have set some.
    let _ = capabilities::drop_inheritable();
    join_session_keyring();
}

/// Gives this process a new, empty session keyring (session-keyring(7)): a process possesses the keys in the one that it
/// was forked with, whoever has put them there. Without keyrings in the kernel, or where a seccomp filter denies the
/// call, there are no keys to be found either.
fn join_session_keyring() {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: it takes integers; 0 stands for a keyring without a name.
    unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) };
}

/// Makes the child's user the owner of the terminal that the child has inherited from the daemon, if the daemon's user
/// owns it. Without the privilege the owner stays the same.
fn give_terminal(uid: u32) {
    // SAFETY: all zeroes is a valid value of this struct of integers.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is valid for writing, which is all that this call does with it.
    let found = unsafe { libc::fstat(0, &raw mut stat) };
    let own = unistd::geteuid().as_raw();
    if found == 0 && stat.st_uid == own && uid != own {
        // The group stays what it is.
        // SAFETY: it takes integers.
        unsafe { libc::fchown(0, uid, u32::MAX) };
    }
}

fn reset_dispositions() {
    // An ignored signal would stay ignored over the exec. The kernel's struct for the default action is all zeroes.
    let default = [0u64; 4];
    let no_old = ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // The kernel refuses to change SIGKILL and SIGSTOP.
        // SAFETY: the struct is as long as the kernel's and valid for reading; the null pointer asks for no old action.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), no_old, SIGSET) };
    }
}

fn unblock_signals() -> Result<(), i32> {
    let none = 0u64;
    let no_old = ptr::null_mut::<u64>();
    // SAFETY: the set is as long as the kernel's and valid for reading; the null pointer asks for no old mask.
    check(unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, no_old, SIGSET) } as i32)
}

/// Sets `oom_score_adj` to 0. Without the privilege to lower it, or without /proc, the child keeps that of the daemon.
fn reset_oom_score() {
    if let Ok(file) = open(c"/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
        let _ = unistd::write(&file, b"0");
    }
}

fn become_user(program: &Program, set_groups: bool) -> Result<(), i32> {
    if set_groups {
        // SAFETY: only the kernel reads the groups, and refuses an address that is not valid.
        check(unsafe { libc::syscall(libc::SYS_setgroups, program.group_count, program.groups) } as i32)?;
    }
    // SAFETY: it takes integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, program.gid, program.gid, program.gid) } as i32)?;
    // Last: for a user other than root, all capabilities go with it.
    // SAFETY: it takes integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, program.uid, program.uid, program.uid) } as i32)
}

fn limit_tasks(limit: &libc::rlimit) -> Result<(), i32> {
    // It needs no privilege to lower a limit, or to raise the soft one up to the hard one.
    setrlimit(Resource::RLIMIT_NPROC, limit.rlim_cur, limit.rlim_max).map_err(|errno| errno as i32)
}

fn enter_directory(program: &Program) -> Result<(), i32> {
    if !program.dir.is_null() {
        return change_directory(program.dir);
    }
    change_directory(program.home).or_else(|_| change_directory(c"/".as_ptr()))
}

fn change_directory(dir: *const c_char) -> Result<(), i32> {
    // SAFETY: only the kernel reads the string, and refuses an address that is not valid.
    check(unsafe { libc::chdir(dir) })
}

/// Tries each candidate, as `execvp(3)` does. If none can be executed, the failure is that of the last one that exists.
///
/// # Safety
/// The pointers in `program` must be valid.
unsafe fn exec(program: &Program) -> ExecFailure {
    let mut failure = ExecFailure { stage: Stage::NotFound, errno: libc::ENOENT };
    let mut next = program.paths;
    loop {
        // SAFETY: `next` points to an element of an array that is valid by contract and ends with a null pointer, and not
        // beyond that.
        let path = unsafe { *next };
        if path.is_null() {
            return failure;
        }
        // SAFETY: as above; the element is not the last one.
        next = unsafe { next.add(1) };
        // SAFETY: only the kernel reads the path and the arrays, and refuses an address that is not valid.
        unsafe { libc::execve(path, program.argv, program.envp) };
        match errno() {
            // The file exists, so its interpreter does not.
            libc::ENOENT if exists(path) => failure = ExecFailure { stage: Stage::Exec, errno: libc::ENOENT },
            libc::EACCES => failure = ExecFailure { stage: Stage::Exec, errno: libc::EACCES },
            // The file or its directory does not exist. A network file system without its server gives the last three.
            libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG | libc::ESTALE | libc::ENODEV | libc::ETIMEDOUT => {}
            errno => return ExecFailure { stage: Stage::Exec, errno },
        }
    }
}

fn exists(path: *const c_char) -> bool {
    // SAFETY: only the kernel reads the string, and refuses an address that is not valid.
    unsafe { libc::access(path, libc::F_OK) == 0 }
}

fn check(result: i32) -> Result<(), i32> {
    if result < 0 { Err(errno()) } else { Ok(()) }
}

fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
