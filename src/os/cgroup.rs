//! cgroup v2: one leaf for each run, so that a tree can be killed whole and its end be seen (cgroups(7)).

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::tree::signal_if;
use super::{procfs, random};
use crate::model::Pid;

/// How deep below its leaf a tree may have made cgroups of its own that we still clear away.
const DEPTH: usize = 16;
/// What the names of all slices begin with.
const PREFIX: &str = "tl-units.";

/// The name of the leaf that [`settle`] makes.
const LEAF: &str = "tl-init";
/// What is enabled for units, as far as the kernel has it and lets us.
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "io", "pids"];
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
    let own = own_cgroup().ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no cgroup v2 here"))?;
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
    match fs::write(leaf.join("memory.min"), PROTECTED) {
        // There is no memory controller.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Enables what there is for the cgroups below `dir`. Says what is enabled then.
fn enable(dir: &Path) -> Vec<&'static str> {
    let control = dir.join("cgroup.subtree_control");
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

fn own_cgroup() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    own_dir(&mounts, &fs::read_to_string("/proc/self/cgroup").ok()?)
}

/// The cgroup below which the leaves are.
#[derive(Debug)]
pub struct Slice {
    dir: PathBuf,
    born_into: Arc<AtomicBool>,
    /// Says that we live: whoever gets this lock may clear the directory away.
    _lock: Flock<File>,
}

impl Slice {
    /// A slice of our own below the cgroup `parent`, or the one that this process is in; none where cgroup v2 is not
    /// there or not writable.
    pub fn below(parent: Option<&Path>) -> Option<Slice> {
        let parent = parent.map(Path::to_owned).or_else(own_cgroup)?;
        remove_stale(&parent);
        // Two supervisors in one cgroup must not meet, and both may be PID 1.
        let (dir, lock) = (0..16).find_map(|_| {
            let dir = parent.join(format!("{PREFIX}{}", random::hex::<8>().ok()?));
            fs::create_dir(&dir).ok()?;
            Some((dir.clone(), lock(&dir)?))
        })?;
        let slice = Slice { dir, born_into: Arc::new(AtomicBool::new(true)), _lock: lock };
        // A leaf tells whether this is a real cgroup v2 that can kill.
        let leaf = slice.leaf("probe").ok()?;
        let usable = leaf.dir.join("cgroup.kill").exists();
        leaf.remove().ok()?;
        usable.then_some(slice)
    }

    /// Enables what controllers there are for the leaves: without that of memory there is no telling who was killed for
    /// want of it. Takes the kernel some milliseconds.
    pub fn enable_controllers(&self) {
        if let Some(parent) = self.dir.parent() {
            enable(parent);
        }
        let controllers = enable(&self.dir);
        log::debug!("{}: controllers for units: {}", self.dir.display(), controllers.join(" "));
    }

    /// Makes a leaf.
    ///
    /// # Errors
    /// What `mkdir(2)` says.
    pub fn leaf(&self, name: &str) -> io::Result<Leaf> {
        let dir = self.dir.join(name);
        fs::create_dir(&dir)?;
        Ok(Leaf { dir, born_into: Arc::clone(&self.born_into) })
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let _ = remove_tree(&self.dir, DEPTH);
    }
}

/// One run's cgroup.
#[derive(Debug)]
pub struct Leaf {
    dir: PathBuf,
    born_into: Arc<AtomicBool>,
}

