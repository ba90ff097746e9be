//! cgroup v2: one leaf for each run, so that a tree can be killed whole and its end be seen (cgroups(7)).

mod leaf;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

pub use leaf::{Leaf, oom_kills};

use crate::{own_cgroup, random};

/// How deep below its leaf a tree may have made cgroups of its own that we still clear away.
const DEPTH: usize = 16;
/// What the names of all slices begin with.
const PREFIX: &str = "tl-units.";

/// The name of the leaf that [`settle`] makes.
const LEAF: &str = "tl-init";
/// What is enabled for units, as far as the kernel has it and lets us.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "io", "pids"];
/// Where they are enabled. Every cgroup of version 2 has this file.
const CONTROL: &str = "cgroup.subtree_control";
/// Memory of this process that is not reclaimed for others (memory.min in the kernel's cgroup-v2.rst): several times
/// what it needs.
const PROTECTED: &str = "32M";

/// Where [`settle`] has put this process.
#[derive(Debug)]
pub struct Settled {
    /// The cgroup that its leaf and the units' slice are below.
    pub parent: PathBuf,
    /// What is enabled below it, or will be by the units' slice.
    pub controllers: Vec<&'static str>,
    /// The leaf that is still to be entered, by [`enter`].
    pub leaf: Option<PathBuf>,
}

/// Makes it possible to enable controllers for the units of this process. It has to be in a leaf beside them for that ("no
/// internal processes", cgroups(7)), and its memory is protected there. A move takes the kernel some 20 ms: in the root
/// cgroup, where it can come later, it is left to the caller, and where there is nothing to enable there is none.
/// Settled already is no error.
///
/// # Errors
/// Where there is no cgroup v2 that we may change.
pub fn settle() -> io::Result<Settled> {
    let own = own_cgroup::unified().into_iter().map(|own| own.dir).find(|dir| dir.join(CONTROL).exists());
    let own = own.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no cgroup v2 here"))?;
    let parent = match own.parent() {
        Some(parent) if own.ends_with(LEAF) => parent.to_owned(),
        _ => own,
    };
    let available = known(&fs::read_to_string(parent.join("cgroup.controllers"))?);
    if available.is_empty() {
        return Ok(Settled { parent, controllers: available, leaf: None });
    }
    let leaf = parent.join(LEAF);
    // Every cgroup but the root has this file.
    if !parent.join("cgroup.type").exists() {
        return Ok(Settled { parent, controllers: available, leaf: Some(leaf) });
    }
    move_to(&leaf)?;
    let controllers = enable(&parent);
    protect(&leaf)?;
    Ok(Settled { parent, controllers, leaf: None })
}

/// Moves this process into its leaf, where its memory is protected.
///
/// # Errors
/// What the kernel says.
pub fn enter(leaf: &Path) -> io::Result<()> {
    if let Some(parent) = leaf.parent() {
        // The units' slice does so as well; there is nothing to protect the memory with before.
        enable(parent);
    }
    move_to(leaf)?;
    protect(leaf)
}

fn move_to(leaf: &Path) -> io::Result<()> {
    match fs::create_dir(leaf) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => result?,
    }
    fs::write(leaf.join("cgroup.procs"), "0")
}

fn protect(leaf: &Path) -> io::Result<()> {
    match set(&leaf.join("memory.min"), PROTECTED) {
        // There is no memory controller.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Writes to a file of a cgroup. Does not try to create one that is not there, which the kernel would forbid instead of
/// saying that it is not there.
fn set(file: &Path, value: &str) -> io::Result<()> {
    File::options().write(true).open(file)?.write_all(value.as_bytes())
}

/// Enables what there is for the cgroups below `dir`. Says what is enabled then.
fn enable(dir: &Path) -> Vec<&'static str> {
    let control = dir.join(CONTROL);
    let words = CONTROLLERS.map(|controller| format!("+{controller}"));
    // All at once is one piece of work for the kernel instead of four.
    if fs::write(&control, words.join(" ")).is_err() {
        for word in words {
            // One that is not to be had is missing in the answer.
            let _ = fs::write(&control, word);
        }
    }
    known(&fs::read_to_string(&control).unwrap_or_default())
}

/// Those of our controllers that are among these words.
fn known(words: &str) -> Vec<&'static str> {
    CONTROLLERS.into_iter().filter(|name| words.split_whitespace().any(|word| word == *name)).collect()
}

/// The cgroup below which the leaves are.
#[derive(Debug)]
pub struct Slice(Arc<Home>);

#[derive(Debug)]
struct Home {
    dir: PathBuf,
    /// The directory. What is in it is found from here: its path may be unmounted, or something be mounted over it.
    ///
    /// The lock says that we live: whoever gets it may clear the directory away.
    lock: Flock<File>,
    /// Whether children can be born in a leaf (`CLONE_INTO_CGROUP`); they join it otherwise.
    born_into: AtomicBool,
    /// Whether it has a limit on tasks.
    limits_tasks: AtomicBool,
}

/// When neither the slice nor any of its leaves is needed.
impl Drop for Home {
    fn drop(&mut self) {
        if let (Some(parent), Some(name)) = (self.dir.parent(), self.dir.file_name())
            && let Ok(parent) = File::open(parent)
        {
            let _ = remove_tree(parent.as_fd(), name, DEPTH);
        }
    }
}

