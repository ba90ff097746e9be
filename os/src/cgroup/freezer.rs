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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::super::slice::Slice;
    use crate::testing::wait_until;

    #[test]
    fn a_frozen_process_can_be_killed_and_the_leaf_is_as_new_after_a_thaw() {
        // Only root can make cgroups, and only where a hierarchy of version 2 is mounted.
        let Ok(slice) = Slice::below(None) else { return };
        let leaf = slice.new_leaf().unwrap();
        let dir = slice.dir().join(leaf.name());
        if !dir.join("cgroup.freeze").exists() {
            return;
        }
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
        assert!(!leaf.is_frozen());
        leaf.freeze().unwrap();
        wait_until("it stands still", || leaf.is_frozen());
        leaf.thaw().unwrap();
        wait_until("it runs on", || !leaf.is_frozen());
        leaf.freeze().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        leaf.thaw().unwrap();
        leaf.leader_exited();
        leaf.give_back().unwrap();
        assert!(dir.exists(), "it is kept for another run");
    }
}
