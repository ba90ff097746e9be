//! Watches the changes of a directory, with or without all directories below it, or of a single file.
//!
//! Each watch has one descriptor of inotify, and no thread: the caller waits for the descriptor and calls
//! [`Watch::advance`]. All is done with the rights of the calling thread, so with those of the user.
//!
//! - `raw`, `fresh`, `table`, `translate`: what the events of inotify mean; no I/O;
//! - `kernel`: the descriptor, and how directories are opened; `stop`: why the work ends;
//! - this file: adds watches for directories as they appear, and reports what is in them.
//!
//! A new directory is watched first and then read, so an entry that is made meanwhile is reported twice by the kernel
//! and by the look, and once to the caller (`fresh`). When events were lost, all directories are looked at again before
//! [`WatchEvent::Overflow`] is reported: so whatever changes after that is reported.
//!
//! Absent on purpose: changes that a look could have missed are not guessed, and nothing is polled.

mod fresh;
mod kernel;
mod raw;
mod stop;
mod table;
#[cfg(test)]
mod tests;
mod translate;

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Instant;

use nix::sys::stat::SFlag;
use rustix::fs::{FileType, RawDir};

use self::kernel::Kernel;
use self::stop::Stop;
use self::table::{Placed, Table};
use self::translate::{After, Change, Next, Step, Translator};
use super::walk::examine_name;
use super::{FileError, FilePath, is};

pub use self::table::MAX_DIRECTORIES;
pub use self::translate::ChangeKind;

/// Maximum length of a path, in bytes: the kernel takes no longer one.
const MAX_PATH: usize = 4_095;

/// Bytes of events that are read at once.
const EVENTS: usize = 16 << 10;

/// Bytes of a directory that are read at once.
const ENTRIES: usize = 16 << 10;

/// Maximum number of looks that wait for later events. Beyond it, events count as lost.
const MAX_DEFERRED: usize = 1_024;

/// What is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEvent<'e> {
    /// A change.
    Change {
        /// Its type.
        kind: ChangeKind,
        /// The absolute path; it begins as the path of the request.
        path: &'e [u8],
        /// The new path of what was moved.
        to: Option<&'e [u8]>,
        /// Whether it is a directory. A symlink is none.
        is_dir: bool,
    },
    /// Changes are missing here. All that follow are reported.
    Overflow,
}

/// What to do after [`Watch::advance`].
#[derive(Debug)]
pub enum Progress {
    /// Call it again.
    More,
    /// Wait until the descriptor can be read, or for this time, and call it again.
    Wait(Option<Instant>),
    /// What was watched is gone, and that was reported.
    Ended,
    /// The watch cannot go on.
    Failed(FileError),
}

/// Takes what is reported.
pub type Report<'r> = dyn FnMut(WatchEvent<'_>) -> io::Result<()> + 'r;

/// A look that waits for later events: the path of its directory is not the one of the table.
#[derive(Debug)]
enum Deferred {
    Look { parent: i32, name: Box<[u8]>, after: After },
    Read(i32),
}

/// A directory, or a file, that is watched.
#[derive(Debug)]
pub struct Watch {
    kernel: Kernel,
    translator: Translator,
    /// The path of the request, without slashes at its end.
    prefix: Vec<u8>,
    /// The path of the request.
    shown: Vec<u8>,
    is_recursive: bool,
    deferred: Vec<Deferred>,
    /// Events are missing.
    is_lost: bool,
    /// Check that the path still leads to the root.
    checks_root: bool,
}

