//! Extended attributes of an open file (xattr(7)). `list` and `get` also take a descriptor opened with `O_PATH`, for
//! which they need /proc.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// The POSIX access ACL.
pub const ACL: &CStr = c"system.posix_acl_access";

/// Maximum length in bytes of a list of names and of a value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX_LENGTH: usize = 64 << 10;

/// The names of all attributes that the calling thread may see; none if the file system has no attributes.
///
/// # Errors
/// What the kernel says.
pub fn list(file: impl AsFd) -> io::Result<Vec<CString>> {
    let file = file.as_fd();
    let mut names = vec![0_u8; MAX_LENGTH];
    // SAFETY: the buffer is valid for writing for its length.
    let got = unsafe { libc::flistxattr(file.as_raw_fd(), names.as_mut_ptr().cast(), names.len()) };
    let got = match Errno::result(got) {
        Err(Errno::EBADF) => {
            let path = through_proc(file);
            // SAFETY: the path is a C string, and the buffer is valid for writing for its length.
            let got = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
            Errno::result(got)
        }
        got => got,
    };
    match got {
        Ok(length) => {
            let names = names.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
            let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
            Ok(names.filter_map(|name| CString::new(name).ok()).collect())
        }
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(Vec::new()),
        Err(errno) => Err(errno.into()),
    }
}

/// The value of an attribute; `None` if the file does not have it.
///
/// # Errors
/// What the kernel says.
pub fn get(file: impl AsFd, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let file = file.as_fd();
    let mut value = vec![0_u8; MAX_LENGTH];
    // SAFETY: the name is a C string, and the buffer is valid for writing for its length.
    let got = unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    let got = match Errno::result(got) {
        Err(Errno::EBADF) => {
            let path = through_proc(file);
            // SAFETY: path and name are C strings, and the buffer is valid for writing for its length.
            let got = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
            Errno::result(got)
        }
        got => got,
    };
    match got {
        Ok(length) => {
            value.truncate(usize::try_from(length).unwrap_or(0));
            Ok(Some(value))
        }
        Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Sets an attribute of a file that is open for reading or writing.
///
/// # Errors
/// What the kernel says.
pub fn set(file: impl AsFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the name is a C string, and the value is valid for reading for its length.
    let set = unsafe { libc::fsetxattr(fd, name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Ok(Errno::result(set).map(drop)?)
}

/// Removes an attribute of a file that is open for reading or writing.
///
/// # Errors
/// What the kernel says.
pub fn remove(file: impl AsFd, name: &CStr) -> io::Result<()> {
    // SAFETY: the name is a C string.
    let removed = unsafe { libc::fremovexattr(file.as_fd().as_raw_fd(), name.as_ptr()) };
    Ok(Errno::result(removed).map(drop)?)
}

/// The path in /proc that leads to an open file.
fn through_proc(file: BorrowedFd<'_>) -> CString {
    // The default is never used: the path has no NUL in it.
    CString::new(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_default()
}
