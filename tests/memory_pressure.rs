//! Processes that use all memory that the daemon and they may use together: the kernel ends them, not the daemon.

use serde_json::json;

use crate::harness::baseline::{Baseline, while_serving};
use crate::harness::faults::TestCgroup;
use crate::harness::{TIMEOUT, pid_of, procfs, skip_without_root, start_daemon, wait_until};

/// Allocates memory without end: `tail` keeps a line that never ends.
const EAT: &str = "exec tail -n 1 /dev/zero";

#[test]
fn processes_that_use_all_memory_are_killed_and_the_daemon_serves_on() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let Some(cgroup) = TestCgroup::new("memory") else { return };
    let quiet = daemon.sh("sleep 4850");
    for pid in procfs::with_fork_server(daemon.pid) {
        cgroup.write("cgroup.procs", pid);
    }
    let baseline = Baseline::of(&daemon);
    cgroup.write("memory.limit_in_bytes", 96 << 20);
    while_serving(&daemon, || {
        for _ in 0..3 {
            let pids: Vec<u64> = (0..4).map(|_| daemon.sh(EAT)).collect();
            for pid in pids {
                let info = daemon.wait_for_end(pid);
                assert_eq!(info["signal"], 9, "{info}");
            }
            assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        }
    });
    assert_eq!(daemon.info(quiet)["status"], "running");
    let managed = json!({"command": "sh", "args": ["-c", EAT], "name": "eater", "restart": {
        "policy": "always", "initial_backoff_ms": 0, "max_restarts": 2,
    }});
    let eater = pid_of(&daemon.start_process(&managed));
    while_serving(&daemon, || {
        wait_until(TIMEOUT, "it has been restarted twice and killed three times", || {
            let info = daemon.info(eater);
            (info["managed"]["restart_count"] == 2 && info["status"] != "running").then_some(())
        });
    });
    daemon.delete(&format!("/processes/{quiet}")).expect(204);
    baseline.check_restored(&daemon);
}