impl Watch {
    /// Watches the directory or file at `path`, and all directories below it if `is_recursive`. Follows symlinks of
    /// `path`, and none below it.
    ///
    /// # Errors
    /// If there is nothing at the path, the user may not read it, there are more than [`MAX_DIRECTORIES`], or a limit of
    /// the kernel is reached.
    pub fn begin(path: &FilePath, is_recursive: bool) -> Result<Watch, FileError> {
        let kernel = Kernel::begin(path)?;
        let root = kernel.root();
        let shown = path.as_os_str().as_bytes().to_vec();
        let end = shown.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
        let prefix = shown.get(..end).unwrap_or_default().to_vec();
        let table = Table::new(root.wd, root.id, MAX_PATH.saturating_sub(prefix.len() + 1));
        let is_recursive = is_recursive && root.is_dir;
        let translator = Translator::new(table, is_recursive, root.is_dir, root.above);
        let (deferred, is_lost, checks_root) = (Vec::new(), false, false);
        let mut watch = Watch { kernel, translator, prefix, shown, is_recursive, deferred, is_lost, checks_root };
        if is_recursive {
            match watch.read_all(root.wd, None) {
                Ok(()) => {}
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::Gone | Stop::Report(_)) => return Err(FileError::NotFound(path.shown())),
            }
        }
        watch.is_lost = false;
        watch.kernel.rest();
        Ok(watch)
    }

    /// Checks at the next call of [`Watch::advance`] that the path still leads to what is watched. The kernel does not
    /// report that a directory above it was renamed.
    pub fn check(&mut self) {
        self.checks_root = true;
    }

    /// Reports what has happened, without waiting.
    ///
    /// # Errors
    /// Those of `report`.
    pub fn advance(&mut self, report: &mut Report<'_>) -> io::Result<Progress> {
        let result = self.turn(report);
        self.kernel.rest();
        match result {
            Ok(progress) => Ok(progress),
            Err(Stop::Report(error)) => Err(error),
            Err(Stop::Failed(error)) => Ok(Progress::Failed(error)),
            Err(Stop::Gone) => {
                self.report_root(ChangeKind::Deleted, report)?;
                Ok(Progress::Ended)
            }
        }
    }

    fn turn(&mut self, report: &mut Report<'_>) -> Result<Progress, Stop> {
        let mut buffer = [0; EVENTS];
        let mut has_read = false;
        if self.translator.has_room() {
            let (before, bytes) = self.kernel.read(&mut buffer)?;
            has_read = !bytes.is_empty();
            self.translator.add(bytes, before);
        }
        loop {
            match self.translator.next(Instant::now()) {
                Next::Step(step) => self.perform(step, report)?,
                Next::Nothing => break,
                Next::Wait(_) if has_read => return Ok(Progress::More),
                Next::Wait(until) => return Ok(Progress::Wait(Some(until))),
            }
        }
        let is_idle = !has_read && !self.kernel.has_events();
        let was_busy = has_read || !self.deferred.is_empty() || self.is_lost || self.checks_root;
        self.settle(is_idle, report)?;
        Ok(if was_busy { Progress::More } else { Progress::Wait(None) })
    }

    fn perform(&mut self, step: Step, report: &mut Report<'_>) -> Result<(), Stop> {
        match step {
            Step::Change(change) => self.report(&change, report)?,
            Step::Look { parent, name, after } => self.look(parent, name, after, report)?,
            Step::CheckRoot { is_modified: false } => self.checks_root = true,
            Step::CheckRoot { is_modified: true } => {
                self.kernel.check_root()?;
                self.report_root(ChangeKind::Modified, report)?;
            }
            Step::RootGone => return Err(Stop::Gone),
            Step::Lost => self.is_lost = true,
        }
        Ok(())
    }

    /// Does what was put off until all events were translated. If `is_idle`, no more can be read either.
    fn settle(&mut self, is_idle: bool, report: &mut Report<'_>) -> Result<(), Stop> {
        if std::mem::take(&mut self.checks_root) {
            self.kernel.check_root()?;
        }
        for deferred in std::mem::take(&mut self.deferred) {
            match deferred {
                Deferred::Look { parent, name, after } => self.look(parent, name, after, report)?,
                Deferred::Read(wd) => self.read_all(wd, Some(&mut *report))?,
            }
        }
        if is_idle {
            // No event explains why the table has a directory where there is none.
            self.is_lost |= !std::mem::take(&mut self.deferred).is_empty();
            self.translator.fresh.clear();
            self.translator.table.drop_detached();
        }
        self.drop_watches();
        if std::mem::take(&mut self.is_lost) {
            self.look_again()?;
            report(WatchEvent::Overflow)?;
        }
        Ok(())
    }

    /// Looks at all directories again, after events were lost.
    fn look_again(&mut self) -> Result<(), Stop> {
        self.kernel.check_root()?;
        self.deferred.clear();
        self.translator.fresh.clear();
        if self.is_recursive {
            self.translator.table.begin_round();
            self.read_all(self.kernel.root().wd, None)?;
            self.translator.table.end_round();
            self.drop_watches();
        }
        // A mount point that shows a directory above it is refused at each look.
        self.is_lost = false;
        Ok(())
    }

    /// Removes the watches of the directories that have left the table.
    fn drop_watches(&mut self) {
        for wd in self.translator.table.take_dropped() {
            self.kernel.remove(wd);
        }
    }

    /// Finds out which directory has this name. A new one is watched, and what is in it reported.
    fn look(&mut self, parent: i32, name: Box<[u8]>, after: After, report: &mut Report<'_>) -> Result<(), Stop> {
        if !self.translator.table.is_placed(parent) {
            return Ok(());
        }
        let Some(dir) = self.open(parent)? else {
            self.defer(Deferred::Look { parent, name, after });
            return Ok(());
        };
        let had_other = self.translator.table.child(parent, &name).is_some();
        if after == After::Exchanged {
            let Ok(stat) = examine_name(&dir, OsStr::from_bytes(&name)) else { return Ok(()) };
            self.report_entry(ChangeKind::Created, parent, &name, is(&stat, SFlag::S_IFDIR), report)?;
            if !self.is_recursive {
                return Ok(());
            }
        }
        let Some((wd, is_new)) = self.watch_child(&dir, parent, &name, after)? else { return Ok(()) };
        if !is_new && after != After::Exchanged {
            return Ok(());
        }
        let is_other = after == After::MovedTo && had_other;
        if is_other {
            self.report_entry(ChangeKind::Deleted, parent, &name, true, report)?;
        }
        if is_other || matches!(after, After::MovedFrom(_)) {
            self.report_entry(ChangeKind::Created, parent, &name, true, report)?;
        }
        self.read_all(wd, Some(report))
    }

    fn defer(&mut self, deferred: Deferred) {
        if self.deferred.len() < MAX_DEFERRED {
            self.deferred.push(deferred);
        } else {
            self.is_lost = true;
        }
    }

    /// Opens a watched directory. None if it is not where the table has it, which later events explain.
    fn open(&mut self, wd: i32) -> Result<Option<OwnedFd>, Stop> {
        let table = &self.translator.table;
        let (Some(path), Some(id)) = (table.path(wd, b""), table.id(wd)) else { return Ok(None) };
        self.kernel.open_dir(&path, id)
    }

    /// Watches the directory with this name. Returns its watch, and whether it was not known to be there.
    fn watch_child(
        &mut self,
        dir: &OwnedFd,
        parent: i32,
        name: &[u8],
        after: After,
    ) -> Result<Option<(i32, bool)>, Stop> {
        // Otherwise the watch that is added could be one that is to be removed.
        self.drop_watches();
        let table = &mut self.translator.table;
        let device = table.id(parent).map_or(0, |(device, _)| device);
        let Some((child, id)) = self.kernel.open_child(dir, name, device)? else { return Ok(None) };
        if matches!(after, After::MovedFrom(moved) if moved != id) {
            return Ok(None);
        }
        let known = table.child(parent, name).filter(|known| table.id(*known) == Some(id));
        let wd = match known {
            Some(known) => known,
            None => match self.kernel.add_dir(&child)? {
                Some(wd) => wd,
                None => return Ok(None),
            },
        };
        let was_there = table.has(wd);
        match table.place(parent, name, wd, id) {
            Placed::Known => Ok(Some((wd, false))),
            Placed::New | Placed::Moved => Ok(Some((wd, true))),
            Placed::Refused | Placed::Full if was_there => {
                // The table has it above itself, which only a look at all directories can mend.
                self.is_lost = true;
                Ok(None)
            }
            Placed::Refused => {
                self.kernel.remove(wd);
                Ok(None)
            }
            Placed::Full => Err(self.kernel.too_many().into()),
        }
    }

    /// Reads a directory and all below it, watches the directories, and reports the entries if asked to.
    fn read_all(&mut self, first: i32, mut report: Option<&mut Report<'_>>) -> Result<(), Stop> {
        let mut buffer = vec![MaybeUninit::uninit(); ENTRIES];
        let mut rest = vec![first];
        while let Some(wd) = rest.pop() {
            if !self.translator.table.is_placed(wd) {
                continue;
            }
            match self.open(wd)? {
                Some(dir) => self.read_one(wd, &dir, &mut buffer, &mut rest, report.as_deref_mut())?,
                None => self.defer(Deferred::Read(wd)),
            }
        }
        self.translator.fresh.seal(self.kernel.written());
        Ok(())
    }

    /// Reads one directory, and appends the watches of those in it to `rest`.
    fn read_one(
        &mut self,
        wd: i32,
        dir: &OwnedFd,
        buffer: &mut [MaybeUninit<u8>],
        rest: &mut Vec<i32>,
        mut report: Option<&mut Report<'_>>,
    ) -> Result<(), Stop> {
        let mut entries = RawDir::new(dir, buffer);
        while let Some(entry) = entries.next() {
            // The directory was removed meanwhile, which an event says, or cannot be read any further.
            let Ok(entry) = entry else { return Ok(()) };
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => {
                    examine_name(dir, OsStr::from_bytes(name)).is_ok_and(|stat| is(&stat, SFlag::S_IFDIR))
                }
                kind => kind == FileType::Directory,
            };
            if let Some(report) = report.as_deref_mut() {
                let Some(path) = self.translator.table.path(wd, name) else { return Ok(()) };
                self.translator.fresh.add(wd, name);
                self.report(&Change { kind: ChangeKind::Created, path, to: None, is_dir }, report)?;
            }
            if is_dir {
                rest.extend(self.watch_child(dir, wd, name, After::Created)?.map(|(child, _)| child));
            }
        }
        Ok(())
    }

    fn report_entry(
        &self,
        kind: ChangeKind,
        parent: i32,
        name: &[u8],
        is_dir: bool,
        report: &mut Report<'_>,
    ) -> io::Result<()> {
        match self.translator.table.path(parent, name) {
            Some(path) => self.report(&Change { kind, path, to: None, is_dir }, report),
            None => Ok(()),
        }
    }

    fn report(&self, change: &Change, report: &mut Report<'_>) -> io::Result<()> {
        if change.path.is_empty() {
            return self.report_root(change.kind, report);
        }
        let path = self.absolute(&change.path);
        let to = change.to.as_ref().map(|to| self.absolute(to));
        report(WatchEvent::Change { kind: change.kind, path: &path, to: to.as_deref(), is_dir: change.is_dir })
    }

    fn report_root(&self, kind: ChangeKind, report: &mut Report<'_>) -> io::Result<()> {
        report(WatchEvent::Change { kind, path: &self.shown, to: None, is_dir: self.kernel.root().is_dir })
    }

    fn absolute(&self, path: &[u8]) -> Vec<u8> {
        [&self.prefix, &b"/"[..], path].concat()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}
