//! `init/namespace.sh` removes everything that it creates, however it ends.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::cgroups::cgroup_of;
use crate::harness::{TIMEOUT, bound_command, procfs, wait_until};

fn launch(dir: &Path, script: &str) -> Child {
    let mut command = bound_command(concat!(env!("CARGO_MANIFEST_DIR"), "/namespace.sh"));
    command.args(["/bin/sh", "-c", script]).env("TL_NS_DIR", dir).stdin(Stdio::null());
    command.spawn().expect("start the launcher")
}

fn wait_for_exit(launcher: &mut Child) -> ExitStatus {
    wait_until(TIMEOUT, "the launcher ends", || launcher.try_wait().expect("its status"))
}

fn pid_1_inside(launcher: &Child) -> i32 {
    wait_until(TIMEOUT, "the namespace has a PID 1", || {
        let below = procfs::children(launcher.id() as i32);
        below.into_iter().flat_map(procfs::children).find(|&pid| procfs::is_pid1(pid))
    })
}

/// The cgroup that the launcher made, if it could make one.
fn cgroup(launcher: &Child) -> Option<PathBuf> {
    Some(cgroup_of("self")?.join(format!("tl-init.{}", launcher.id()))).filter(|dir| dir.exists())
}

#[test]
fn the_script_removes_everything_however_it_ends() {
    for signal in [None, Some(Signal::SIGTERM), Some(Signal::SIGINT), Some(Signal::SIGKILL)] {
        let parent = tempfile::tempdir().expect("create a directory");
        let dir = parent.path().join("state");
        // PID 1 gets no signal without a handler, so the trap must be set before the script counts as up.
        let script = "trap 'exit 5' TERM; touch $TL_INIT_RUN_DIR.up; setsid sleep 5100 & while :; do sleep 0.02; done";
        let mut launcher = launch(&dir, script);
        let pid1 = pid_1_inside(&launcher);
        wait_until(TIMEOUT, "the process is up", || dir.join("run.up").exists().then_some(()));
        let cgroup = cgroup(&launcher);
        match signal {
            // The program ends first.
            None => kill(Pid::from_raw(pid1), Signal::SIGTERM).expect("end the program"),
            Some(signal) => kill(Pid::from_raw(launcher.id() as i32), signal).expect("end the launcher"),
        }
        let status = wait_for_exit(&mut launcher);
        if signal != Some(Signal::SIGKILL) {
            assert_eq!(status.code(), Some(5), "{signal:?}: the program's own exit status");
            assert!(!dir.exists(), "{signal:?}: the script ends only after it has removed everything");
        }
        wait_until(TIMEOUT, "everything is removed", || {
            let gone = !dir.exists() && cgroup.as_ref().is_none_or(|cgroup| !cgroup.exists());
            (gone && !Path::new(&format!("/proc/{pid1}")).exists()).then_some(())
        });
    }
}

#[test]
fn the_status_of_the_program_is_passed_on_after_a_signal() {
    // 127 is also the status of a `wait` without a child, 143 that of one that SIGTERM has interrupted.
    for status in [0, 127, 143] {
        let parent = tempfile::tempdir().expect("create a directory");
        let dir = parent.path().join("state");
        let script = format!("trap 'exit {status}' TERM; touch $TL_INIT_RUN_DIR.up; while :; do sleep 0.02; done");
        let mut launcher = launch(&dir, &script);
        wait_until(TIMEOUT, "the process is up", || dir.join("run.up").exists().then_some(()));
        kill(Pid::from_raw(launcher.id() as i32), Signal::SIGTERM).expect("signal the launcher");
        assert_eq!(wait_for_exit(&mut launcher).code(), Some(status));
    }
}

#[test]
fn the_script_leaves_users_and_homes_of_the_machine_unchanged() {
    let before = (std::fs::read("/etc/passwd").expect("passwd"), std::fs::read("/etc/group").expect("group"));
    let home = Path::new("/home/tl-user").exists();
    let parent = tempfile::tempdir().expect("create a directory");
    let script = "echo x >>/etc/passwd; echo x >>/etc/group; [ \"$(id -u)\" != 0 ] || touch /home/tl-user/x; exit 3";
    let status = wait_for_exit(&mut launch(&parent.path().join("state"), script));
    assert_eq!(status.code(), Some(3));
    assert!(before == (std::fs::read("/etc/passwd").expect("passwd"), std::fs::read("/etc/group").expect("group")));
    assert_eq!(Path::new("/home/tl-user").exists(), home);
}
