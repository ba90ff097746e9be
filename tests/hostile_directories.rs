//! Users who replace the directories and files of the daemon: the log directory, the run directory, and homes.

use std::fs::{self, Permissions};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::harness::files::{get, put};
use crate::harness::options::program;
use crate::harness::{
    Daemon, Options, TIMEOUT, TOKEN, bound_command, pid_of, skip_without_root, start_daemon, wait_until,
};

/// Makes the directory of the run and log directories one that every user may write to, as a volume of Kubernetes is.
const OPEN_TO_ALL: &str = "state=${TL_INIT_RUN_DIR%/run}; chmod 777 \"$state\"; chown 0:0 \"$state\"";

/// A user who is not that of the daemon.
const STRANGER: u32 = 4242;

#[test]
fn directories_in_one_that_every_user_may_write_to_cannot_be_replaced() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().prepare(OPEN_TO_ALL).start();
    let state = daemon.state_dir();
    assert_eq!(fs::metadata(&state).expect("the directory").permissions().mode() & 0o7777, 0o1777);
    assert!(daemon.log().contains("its sticky bit is set"), "{}", daemon.log());
    let pid = daemon.sh("echo before");
    daemon.wait_for_stdout(pid, &["before"]);
    let replace = "for name in run log; do mv $name mine; rm -r $name; rmdir $name; ln -sfn /etc $name; done
        for name in run/token run/address log/lock log/1.1; do mv $name mine; rm -f $name; ln -sf /etc/passwd $name; done
        mkfifo log/9.1; ls log; cat run/token; touch there; rm there; echo tried";
    let run = daemon.run(&json!({"command": "sh", "args": ["-c", replace], "working_dir": state, "user": "tl-user"}));
    assert_eq!(run.stdout(), "tried");
    for (name, is_dir) in
        [("run", true), ("log", true), ("run/token", false), ("run/address", false), ("log/lock", false)]
    {
        // Of a symlink, not of what it leads to.
        let meta = fs::symlink_metadata(state.join(name)).expect(name);
        assert_eq!((meta.is_dir(), meta.is_file(), meta.uid()), (is_dir, !is_dir, 0), "{name}");
    }
    assert_eq!(fs::read_to_string(state.join("run/token")).expect("the token").trim(), daemon.token);
    assert_eq!(fs::read_to_string(state.join("run/address")).expect("the address").trim(), daemon.addr.to_string());
    assert_eq!(daemon.lines(pid, "stdout"), ["before"]);
    check_output_is_kept_in(&daemon, &state.join("log"), "after the attempts");
}

/// Prints each entry of the log directory and of what symlinks lead to: its path, type, mode, owner, target, size, and
/// the time of the last change of its content.
const LOOK: &str = "find log victim -printf '%p %y %m %U %l %s %T@\\n' 2>/dev/null | LC_ALL=C sort";

/// Starts a daemon whose log directory, `log`, is prepared by this script, in which `$as` runs a command as the
/// stranger. `victim` is what symlinks lead to.
fn start_after(plant: &str) -> (Daemon, PathBuf) {
    let as_stranger = format!("setpriv --reuid {STRANGER} --regid {STRANGER} --clear-groups");
    let prepare = format!(
        "{OPEN_TO_ALL}; as='{as_stranger}'; cd \"$state\"\n{plant}\nplanted=$({LOOK})\necho \"$planted\" >planted; cd /"
    );
    let daemon = Options::default().prepare(&prepare).start();
    let state = daemon.state_dir();
    (daemon, state)
}

/// Checks that output is read back, and that a segment in this directory, a regular file of root, holds it.
fn check_output_is_kept_in(daemon: &Daemon, dir: &Path, what: &str) {
    assert_eq!(daemon.run_sh("echo kept").stdout(), "kept", "{what}");
    let pid = daemon.sh("echo kept");
    daemon.wait_for_end(pid);
    daemon.wait_for_stdout(pid, &["kept"]);
    let holds_it = |path: &Path| {
        let meta = fs::symlink_metadata(path).expect("a file");
        meta.is_file() && meta.uid() == 0 && fs::read(path).expect("read it").windows(4).any(|part| part == b"kept")
    };
    let mut files = fs::read_dir(dir).expect("the directory").map(|entry| entry.expect("an entry").path());
    assert!(files.any(|path| holds_it(&path)), "{what}: no segment in {}: {}", dir.display(), daemon.log());
}

