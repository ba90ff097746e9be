//! Lets one thread access files with the rights of another user, and restores its credentials afterwards.
//!
//! Raw system calls change the credentials of the calling thread only; glibc's functions, such as `setgroups`, would
//! change those of all threads.
//!
//! Changing only fsuid and fsgid would not be enough: a thread that leaves fsuid 0 loses only the file-system
//! capabilities, so CAP_SYS_PTRACE would still open `/proc/PID/cwd` of any process, and `/proc/sys` checks the
//! effective ids. So the effective ids are changed, with which fsuid and fsgid change and, for every user but root, all
//! effective capabilities go. The real and saved ids stay the daemon's: with them the thread can change back, and the
//! user can neither signal nor trace it.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid};

use crate::capabilities::{self, Capabilities};
use crate::user_namespace::may_set_groups;

/// The value that leaves an id unchanged.
const NO_ID: u32 = u32::MAX;

thread_local! {
    static RESTORE_FAILED: Cell<bool> = const { Cell::new(false) };
}

/// While this value exists, its thread has the user's rights on files, and files that it creates belong to the user,
/// with umask 022. Dropping it restores the credentials of the thread. If it is leaked, the thread keeps those of the
/// user.
#[derive(Debug)]
pub struct Impersonation {
    /// The credentials to restore; `None` if they were not changed.
    before: Option<Credentials>,
    /// Credentials are a thread's own: this must be dropped by the thread that made it.
    not_send: PhantomData<*const ()>,
}

/// What the kernel checks when a thread opens a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: [Capabilities; 2],
}

impl Impersonation {
    /// Makes the calling thread act as the user with these ids. A daemon that is not root can only act as its own user.
    ///
    /// Sets the thread's umask to 022 and separates its umask and working directory from those of other threads, for
    /// good.
    ///
    /// # Errors
    /// When the kernel refuses. The credentials are then the same as before.
    pub fn begin(uid: u32, gid: u32, groups: &[u32]) -> io::Result<Impersonation> {
        // This gives the thread a umask of its own. If a seccomp filter denies that, the umask of the whole process is
        // set, which does no harm: the daemon makes its own files with modes that 022 does not change.
        if let Err(errno) = unshare(CloneFlags::CLONE_FS) {
            log::debug!("the thread cannot have a umask of its own: {errno}");
        }
        umask(Mode::from_bits_truncate(0o022));
        let mut impersonation = Impersonation { before: None, not_send: PhantomData };
        if !geteuid().is_root() && geteuid().as_raw() == uid {
            return Ok(impersonation);
        }
        let before = Credentials::current()?;
        let mut wanted = Credentials { uid, gid, groups: groups.to_vec(), capabilities: before.capabilities };
        if uid != 0 {
            wanted.capabilities.iter_mut().for_each(|half| half.effective = 0);
        }
        // From here on an error drops `impersonation`, which restores the credentials.
        impersonation.before = Some(before);
        wanted.apply()?;
        Ok(impersonation)
    }
}

impl Drop for Impersonation {
    fn drop(&mut self) {
        let Some(before) = self.before.take() else { return };
        if let Err(error) = before.apply() {
            log::error!("a thread cannot restore its own credentials and must end: {error}");
            RESTORE_FAILED.set(true);
        }
    }
}

/// Whether the credentials of the calling thread could not be restored once. Such a thread must end.
pub fn restore_failed() -> bool {
    RESTORE_FAILED.get()
}

impl Credentials {
    /// The credentials of the calling thread.
    fn current() -> io::Result<Credentials> {
        Ok(Credentials {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: getgroups()?.into_iter().map(Gid::as_raw).collect(),
            capabilities: capabilities::get()?,
        })
    }

    /// Gives the calling thread these credentials, and checks that it has them.
    fn apply(&self) -> io::Result<()> {
        // All permitted capabilities first: when credentials are restored, the groups are set while the effective uid
        // is still the user's.
        let full = self.capabilities.map(|half| Capabilities { effective: half.permitted, ..half });
        capabilities::set(&full)?;
        if groups_can_be_set() {
            set_groups(&self.groups)?;
        }
        set_effective(libc::SYS_setresgid, self.gid)?;
        set_effective(libc::SYS_setresuid, self.uid)?;
        // Capabilities last: a change of the effective uid from or to 0 changes them.
        capabilities::set(&self.capabilities)?;
        let ids = [geteuid().as_raw(), fsuid(), getegid().as_raw(), fsgid()];
        if ids != [self.uid, self.uid, self.gid, self.gid] || capabilities::get()? != self.capabilities {
            return Err(Errno::EPERM.into());
        }
        Ok(())
    }
}

