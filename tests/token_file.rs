//! `--token-file` as orchestrators provide it: a Kubernetes Secret, whose file is behind two symlinks.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::harness::options::program;
use crate::harness::{Options, TOKEN, bound_command};

/// Puts a token into a directory as the kubelet does: `token` -> `..data/token`, `..data` -> a directory with the date.
fn publish(volume: &Path, date: &str, token: &str, mode: u32) {
    let version = volume.join(format!("..{date}"));
    fs::create_dir(&version).expect("create a directory");
    fs::write(version.join("token"), token).expect("write the token");
    fs::set_permissions(version.join("token"), Permissions::from_mode(mode)).expect("set the mode");
    // The kubelet replaces the symlink by a rename.
    symlink(format!("..{date}"), volume.join("..data_tmp")).expect("create a symlink");
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("rename the symlink");
    let _ = symlink("..data/token", volume.join("token"));
}

#[test]
fn a_secret_that_only_its_owner_can_read_is_accepted_and_read_once() {
    for (mode, end) in [(0o400, ""), (0o400, "\n"), (0o600, "\r\n")] {
        let volume = tempfile::tempdir().expect("create a directory");
        publish(volume.path(), "2026_11_30_08_00_00.1", &format!("{TOKEN}{end}"), mode);
        let token_file = volume.path().join("token");
        let daemon = Options::default().args(&["--token-file", token_file.to_str().expect("a path")]).start();
        assert_eq!(daemon.token, TOKEN, "the harness uses it if the daemon has written no token");
        assert_eq!(daemon.run_sh("echo ran").stdout(), "ran", "{mode:o} {end:?}");
        publish(volume.path(), "2026_11_30_09_00_00.2", "another-token", mode);
        assert_eq!(daemon.run_sh("echo ran").stdout(), "ran", "the token of the start counts");
    }
}

#[test]
fn a_secret_that_others_can_read_is_refused_with_the_settings_that_help() {
    // With an fsGroup, the kubelet adds 0040 to the mode. 0644 is the default of a Secret.
    for mode in [0o440, 0o640, 0o644, 0o404] {
        let volume = tempfile::tempdir().expect("create a directory");
        publish(volume.path(), "2026_11_30_08_00_00.1", TOKEN, mode);
        let output = start_with_token(&volume.path().join("token"));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{mode:o}: {text}");
        for part in ["--token-file", &format!("{mode:04o}"), "`defaultMode: 0400`", "no `fsGroup`"] {
            assert!(text.contains(part), "{mode:o}: no {part} in {text}");
        }
    }
}

#[test]
fn a_secret_that_is_not_there_is_refused() {
    let volume = tempfile::tempdir().expect("create a directory");
    publish(volume.path(), "2026_11_30_08_00_00.1", TOKEN, 0o400);
    fs::remove_file(volume.path().join("..data")).expect("remove the symlink");
    let output = start_with_token(&volume.path().join("token"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
    assert!(text.contains("--token-file") && text.contains("No such file"), "{text}");
}

/// Runs the program, which must refuse the token.
fn start_with_token(token_file: &Path) -> Output {
    let dir = tempfile::tempdir().expect("create a directory");
    let mut command: Command = bound_command(program());
    command.args(["--listen", "127.0.0.1:0", "--log-level", "error", "--token-file"]).arg(token_file);
    command.env("TL_INIT_RUN_DIR", dir.path().join("run")).env("TL_INIT_LOG_DIR", dir.path().join("log"));
    command.stdin(Stdio::null()).output().expect("run the program")
}