/// What another user has put in the place of the log directory or of its lock is left as it is, and stops nothing:
/// output is kept below the run directory.
#[test]
fn a_log_directory_that_another_user_has_made_is_not_used() {
    if skip_without_root() {
        return;
    }
    for (plant, reason) in [
        ("mkdir victim; $as ln -s \"$state/victim\" log", "it is a symlink that belongs to the user 4242"),
        ("$as mkdir log", "it belongs to the user 4242"),
        ("$as mkfifo log", "it is not a directory"),
        ("$as touch log", "it is not a directory"),
        ("mkdir log; chmod 777 log; $as mkfifo log/lock", "`lock` in it is not a regular file"),
        ("mkdir log; chmod 777 log; $as touch log/lock", "`lock` in it belongs to the user 4242"),
        (
            "mkdir log; chmod 777 log; touch victim; $as ln -s \"$state/victim\" log/lock",
            "`lock` in it is not a regular file",
        ),
    ] {
        let (daemon, state) = start_after(plant);
        let refused = format!("output cannot be kept in {0}/log: log directory {0}/log: {reason}", state.display());
        assert!(daemon.log().contains(&refused), "{plant}: {}", daemon.log());
        check_output_is_kept_in(&daemon, &state.join("run/log"), plant);
        let look = Command::new("sh").args(["-c", LOOK]).current_dir(&state).output().expect("run the shell");
        let planted = fs::read_to_string(state.join("planted")).expect("what was planted");
        assert!(planted.contains(&STRANGER.to_string()), "{planted}");
        assert_eq!(String::from_utf8_lossy(&look.stdout), planted, "{plant}");
    }
}

/// What another user could put there while the directory was open to all is removed, and not written to.
#[test]
fn segments_that_another_user_has_made_are_removed_and_not_written() {
    if skip_without_root() {
        return;
    }
    for plant in ["ln -s \"$state/victim\"", "mkfifo", "ln \"$state/victim\"", "touch"] {
        let open = "$as sh -c 'echo untouched >victim'; mkdir log; chmod 777 log; touch log/lock";
        let (daemon, state) = start_after(&format!("{open}; for n in 1 2 3; do $as {plant} log/$n.1; done"));
        assert!(!daemon.log().contains("output cannot be kept"), "{plant}: {}", daemon.log());
        check_output_is_kept_in(&daemon, &state.join("log"), plant);
        for entry in fs::read_dir(state.join("log")).expect("the log directory").flatten() {
            let meta = fs::symlink_metadata(entry.path()).expect("a file");
            assert!(meta.is_file() && (meta.uid(), meta.nlink()) == (0, 1), "{plant}: {:?}", entry.path());
        }
        let mode = fs::symlink_metadata(state.join("log")).expect("the log directory").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700, "{plant}");
        assert_eq!(fs::read_to_string(state.join("victim")).expect("the victim"), "untouched\n", "{plant}");
    }
}

/// A container that is restarted can find what was left in a volume.
#[test]
fn a_run_directory_that_another_user_has_made_is_not_used() {
    if skip_without_root() {
        return;
    }
    // The harness finds the files by the links in the directory that is not used.
    let prepare = format!(
        "{OPEN_TO_ALL}; cd \"$state\"; mkdir run shm shm/tl-init; ln -s ../shm/tl-init/token ../shm/tl-init/address run
        touch shm/tl-init/old; chown -R {STRANGER} run shm/tl-init; mount --bind shm /dev/shm; cd /"
    );
    let daemon = Options::default().prepare(&prepare).start();
    let state = daemon.state_dir();
    assert!(daemon.log().contains(&format!("it belongs to the user {STRANGER}")), "{}", daemon.log());
    let made = fs::metadata(state.join("shm/tl-init")).expect("the directory in memory");
    assert_eq!((made.uid(), made.permissions().mode() & 0o777), (0, 0o755));
    assert!(!state.join("shm/tl-init/old").exists(), "it is a new one");
    assert_eq!(fs::read_dir(state.join("run")).expect("the old one").count(), 2, "nothing is written there");
    assert_eq!(daemon.run_sh("echo x").stdout(), "x");
}

#[test]
fn a_daemon_that_is_not_pid_1_refuses_the_run_directory_of_another_user() {
    if skip_without_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("create a directory");
    let (mine, theirs, link) = (dir.path().join("mine"), dir.path().join("theirs"), dir.path().join("link"));
    fs::create_dir(&theirs).expect("create a directory");
    fs::create_dir(&mine).expect("create a directory");
    symlink(&mine, &link).expect("create a symlink");
    for path in [&theirs, &link] {
        std::os::unix::fs::lchown(path, Some(STRANGER), None).expect("set the owner");
        let mut command: Command = bound_command("timeout");
        command.arg("60").arg(program()).args(["--listen", "127.0.0.1:0"]).env("TL_INIT_RUN_DIR", path);
        command.env("TL_INIT_LOG_DIR", dir.path().join("log"));
        let output: Output = command.stdin(Stdio::null()).output().expect("run the program");
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains("--run-dir") && text.contains(&format!("belongs to the user {STRANGER}")), "{text}");
    }
}