/// The fsuid of the calling thread.
fn fsuid() -> u32 {
    setfsuid(Uid::from_raw(NO_ID)).as_raw()
}

/// The fsgid of the calling thread.
fn fsgid() -> u32 {
    setfsgid(Gid::from_raw(NO_ID)).as_raw()
}

/// Whether this process may set supplementary groups, determined at the first call: later the calling thread may be
/// acting as a user.
fn groups_can_be_set() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(may_set_groups)
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the groups are valid for reading for their number.
    let set = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Ok(Errno::result(set).map(drop)?)
}

/// Sets the effective uid or gid of the calling thread. `call` is `SYS_setresuid` or `SYS_setresgid`.
fn set_effective(call: libc::c_long, id: u32) -> io::Result<()> {
    if id == NO_ID {
        return Err(Errno::EINVAL.into());
    }
    // SAFETY: both calls take integers.
    let set = unsafe { libc::syscall(call, NO_ID, id, NO_ID) };
    Ok(Errno::result(set).map(drop)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn root(test: &str) -> bool {
        if !geteuid().is_root() {
            eprintln!("{test}: skipped: it needs root");
        }
        geteuid().is_root()
    }

    #[test]
    fn a_thread_has_the_rights_of_the_user_and_then_its_own_again() {
        if !root("acting as a user") {
            return;
        }
        let before = Credentials::current().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).unwrap();
        let (ask, asked) = crossbeam_channel::bounded(0);
        let path = secret.clone();
        let other = std::thread::spawn(move || asked.recv().map(|()| File::open(path).map(drop)));
        let impersonation = Impersonation::begin(4242, 4243, &[4243, 4244]).unwrap();
        // No capability is left to ignore modes (DAC_OVERRIDE, DAC_READ_SEARCH) or to open /proc of others
        // (SYS_PTRACE).
        assert!(capabilities::get().unwrap().iter().all(|half| half.effective == 0));
        assert_eq!(File::open(&secret).unwrap_err().raw_os_error(), Some(libc::EACCES));
        assert_eq!(fs::read_link("/proc/1/cwd").unwrap_err().raw_os_error(), Some(libc::EACCES));
        let switch = fs::OpenOptions::new().write(true).open("/proc/sys/kernel/pid_max");
        assert_eq!(
            switch.unwrap_err().kind(),
            io::ErrorKind::PermissionDenied,
            "the kernel checks the effective uid here"
        );
        let own = dir.path().join("own");
        let meta = File::create(&own).unwrap().metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (4242, 4243, 0o644));
        assert!(std::os::unix::fs::chown(&own, Some(0), None).is_err());
        // Another thread still has its own credentials.
        ask.send(()).unwrap();
        other.join().unwrap().unwrap().unwrap();
        drop(impersonation);
        assert_eq!(Credentials::current().unwrap(), before);
        assert!(File::open(&secret).is_ok() && !restore_failed());
        std::os::unix::fs::chown(&secret, None, Some(4244)).unwrap();
        let _impersonation = Impersonation::begin(4242, 4243, &[4243, 4244]).unwrap();
        assert!(File::open(&secret).is_ok(), "a supplementary group counts");
    }

    #[test]
    fn root_keeps_its_capabilities() {
        if !root("acting as root") {
            return;
        }
        let before = Credentials::current().unwrap();
        let impersonation = Impersonation::begin(0, 0, &[0]).unwrap();
        assert_eq!(capabilities::get().unwrap(), before.capabilities);
        drop(impersonation);
        assert_eq!(Credentials::current().unwrap(), before);
    }

    #[test]
    fn a_thread_that_cannot_get_its_credentials_back_is_marked() {
        if !root("failing to restore credentials") {
            return;
        }
        let body = || {
            let impersonation = Impersonation::begin(4242, 4242, &[]).unwrap();
            // A capability that is no longer permitted cannot be set again.
            capabilities::set(&[Capabilities::default(); 2]).unwrap();
            drop(impersonation);
            restore_failed()
        };
        assert!(std::thread::spawn(body).join().unwrap());
        assert!(!restore_failed());
    }

    #[test]
    fn an_id_that_cannot_be_set_is_an_error() {
        if geteuid().is_root() {
            // The kernel takes this id as "leave unchanged".
            assert!(Impersonation::begin(NO_ID, 1, &[]).is_err() && !restore_failed());
        } else {
            assert!(Impersonation::begin(0, 0, &[]).is_err() && !restore_failed());
        }
    }
}
