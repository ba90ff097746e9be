//! The program that a child becomes, as pointers that are ready for the system calls.

use std::ffi::{CStr, c_char};
use std::ptr;

use super::launch::Launch;

/// The contents of a [`Launch`] as plain pointers, which are valid as long as the memory that they point to: that of
/// the `Launch`, or the copy in the memory of the fork server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// Null-terminated array of the paths to try, in order.
    pub(super) paths: *const *const c_char,
    /// Null-terminated array of the arguments.
    pub(super) argv: *const *const c_char,
    /// Null-terminated array of the environment.
    pub(super) envp: *const *const c_char,
    /// Working directory that must be entered; null if there is none.
    pub(super) dir: *const c_char,
    /// Working directory if `dir` is null.
    pub(super) home: *const c_char,
    /// Supplementary groups.
    pub(super) groups: *const u32,
    /// Number of supplementary groups.
    pub(super) group_count: usize,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Program {
    /// The pointers into `launch`. They are valid while it lives.
    pub(super) fn of(launch: &Launch) -> Program {
        Program {
            paths: launch.programs.as_ptr(),
            argv: launch.argv.as_ptr(),
            envp: launch.envp.as_ptr(),
            dir: launch.dir.as_deref().map_or(ptr::null(), CStr::as_ptr),
            home: launch.home.as_ptr(),
            groups: launch.groups.as_ptr(),
            group_count: launch.groups.len(),
            uid: launch.uid,
            gid: launch.gid,
        }
    }
}
