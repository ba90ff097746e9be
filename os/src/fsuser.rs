//! Being another user towards the file system, for one thread and a while.
//!
//! Raw system calls change the calling thread only; glibc's `setgroups` and its like would change all of them.
//!
//! fsuid and fsgid alone are not enough. With fsuid 0 the kernel takes away only the file-system capabilities, and
//! CAP_SYS_PTRACE would still open `/proc/PID/cwd` of anybody; and `/proc/sys` asks for the effective ids. So those are
//! changed, which takes fsuid, fsgid and, for every user but root, all capabilities along. The real and saved ids stay the
//! daemon's: that is the way back, and nobody else can signal or trace the thread.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, getegid, geteuid, getgroups, setfsgid, setfsuid};

/// No id: leaves it as it is.
const NO_ID: u32 = u32::MAX;

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits, in two halves.
const VERSION_3: u32 = 0x2008_0522;

thread_local! {
    static STUCK: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, its thread does to files what the user may do, and what it makes is the user's, with umask 022.
#[derive(Debug)]
pub struct Acting {
    /// What to go back to; none where nothing was changed.
    before: Option<Credentials>,
    /// Not to be dropped by another thread.
    of_this_thread: PhantomData<*const ()>,
}

/// What the kernel asks of a thread that opens a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Credentials {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    capabilities: [Capabilities; 2],
}

/// The kernel's `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Capabilities {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The kernel's `struct __user_cap_header_struct`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

impl Acting {
    /// Makes this thread act as the user with these ids. Where the daemon is not root, it can only be itself.
    ///
    /// # Errors
    /// When the kernel does not let it; nothing is changed then.
    pub fn begin(uid: u32, gid: u32, groups: &[u32]) -> io::Result<Acting> {
        // For a umask of the thread's own. Where a container's filter denies that it is the process's, which makes all
        // its own files with modes that need none.
        if let Err(errno) = unshare(CloneFlags::CLONE_FS) {
            log::debug!("the umask cannot be a thread's own: {errno}");
        }
        umask(Mode::from_bits_truncate(0o022));
        let mut acting = Acting { before: None, of_this_thread: PhantomData };
        if !geteuid().is_root() && geteuid().as_raw() == uid {
            return Ok(acting);
        }
        let before = Credentials::now()?;
        let mut wanted = Credentials { uid, gid, groups: groups.to_vec(), capabilities: before.capabilities };
        if uid != 0 {
            wanted.capabilities.iter_mut().for_each(|half| half.effective = 0);
        }
        // From here on a failure goes back to what was before.
        acting.before = Some(before);
        wanted.put_on()?;
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let Some(before) = self.before.take() else { return };
        if let Err(error) = before.put_on() {
            log::error!("a thread cannot be the daemon's again, and ends: {error}");
            STUCK.set(true);
        }
    }
}

/// Whether this thread could not be given back what it had: it must end.
pub fn is_stuck() -> bool {
    STUCK.get()
}

impl Credentials {
    fn now() -> io::Result<Credentials> {
        Ok(Credentials {
            uid: geteuid().as_raw(),
            gid: getegid().as_raw(),
            groups: getgroups()?.into_iter().map(Gid::as_raw).collect(),
            capabilities: capabilities()?,
        })
    }

    /// Puts these in force, and looks whether they are.
    fn put_on(&self) -> io::Result<()> {
        // On the way back the groups come before the uid that may set them.
        let full = self.capabilities.map(|half| Capabilities { effective: half.permitted, ..half });
        set_capabilities(&full)?;
        if may_set_groups() {
            set_groups(&self.groups)?;
        }
        set_effective(libc::SYS_setresgid, self.gid)?;
        set_effective(libc::SYS_setresuid, self.uid)?;
        // Last: a change of the uid from or to 0 changes them too.
        set_capabilities(&self.capabilities)?;
        let ids = [geteuid().as_raw(), fsuid(), getegid().as_raw(), fsgid()];
        if ids != [self.uid, self.uid, self.gid, self.gid] || capabilities()? != self.capabilities {
            return Err(Errno::EPERM.into());
        }
        Ok(())
    }
}

fn fsuid() -> u32 {
    setfsuid(Uid::from_raw(NO_ID)).as_raw()
}

fn fsgid() -> u32 {
    setfsgid(Gid::from_raw(NO_ID)).as_raw()
}

/// In a user namespace groups are what they are (user_namespaces(7)).
fn may_set_groups() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        geteuid().is_root() && !std::fs::read("/proc/self/setgroups").is_ok_and(|word| word.starts_with(b"deny"))
    })
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: the groups are valid for reading for that length.
    let set = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    Ok(Errno::result(set).map(drop)?)
}

