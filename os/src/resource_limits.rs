//! Resource limits of this process and of its children (getrlimit(2)).
//!
//! The limits that a container is started with are meant for the programs in it, and would end or starve the
//! supervisor. So those on descriptors, memory, file size and CPU time are raised for this process, and each child gets
//! back the original ones.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::capabilities::{CAP_SYS_RESOURCE, has_effective};
use crate::kernel_file;
use crate::user_namespace::has_own_users;

/// The limits that are raised. A finite one can end this process: RLIMIT_AS and RLIMIT_DATA by an allocation that
/// fails, RLIMIT_FSIZE by SIGXFSZ, RLIMIT_CPU by SIGKILL.
const RAISED: [Resource; 5] =
    [Resource::RLIMIT_NOFILE, Resource::RLIMIT_AS, Resource::RLIMIT_DATA, Resource::RLIMIT_FSIZE, Resource::RLIMIT_CPU];

/// The limits that this process had before the first call of [`raise`], to be restored in its children.
#[derive(Clone, Copy, Debug)]
pub struct OriginalLimits([Option<libc::rlimit>; RAISED.len()]);

impl OriginalLimits {
    /// Reads them at the first call, and returns the same ones at all later ones.
    fn get() -> &'static OriginalLimits {
        static FIRST: OnceLock<OriginalLimits> = OnceLock::new();
        FIRST.get_or_init(|| {
            let limit = |resource| getrlimit(resource).ok();
            OriginalLimits(
                RAISED.map(|resource| {
                    limit(resource).map(|(soft, hard)| libc::rlimit { rlim_cur: soft, rlim_max: hard })
                }),
            )
        })
    }

    /// Splits them into those that the fork server sets for itself, so that its children inherit them, and those that
    /// each child must set: a finite CPU time would end the server, and a low number of descriptors would keep it from
    /// receiving a request.
    pub(crate) fn for_fork_server(self) -> (OriginalLimits, OriginalLimits) {
        const ENOUGH_DESCRIPTORS: u64 = 64;
        let (mut server, mut child) = (self, OriginalLimits([None; RAISED.len()]));
        for ((resource, limit), in_child) in RAISED.into_iter().zip(&mut server.0).zip(&mut child.0) {
            let suits_server = match (resource, &limit) {
                (_, None) => true,
                (Resource::RLIMIT_NOFILE, Some(limit)) => limit.rlim_cur >= ENOUGH_DESCRIPTORS,
                (Resource::RLIMIT_CPU, Some(limit)) => limit.rlim_cur == libc::RLIM_INFINITY,
                _ => true,
            };
            if !suits_server {
                *in_child = limit.take();
            }
        }
        (server, child)
    }

    /// Sets them for the calling process, which needs no privilege: they are not higher than the raised ones.
    /// Async-signal-safe.
    ///
    /// # Errors
    /// The errno, if another program has lowered a hard limit meanwhile.
    pub(crate) fn restore(&self) -> Result<(), i32> {
        for (resource, limit) in RAISED.into_iter().zip(&self.0) {
            let Some(limit) = limit else { continue };
            setrlimit(resource, limit.rlim_cur, limit.rlim_max).map_err(|errno| errno as i32)?;
        }
        Ok(())
    }
}

/// Raises the limits of this process: the one on descriptors to its hard limit; the others to infinity with
/// CAP_SYS_RESOURCE, else to their hard limits. Returns the limits before the first call, and the number of descriptors
/// that this process may have now.
///
/// # Errors
/// What `getrlimit(2)` says.
pub fn raise() -> io::Result<(OriginalLimits, u64)> {
    let original = *OriginalLimits::get();
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
    Ok((original, descriptors))
}

/// The highest RLIMIT_NOFILE that a child can get: the hard limit that this process was started with or, with
/// CAP_SYS_RESOURCE in the machine's user namespace, the limit of the kernel (`fs.nr_open`).
pub fn highest_nofile() -> u64 {
    let hard = OriginalLimits::get().0.first().copied().flatten().map_or(u64::MAX, |limit| limit.rlim_max);
    let may_exceed = has_effective(CAP_SYS_RESOURCE) && !has_own_users();
    let kernel = kernel_file::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|most| most.trim().parse().ok());
    // Without /proc, the kernel tells the child.
    if may_exceed { kernel.unwrap_or(u64::MAX) } else { hard.min(kernel.unwrap_or(u64::MAX)) }
}

/// Raises the hard limit of RLIMIT_NOFILE of this process to `enough` if it is lower, which needs CAP_SYS_RESOURCE.
/// Returns the hard limit.
///
/// # Errors
/// What `setrlimit(2)` says.
pub fn raise_hard_nofile(enough: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < enough {
        setrlimit(Resource::RLIMIT_NOFILE, soft, enough)?;
    }
    Ok(hard.max(enough))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_set_by_the_fork_server_or_by_its_children() {
        let finite = |limit| Some(libc::rlimit { rlim_cur: limit, rlim_max: limit });
        let set = |limits: OriginalLimits| limits.0.map(|limit| limit.map(|limit| limit.rlim_cur));
        let usual = OriginalLimits([finite(1024), finite(1 << 30), None, finite(0), finite(libc::RLIM_INFINITY)]);
        let (server, child) = usual.for_fork_server();
        assert_eq!((set(server), set(child)), (set(usual), [None; 5]));
        let tight = OriginalLimits([finite(8), None, None, None, finite(60)]);
        let (server, child) = tight.for_fork_server();
        assert_eq!((set(server), set(child)), ([None; 5], set(tight)));
    }
}
