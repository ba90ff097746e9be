//! Attempts of `tl-user` to reach files of other users through the file API: links, and races against the requests.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::files::{files, get, list, put};
use crate::harness::{Daemon, TIMEOUT, pid_of, skip_without_root, start_daemon};

const CONTENT: &[u8] = b"a secret of root";

/// A directory of root's that other users may enter, with a file that they may not read or write.
fn secret_of_root(daemon: &Daemon) -> std::path::PathBuf {
    let dir = daemon.scratch().join("of-root");
    fs::create_dir(&dir).expect("create a directory");
    fs::write(dir.join("file"), CONTENT).expect("write a file");
    fs::set_permissions(dir.join("file"), Permissions::from_mode(0o600)).expect("set the mode");
    dir
}

/// Checks that the file of root is as it was, and alone.
fn check_unchanged(secret: &Path) {
    let file = secret.join("file");
    assert_eq!(fs::read(&file).expect("read it as root"), CONTENT);
    let meta = fs::metadata(&file).expect("its metadata");
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o600));
    assert_eq!(fs::read_dir(secret).expect("its directory").count(), 1);
}

#[test]
fn links_of_the_user_lead_to_no_file_that_the_user_cannot_access() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let secret = secret_of_root(&daemon);
    let links = format!(
        "cd; ln -s {0}/file symlink; ln -s {0} directory; ln -s symlink twice; ln {0}/file hard || cp symlink hard
         ln -s /proc/1/root{0}/file magic; ln -s /proc/self/cwd/etc/shadow cwd; ln -s /dev/fd/3 descriptor
         ln -s /proc/1/environ environ; ln -s {0}/new dangling; mkfifo fifo; ln -s /dev/zero zero; true",
        secret.display()
    );
    assert_eq!(daemon.run_sh(&links).code(), Some(0));
    for name in ["symlink", "twice", "directory/file", "hard", "magic", "cwd", "descriptor", "environ", "fifo", "zero"]
    {
        for response in [get(&daemon, name, ""), put(&daemon, name, "", b"overwritten")] {
            // `hard` is a file of root only if the kernel lets a user link to it.
            let status = response.status;
            assert!(matches!(status, 400 | 403) || name == "hard" && !daemon_links(&daemon), "{name}: {status}");
            assert!(!response.body.windows(CONTENT.len()).any(|part| part == CONTENT), "{name}");
        }
        check_unchanged(&secret);
    }
    for name in ["dangling", "directory/new", "directory/deep/new"] {
        put(&daemon, name, "", b"x").expect_error(403, "PERMISSION_DENIED", "");
    }
    daemon.delete(&files("directory/file", "")).expect_error(403, "PERMISSION_DENIED", "");
    // A link itself is the user's.
    daemon.delete(&files("symlink", "")).expect(204);
    assert_eq!(list(&daemon, "/root", "").status, 403);
    check_unchanged(&secret);
}

/// Whether the user has a hard link to the file of root.
fn daemon_links(daemon: &Daemon) -> bool {
    daemon.run_sh("cd; stat -c %u hard").stdout() == "0"
}

/// Changes what `x/file` and `y` lead to as fast as it can: a file of the user's, or that of root.
const SWAP: &str = r#"
import os, sys
secret = sys.argv[1]
os.chdir(os.environ["HOME"])
os.mkdir("own")
open("own/file", "w").write("own")
os.symlink("own", "link-own")
os.symlink(secret, "link-secret")
print("swaps", flush=True)
while True:
    for target in ("own", secret):
        os.symlink(target, "new")
        os.replace("new", "x")
        os.symlink(f"{target}/file", "new")
        os.replace("new", "y")
        os.symlink("own", "new")
        os.replace("new", "z")
    try:
        os.unlink("z")
        os.mkdir("z")
        os.rmdir("z")
    except OSError:
        pass
"#;

#[test]
fn a_path_that_changes_during_a_request_leads_to_no_file_that_the_user_cannot_access() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let secret = secret_of_root(&daemon);
    let body = json!({"command": "python3", "args": ["-c", SWAP, secret], "user": "tl-user"});
    let swapper = pid_of(&daemon.start_process(&body));
    daemon.wait_for_stdout(swapper, &["swaps"]);
    let before = daemon.threads_and_descriptors();
    let end = Instant::now() + Duration::from_secs(2);
    let (mut served, mut refused, mut rounds) = (0, 0, 0);
    while rounds < 100 || Instant::now() < end && rounds < 5_000 {
        rounds += 1;
        for path in ["x/file", "y", "z/file"] {
            for response in [
                get(&daemon, path, ""),
                put(&daemon, path, "", b"new"),
                list(&daemon, path.split('/').next().expect("a name"), ""),
                daemon.delete(&files("x/file", "")),
            ] {
                assert!(matches!(response.status, 200..=204 | 400..=404), "{path}: {}", response.status);
                assert!(!response.body.windows(CONTENT.len()).any(|part| part == CONTENT), "{path}");
                if response.status < 300 { served += 1 } else { refused += 1 }
            }
        }
    }
    check_unchanged(&secret);
    assert!(served > 0 && refused > 0, "{served} requests served, {refused} refused: the path has changed");
    daemon.delete_tree(swapper, &["os.replace"]);
    daemon.wait_until_released(before);
    assert_eq!(daemon.run_sh("id -un").stdout(), "tl-user");
    let _ = TIMEOUT;
}
