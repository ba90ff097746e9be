//! The cgroup of one run.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory::{MAX_DEPTH, children, is_gone, open_dir, open_file, read_file, remove_tree};
use super::memory_events::{oom_group_kills, oom_kills};
use super::slice_dir::SliceDir;
use crate::Pid;
use crate::pending_sigkill::has_pending_sigkill;
use crate::procfs;

/// The cgroup of one run.
#[derive(Clone, Debug)]
pub struct Leaf {
    dir: Arc<LeafDir>,
    /// Number of kills by the out-of-memory killer that are known to have hit processes other than the leader.
    noted: u64,
}

/// The directory of a leaf, which all clones share.
#[derive(Debug)]
struct LeafDir {
    slice: Arc<SliceDir>,
    name: String,
    /// [`Leaf::kill`] was called.
    killed: AtomicBool,
    /// See [`Leaf::leader_exited`].
    is_clean: AtomicBool,
    /// It was given back: another run may be in it.
    given_back: AtomicBool,
}

impl Leaf {
    /// A leaf of `slice` that exists and is empty.
    pub(super) fn new(slice: Arc<SliceDir>, name: String) -> Leaf {
        let [killed, is_clean, given_back] = [(); 3].map(|()| AtomicBool::new(false));
        Leaf { dir: Arc::new(LeafDir { slice, name, killed, is_clean, given_back }), noted: 0 }
    }

    /// The directory of its slice.
    pub(super) fn slice(&self) -> &SliceDir {
        &self.dir.slice
    }

    /// The name of its directory in the slice.
    pub fn name(&self) -> &str {
        &self.dir.name
    }

