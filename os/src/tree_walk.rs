//! Finds the processes of a few trees in /proc without reading all processes.
//!
//! Every descendant of this process is reached from its children: from the leader of a tree, or from an orphan. So the
//! trees of a few runs are found by walking down from their leaders and from all orphans, whatever else runs.

use std::collections::HashSet;
use std::fs;

use crate::Pid;
use crate::procfs::{Process, Snapshot, children_of_thread, look_at, shows_this_namespace};

/// A snapshot of `roots`, of the orphans that this process has adopted, and of all their descendants. `leaders` are
/// children of this process that are no orphans.
///
/// None if these are more than `most` processes, or if the kernel shows no children (it has no CONFIG_PROC_CHILDREN, or
/// /proc does not show this PID namespace): then take a [`Snapshot`] of all processes.
pub fn walk(roots: impl IntoIterator<Item = Pid>, leaders: &HashSet<Pid>, most: usize) -> Option<Snapshot> {
    if !shows_this_namespace() {
        return None;
    }
    let myself = std::process::id() as Pid;
    let mut walk = Walk { all: Vec::new(), seen: HashSet::from([myself]), most };
    roots.into_iter().try_for_each(|root| walk.add(root))?;
    // The orphans come last: a process whose parent ends meanwhile becomes an orphan. Orphans become children of the
    // main thread.
    let orphans = children_read_twice(myself, myself)?;
    orphans.into_iter().filter(|pid| !leaders.contains(pid)).try_for_each(|orphan| walk.add(orphan))?;
    Some(Snapshot::of(walk.all))
}

struct Walk {
    all: Vec<Process>,
    seen: HashSet<Pid>,
    most: usize,
}

impl Walk {
    /// Adds a process and its descendants. None if they are too many.
    fn add(&mut self, root: Pid) -> Option<()> {
        let mut queue = vec![root];
        while let Some(pid) = queue.pop() {
            if !self.seen.insert(pid) {
                continue;
            }
            let Some(process) = look_at(pid) else { continue };
            if self.all.len() >= self.most {
                return None;
            }
            self.all.push(process);
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let threads = threads.filter_map(|thread| thread.file_name().to_str()?.parse::<Pid>().ok());
            queue.extend(threads.filter_map(|thread| children_read_twice(pid, thread)).flatten());
        }
        Some(())
    }
}

/// The PIDs of the children of one thread, some of them twice: the second read finds a child that the first has skipped.
/// None as for [`children_of_thread`].
fn children_read_twice(pid: Pid, thread: Pid) -> Option<Vec<Pid>> {
    let mut children = children_of_thread(pid, thread)?;
    if !children.is_empty() {
        children.extend(children_of_thread(pid, thread).unwrap_or_default());
    }
    Some(children)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::testing::{is_alone, wait_until};

    /// A shell with two children, one of which has a child of its own.
    fn tree() -> Child {
        let script = "sleep 60 & sh -c 'sleep 60; :' & wait";
        Command::new("sh").args(["-c", script]).stdout(Stdio::null()).spawn().unwrap()
    }

    fn end(mut tree: Child, snapshot: &Snapshot) {
        crate::send_signal::signal_all(&snapshot.all, &[libc::SIGKILL]);
        tree.kill().unwrap();
        tree.wait().unwrap();
    }

    #[test]
    fn a_walk_finds_the_descendants_of_its_roots_and_nothing_else() {
        // A child that another test has left when its thread ended is found, as an orphan would be.
        if !is_alone("tree_walk::tests::a_walk_finds_the_descendants_of_its_roots_and_nothing_else") {
            return;
        }
        let (tree, other) = (tree(), tree());
        let leaders = HashSet::from([tree.id() as Pid, other.id() as Pid]);
        let walk_from = |root: &Child| walk([root.id() as Pid], &leaders, 100).unwrap();
        for root in [&tree, &other] {
            wait_until("the whole tree is found", || walk_from(root).all.len() >= 4);
        }
        let (snapshot, others) = (walk_from(&tree), walk_from(&other));
        assert_eq!((snapshot.all.len(), others.all.len()), (4, 4), "{:?} {:?}", snapshot.all, others.all);
        let root = tree.id() as Pid;
        assert_eq!(snapshot.children(root).count(), 2);
        let all = Snapshot::take();
        for process in &snapshot.all {
            assert_eq!(all.get(process.pid).map(|it| (it.parent, it.start)), Some((process.parent, process.start)));
        }
        assert!(walk([root], &leaders, 3).is_none(), "a walk beyond its limit");
        end(tree, &snapshot);
        end(other, &others);
    }

    #[test]
    fn a_root_that_has_ended_is_not_found() {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert!(walk([child.id() as Pid], &HashSet::new(), 100).unwrap().get(child.id() as Pid).is_none());
    }
}
