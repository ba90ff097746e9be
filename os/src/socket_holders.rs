//! Finds the processes that have a socket open.

use std::collections::{HashMap, HashSet};
use std::fs;

use crate::Pid;
use crate::procfs::{Process, Snapshot, as_its_user, dir_of};

/// The inode numbers of the sockets that this process has open, those among `inodes`. Empty without /proc.
pub fn own_sockets(inodes: &HashSet<u64>) -> HashSet<u64> {
    sockets_in("/proc/self/fd").filter(|inode| inodes.contains(inode)).collect()
}

/// The processes in `snapshot` that have these sockets open, oldest first. A process whose descriptors this process may
/// not read is missing; this process is never among them.
pub fn holders<'s>(snapshot: &'s Snapshot, inodes: &HashSet<u64>) -> HashMap<u64, Vec<&'s Process>> {
    let myself = std::process::id() as Pid;
    let mut found: HashMap<u64, Vec<&Process>> = HashMap::new();
    let mut all: Vec<&Process> = snapshot.all.iter().filter(|process| process.pid != myself && !process.dead).collect();
    all.sort_unstable_by_key(|process| (process.start, process.pid));
    for process in all {
        let held: HashSet<u64> = as_its_user(process.pid, || {
            sockets_in(dir_of(process).join("fd")).filter(|inode| inodes.contains(inode)).collect()
        });
        for inode in held {
            found.entry(inode).or_default().push(process);
        }
    }
    found
}

/// The inode numbers of the sockets in a directory of descriptors in /proc. Reading the name of an open file does not
/// access its disk; reading its metadata would.
fn sockets_in(dir: impl AsRef<std::path::Path>) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| socket_of(fs::read_link(entry.path()).ok()?.as_os_str().as_encoded_bytes()))
}

/// The inode number in the name that /proc gives to a socket, such as `socket:[4711]`.
fn socket_of(name: &[u8]) -> Option<u64> {
    std::str::from_utf8(name.strip_prefix(b"socket:[")?.strip_suffix(b"]")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use nix::sys::stat::fstat;

    use super::*;

    #[test]
    fn only_sockets_have_an_inode_number_in_their_name() {
        assert_eq!(socket_of(b"socket:[4711]"), Some(4711));
        for other in [&b"pipe:[4711]"[..], b"/dev/pts/0", b"socket:[]", b"socket:[1", b"socket:[-1]", b""] {
            assert_eq!(socket_of(other), None);
        }
    }

    #[test]
    fn this_process_and_a_child_that_has_inherited_a_socket_hold_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inodes = HashSet::from([fstat(listener.as_fd()).unwrap().st_ino]);
        assert_eq!(own_sockets(&inodes), inodes);
        assert_eq!(own_sockets(&HashSet::from([u64::MAX])), HashSet::new());
        let copy = listener.as_fd().try_clone_to_owned().unwrap();
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(copy)).spawn().unwrap();
        let snapshot = Snapshot::take();
        let found = holders(&snapshot, &inodes);
        let pids: Vec<Pid> = found.values().flatten().map(|process| process.pid).collect();
        assert!(pids.contains(&(child.id() as Pid)), "{pids:?}");
        assert!(!pids.contains(&(std::process::id() as Pid)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
