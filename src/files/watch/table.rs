//! The directories that are watched, as a tree of names.
//!
//! Each has the number of its watch and its identity on disk. It knows its name and its parent only, so that a rename
//! of a directory with all that is below it changes one entry. A directory whose place is unknown is *detached*: it
//! keeps its watch until the caller has found its new place, or given it up.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::rc::Rc;

/// Maximum number of directories.
pub const MAX_DIRECTORIES: usize = 8_192;

/// Device and inode.
pub(super) type FileId = (u64, u64);

/// The directories of one request. Each takes about 300 bytes, and 600 at most: a name has up to 255.
#[derive(Debug)]
pub(super) struct Table {
    nodes: HashMap<i32, Node>,
    root: i32,
    /// Maximum length of a path below the root, in bytes.
    max_path: usize,
    /// Directories without a place.
    detached: Vec<i32>,
    /// Watches that the caller must remove.
    dropped: Vec<i32>,
    /// Number of the current look at the whole tree.
    round: u32,
}

#[derive(Debug)]
struct Node {
    /// None for the root, and for a detached directory.
    parent: Option<i32>,
    name: Rc<[u8]>,
    children: HashMap<Rc<[u8]>, i32>,
    id: FileId,
    /// The last round that has found it.
    round: u32,
}

/// The result of [`Table::place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// It is watched for the first time.
    New,
    /// It was watched elsewhere.
    Moved,
    /// It was there already.
    Known,
    /// It cannot be there: its path would be too long, or it would be in itself. A new one is not in the table then.
    Refused,
    /// There are too many directories; it is not in the table.
    Full,
}

impl Table {
    /// A table of one directory.
    pub(super) fn new(root: i32, id: FileId, max_path: usize) -> Table {
        let node = Node { parent: None, name: Rc::from([]), children: HashMap::new(), id, round: 0 };
        let nodes = HashMap::from([(root, node)]);
        Table { nodes, root, max_path, detached: Vec::new(), dropped: Vec::new(), round: 0 }
    }

    /// The watch of the first directory.
    pub(super) fn root(&self) -> i32 {
        self.root
    }

    /// Number of directories.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether the directory has a place.
    pub(super) fn is_placed(&self, wd: i32) -> bool {
        self.nodes.contains_key(&wd) && self.ancestors(wd).last() == Some(self.root)
    }

    /// Whether there is such a watch.
    pub(super) fn has(&self, wd: i32) -> bool {
        self.nodes.contains_key(&wd)
    }

    /// The identity of a directory.
    pub(super) fn id(&self, wd: i32) -> Option<FileId> {
        self.nodes.get(&wd).map(|node| node.id)
    }

