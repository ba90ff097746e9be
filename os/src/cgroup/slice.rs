//! The slice: the cgroup that holds the leaves of all units.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, mkdirat};

use super::controllers::{CONTROL, Controllers, enable};
use super::directory::{MAX_DEPTH, is_gone, remove_tree, write_existing};
use super::leaf::Leaf;
use super::membership;
use super::slice_dir::SliceDir;
use crate::random;

/// What the names of all slices begin with; eight random bytes in hexadecimal follow.
const PREFIX: &str = "tl-units.";

/// How many names are tried for a new slice.
const MAX_TRIES: usize = 16;

/// The cgroup that holds the leaves. It is removed when it and all of its leaves have been dropped.
#[derive(Debug)]
pub struct Slice(Arc<SliceDir>);

impl Slice {
    /// Makes a slice below the cgroup `parent`, or else below the one that this process is in. First removes slices
    /// there that supervisors which were killed have left behind. Whether processes can be put into the new one is not
    /// known until [`probe`](super::probe) has tried.
    ///
    /// # Errors
    /// When there is no cgroup v2 that this process may change.
    pub fn below(parent: Option<&Path>) -> io::Result<Slice> {
        let parents = match parent {
            Some(parent) => vec![parent.to_owned()],
            None => membership::unified().into_iter().map(|own| own.dir).collect(),
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
        // Only a cgroup has this file: in any other directory nothing must be made or removed.
        fs::metadata(parent.join(CONTROL))?;
        remove_stale(parent);
        let mut tries = 0..MAX_TRIES;
        loop {
            let dir = parent.join(format!("{PREFIX}{}", random::hex::<8>()?));
            fs::create_dir(&dir)?;
            // Until it is locked, another supervisor may take the new slice for a stale one and remove it.
            match lock(&dir) {
                Some(lock) => return Ok(Slice(Arc::new(SliceDir::new(dir, lock)))),
                None if tries.next().is_some() => {}
                None => return Err(Errno::EWOULDBLOCK.into()),
            }
        }
    }

    /// Enables the available controllers for the leaves, which takes the kernel some milliseconds. Without the memory
    /// controller, kills by the out-of-memory killer cannot be told from others.
    pub fn enable_controllers(&self) {
        let dir = self.dir();
        if let Some(parent) = dir.parent() {
            enable(parent);
        }
        let controllers = enable(dir);
        log::debug!("{}: controllers for units: {}", dir.display(), controllers.join(" "));
        self.0.set_controllers(Controllers::named(&controllers));
    }

    /// The controllers that [`Slice::enable_controllers`] has enabled for the leaves.
    pub fn controllers(&self) -> Controllers {
        self.0.controllers()
    }

    /// Limits the number of tasks (processes and threads) of all leaves together to `most`. Returns false if there is
    /// no pids controller, and nothing was done.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn limit_tasks(&self, most: u64) -> io::Result<bool> {
        match write_existing(&self.dir().join("pids.max"), &most.to_string()) {
            Err(error) if is_gone(&error) => return Ok(false),
            result => result?,
        }
        self.0.set_limits_tasks();
        Ok(true)
    }

    /// Whether [`Slice::limit_tasks`] has set a limit.
    pub fn limits_tasks(&self) -> bool {
        self.0.limits_tasks()
    }

    /// The file that counts the kills of the out-of-memory killer in all leaves; `None` without the memory controller.
    pub fn memory_events(&self) -> Option<File> {
        File::open(self.dir().join("memory.events")).ok()
    }

    /// The path of its directory.
    pub fn dir(&self) -> &Path {
        self.0.path()
    }

    /// An empty leaf: one that an ended run has left, if there is a spare one, or else a new one.
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub fn leaf(&self) -> io::Result<Leaf> {
        match self.0.spare().take() {
            Some(name) => Ok(Leaf::new(Arc::clone(&self.0), name)),
            None => self.new_leaf(),
        }
    }

    /// A new leaf.
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub fn new_leaf(&self) -> io::Result<Leaf> {
        let name = self.0.new_name();
        mkdirat(&*self.0, name.as_str(), Mode::from_bits_truncate(0o755))?;
        Ok(Leaf::new(Arc::clone(&self.0), name))
    }

