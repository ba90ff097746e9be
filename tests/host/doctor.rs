//! `tl-host doctor`: a line for each check, and what helps.

use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::harness::{IMAGE, init, podman, start_host, wait_until};

/// Runs `doctor` with free ports and a state directory that can be made.
fn doctor(options: &[&str]) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tl-host"));
    command.arg("doctor").arg("--state-dir").arg(directory.path().join("new"));
    command.args(["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0"]).args(options);
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(!directory.path().join("new").exists(), "it has made the state directory");
    (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
}

/// One test at a time has containers of `doctor`: each looks at all of them.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The line about one thing.
fn line<'a>(report: &'a str, subject: &str) -> &'a str {
    let found = report.lines().find(|line| line.get(9..).is_some_and(|rest| rest.starts_with(&format!("{subject}: "))));
    found.unwrap_or_else(|| panic!("no line about {subject}:\n{report}"))
}

#[test]
fn on_a_machine_that_has_everything_a_container_is_started() {
    let (Some(podman), Some(init)) = (podman(), init()) else { return };
    let _turn = turn();
    let (code, report) =
        doctor(&["--engine", &podman.url(), "--init", init.to_str().unwrap(), "--default-image", IMAGE]);
    assert_eq!(code, Some(0), "{report}");
    for subject in ["tl-init", "state", "API port", "proxy port", "engine", "image", "container"] {
        assert!(line(&report, subject).starts_with("ok "), "{report}");
    }
    let left = podman.run(&["ps", "--all", "--filter", "name=tl-doctor", "--format", "{{.Names}}"]);
    assert_eq!(left, "");
}

#[test]
fn without_an_engine_it_says_what_brings_one() {
    let (code, report) = doctor(&["--engine", "unix:///nowhere.sock"]);
    assert_eq!(code, Some(1), "{report}");
    let engine = line(&report, "engine");
    assert!(engine.starts_with("missing  engine: the engine at unix:///nowhere.sock cannot be reached: "), "{engine}");
    assert!(engine.contains("systemctl start") && !report.contains("container: "), "{report}");
}

#[test]
fn what_is_missing_is_named_with_what_helps() {
    let Some(podman) = podman() else { return };
    // This test is a dynamic program.
    let own = std::env::current_exe().unwrap();
    let options = ["--engine", &podman.url(), "--init", own.to_str().unwrap(), "--default-image", "localhost/tl-none"];
    let (code, report) = doctor(&options);
    assert_eq!(code, Some(1), "{report}");
    assert!(line(&report, "tl-init").contains("is not static"), "{report}");
    let image = line(&report, "image");
    assert!(image.starts_with("missing  image: there is no localhost/tl-none; `make host`"), "{image}");
    assert!(report.ends_with("tl-host: 2 things are missing\n"), "{report}");
}

#[test]
fn what_a_killed_doctor_has_left_is_removed_by_the_next_one() {
    let (Some(podman), Some(init)) = (podman(), init()) else { return };
    let _turn = turn();
    // As a doctor of another boot of the machine leaves it.
    let labels = ["--label", "tl-host.doctor=trial", "--label", "tl-host.doctor.owner=another-boot 1 1"];
    podman.run(&[&["create", "--name", "tl-doctor-left"], &labels[..], &[IMAGE, "true"]].concat());
    let (code, report) =
        doctor(&["--engine", &podman.url(), "--init", init.to_str().unwrap(), "--default-image", IMAGE]);
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(podman.run(&["ps", "--all", "--filter", "name=tl-doctor-left", "--format", "{{.Names}}"]), "");
}

#[test]
fn a_doctor_that_is_killed_leaves_a_container_that_the_start_of_tl_host_removes() {
    let (Some(podman), Some(init)) = (podman(), init()) else { return };
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tl-host"));
    command.args(["doctor", "--engine", &podman.url(), "--default-image", IMAGE, "--init"]).arg(&init);
    command.args(["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0", "--state-dir"]).arg(directory.path().join("new"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let owner = format!(" {} ", child.id());
    let own = || {
        let format = "{{.Names}} {{index .Labels \"tl-host.doctor.owner\"}} ";
        let all = podman.run(&["ps", "--all", "--filter", "label=tl-host.doctor=trial", "--format", format]);
        all.lines().find(|line| line.contains(&owner)).map(str::to_owned)
    };
    // It can have ended before it is killed; then it has left nothing.
    wait_until("its container", || own().or_else(|| child.try_wait().unwrap().map(|_| String::new())));
    child.kill().unwrap();
    child.wait().unwrap();
    let host = start_host(&[]).unwrap();
    wait_until("nothing to be left", || own().is_none().then_some(()));
    drop(host);
}