/// `setresuid` or `setresgid`, of the effective id.
fn set_effective(call: libc::c_long, id: u32) -> io::Result<()> {
    if id == NO_ID {
        return Err(Errno::EINVAL.into());
    }
    // SAFETY: no memory involved.
    let set = unsafe { libc::syscall(call, NO_ID, id, NO_ID) };
    Ok(Errno::result(set).map(drop)?)
}

fn capabilities() -> io::Result<[Capabilities; 2]> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Capabilities::default(); 2];
    // SAFETY: the header and both halves are laid out as the kernel's and valid for writing.
    let got = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    Errno::result(got)?;
    Ok(sets)
}

fn set_capabilities(sets: &[Capabilities; 2]) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: the header and both halves are laid out as the kernel's and valid for reading; PID 0 is this thread.
    let set = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    Ok(Errno::result(set).map(drop)?)
}

/// Takes CAP_SYS_PTRACE from this thread.
#[cfg(test)]
pub(super) fn without_ptrace() {
    let mut sets = capabilities().unwrap();
    sets[0].effective &= !(1 << 19);
    set_capabilities(&sets).unwrap();
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    fn root(test: &str) -> bool {
        if !geteuid().is_root() {
            eprintln!("{test}: skipped, it needs root");
        }
        geteuid().is_root()
    }

    #[test]
    fn a_user_may_what_it_may_and_the_thread_comes_back() {
        if !root("acting as a user") {
            return;
        }
        let before = Credentials::now().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, PermissionsExt::from_mode(0o640)).unwrap();
        let (ask, asked) = crossbeam_channel::bounded(0);
        let path = secret.clone();
        let other = std::thread::spawn(move || asked.recv().map(|()| File::open(path).map(drop)));
        let acting = Acting::begin(4242, 4243, &[4243, 4244]).unwrap();
        // Read and write past the mode, search past it, and /proc of others: DAC_OVERRIDE, DAC_READ_SEARCH, SYS_PTRACE.
        assert!(capabilities().unwrap().iter().all(|half| half.effective == 0));
        assert_eq!(File::open(&secret).unwrap_err().raw_os_error(), Some(libc::EACCES));
        assert_eq!(fs::read_link("/proc/1/cwd").unwrap_err().raw_os_error(), Some(libc::EACCES));
        let switch = fs::OpenOptions::new().write(true).open("/proc/sys/kernel/pid_max");
        assert_eq!(switch.unwrap_err().kind(), io::ErrorKind::PermissionDenied, "this asks for the effective uid");
        let own = dir.path().join("own");
        let meta = File::create(&own).unwrap().metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (4242, 4243, 0o644));
        assert!(std::os::unix::fs::chown(&own, Some(0), None).is_err());
        // Another thread is who it was.
        ask.send(()).unwrap();
        other.join().unwrap().unwrap().unwrap();
        drop(acting);
        assert_eq!(Credentials::now().unwrap(), before);
        assert!(File::open(&secret).is_ok() && !is_stuck());
        std::os::unix::fs::chown(&secret, None, Some(4244)).unwrap();
        let _acting = Acting::begin(4242, 4243, &[4243, 4244]).unwrap();
        assert!(File::open(&secret).is_ok(), "a supplementary group counts");
    }

    #[test]
    fn root_keeps_its_capabilities() {
        if !root("acting as root") {
            return;
        }
        let before = Credentials::now().unwrap();
        let acting = Acting::begin(0, 0, &[0]).unwrap();
        assert_eq!(capabilities().unwrap(), before.capabilities);
        drop(acting);
        assert_eq!(Credentials::now().unwrap(), before);
    }

    #[test]
    fn a_thread_that_cannot_come_back_is_stuck() {
        if !root("a stuck thread") {
            return;
        }
        let body = || {
            let acting = Acting::begin(4242, 4242, &[]).unwrap();
            // What is no longer permitted cannot be had again.
            set_capabilities(&[Capabilities::default(); 2]).unwrap();
            drop(acting);
            is_stuck()
        };
        assert!(std::thread::spawn(body).join().unwrap());
        assert!(!is_stuck());
    }

    #[test]
    fn nobody_is_not_root() {
        if geteuid().is_root() {
            // The last id is none.
            assert!(Acting::begin(NO_ID, 1, &[]).is_err() && !is_stuck());
        } else {
            assert!(Acting::begin(0, 0, &[]).is_err() && !is_stuck());
        }
    }
}