    /// Removes the spare leaves, because one of them could not be used or may have been killed.
    pub fn remove_spare_leaves(&self) {
        for name in self.0.spare().drain() {
            let _ = remove_tree(self.0.as_fd(), name.as_ref(), MAX_DEPTH);
        }
    }
}

/// Removes the slices of supervisors that no longer run, except those with live processes in them.
fn remove_stale(parent: &Path) {
    let (Ok(entries), Ok(dir)) = (fs::read_dir(parent), File::open(parent)) else { return };
    let stale = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for entry in stale {
        if let Some(_lock) = lock(&entry.path()) {
            let _ = remove_tree(dir.as_fd(), &entry.file_name(), MAX_DEPTH);
        }
    }
}

fn lock(dir: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(dir).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_removed_with_its_nested_cgroups_and_the_slice_after_its_last_leaf() {
        // Only root can make cgroups, and only where a hierarchy of version 2 is mounted.
        let Ok(slice) = Slice::below(None) else { return };
        let dir = slice.dir().to_owned();
        let [first, last] = [slice.new_leaf().unwrap(), slice.new_leaf().unwrap()];
        fs::create_dir_all(dir.join(first.name()).join("deep/deeper")).unwrap();
        first.give_back().unwrap();
        assert!(!dir.join(first.name()).exists(), "it is not kept with a nested cgroup");
        first.give_back().unwrap();
        drop((slice, first));
        assert!(last.is_empty() && dir.join(last.name()).exists());
        // A slice in use is locked, so it does not count as stale.
        remove_stale(dir.parent().unwrap());
        assert!(dir.exists());
        drop(last);
        assert!(!dir.exists());
    }

    #[test]
    fn an_empty_leaf_is_used_again_if_its_settings_are_those_of_a_new_one() {
        let Ok(slice) = Slice::below(None) else { return };
        let exists = |leaf: &Leaf| slice.dir().join(leaf.name()).exists();
        let first = slice.leaf().unwrap();
        let clone = first.clone();
        first.leader_exited();
        first.give_back().unwrap();
        assert!(!exists(&first), "another thread may still act on the clone");
        drop(clone);
        let second = slice.leaf().unwrap();
        second.leader_exited();
        second.give_back().unwrap();
        assert!(exists(&second));
        let again = slice.leaf().unwrap();
        assert_eq!(again.name(), second.name());
        for (file, value) in [("cgroup.freeze", "1"), ("cgroup.max.depth", "3"), ("cgroup.type", "threaded")] {
            let leaf = slice.leaf().unwrap();
            leaf.leader_exited();
            fs::write(slice.dir().join(leaf.name()).join(file), value).unwrap();
            leaf.give_back().unwrap();
            assert!(!exists(&leaf), "{file} was changed");
        }
        for file in ["", "cgroup.procs", "cgroup.freeze", "cgroup.kill"] {
            let leaf = slice.leaf().unwrap();
            leaf.leader_exited();
            let path = slice.dir().join(leaf.name()).join(file);
            if !path.exists() {
                continue;
            }
            std::os::unix::fs::chown(path, Some(1_234), None).unwrap();
            leaf.give_back().unwrap();
            assert!(!exists(&leaf), "the owner of {file:?} was changed");
        }
        let killed = slice.leaf().unwrap();
        killed.leader_exited();
        killed.kill().unwrap();
        killed.give_back().unwrap();
        assert!(!exists(&killed));
        let unknown = slice.leaf().unwrap();
        unknown.give_back().unwrap();
        assert!(!exists(&unknown), "its leader may have been killed");
        again.leader_exited();
        again.give_back().unwrap();
        assert!(exists(&again));
        slice.remove_spare_leaves();
        assert!(!exists(&again));
    }

    #[test]
    fn a_directory_that_is_not_a_cgroup_is_left_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let stale = dir.path().join("tl-units.0");
        fs::create_dir(&stale).unwrap();
        assert!(Slice::below(Some(dir.path())).is_err());
        assert!(stale.exists() && fs::read_dir(dir.path()).unwrap().count() == 1);
    }
}