impl Leaf {
    /// The directory, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(&self) -> io::Result<File> {
        File::open(&self.dir)
    }

    /// Whether a child can be born in it, as far as we know.
    pub fn born_into(&self) -> bool {
        self.born_into.load(Ordering::Relaxed)
    }

    /// The kernel would not: not to be tried again, with any leaf.
    pub fn not_born_into(&self) {
        self.born_into.store(false, Ordering::Relaxed);
    }

    /// `cgroup.procs`, for a child to join by itself.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn procs(&self) -> io::Result<File> {
        File::options().write(true).open(self.dir.join("cgroup.procs"))
    }

    /// SIGKILL to everything in it and below it. A fork that goes on meanwhile does not escape.
    ///
    /// The kernel sends it to the main thread of each process. Where that has ended and others of the process run, they
    /// run on (seen on Linux 6.18): [`Leaf::signal_all`] reaches these.
    ///
    /// # Errors
    /// What writing `cgroup.kill` says.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.kill"), "1")
    }

    /// Sends signals to every process that is in it or below it now. One that is forked meanwhile gets none: it may be
    /// what a process does about the signal. Says which PIDs they had.
    pub fn signal_all(&self, signals: &[i32]) -> HashSet<Pid> {
        let members = self.members();
        for pid in &members {
            signal_if(*pid, signals, || self.holds(*pid));
        }
        members.into_iter().collect()
    }

    /// Whether the process that has this PID now is in it or below it.
    fn holds(&self, pid: Pid) -> bool {
        match procfs::cgroup_of(pid) {
            Ok(cgroup) => names_below(&cgroup, &self.dir),
            // There is no /proc of ours: a second look at all.
            Err(_) => self.members().contains(&pid),
        }
    }

    /// Whether nothing lives in it any more; a zombie does not count.
    fn is_empty(&self) -> bool {
        match fs::read_to_string(self.dir.join("cgroup.events")) {
            Ok(events) => events.lines().any(|line| line == "populated 0"),
            Err(_) => true,
        }
    }

    /// Whether the kernel's out-of-memory killer has killed something in it.
    pub fn had_oom_kill(&self) -> bool {
        let Ok(events) = fs::read_to_string(self.dir.join("memory.events")) else { return false };
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.is_some_and(|kills| kills.trim() != "0")
    }

    /// Removes it, with what its tree has made below it.
    ///
    /// # Errors
    /// While something lives in it. One that is gone already is no error.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.dir) {
            // Either somebody lives in it, or what lived there has made cgroups of its own.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && self.is_empty() => remove_tree(&self.dir, DEPTH),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// The processes in it and below it.
    fn members(&self) -> Vec<Pid> {
        let mut pids = Vec::new();
        members_below(&self.dir, DEPTH, &mut pids);
        pids
    }
}

fn members_below(dir: &Path, depth: usize, pids: &mut Vec<Pid>) {
    // One in a threaded cgroup is listed further up (cgroups(7)).
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process outside of our PID namespace.
    pids.extend(procs.lines().filter_map(|pid| pid.parse::<Pid>().ok()).filter(|pid| *pid > 0));
    let Ok(entries) = fs::read_dir(dir) else { return };
    for child in entries.flatten().filter(|entry| depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        members_below(&child.path(), depth - 1, pids);
    }
}

/// Whether a cgroup, as `/proc/<pid>/cgroup` names it, is the leaf in this directory or below it. The name begins
/// wherever the reader's cgroup namespace does; the last two parts of the directory's are the slice's and the leaf's.
fn names_below(cgroup: &str, leaf: &Path) -> bool {
    let wanted: Vec<_> = leaf.components().rev().take(2).collect();
    let parts: Vec<_> = Path::new(cgroup).components().collect();
    parts.windows(2).any(|two| two.iter().rev().eq(wanted.iter()))
}

/// Takes away what supervisors that have ended without a word have left, as far as nothing lives in it.
fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let stale = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX));
    for dir in stale.map(|entry| entry.path()) {
        if let Some(_lock) = lock(&dir) {
            let _ = remove_tree(&dir, DEPTH);
        }
    }
}

fn lock(dir: &Path) -> Option<Flock<File>> {
    Flock::lock(File::open(dir).ok()?, FlockArg::LockExclusiveNonblock).ok()
}

fn remove_tree(dir: &Path, depth: usize) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && depth > 0 => {
            let children =
                fs::read_dir(dir)?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            for child in children {
                remove_tree(&child.path(), depth - 1)?;
            }
            fs::remove_dir(dir)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The directory of this process's own cgroup, from `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn own_dir(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let own = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        if rest.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        // The mount shows the hierarchy from `root` down.
        let below = Path::new(own).strip_prefix(root).ok()?;
        Some(Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "30 29 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                          31 29 0:28 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";

    #[test]
    fn our_own_cgroup_is_found() {
        let own = "12:memory:/x\n0::/a/b\n";
        assert_eq!(own_dir(HYBRID, own), Some("/sys/fs/cgroup/unified/a/b".into()));
        assert_eq!(own_dir(HYBRID, "0::/\n"), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(own_dir(HYBRID, "1:name=systemd:/\n"), None);
        let bound = "31 29 0:28 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(own_dir(bound, "0::/a/b\n"), Some("/sys/fs/cgroup/b".into()));
        assert_eq!(own_dir(bound, "0::/else\n"), None);
        assert_eq!(own_dir("garbage\n\n", own), None);
    }

    #[test]
    fn a_leaf_is_recognised_wherever_the_name_begins() {
        let leaf = Path::new("/sys/fs/cgroup/unified/x/tl-units.0a/17.1");
        for inside in ["/x/tl-units.0a/17.1", "/tl-units.0a/17.1", "/../tl-units.0a/17.1/nested/deeper"] {
            assert!(names_below(inside, leaf), "{inside}");
        }
        for outside in
            ["/", "/17.1", "/x/tl-units.0b/17.1", "/x/tl-units.0a", "/x/tl-units.0a/17.10", "/x/17.1/tl-units.0a"]
        {
            assert!(!names_below(outside, leaf), "{outside}");
        }
    }
}
