//! Why a child could not be forked.

use std::fmt;
use std::io;

/// Why no child was forked.
#[derive(Debug)]
pub enum SpawnError {
    /// The cgroup takes no process: it was removed, or was made unable to hold any. Without it, or in another one, the
    /// spawn could succeed.
    Cgroup(io::Error),
    /// Anything else.
    Other(io::Error),
}

impl SpawnError {
    /// Classifies an error from making a leaf or from putting a child into it.
    ///
    /// A lack of resources would be one without a cgroup too, and a limit of the cgroup itself (`pids.max`: EAGAIN)
    /// must hold. All other errors are about the cgroup: it was removed (ENOENT, ENODEV), it is threaded or below a
    /// threaded one (EOPNOTSUPP), it has controllers enabled for its children (EBUSY), it is not writable (EACCES,
    /// EPERM, EROFS), or the kernel lacks the feature (EINVAL, ENOSYS).
    pub fn in_cgroup(error: io::Error) -> SpawnError {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => SpawnError::Other(error),
            _ => SpawnError::Cgroup(error),
        }
    }
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SpawnError::Cgroup(error) => write!(f, "cannot put a process into its cgroup: {error}"),
            SpawnError::Other(error) => write!(f, "cannot fork a process: {error}"),
        }
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            SpawnError::Cgroup(error) | SpawnError::Other(error) => Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_resources_is_not_blamed_on_the_cgroup() {
        let is_about_cgroup =
            |errno| matches!(SpawnError::in_cgroup(io::Error::from_raw_os_error(errno)), SpawnError::Cgroup(_));
        assert!([libc::EAGAIN, libc::ENOMEM, libc::EMFILE].into_iter().all(|errno| !is_about_cgroup(errno)));
        let gone = [libc::ENODEV, libc::ENOENT, libc::EOPNOTSUPP, libc::EBUSY, libc::EACCES, libc::EROFS, libc::ENOSYS];
        assert!(gone.into_iter().all(is_about_cgroup));
    }
}
