//! Moves this process into a leaf of its own, so that controllers can be enabled for the units beside it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::kernel_file;

use super::controllers::{CONTROL, enable, known};
use super::directory::write_existing;
use super::membership;

/// The name of the leaf.
const LEAF: &str = "tl-init";

/// Memory of this process that the kernel does not reclaim for others (`memory.min` in the kernel's cgroup-v2.rst):
/// several times what it needs.
const PROTECTED: &str = "32M";

/// What [`settle`] found and did.
#[derive(Debug)]
pub struct Settled {
    /// The cgroup below which this process's leaf and the units' slice are.
    pub parent: PathBuf,
    /// The controllers that are enabled below it, or that the units' slice will enable.
    pub controllers: Vec<&'static str>,
    /// The leaf that this process has yet to [`enter`].
    pub leaf: Option<PathBuf>,
}

/// Makes it possible to enable controllers for the units of this process: a cgroup with processes in it cannot enable
/// any for its children ("no internal processes", cgroups(7)), so this process moves into a leaf beside the units,
/// where its memory is protected as well. Does nothing if that was done before, or if there are no controllers.
///
/// A move takes the kernel some 20 ms. The root cgroup may have processes in it: there the move is left to the caller,
/// which calls [`enter`] when it has time.
///
/// # Errors
/// When there is no cgroup v2 that this process may change.
pub fn settle() -> io::Result<Settled> {
    let own = membership::unified().into_iter().map(|own| own.dir).find(|dir| dir.join(CONTROL).exists());
    let own = own.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no cgroup v2 here"))?;
    let parent = match own.parent() {
        Some(parent) if own.ends_with(LEAF) => parent.to_owned(),
        _ => own,
    };
    let available = known(&kernel_file::read_to_string(parent.join("cgroup.controllers"))?);
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

/// Moves this process into its leaf, which is made if it does not exist, and protects its memory there.
///
/// # Errors
/// What the kernel says.
pub fn enter(leaf: &Path) -> io::Result<()> {
    if let Some(parent) = leaf.parent() {
        // The leaf has a `memory.min` only once the memory controller is enabled for it.
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
    match write_existing(&leaf.join("memory.min"), PROTECTED) {
        // There is no memory controller.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
