//! The freezer: stops the execution of all processes of a leaf, and lets them run on (cgroup-v2, cgroup.freeze).

use std::io;

use super::leaf::Leaf;

impl Leaf {
    /// Begins to stop the execution of every process in the leaf and below it, those that are forked meanwhile included.
    /// A process of the leaf cannot notice or prevent that. [`Leaf::is_frozen`] says when all of them stand still.
    /// SIGKILL still ends them; every other signal waits until they are thawed.
    ///
    /// # Errors
    /// What writing `cgroup.freeze` says: ENOENT before Linux 5.2.
    pub fn freeze(&self) -> io::Result<()> {
        self.write("cgroup.freeze", "1")
    }

    /// Lets every process in the leaf and below it run on. It is not an error if they run already.
    ///
    /// # Errors
    /// What writing `cgroup.freeze` says.
    pub fn thaw(&self) -> io::Result<()> {
        self.write("cgroup.freeze", "0")
    }

    /// Whether every process in the leaf and below it stands still. A process that hangs in the kernel does only once its
    /// system call returns.
    pub fn is_frozen(&self) -> bool {
        self.read("cgroup.events").is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
    }
}
