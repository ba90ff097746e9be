//! Cgroups that accept no processes or disappear: processes still start, and DELETE still kills trees.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::harness::cgroups::{SET_CGROUP, cgroup_of};
use crate::harness::{Daemon, Options, TIMEOUT, pid_of, procfs, skip_without_root, start_daemon, wait_until};

/// Shell commands that make the cgroup `domain threaded`: new cgroups below it cannot hold processes (cgroups(7)).
const MAKE_THREADED: &str = "mkdir $cgroup/t; echo threaded >$cgroup/t/cgroup.type";

/// Number of warnings about cgroups in the log of the daemon.
fn cgroup_warnings(daemon: &Daemon) -> usize {
    daemon.log().lines().filter(|line| line.contains("WARN") && line.contains("cgroup")).count()
}

/// Checks that processes start, are reaped and reported, and that DELETE kills a tree.
fn check_starts_work(daemon: &Daemon) {
    for _ in 0..3 {
        let run = daemon.run_sh("echo out; exit 3");
        assert_eq!((run.lines("stdout"), run.code()), (vec!["out".to_owned()], Some(3)));
    }
    let pid = daemon.sh("(sleep 4600 &); exec sleep 4600");
    daemon.wait_for_processes("sleep 4600", 2);
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    daemon.wait_until_gone(TIMEOUT, "sleep 4600");
}

/// Whether new runs get cgroups.
fn has_cgroups(daemon: &Daemon) -> bool {
    daemon.run_sh("cat /proc/self/cgroup").stdout().contains("/tl-units.")
}

/// Runs a script as root in the namespaces of the daemon. `$cgroup` is the cgroup above the slice of the units.
fn run_as_root(daemon: &Daemon, script: &str) {
    let parent = format!("{SET_CGROUP}; cgroup=${{cgroup%/tl-units.*}}; cgroup=${{cgroup%/tl-init}}");
    daemon.run_as_root(&format!("{parent}; {script}"));
}

/// The cgroup directory above the slice of the units, in the mount namespace of the test.
fn parent_of_slice(daemon: &Daemon) -> PathBuf {
    let own = cgroup_of(daemon.pid).expect("the cgroup of the daemon");
    // A daemon with controllers moves itself into a leaf beside the slice.
    if own.ends_with("tl-init") { own.parent().expect("its parent").to_owned() } else { own }
}

/// Slices of units below a cgroup.
fn slices_below(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).expect("the cgroup").flatten();
    let slices = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("tl-units."));
    slices.map(|entry| entry.path()).collect()
}

/// Removes the slice of the daemon as soon as it is empty.
fn remove_slice(parent: &Path) {
    wait_until(TIMEOUT, "the idle slice is removed", || {
        let [slice] = &slices_below(parent)[..] else { return None };
        // Cgroups of runs that have just ended may still exist.
        for leaf in std::fs::read_dir(slice).ok()?.flatten().filter(|entry| entry.path().is_dir()) {
            let _ = std::fs::remove_dir(leaf.path());
        }
        std::fs::remove_dir(slice).ok()
    });
}

#[test]
fn processes_start_without_a_cgroup_when_the_parent_is_threaded() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().prepare(MAKE_THREADED).start();
    check_starts_work(&daemon);
    assert!(!has_cgroups(&daemon));
    assert_eq!(cgroup_warnings(&daemon), 1, "{}", daemon.log());
}

#[test]
fn processes_start_without_a_cgroup_after_the_parent_becomes_threaded() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    assert!(has_cgroups(&daemon));
    let parent = parent_of_slice(&daemon);
    let threads = parent.join("t");
    std::fs::create_dir(&threads).expect("a cgroup");
    // The kernel refuses this while a process is in the slice.
    wait_until(TIMEOUT, "the parent is domain threaded", || {
        std::fs::write(threads.join("cgroup.type"), "threaded").ok()
    });
    check_starts_work(&daemon);
    assert!(!has_cgroups(&daemon));
    assert_eq!(cgroup_warnings(&daemon), 1, "{}", daemon.log());
}

#[test]
fn a_removed_slice_is_created_again() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let parent = parent_of_slice(&daemon);
    for removals in 1..=2 {
        assert!(has_cgroups(&daemon));
        remove_slice(&parent);
        check_starts_work(&daemon);
        assert!(has_cgroups(&daemon));
        assert_eq!(cgroup_warnings(&daemon), removals, "{}", daemon.log());
    }
    // DELETE kills the whole tree of a unit in the new slice.
    let pid = daemon.sh("setsid sleep 4601 & exec sleep 4601");
    daemon.wait_for_processes("sleep 4601", 2);
    daemon.delete(&format!("/processes/{pid}")).expect(204);
    daemon.wait_until_gone(TIMEOUT, "sleep 4601");
}

#[test]
fn processes_start_without_a_cgroup_when_a_removed_slice_cannot_be_created_again() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let parent = parent_of_slice(&daemon);
    run_as_root(&daemon, "mount -o remount,bind,ro ${cgroup%/tl-init.*}");
    // The mount of the test is still writable.
    remove_slice(&parent);
    check_starts_work(&daemon);
    assert!(!has_cgroups(&daemon));
    assert_eq!(cgroup_warnings(&daemon), 1, "{}", daemon.log());
}

#[test]
fn processes_start_without_a_cgroup_after_cgroups_become_read_only() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let before = daemon.sh("exec sleep 4602");
    daemon.wait_for_processes("sleep 4602", 1);
    run_as_root(&daemon, "mount -o remount,bind,ro ${cgroup%/tl-init.*}");
    check_starts_work(&daemon);
    assert!(!has_cgroups(&daemon));
    assert!(cgroup_warnings(&daemon) >= 1, "{}", daemon.log());
    daemon.delete(&format!("/processes/{before}")).expect(204);
    daemon.wait_until_gone(TIMEOUT, "sleep 4602");
}

#[test]
fn delete_kills_the_whole_tree_after_cgroups_are_unmounted() {
    if skip_without_root() {
        return;
    }
    for unmount in ["umount -l $mount", "mount -t tmpfs none $mount"] {
        let daemon = start_daemon();
        let tree = json!({"command": "sh", "args": ["-c", "setsid sleep 4603 & exec sleep 4603"]});
        let before = pid_of(&daemon.start_process(&tree));
        daemon.wait_for_processes("sleep 4603", 2);
        run_as_root(&daemon, &format!("mount=${{cgroup%/tl-init.*}}; {unmount}"));
        check_starts_work(&daemon);
        assert!(cgroup_warnings(&daemon) <= 1, "{}", daemon.log());
        daemon.delete(&format!("/processes/{before}")).expect(204);
        wait_until(TIMEOUT, "no process is left", || procfs::children(daemon.pid).is_empty().then_some(()));
        wait_until(TIMEOUT, "none is shown as running", || {
            daemon.list().iter().all(|info| info["status"] != "running").then_some(())
        });
    }
}

#[test]
fn a_cgroup_mount_point_with_a_space_in_its_path_is_found() {
    if skip_without_root() {
        return;
    }
    // The old mount is removed, so that only the new one leads to the cgroup of the daemon.
    let prepare = "dir=\"$TL_INIT_RUN_DIR.my cgroups\"; mkdir \"$dir\"; mount -t cgroup2 none \"$dir\"; \
                   umount -l ${cgroup%/tl-init.*}";
    let daemon = Options::default().prepare(prepare).start();
    assert!(has_cgroups(&daemon), "{}", daemon.log());
}
