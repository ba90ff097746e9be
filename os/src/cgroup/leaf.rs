//! The cgroup of one run.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{DEPTH, Home, children, is_gone, remove_tree};
use crate::Pid;
use crate::dying::is_dying;
use crate::procfs;

/// One run's cgroup.
#[derive(Clone, Debug)]
pub struct Leaf {
    home: Arc<Home>,
    name: String,
    /// Kills for want of memory that were not the leader's.
    noted: u64,
}

impl Leaf {
    pub(super) fn new(home: Arc<Home>, name: &str) -> Leaf {
        Leaf { home, name: name.to_owned(), noted: 0 }
    }

    /// The directory, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(&self) -> io::Result<File> {
        self.file("", OFlag::O_RDONLY | OFlag::O_DIRECTORY)
    }

    /// Whether a child can be born in it; otherwise it has to join it.
    pub fn born_into(&self) -> bool {
        self.home.born_into.load(Ordering::Relaxed)
    }

    /// The kernel does not know how to: this is so for all leaves.
    pub fn not_born_into(&self) {
        self.home.born_into.store(false, Ordering::Relaxed);
    }

    /// Whether the tasks of all leaves together are limited by their cgroup.
    pub fn limits_tasks(&self) -> bool {
        self.home.limits_tasks.load(Ordering::Relaxed)
    }

    /// `cgroup.procs`, for a child to join by itself.
    ///
    /// # Errors
    /// What `open(2)` says; EOPNOTSUPP where the kernel would refuse the child.
    pub fn procs(&self) -> io::Result<File> {
        if self.read("cgroup.type")?.trim_end() != "domain" {
            return Err(Errno::EOPNOTSUPP.into());
        }
        self.file("cgroup.procs", OFlag::O_WRONLY)
    }

    /// SIGKILL to everything in it and below it. A fork that goes on meanwhile does not escape.
    ///
    /// The kernel sends it to the main thread of each process. Where that has ended and others of the process run, they
    /// run on (seen on Linux 6.18): a signal to each of [`Leaf::members`] reaches these.
    ///
    /// # Errors
    /// What writing `cgroup.kill` says.
    pub fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
    }

    /// Whether the process that has this PID now is in it or below it.
    pub fn holds(&self, pid: Pid) -> bool {
        match procfs::cgroup_of(pid) {
            Ok(cgroup) => self.home.dir.file_name().is_some_and(|slice| is_below(&cgroup, slice, &self.name)),
            // There is no /proc of ours: a second look at all.
            Err(_) => self.members().contains(&pid),
        }
    }

    /// Whether nothing lives in it any more; a zombie does not count.
    pub(super) fn is_empty(&self) -> bool {
        match self.read("cgroup.events") {
            Ok(events) => events.lines().any(|line| line == "populated 0"),
            Err(error) => is_gone(&error),
        }
    }

    /// The leader of its tree was killed: whether by the kernel for want of memory.
    ///
    /// The kernel only counts its kills in a cgroup. So this is true when there was one that was not
    /// [noted](Leaf::note_oom_kills) as another process's.
    pub fn leader_was_oom_killed(&self) -> bool {
        self.oom_kills() > self.noted
    }

    /// To be called soon after each such kill. Whoever it was: the leader of the tree was not if it has not got its SIGKILL
    /// now.
    pub fn note_oom_kills(&mut self, leader: Pid) {
        // In this order: see there.
        let kills = self.oom_kills();
        if kills > self.noted && !is_dying(leader) {
            self.noted = kills;
        }
    }

    /// The processes in it that the kernel has killed for want of memory so far, those in cgroups below it included.
    fn oom_kills(&self) -> u64 {
        // Without the controller there is no such file.
        self.read("memory.events").map_or(0, |events| oom_kills(&events))
    }

    /// Removes it, with what its tree has made below it.
    ///
    /// # Errors
    /// While something lives in it. One that is gone already, or that is empty and may not be removed, is no error.
    pub fn remove(&self) -> io::Result<()> {
        let dir = self.home.lock.as_fd();
        match unlinkat(dir, self.name.as_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) => Ok(()),
            Err(errno) if is_gone(&errno.into()) => Ok(()),
            Err(errno) if !self.is_empty() => Err(errno.into()),
            // What lived there has made cgroups of its own.
            Err(Errno::EBUSY) => remove_tree(dir, OsStr::new(&self.name), DEPTH),
            Err(errno) => {
                log::debug!("{}/{} is left behind: {errno}", self.home.dir.display(), self.name);
                Ok(())
            }
        }
    }

    /// The processes in it and below it.
    pub fn members(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        members_below(self.home.lock.as_fd(), OsStr::new(&self.name), DEPTH, &mut pids);
        pids
    }

    /// One of its files, or its directory.
    fn file(&self, name: &str, flags: OFlag) -> io::Result<File> {
        let path = format!("{}/{name}", self.name);
        Ok(openat(&*self.home.lock, path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    fn read(&self, name: &str) -> io::Result<String> {
        let mut text = String::new();
        self.file(name, OFlag::O_RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(&self, name: &str, text: &str) -> io::Result<()> {
        self.file(name, OFlag::O_WRONLY)?.write_all(text.as_bytes())
    }
}

/// The number of kills in the text of a `memory.events`.
pub fn oom_kills(events: &str) -> u64 {
    let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    kills.and_then(|kills| kills.trim().parse().ok()).unwrap_or(0)
}

/// The processes in the cgroup `name` in `parent`, and in all cgroups below it, down to `depth`.
fn members_below(parent: BorrowedFd<'_>, name: &OsStr, depth: usize, pids: &mut Vec<Pid>) {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let Ok(mut dir) = Dir::openat(parent, name, flags | OFlag::O_DIRECTORY, Mode::empty()) else { return };
    let mut procs = String::new();
    // One in a threaded cgroup cannot be read: its processes are listed further up (cgroups(7)).
    if let Ok(file) = openat(dir.as_fd(), "cgroup.procs", flags, Mode::empty()) {
        let _ = File::from(file).read_to_string(&mut procs);
    }
    // 0 stands for a process outside of our PID namespace.
    pids.extend(procs.lines().filter_map(|pid| pid.parse::<Pid>().ok()).filter(|pid| *pid > 0));
    if depth > 0 {
        let children = children(&mut dir);
        children.iter().for_each(|child| members_below(dir.as_fd(), child, depth - 1, pids));
    }
}

/// Whether a cgroup, as `/proc/<pid>/cgroup` names it, is this leaf of this slice or below it. The name begins wherever
/// the reader's cgroup namespace does.
fn is_below(cgroup: &str, slice: &OsStr, leaf: &str) -> bool {
    let parts: Vec<&OsStr> = Path::new(cgroup).iter().collect();
    parts.windows(2).any(|two| *two == [slice, OsStr::new(leaf)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted_apart_from_other_events() {
        assert_eq!(oom_kills("low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n"), 4);
        assert_eq!(oom_kills("oom 3\n"), 0);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn a_leaf_is_recognised_wherever_the_name_begins() {
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
