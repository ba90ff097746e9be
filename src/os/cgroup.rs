//! cgroup v2: one leaf for each run, so that a tree can be killed whole and its end be seen (cgroups(7)).

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::dying::is_dying;
use super::tree::signal_if;
use super::{own_cgroup, procfs, random};
use crate::model::Pid;

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
    /// it is not known before [`fork::probe`](super::fork::probe) has tried.
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
        Ok(Leaf { home: Arc::clone(&self.0), name: name.to_owned(), noted: 0 })
    }
}

/// One run's cgroup.
#[derive(Debug)]
pub struct Leaf {
    home: Arc<Home>,
    name: String,
    /// Kills for want of memory that were not the leader's.
    noted: u64,
}

impl Leaf {
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
    /// run on (seen on Linux 6.18): [`Leaf::signal_all`] reaches these.
    ///
    /// # Errors
    /// What writing `cgroup.kill` says.
    pub fn kill(&self) -> io::Result<()> {
        self.write("cgroup.kill", "1")
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
            Ok(cgroup) => self.home.dir.file_name().is_some_and(|slice| is_below(&cgroup, slice, &self.name)),
            // There is no /proc of ours: a second look at all.
            Err(_) => self.members().contains(&pid),
        }
    }

    /// Whether nothing lives in it any more; a zombie does not count.
    fn is_empty(&self) -> bool {
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

/// Whether an error says that a cgroup does not exist any more. ENODEV comes from a file that was open when it went.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
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

/// The names of the cgroups in a cgroup.
fn children(dir: &mut Dir) -> Vec<OsString> {
    let entries = dir.iter().flatten().filter(|entry| entry.file_type() == Some(Type::Directory));
    let names = entries.map(|entry| OsStr::from_bytes(entry.file_name().to_bytes()).to_owned());
    names.filter(|name| name != "." && name != "..").collect()
}

/// Whether a cgroup, as `/proc/<pid>/cgroup` names it, is this leaf of this slice or below it. The name begins wherever
/// the reader's cgroup namespace does.
fn is_below(cgroup: &str, slice: &OsStr, leaf: &str) -> bool {
    let parts: Vec<&OsStr> = Path::new(cgroup).iter().collect();
    parts.windows(2).any(|two| *two == [slice, OsStr::new(leaf)])
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
    fn kills_are_counted_apart_from_other_events() {
        assert_eq!(oom_kills("low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n"), 4);
        assert_eq!(oom_kills("oom 3\n"), 0);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let stale = dir.path().join("tl-units.0");
        fs::create_dir(&stale).unwrap();
        assert!(Slice::below(Some(dir.path())).is_err());
        assert!(stale.exists() && fs::read_dir(dir.path()).unwrap().count() == 1);
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
