//! The directory of a slice, shared by the slice and its leaves.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::Flock;

use super::controllers::Controllers;
use super::directory::{MAX_DEPTH, remove_tree};
use super::spare::SpareLeaves;

/// The directory of a slice. Dropping it, when neither the slice nor a leaf is left, removes the slice.
#[derive(Debug)]
pub(super) struct SliceDir {
    path: PathBuf,
    /// The directory itself. Everything in it is opened relative to this: its path may be unmounted, or hidden by
    /// another mount.
    ///
    /// The lock says that this process uses the slice: another supervisor removes a slice that it can lock.
    lock: Flock<File>,
    /// Whether children can be created in a leaf (`CLONE_INTO_CGROUP`); otherwise they join it after the fork.
    can_clone_into: AtomicBool,
    /// Whether the slice limits the number of tasks.
    limits_tasks: AtomicBool,
    /// The controllers of the leaves; none until they are enabled.
    controllers: OnceLock<Controllers>,
    spare: SpareLeaves,
    /// The number of leaves made so far.
    made: AtomicU64,
}

impl SliceDir {
    /// The directory at `path`, which `lock` has opened and locked.
    pub(super) fn new(path: PathBuf, lock: Flock<File>) -> SliceDir {
        SliceDir {
            path,
            lock,
            can_clone_into: AtomicBool::new(true),
            limits_tasks: AtomicBool::new(false),
            controllers: OnceLock::new(),
            spare: SpareLeaves::default(),
            made: AtomicU64::new(0),
        }
    }

    /// The path that it was made at.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether children can be created in a leaf. True until [`SliceDir::set_cannot_clone_into`] is called.
    pub(super) fn can_clone_into(&self) -> bool {
        self.can_clone_into.load(Ordering::Relaxed)
    }

    /// Notes that children cannot be created in any leaf of the slice.
    pub(super) fn set_cannot_clone_into(&self) {
        self.can_clone_into.store(false, Ordering::Relaxed);
    }

    /// Whether the slice limits the number of tasks of all leaves together.
    pub(super) fn limits_tasks(&self) -> bool {
        self.limits_tasks.load(Ordering::Relaxed)
    }

    /// The controllers that are enabled for the leaves.
    pub(super) fn controllers(&self) -> Controllers {
        self.controllers.get().copied().unwrap_or_default()
    }

    /// Notes which controllers were enabled for the leaves, once.
    pub(super) fn set_controllers(&self, controllers: Controllers) {
        let _ = self.controllers.set(controllers);
    }

    /// The empty leaves that are kept for the next runs.
    pub(super) fn spare(&self) -> &SpareLeaves {
        &self.spare
    }

    /// A name that no leaf of the slice has had before.
    pub(super) fn new_name(&self) -> String {
        (self.made.fetch_add(1, Ordering::Relaxed) + 1).to_string()
    }

    /// Notes that the slice limits the number of tasks.
    pub(super) fn set_limits_tasks(&self) {
        self.limits_tasks.store(true, Ordering::Relaxed);
    }
}

impl AsFd for SliceDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

impl Drop for SliceDir {
    fn drop(&mut self) {
        if let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name())
            && let Ok(parent) = File::open(parent)
        {
            let _ = remove_tree(parent.as_fd(), name, MAX_DEPTH);
        }
    }
}
