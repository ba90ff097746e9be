//! Spare leaves: the empty cgroups of ended runs, kept for the next runs.
//!
//! Making a cgroup, forking the first process into it and removing it costs the kernel about 150 µs, a quarter of what a
//! short run takes altogether; forking into an empty one that exists costs 10 µs. A leaf is kept only if everything
//! about it is as in a new one: each of its settings, and the owner and the mode of each file that can be written, are
//! compared. A process of root's could have changed them, for example to delegate the leaf to another user. Where memory
//! is counted, no leaf is kept: the peak of its memory cannot be reset, so each run gets a new leaf.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::dir::Type;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::directory::{open_dir, open_file, read_file};
use crate::kernel_file;

/// Maximum number of spare leaves.
const MAX: usize = 16;

/// The spare leaves of a slice.
#[derive(Debug, Default)]
pub(super) struct SpareLeaves {
    /// Their names.
    leaves: Mutex<Vec<String>>,
    /// The settings of a new leaf, read when the first run has ended; empty if they cannot be read.
    new: OnceLock<Vec<Setting>>,
}

/// A file of a leaf that is compared.
#[derive(Debug)]
struct Setting {
    /// Its name; empty for the directory of the leaf.
    file: String,
    /// User, group and mode.
    access: [u32; 3],
    /// Its contents; None if only the access is compared.
    value: Option<String>,
}

impl SpareLeaves {
    /// Takes a leaf: its name.
    pub(super) fn take(&self) -> Option<String> {
        self.lock().pop()
    }

    /// Keeps the leaf `name` in the directory `slice` if it is empty and as new. Returns whether it was kept. `new_name`
    /// is that of no leaf.
    pub(super) fn keep(&self, slice: BorrowedFd<'_>, name: &str, new_name: impl FnOnce() -> String) -> bool {
        let new = self.new.get_or_init(|| settings_of_new(slice, &new_name()).unwrap_or_default());
        if new.is_empty() || self.lock().len() >= MAX || !is_as_new(slice, name, new) {
            return false;
        }
        // The counts of memory cannot be reset, and are those of one run.
        if read(slice, name, "memory.events").is_ok() {
            return false;
        }
        self.lock().push(name.to_owned());
        true
    }

    /// Forgets all leaves and returns their names.
    pub(super) fn drain(&self) -> Vec<String> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_as_new(slice: BorrowedFd<'_>, name: &str, new: &[Setting]) -> bool {
    let has_line = |file, line| read(slice, name, file).is_ok_and(|text| text.lines().any(|it| it == line));
    has_line("cgroup.events", "populated 0")
        && has_line("cgroup.stat", "nr_descendants 0")
        && new.iter().all(|setting| setting.is_that_of(slice, name))
}

impl Setting {
    /// Whether the leaf `name` has this setting.
    fn is_that_of(&self, slice: BorrowedFd<'_>, name: &str) -> bool {
        let path = format!("{name}/{}", self.file);
        let Some(value) = &self.value else {
            return fstatat(slice, path.as_str(), AtFlags::empty()).is_ok_and(|stat| access(&stat) == self.access);
        };
        open_file(slice, &path, OFlag::O_RDONLY).is_ok_and(|file| {
            fstat(&file).is_ok_and(|stat| access(&stat) == self.access)
                && kernel_file::rest_to_string(file).is_ok_and(|text| text == *value)
        })
    }
}

fn access(stat: &FileStat) -> [u32; 3] {
    [stat.st_uid, stat.st_gid, stat.st_mode]
}

/// Makes a leaf, reads its settings, and removes it.
fn settings_of_new(slice: BorrowedFd<'_>, name: &str) -> io::Result<Vec<Setting>> {
    mkdirat(slice, name, Mode::from_bits_truncate(0o755))?;
    let settings = settings(slice, name);
    unlinkat(slice, name, UnlinkatFlags::RemoveDir)?;
    settings
}

/// Reads all settings of a leaf: its directory, the files that its owner can write, and the controllers, which decide
/// what files there are.
fn settings(slice: BorrowedFd<'_>, name: &str) -> io::Result<Vec<Setting>> {
    let mut dir = open_dir(slice, name.as_ref())?;
    let entries = dir.iter().collect::<Result<Vec<_>, _>>()?;
    let files = entries.iter().filter(|entry| entry.file_type() != Some(Type::Directory));
    let files = files.filter_map(|entry| entry.file_name().to_str().ok());
    let mut settings = vec![Setting { file: String::new(), access: access(&fstat(&dir)?), value: None }];
    for file in files {
        let stat = fstatat(&dir, file, AtFlags::empty())?;
        let is_file = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
        let is_controllers = file == "cgroup.controllers";
        if !is_file || stat.st_mode & 0o200 == 0 && !is_controllers {
            continue;
        }
        let has_value = stat.st_mode & 0o400 != 0 && !changes_by_itself(file);
        let value = if has_value { read(slice, name, file).ok() } else { None };
        settings.push(Setting { file: file.to_owned(), access: access(&stat), value });
    }
    Ok(settings)
}

/// Whether a file that can be written shows a measurement or the members instead of a setting.
fn changes_by_itself(file: &str) -> bool {
    let is_pressure = file.ends_with(".pressure") && file != "cgroup.pressure";
    is_pressure || file.ends_with(".peak") || matches!(file, "cgroup.procs" | "cgroup.threads")
}

fn read(slice: BorrowedFd<'_>, name: &str, file: &str) -> io::Result<String> {
    read_file(slice, &format!("{name}/{file}"))
}
