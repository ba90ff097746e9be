//! Everything that a child needs, put together before the fork: after it, the child may not allocate.

use std::ffi::{CString, c_char};
use std::ptr;

/// C strings with a null-terminated array of pointers to them, as `execve(2)` takes them.
#[derive(Debug)]
pub struct StringArray {
    strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Keeps the strings, in their order.
    pub fn new(strings: Vec<CString>) -> StringArray {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        StringArray { strings, pointers }
    }

    /// The array, ending in a null pointer; valid as long as `self`.
    pub fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }

    /// The strings.
    pub fn iter(&self) -> impl Iterator<Item = &CString> {
        self.strings.iter()
    }
}

/// A program with all that it starts with, but for its descriptors.
#[derive(Debug)]
pub struct Launch {
    /// The files to try, in order.
    pub programs: StringArray,
    /// The arguments, the name of the program first.
    pub argv: StringArray,
    /// The environment, as `KEY=value`.
    pub envp: StringArray,
    /// Must exist.
    pub dir: Option<CString>,
    /// Where it goes without `dir`, if it exists.
    pub home: CString,
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}
