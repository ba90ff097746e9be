//! `--create-user`: the user, its group and its home in images that lack them.

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::harness::options::program;
use crate::harness::{Daemon, Options, skip_without_root};

/// Gives the namespace an empty /home, and an /etc of its own with the users of the machine except tl-user. The last
/// line of passwd has no newline.
const ETC_WITHOUT_TL_USER: &str = "
    passwd=$(grep -v ^tl-user: /etc/passwd)
    group=$(grep -v ^tl-user: /etc/group)
    mount -t tmpfs -o mode=755 tmpfs /home
    mount -t tmpfs -o mode=755 tmpfs /etc
    printf %s \"$passwd\" >/etc/passwd
    printf '%s\\n' \"$group\" >/etc/group
    chmod 664 /etc/passwd
    ";

/// Starts a daemon with `--create-user tl-user:23456`, after the script has changed its /etc.
fn start(script: &str) -> Daemon {
    let prepare = format!("{ETC_WITHOUT_TL_USER}{script}");
    Options::default().prepare(&prepare).args(&["--create-user", "tl-user:23456"]).start()
}

/// The step of the boot report.
fn step(daemon: &Daemon) -> Value {
    let report = daemon.boot();
    let steps = report["steps"].as_array().expect("steps");
    let step = steps.iter().find(|step| step["name"] == "create-user");
    step.unwrap_or_else(|| panic!("no step of create-user in {report}")).clone()
}

fn check_step(daemon: &Daemon, ok: bool, part: &str) {
    let step = step(daemon);
    let detail = step["detail"].as_str().expect("a detail");
    assert!(step["ok"] == ok && detail.contains(part), "{ok}, {part:?}: {step}");
    assert!(daemon.log().contains(detail), "in the log as well: {}", daemon.log());
}

/// Commands without a `user` fail and name the user; commands of root run.
fn check_default_user_is_unknown(daemon: &Daemon) {
    let start = daemon.post("/processes", &json!({"command": "true"}));
    start.expect_error(400, "USER_NOT_FOUND", "tl-user");
    assert_eq!(daemon.run_as_root("id -u"), "0");
}

#[test]
fn a_missing_user_is_made_and_commands_run_as_it() {
    if skip_without_root() {
        return;
    }
    // Where a file is a mount point, a rename over it fails: it is written in place.
    let mount_point = "
        cp -p /etc/passwd /home/passwd
        mount --bind /home/passwd /etc/passwd
        ";
    for script in ["", mount_point] {
        let daemon = start(script);
        check_step(&daemon, true, "made the user tl-user with UID 23456, the group tl-user with GID 23456");
        let identity =
            daemon.run_sh("id -un; id -u; id -gn; id -g; echo $HOME; pwd; stat -c %a:%U $HOME; echo x >$HOME/f");
        assert_eq!(
            identity.stdout(),
            "tl-user\n23456\ntl-user\n23456\n/home/tl-user\n/home/tl-user\n700:tl-user",
            "{script}"
        );
        let lines = daemon.run_as_root("grep -c ^root: /etc/passwd; tail -n 1 /etc/passwd; stat -c %a /etc/passwd");
        assert_eq!(lines, "1\ntl-user:!:23456:23456::/home/tl-user:/bin/bash\n664", "{script}");
    }
}

#[test]
fn an_empty_etc_gets_passwd_and_group() {
    if skip_without_root() {
        return;
    }
    let daemon = start("rm /etc/passwd /etc/group");
    check_step(&daemon, true, "made the user tl-user");
    assert_eq!(daemon.run_sh("cat /etc/passwd /etc/group").stdout().lines().count(), 2);
}

#[test]
fn a_user_that_exists_stays_as_it_is() {
    if skip_without_root() {
        return;
    }
    let entry = "printf '\\n%s\\n' tl-user:x:23456:0::/:/bin/sh >>/etc/passwd";
    let daemon = start(entry);
    let step = step(&daemon);
    assert!(step["ok"] == true && step["detail"] == "the user tl-user has UID 23456 already", "{step}");
    assert_eq!(daemon.run_sh("id -u; id -g; pwd").stdout(), "23456\n0\n/");
    assert_eq!(daemon.run_as_root("ls -A /home; ls -A /etc"), "group\npasswd", "nothing was made");

    let other = start("printf '\\n%s\\n' tl-user:x:4001:4001::/:/bin/sh >>/etc/passwd");
    check_step(&other, false, "the user tl-user exists with UID 4001, not 23456");
    assert_eq!(other.run_sh("id -u").stdout(), "4001");
}

#[test]
fn a_user_that_cannot_be_made_is_reported_and_no_other_takes_its_place() {
    if skip_without_root() {
        return;
    }
    for (script, part) in [
        ("printf '\\n%s\\n' node:x:23456:23456::/:/bin/sh >>/etc/passwd", "UID 23456 belongs to the user node"),
        ("mount -o remount,ro /etc", "/etc/group: Read-only file system"),
        ("rm /etc/passwd; mkfifo /etc/passwd", "/etc/passwd: it is not a regular file"),
    ] {
        let daemon = start(script);
        check_step(&daemon, false, part);
        if !script.contains("mkfifo") {
            check_default_user_is_unknown(&daemon);
        }
    }
}

#[test]
fn without_root_a_user_that_does_not_exist_is_refused() {
    if skip_without_root() {
        return;
    }
    // A user other than root may be unable to enter the directory of the program.
    let dir = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().expect("a directory");
    let script = "cp \"$0\" \"$1\" && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\" 2>&1";
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(program()).arg(dir.path().join("tl-init"));
    command.args(["--listen", "127.0.0.1:0", "--create-user", "tl-nobody:23456"]);
    let output = command.stdin(Stdio::null()).output().expect("run the program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let right =
        "tl-init: --create-user: the user tl-nobody does not exist, and only root can make it: run tl-init as root\n";
    assert_eq!(text, right);
}