    /// Opens the directory of the leaf, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(&self) -> io::Result<File> {
        self.file("", OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Whether a child can be created in the leaf (`CLONE_INTO_CGROUP`); otherwise the child joins it after the fork.
    pub fn can_clone_into(&self) -> bool {
        self.dir.slice.can_clone_into()
    }

    /// Notes that children cannot be created in any leaf of the slice.
    pub(super) fn set_cannot_clone_into(&self) {
        self.dir.slice.set_cannot_clone_into();
    }

    /// Whether the slice limits the number of tasks of all leaves together.
    pub fn limits_tasks(&self) -> bool {
        self.dir.slice.limits_tasks()
    }

    /// Opens `cgroup.procs` for writing: a process that writes "0" to it joins the leaf.
    ///
    /// # Errors
    /// What `open(2)` says; EOPNOTSUPP if the kernel would refuse the process.
    pub fn procs(&self) -> io::Result<File> {
        if self.read("cgroup.type")?.trim_end() != "domain" {
            return Err(Errno::EOPNOTSUPP.into());
        }
        self.file("cgroup.procs", OFlag::O_WRONLY)
    }

    /// Sends SIGKILL to every process in the leaf and below it. A process that is forked meanwhile does not escape.
    ///
    /// The kernel sends the signal to the main thread of each process. If that has ended and other threads of the
    /// process run, they run on (seen on Linux 6.18): only a signal to each of [`Leaf::members`] ends these.
    ///
    /// # Errors
    /// What writing `cgroup.kill` says.
    pub fn kill(&self) -> io::Result<()> {
        self.dir.killed.store(true, Ordering::Relaxed);
        self.write("cgroup.kill", "1")
    }

    /// Whether the process that has this PID now is in the leaf or below it.
    pub fn holds(&self, pid: Pid) -> bool {
        match procfs::cgroup_of(pid) {
            Ok(cgroup) => self.is_above(&cgroup),
            // There is no /proc of this PID namespace: the list of members is read again.
            Err(_) => self.members().contains(&pid),
        }
    }

    /// Whether a cgroup, as [`procfs::cgroup_of`] returns it, is the leaf or below it.
    pub fn is_above(&self, cgroup: &str) -> bool {
        self.dir.slice.path().file_name().is_some_and(|slice| is_below(cgroup, slice, &self.dir.name))
    }

    /// Whether the leaf has no processes except zombies, or no longer exists.
    pub fn is_empty(&self) -> bool {
        match self.read("cgroup.events") {
            Ok(events) => events.lines().any(|line| line == "populated 0"),
            Err(error) => is_gone(&error),
        }
    }

    /// Whether the out-of-memory killer has killed the leader, which is known to have been killed.
    ///
    /// The kernel counts its kills in a cgroup and does not name the victims. So this is true if there was a kill that
    /// was not [noted](Leaf::note_oom_kills) as that of another process, or one of all processes.
    pub fn leader_was_oom_killed(&self) -> bool {
        oom_kills(&self.memory_events()) > self.noted || self.was_oom_killed_as_a_whole()
    }

    /// Whether the out-of-memory killer was to kill all processes in the leaf at once, those in cgroups below it included.
    /// It leaves out those with an `oom_score_adj` of -1000.
    pub fn was_oom_killed_as_a_whole(&self) -> bool {
        // The kills that a cgroup below the leaf has requested for itself, for example one of a container, do not count
        // in the local file.
        oom_group_kills(&self.read("memory.events.local").unwrap_or_default()) > 0
    }

    /// Notes kills of processes other than the leader: call it soon after each kill by the out-of-memory killer. If the
    /// leader has no SIGKILL pending by then, the victim was another process.
    pub fn note_oom_kills(&mut self, leader: Pid) {
        // The count is read first: `has_pending_sigkill` is true of the victim of every kill counted before it is
        // called.
        let kills = oom_kills(&self.memory_events());
        if kills > self.noted && !has_pending_sigkill(leader) {
            self.noted = kills;
        }
    }

    /// What has happened in the leaf and below it for lack of memory. Empty without the memory controller.
    fn memory_events(&self) -> String {
        self.read("memory.events").unwrap_or_default()
    }

    /// Notes that the leader has ended, and not by a SIGKILL. If the leaf is empty when it is next given back, nobody
    /// has killed the processes in it.
    pub fn leader_exited(&self) {
        self.dir.is_clean.store(true, Ordering::Relaxed);
    }

    /// Gives the leaf back after the end of its run. If it is as new, it is kept for another run; otherwise it is
    /// removed with all cgroups below it. It is not an error if the leaf no longer exists or was given back before, or if
    /// it is empty and cannot be removed.
    ///
    /// It is not kept if it was killed, or may have been, which its files do not show: the kernel may kill every process
    /// that is created in it later (seen on Linux 6.18, which compares its count of kills with that of the creator's own
    /// cgroup). It is not kept either if a clone of this value exists, because another thread could still act on that.
    ///
    /// # Errors
    /// When the leaf has live processes.
    pub fn give_back(&self) -> io::Result<()> {
        let LeafDir { slice, name, killed, is_clean, given_back } = &*self.dir;
        if given_back.load(Ordering::Relaxed) {
            return Ok(());
        }
        let is_clean = is_clean.swap(false, Ordering::Relaxed) && !killed.load(Ordering::Relaxed);
        let may_keep = is_clean && Arc::strong_count(&self.dir) == 1;
        if !may_keep || !slice.spare().keep(slice.as_fd(), name, || slice.new_name()) {
            self.remove()?;
        }
        given_back.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn remove(&self) -> io::Result<()> {
        let LeafDir { slice, name, .. } = &*self.dir;
        match unlinkat(slice.as_fd(), name.as_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(()),
            Err(errno) if is_gone(&errno.into()) => Ok(()),
            Err(errno) if !self.is_empty() => Err(errno.into()),
            // Its processes have made cgroups of their own.
            Err(Errno::EBUSY) => remove_tree(slice.as_fd(), OsStr::new(name), MAX_DEPTH),
            Err(errno) => {
                log::debug!("{}/{name} cannot be removed: {errno}", slice.path().display());
                Ok(())
            }
        }
    }

    /// The processes in the leaf and below it.
    pub fn members(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        members_below(self.dir.slice.as_fd(), OsStr::new(&self.dir.name), MAX_DEPTH, &mut pids);
        pids
    }

    /// Opens the file `name` of the leaf; the directory of the leaf if the name is empty.
    fn file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        open_file(self.dir.slice.as_fd(), &format!("{}/{name}", self.dir.name), flags)
    }

    /// Reads the file `name` of the leaf.
    pub(super) fn read(&self, name: &str) -> io::Result<String> {
        read_file(self.dir.slice.as_fd(), &format!("{}/{name}", self.dir.name))
    }

    /// Writes to the file `name` of the leaf.
    pub(super) fn write(&self, name: &str, text: &str) -> io::Result<()> {
        self.file(name, OFlag::O_WRONLY)?.write_all(text.as_bytes())
    }
}

/// Adds the processes in the cgroup `name` in `parent`, and in all cgroups below it down to `depth` levels, to `pids`.
fn members_below(parent: BorrowedFd<'_>, name: &OsStr, depth: usize, pids: &mut Vec<Pid>) {
    let Ok(mut dir) = open_dir(parent, name) else { return };
    // This fails in a threaded cgroup, whose processes are listed in one above it (cgroups(7)).
    let procs = read_file(dir.as_fd(), "cgroup.procs").unwrap_or_default();
    // 0 stands for a process outside of this PID namespace.
    pids.extend(procs.lines().filter_map(|pid| pid.parse::<Pid>().ok()).filter(|pid| *pid > 0));
    if depth > 0 {
        let children = children(&mut dir);
        children.iter().for_each(|child| members_below(dir.as_fd(), child, depth - 1, pids));
    }
}

/// Whether a cgroup, as `/proc/<pid>/cgroup` names it, is the leaf of this name in the slice of this name, or below it.
/// The path begins at the root of the reader's cgroup namespace.
fn is_below(cgroup: &str, slice: &OsStr, leaf: &str) -> bool {
    let parts: Vec<&OsStr> = Path::new(cgroup).iter().collect();
    parts.windows(2).any(|two| *two == [slice, OsStr::new(leaf)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_recognised_wherever_its_path_begins() {
        let is_inside = |cgroup| is_below(cgroup, OsStr::new("tl-units.0a"), "17.1");
        for inside in ["/x/tl-units.0a/17.1", "/tl-units.0a/17.1", "/../tl-units.0a/17.1/nested/deeper"] {
            assert!(is_inside(inside), "{inside}");
        }
        for outside in
            ["/", "/17.1", "/x/tl-units.0b/17.1", "/x/tl-units.0a", "/x/tl-units.0a/17.10", "/x/17.1/tl-units.0a"]
        {
            assert!(!is_inside(outside), "{outside}");
        }
    }
}