/// `tlctl` sends the token to the address in a file.
#[test]
fn the_client_sends_no_token_to_an_address_that_another_user_has_written() {
    if skip_without_root() {
        return;
    }
    let thief = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let got = Arc::new(AtomicBool::new(false));
    let (noted, address) = (Arc::clone(&got), thief.local_addr().expect("its address"));
    std::thread::spawn(move || {
        for mut client in thief.incoming().flatten() {
            noted.store(true, Ordering::SeqCst);
            let _ = client.read(&mut [0; 4096]);
        }
    });
    let dir = tempfile::tempdir().expect("create a directory");
    let (run, token) = (dir.path().join("run"), dir.path().join("token"));
    fs::create_dir(&run).expect("create a directory");
    fs::write(&token, TOKEN).expect("write the token");
    fs::set_permissions(&token, Permissions::from_mode(0o600)).expect("set the mode");
    let (file, elsewhere) = (run.join("address"), dir.path().join("elsewhere"));
    let ps = || {
        let mut command = bound_command(program());
        command.args(["ctl", "ps", "--run-dir"]).arg(&run).env("TL_INIT_TOKEN_FILE", &token);
        command.env("TL_INIT_CONFIG_DIR", dir.path()).output().expect("run the client")
    };
    fs::write(&elsewhere, address.to_string()).expect("write an address");
    fs::copy(&elsewhere, &file).expect("write an address");
    chown(&file, Some(STRANGER), None).expect("set the owner");
    let text = String::from_utf8_lossy(&ps().stderr).into_owned();
    assert!(text.contains(&format!("belongs to the user {STRANGER}")), "{text}");
    fs::remove_file(&file).expect("remove it");
    symlink(&elsewhere, &file).expect("create a symlink");
    let text = String::from_utf8_lossy(&ps().stderr).into_owned();
    assert!(text.contains("is a symlink"), "{text}");
    assert!(!got.load(Ordering::SeqCst), "the client has connected to it");
    // A file of root, or of the owner of the token, is trusted.
    fs::remove_file(&file).expect("remove it");
    fs::copy(&elsewhere, &file).expect("write an address");
    chown(&file, Some(STRANGER), None).expect("set the owner");
    chown(&token, Some(STRANGER), None).expect("set the owner");
    let _ = ps();
    assert!(wait_until(TIMEOUT, "the client connects", || got.load(Ordering::SeqCst).then_some(true)));
}

/// `tl-user` owns its home, and may replace it if it owns the directory above.
#[test]
fn a_home_that_is_a_symlink_gives_no_access_to_what_it_names() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let secret = daemon.scratch().join("of-root");
    fs::create_dir(&secret).expect("create a directory");
    fs::write(secret.join("file"), "secret").expect("write a file");
    fs::set_permissions(&secret, Permissions::from_mode(0o700)).expect("set the mode");
    let target = secret.display();
    daemon.run_as_root(&format!(
        "umount /home/tl-user 2>/dev/null || true; rmdir /home/tl-user; ln -s {target} /home/tl-user
         chown -h tl-user /home/tl-user"
    ));
    // Without a directory that it can enter, a process starts in /.
    assert_eq!(daemon.run_sh("pwd; cat file 2>/dev/null; echo $?").stdout(), "/\n1");
    daemon.post("/processes", &json!({"command": "pwd", "working_dir": "."})).expect_error(
        403,
        "PERMISSION_DENIED",
        "",
    );
    get(&daemon, "file", "").expect_error(403, "PERMISSION_DENIED", "");
    put(&daemon, "new", "", b"x").expect_error(403, "PERMISSION_DENIED", "");
    daemon.run_as_root("rm /home/tl-user; ln -s /etc /home/tl-user; chown -h tl-user /home/tl-user");
    put(&daemon, "passwd", "", b"x").expect_error(403, "PERMISSION_DENIED", "");
    put(&daemon, "new", "", b"x").expect_error(403, "PERMISSION_DENIED", "");
    let running = daemon.start_process(&json!({"command": "sleep", "args": ["4870"]}));
    daemon.delete_tree(pid_of(&running), &["sleep 4870"]);
}