impl Slice {
    /// Makes a slice below the cgroup `parent`, or the one that this process is in. Whether processes can be put into
    /// it is not known before [`fork::probe`](crate::fork::probe) has tried.
    ///
    /// # Errors
    /// Where there is no cgroup v2 that we may change.
    pub fn below(parent: Option<&Path>) -> io::Result<Slice> {
        let parents = match parent {
            Some(parent) => vec![parent.to_owned()],
            None => own_cgroup::unified().into_iter().map(|own| own.dir).collect(),
        };
        let mut result = Err(io::Error::new(io::ErrorKind::NotFound, "there is no cgroup v2"));
        for parent in parents {
            result = Slice::make(&parent);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn make(parent: &Path) -> io::Result<Slice> {
        // What is no cgroup could be made into anything.
        fs::metadata(parent.join(CONTROL))?;
        remove_stale(parent);
        let mut tries = 0..16;
        loop {
            let dir = parent.join(format!("{PREFIX}{}", random::hex::<8>()?));
            fs::create_dir(&dir)?;
            // Another supervisor may take a new slice for a stale one until it is locked.
            match lock(&dir) {
                Some(lock) => {
                    let (born_into, limits_tasks) = (AtomicBool::new(true), AtomicBool::new(false));
                    return Ok(Slice(Arc::new(Home { dir, lock, born_into, limits_tasks })));
                }
                None if tries.next().is_some() => {}
                None => return Err(Errno::EWOULDBLOCK.into()),
            }
        }
    }

    /// Enables what controllers there are for the leaves: without that of memory there is no telling who was killed for
    /// want of it. Takes the kernel some milliseconds.
    pub fn enable_controllers(&self) {
        let dir = &self.0.dir;
        if let Some(parent) = dir.parent() {
            enable(parent);
        }
        let controllers = enable(dir);
        log::debug!("{}: controllers for units: {}", dir.display(), controllers.join(" "));
    }

    /// Limits the tasks (processes and threads) of all leaves together, where there is a controller for that; says whether
    /// there is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn limit_tasks(&self, most: u64) -> io::Result<bool> {
        match set(&self.dir().join("pids.max"), &most.to_string()) {
            Err(error) if is_gone(&error) => return Ok(false),
            result => result?,
        }
        self.0.limits_tasks.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Whether that has been done.
    pub fn limits_tasks(&self) -> bool {
        self.0.limits_tasks.load(Ordering::Relaxed)
    }

    /// What tells of each kill for want of memory in any leaf; none without the controller.
    pub fn memory_events(&self) -> Option<File> {
        File::open(self.dir().join("memory.events")).ok()
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Makes a leaf.
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub fn leaf(&self, name: &str) -> io::Result<Leaf> {
        mkdirat(&*self.0.lock, name, Mode::from_bits_truncate(0o755))?;
        Ok(Leaf::new(Arc::clone(&self.0), name))
    }
}

/// Whether an error says that a cgroup does not exist any more. ENODEV comes from a file that was open when it went.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// The names of the cgroups in a cgroup.
fn children(dir: &mut Dir) -> Vec<OsString> {
    let entries = dir.iter().flatten().filter(|entry| entry.file_type() == Some(Type::Directory));
    let names = entries.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
    names.filter(|name| name != "." && name != "..").collect()
}

/// Takes away what supervisors that have ended without a word have left, as far as nothing lives in it.
fn remove_stale(parent: &Path) {
    let (Ok(entries), Ok(dir)) = (fs::read_dir(parent), File::open(parent)) else { return };
    let stale = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for entry in stale {
        if let Some(_lock) = lock(&entry.path()) {
            let _ = remove_tree(dir.as_fd(), &entry.file_name(), DEPTH);
        }
    }
}

fn lock(dir: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(dir).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

/// Removes the cgroup `name` in `parent`, with all cgroups below it, down to `depth`.
fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
        Err(Errno::EBUSY) if depth > 0 => {}
        Err(Errno::ENOENT) => return Ok(()),
        result => return Ok(result?),
    }
    let mut dir = Dir::openat(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    for child in children(&mut dir) {
        remove_tree(dir.as_fd(), &child, depth - 1)?;
    }
    Ok(unlinkat(parent, name, UnlinkatFlags::RemoveDir)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_goes_with_the_cgroups_that_were_made_in_it_and_the_slice_after_its_last_leaf() {
        // Only root may make cgroups, and only where there is a hierarchy of version 2.
        let Ok(slice) = Slice::below(None) else { return };
        let dir = slice.dir().to_owned();
        let [first, last] = ["1.1", "2.1"].map(|name| slice.leaf(name).unwrap());
        fs::create_dir_all(dir.join("1.1/deep/deeper")).unwrap();
        assert_eq!(slice.leaf("1.1").unwrap_err().raw_os_error(), Some(libc::EEXIST));
        first.remove().unwrap();
        assert!(!dir.join("1.1").exists());
        first.remove().unwrap();
        drop((slice, first));
        assert!(last.is_empty() && dir.join("2.1").exists());
        // A slice that is in use is no stale one.
        remove_stale(dir.parent().unwrap());
        assert!(dir.exists());
        drop(last);
        assert!(!dir.exists());
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let stale = dir.path().join("tl-units.0");
        fs::create_dir(&stale).unwrap();
        assert!(Slice::below(Some(dir.path())).is_err());
        assert!(stale.exists() && fs::read_dir(dir.path()).unwrap().count() == 1);
    }
}
