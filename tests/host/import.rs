//! `tl-host import`: images of directories and of tar archives.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::process::Command;

use crate::harness::podman;

#[test]
fn a_directory_keeps_owners_modes_and_links() {
    let Some(podman) = podman() else { return };
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "text").unwrap();
    chown(&file, Some(1234), Some(5678)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
    fs::hard_link(&file, root.path().join("hard")).unwrap();
    symlink("nowhere/at all", root.path().join("soft")).unwrap();
    nix::unistd::mkfifo(&root.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(root.path().join("socket")).unwrap();
    let import = Command::new(env!("CARGO_BIN_EXE_tl-host"))
        .args(["import", "--engine", &podman.url(), "--name", "localhost/tl-imported"])
        .arg(root.path())
        .output()
        .unwrap();
    assert!(import.status.success(), "{import:?}");
    drop(socket);
    let container = podman.run(&["create", "localhost/tl-imported", "x"]);
    let archive = tempfile::NamedTempFile::new().unwrap();
    podman.run(&["export", "--output", archive.path().to_str().unwrap(), &container]);
    let listed = Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(archive.path()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = |name: &str| listed.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{listed}"));
    assert!(line(" file").starts_with("-rwsr-x--x 1234/5678"), "{listed}");
    assert!(line("soft").ends_with("soft -> nowhere/at all"), "{listed}");
    assert!(listed.contains("hard link to file") || listed.contains("link to hard"), "{listed}");
    assert!(line("fifo").starts_with('p'), "{listed}");
    assert!(!listed.contains("socket"), "{listed}");
    podman.run(&["rm", &container]);
    podman.run(&["rmi", "localhost/tl-imported"]);
}

#[test]
fn a_directory_that_tar_cannot_read_whole_makes_no_image_and_the_older_one_keeps_its_name() {
    let Some(podman) = podman() else { return };
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), "text").unwrap();
    // Found before the one of the system: it writes the archive and then fails.
    let programs = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\nPATH=${PATH#*:}\ntar \"$@\"\nexit $FAKE_TAR_STATUS\n";
    fs::write(programs.path().join("tar"), script).unwrap();
    fs::set_permissions(programs.path().join("tar"), fs::Permissions::from_mode(0o755)).unwrap();
    let import = |status: &str| {
        let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
        Command::new(env!("CARGO_BIN_EXE_tl-host"))
            .args(["import", "--engine", &podman.url(), "--name", "localhost/tl-partly"])
            .arg(root.path())
            .envs([("PATH", path.as_str()), ("FAKE_TAR_STATUS", status)])
            .output()
            .unwrap()
    };
    let images = || podman.run(&["images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"]);
    let ours = || images().lines().filter(|line| line.contains("/tl-import") || line.contains("/tl-partly")).count();
    let failed = import("2");
    let errors = String::from_utf8(failed.stderr).unwrap();
    assert!(failed.status.code() == Some(1) && errors.contains("tar has failed"), "{errors}");
    assert_eq!(ours(), 0, "{}", images());
    assert!(import("0").status.success());
    let before = podman.run(&["inspect", "--format", "{{.Id}}", "localhost/tl-partly:latest"]);
    fs::write(root.path().join("more"), "text").unwrap();
    assert_eq!(import("2").status.code(), Some(1));
    assert_eq!(podman.run(&["inspect", "--format", "{{.Id}}", "localhost/tl-partly:latest"]), before);
    assert_eq!(ours(), 1, "{}", images());
    podman.run(&["rmi", "localhost/tl-partly"]);
}

#[test]
fn what_cannot_be_imported_is_named() {
    let Some(podman) = podman() else { return };
    let not_tar = tempfile::NamedTempFile::new().unwrap();
    fs::write(&not_tar, "this is no archive").unwrap();
    let not_tar = not_tar.path().to_str().unwrap();
    for (source, expected) in [("/nowhere", "/nowhere: "), (not_tar, "the engine has refused")] {
        let import = Command::new(env!("CARGO_BIN_EXE_tl-host"))
            .args(["import", "--engine", &podman.url(), "--name", "localhost/tl-never", source])
            .output()
            .unwrap();
        let errors = String::from_utf8(import.stderr).unwrap();
        assert_eq!(import.status.code(), Some(1), "{errors}");
        assert!(errors.contains(expected), "{source}: {errors}");
    }
}
