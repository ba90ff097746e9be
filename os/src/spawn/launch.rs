//! The program that a child becomes, prepared before the fork: a forked child must not allocate.

use std::ffi::{CStr, CString, c_char};
use std::ptr;

/// C strings, with a null-terminated array of pointers to them as `execve(2)` takes it.
#[derive(Debug)]
pub struct StringArray {
    strings: Vec<CString>,
    /// Points into `strings`, which is never changed: a `CString` keeps its bytes on the heap, so they stay where they
    /// are when this struct moves.
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// An array of `strings`, in the same order.
    pub fn new(strings: Vec<CString>) -> StringArray {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        StringArray { strings, pointers }
    }

    /// The array of pointers, ending with a null pointer. Valid while `self` lives.
    pub(super) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    /// The strings, in order. Async-signal-safe.
    pub(super) fn iter(&self) -> impl Iterator<Item = &CStr> {
        self.strings.iter().map(CString::as_c_str)
    }
}

/// A program with everything that it starts with except its descriptors.
#[derive(Debug)]
pub struct Launch {
    /// Paths of the program, tried in order.
    pub programs: StringArray,
    /// Arguments; the first is the name of the program.
    pub argv: StringArray,
    /// Environment, as `KEY=value`.
    pub envp: StringArray,
    /// Working directory. If it cannot be entered, the start fails.
    pub dir: Option<CString>,
    /// Working directory if `dir` is `None`. If it cannot be entered, the program starts in `/`.
    pub home: CString,
    /// User id. `u32::MAX` is refused: the kernel reads it as "leave unchanged".
    pub uid: u32,
    /// Group id. `u32::MAX` is refused, as in `uid`.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Number of descriptors, soft and hard (RLIMIT_NOFILE); `None` leaves it as this process was started with.
    pub open_files: Option<u64>,
    /// Whether neither the program nor what it executes can gain privileges (PR_SET_NO_NEW_PRIVS).
    pub no_new_privs: bool,
}
