//! What the kernel lets this process do: its resource limits, and being the one that orphans come to.
//!
//! A limit that the program around us was given is meant for what it runs, and would end or starve the supervisor:
//! descriptors, memory, the length of a file and CPU time are raised for ourselves, and the children get back what there
//! was.

use std::io;
use std::sync::OnceLock;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What is raised. A finite one ends us: RLIMIT_AS and RLIMIT_DATA by an allocation that fails, RLIMIT_FSIZE by SIGXFSZ,
/// RLIMIT_CPU by SIGKILL.
const RAISED: [Resource; 5] =
    [Resource::RLIMIT_NOFILE, Resource::RLIMIT_AS, Resource::RLIMIT_DATA, Resource::RLIMIT_FSIZE, Resource::RLIMIT_CPU];

/// The limits that this process had before [`raise`] was called first, for its children.
#[derive(Clone, Copy, Debug)]
pub struct Found([Option<libc::rlimit>; RAISED.len()]);

impl Found {
    /// What there is now: once per process, however often a start is tried.
    fn first() -> &'static Found {
        static FIRST: OnceLock<Found> = OnceLock::new();
        FIRST.get_or_init(|| {
            let limit = |resource| getrlimit(resource).ok();
            Found(
                RAISED.map(|resource| {
                    limit(resource).map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard })
                }),
            )
        })
    }

    /// Gives them to the calling process. Async-signal-safe. Lowering a limit needs no privilege.
    ///
    /// # Errors
    /// The errno, when a limit was lowered by somebody else meanwhile.
    pub(super) fn put_back(&self) -> Result<(), i32> {
        for (resource, limit) in RAISED.into_iter().zip(&self.0) {
            let Some(limit) = limit else { continue };
            // SAFETY: the limit is valid for reading.
            if unsafe { libc::setrlimit(resource as libc::__rlimit_resource_t, limit) } < 0 {
                return Err(io::Error::last_os_error().raw_os_error().unwrap_or(0));
            }
        }
        Ok(())
    }
}

/// Raises our own limits: that of descriptors to its hard limit, the others away where we may, else to theirs. Returns
/// what they were before the first call, and how many descriptors there may be now.
///
/// # Errors
/// What `getrlimit(2)` says.
pub fn raise() -> io::Result<(Found, u64)> {
    let found = *Found::first();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let descriptors = if setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft };
    for resource in RAISED.into_iter().filter(|resource| *resource != Resource::RLIMIT_NOFILE) {
        let (soft, hard) = getrlimit(resource)?;
        if soft == libc::RLIM_INFINITY {
            continue;
        }
        if setrlimit(resource, libc::RLIM_INFINITY, libc::RLIM_INFINITY).is_err()
            && let Err(errno) = setrlimit(resource, hard, hard)
        {
            log::debug!("{resource:?} stays {soft}: {errno}");
        }
    }
    Ok((found, descriptors))
}

/// Lifts the hard limit of RLIMIT_NOFILE to `enough` where it is lower, which takes CAP_SYS_RESOURCE. Returns what it
/// is then.
///
/// # Errors
/// What `setrlimit(2)` says.
pub fn lift_nofile(enough: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < enough {
        setrlimit(Resource::RLIMIT_NOFILE, soft, enough)?;
    }
    Ok(hard.max(enough))
}

/// Makes orphans of our descendants our children, as they are anyway where we are PID 1 (PR_SET_CHILD_SUBREAPER).
///
/// # Errors
/// What `prctl(2)` says.
pub fn become_subreaper() -> io::Result<()> {
    Ok(prctl::set_child_subreaper(true)?)
}