    /// The directory with this name in `parent`.
    pub(super) fn child(&self, parent: i32, name: &[u8]) -> Option<i32> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// The path of an entry of a directory below the root, or with an empty name of the directory itself. None if the
    /// directory has no place.
    pub(super) fn path(&self, wd: i32, name: &[u8]) -> Option<Vec<u8>> {
        let chain: Vec<&Node> = self.ancestors(wd).filter_map(|wd| self.nodes.get(&wd)).collect();
        let (root, below) = chain.split_last()?;
        if !std::ptr::eq(*root, self.nodes.get(&self.root)?) {
            return None;
        }
        let names = below.iter().rev().map(|node| &*node.name).chain([name]).filter(|name| !name.is_empty());
        let mut path = Vec::new();
        for name in names {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        Some(path)
    }

    /// The directory itself, its parent, and so on. No directory is in itself, so this ends.
    fn ancestors(&self, wd: i32) -> impl Iterator<Item = i32> {
        std::iter::successors(Some(wd), |wd| self.nodes.get(wd)?.parent)
    }

    /// Length of what precedes the name of an entry of this directory in the path of that entry, in bytes.
    fn prefix(&self, wd: i32) -> usize {
        let below = self.ancestors(wd).filter(|wd| *wd != self.root);
        below.filter_map(|wd| self.nodes.get(&wd)).map(|node| node.name.len() + 1).sum()
    }

    /// Notes that the directory with this watch has this place.
    pub(super) fn place(&mut self, parent: i32, name: &[u8], wd: i32, id: FileId) -> Placed {
        if wd == self.root || self.is_in(parent, wd) || !self.is_placed(parent) || !self.fits(parent, name) {
            return Placed::Refused;
        }
        match self.child(parent, name) {
            Some(there) if there == wd => {
                self.mark(wd);
                return Placed::Known;
            }
            Some(there) => self.detach(there),
            None => {}
        }
        let placed = match self.nodes.contains_key(&wd) {
            true => Placed::Moved,
            false => {
                if self.nodes.len() >= MAX_DIRECTORIES {
                    self.drop_detached();
                }
                if self.nodes.len() >= MAX_DIRECTORIES {
                    return Placed::Full;
                }
                Placed::New
            }
        };
        self.unlink(wd);
        let node = Node { parent: None, name: Rc::from([]), children: HashMap::new(), id, round: self.round };
        self.nodes.entry(wd).or_insert(node);
        self.link(parent, name, wd);
        self.mark(wd);
        placed
    }

    fn fits(&self, parent: i32, name: &[u8]) -> bool {
        self.prefix(parent) + name.len() <= self.max_path
    }

    /// Follows a rename of a directory that is not known to be in itself afterwards ([`Table::is_in`]). Returns whether the
    /// directory was known.
    pub(super) fn rename(&mut self, from: (i32, &[u8]), to: (i32, &[u8])) -> bool {
        let Some(wd) = self.child(from.0, from.1) else { return false };
        if self.is_in(to.0, wd) || !self.is_placed(to.0) || !self.fits(to.0, to.1) {
            self.remove(wd);
            return false;
        }
        match self.child(to.0, to.1) {
            Some(there) if there == wd => return true,
            Some(there) => self.detach(there),
            None => {}
        }
        self.unlink(wd);
        self.link(to.0, to.1, wd);
        true
    }

    /// Whether the directory `wd` is `above`, or below it.
    pub(super) fn is_in(&self, wd: i32, above: i32) -> bool {
        self.ancestors(wd).any(|ancestor| ancestor == above)
    }

    /// Forgets a directory and all below it.
    pub(super) fn remove(&mut self, wd: i32) {
        self.unlink(wd);
        let mut rest = vec![wd];
        while let Some(wd) = rest.pop() {
            if let Some(node) = self.nodes.remove(&wd) {
                self.dropped.push(wd);
                rest.extend(node.children.into_values());
            }
        }
    }

    /// Forgets the directories that are still detached.
    pub(super) fn drop_detached(&mut self) {
        for wd in std::mem::take(&mut self.detached) {
            self.remove(wd);
        }
    }

    /// The watches that have been dropped since the last call.
    pub(super) fn take_dropped(&mut self) -> Vec<i32> {
        std::mem::take(&mut self.dropped)
    }

    /// Begins a look at the whole tree, which places every directory again.
    pub(super) fn begin_round(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// Ends it: forgets the directories that were not found.
    pub(super) fn end_round(&mut self) {
        self.drop_detached();
        let root = self.root;
        let lost = self.nodes.iter().filter(|(wd, node)| node.round != self.round && **wd != root);
        let lost: Vec<i32> = lost.map(|(wd, _)| *wd).collect();
        lost.into_iter().for_each(|wd| self.remove(wd));
    }

    fn mark(&mut self, wd: i32) {
        let round = self.round;
        if let Some(node) = self.nodes.get_mut(&wd) {
            node.round = round;
        }
    }

    fn detach(&mut self, wd: i32) {
        self.unlink(wd);
        self.detached.push(wd);
    }

    /// Takes a directory from its place.
    fn unlink(&mut self, wd: i32) {
        let Some(node) = self.nodes.get_mut(&wd) else { return };
        let name = Rc::clone(&node.name);
        match node.parent.take().and_then(|parent| self.nodes.get_mut(&parent)) {
            Some(parent) => drop(parent.children.remove(&name)),
            None => self.detached.retain(|detached| *detached != wd),
        }
    }

    /// Gives a directory a place, which must be free.
    fn link(&mut self, parent: i32, name: &[u8], wd: i32) {
        let name = Rc::<[u8]>::from(name);
        if let Some(node) = self.nodes.get_mut(&parent) {
            node.children.insert(Rc::clone(&name), wd);
        }
        if let Entry::Occupied(mut node) = self.nodes.entry(wd) {
            node.get_mut().parent = Some(parent);
            node.get_mut().name = name;
        }
        self.prune(wd);
    }

    /// Forgets the directories below this one whose paths have become too long.
    fn prune(&mut self, wd: i32) {
        let mut rest = vec![(wd, self.prefix(wd))];
        while let Some((wd, prefix)) = rest.pop() {
            if prefix > self.max_path + 1 {
                self.remove(wd);
                continue;
            }
            let Some(node) = self.nodes.get(&wd) else { continue };
            rest.extend(node.children.iter().map(|(name, child)| (*child, prefix + name.len() + 1)));
        }
    }
}
