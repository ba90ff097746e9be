//! `tlctl cp`: files and folders between this host and the sandbox.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::ctl::{expect_failure, finish, tlctl, wait_for};
use crate::harness::{Daemon, TIMEOUT, skip_without_root, start_daemon, start_daemon_with, tcp_service, wait_until};

/// A daemon, a directory on this host in which the client runs, and one in the sandbox. Both are in the same file system,
/// so that a test can look into them.
struct Sides {
    daemon: Daemon,
    here: PathBuf,
    there: PathBuf,
}

impl Sides {
    fn new() -> Sides {
        Sides::of(start_daemon())
    }

    fn of(daemon: Daemon) -> Sides {
        let (here, there) = (daemon.scratch().join("here"), daemon.scratch().join("there"));
        fs::create_dir(&here).expect("create a directory");
        fs::create_dir(&there).expect("create a directory");
        fs::set_permissions(&there, Permissions::from_mode(0o777)).expect("make it writable for all");
        Sides { daemon, here, there }
    }

    /// The client. A `:./` at the beginning of an operand is the directory in the sandbox.
    fn command(&self, args: &[impl AsRef<OsStr>]) -> Command {
        let mut command = tlctl(&self.daemon, &["cp"]);
        for arg in args {
            let arg = arg.as_ref().as_bytes();
            command.arg(OsString::from_vec(match arg.strip_prefix(b":./") {
                Some(rest) => [b":", self.there.as_os_str().as_bytes(), b"/", rest].concat(),
                None => arg.to_vec(),
            }));
        }
        command.current_dir(&self.here);
        command
    }

    fn run(&self, args: &[impl AsRef<OsStr>]) -> Output {
        finish(self.command(args))
    }

    /// A copy that succeeds, in silence.
    #[track_caller]
    fn cp(&self, args: &[impl AsRef<OsStr>]) {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*text, output.stdout.len()), (Some(0), "", 0));
    }

    /// A copy from standard input.
    #[track_caller]
    fn cp_from(&self, input: &[u8], args: &[&str]) {
        let output = self.run_from(input, args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*text), (Some(0), ""));
    }

    fn run_from(&self, input: &[u8], args: &[&str]) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().expect("start the client");
        let mut stdin = child.stdin.take().expect("its stdin");
        std::thread::scope(|scope| {
            // A client that fails does not read all.
            scope.spawn(move || drop(stdin.write_all(input)));
            wait_for(child, "cp from a pipe")
        })
    }

    /// What a copy to standard output prints.
    #[track_caller]
    fn cp_to_stdout(&self, args: &[&str]) -> Vec<u8> {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), &*text), (Some(0), ""));
        output.stdout
    }

    #[track_caller]
    fn expect_failure(&self, args: &[&str], part: &str) {
        expect_failure(&self.run(args), 1, part);
    }
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// Writes a file with this mode, modified at a time with a fraction of a second.
fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>, mode: u32) {
    let path = path.as_ref();
    fs::write(path, content).expect("write a file");
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("set the mode");
    set_time(path);
}

fn set_time(path: &Path) {
    let time = UNIX_EPOCH + Duration::from_millis(1_234_567_890_123);
    File::open(path).expect("open").set_modified(time).expect("set the time");
}

#[track_caller]
fn check_same(one: impl AsRef<Path>, other: impl AsRef<Path>) {
    let (one, other) = (one.as_ref(), other.as_ref());
    let found = |path: &Path| {
        let meta = fs::metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec() / 1_000_000, meta.len())
    };
    assert_eq!(found(one), found(other), "{one:?} and {other:?}");
    assert!(read(one) == read(other), "{one:?} and {other:?}");
}

/// Everything in a tree: type, mode, time, content or target, and with which files it shares its inode.
type Tree = BTreeMap<Vec<u8>, (char, u32, i64, Vec<u8>, Vec<Vec<u8>>)>;

fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut inodes: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("list").map(|entry| entry.expect("an entry").path()) {
            let meta = fs::symlink_metadata(&entry).expect("examine");
            let name = entry.strip_prefix(root).expect("below").as_os_str().as_bytes().to_vec();
            let (kind, content) = match meta.file_type() {
                kind if kind.is_dir() => ('d', Vec::new()),
                kind if kind.is_symlink() => {
                    ('l', fs::read_link(&entry).expect("a target").into_os_string().into_vec())
                }
                kind if kind.is_file() => ('f', read(&entry)),
                _ => ('?', Vec::new()),
            };
            if kind == 'd' {
                dirs.push(entry.clone());
            } else {
                inodes.entry(meta.ino()).or_default().push(name.clone());
            }
            let mode = if kind == 'l' { 0 } else { meta.mode() & 0o7777 };
            found.insert(name, (kind, mode, meta.mtime(), content, Vec::new()));
        }
    }
    for mut names in inodes.into_values() {
        names.sort();
        for name in &names {
            found.get_mut(name).expect("an entry").4.clone_from(&names);
        }
    }
    found
}

/// Makes a tree with one of everything.
fn make_tree(root: &Path) {
    for dir in ["", "empty", "sub", "sub/deep"] {
        fs::create_dir(root.join(dir)).expect("create a directory");
    }
    write(root.join("plain"), "plain", 0o644);
    write(root.join("script"), "#!/bin/sh\n", 0o755);
    write(root.join("secret"), "secret", 0o600);
    write(root.join("empty file"), "", 0o640);
    write(root.join("sub/deep/content"), vec![7; 100_000], 0o444);
    write(root.join(OsStr::from_bytes(b"not \xff utf-8\n\x1b[31m")), "bytes", 0o644);
    write(root.join("sub").join("n".repeat(255)), "long", 0o644);
    fs::hard_link(root.join("plain"), root.join("sub/hard")).expect("link");
    symlink("plain", root.join("link")).expect("link");
    symlink("/no/such/file", root.join("sub/dangling")).expect("link");
    symlink(OsStr::from_bytes(b"\xfe"), root.join("sub/odd")).expect("link");
    symlink("sub", root.join("to dir")).expect("link");
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o700)).expect("set the mode");
    for dir in ["empty", "sub/deep", "sub", ""] {
        set_time(&root.join(dir));
    }
}

#[test]
fn a_file_is_copied_to_a_directory_to_a_new_name_or_onto_a_file() {
    let sides = Sides::new();
    write(sides.here.join("script"), "#!/bin/sh\necho 1\n", 0o755);
    write(sides.here.join(":odd"), "odd", 0o640);
    for (dest, name) in [(":./", "script"), (":./.", "script"), (":./new", "new"), (":./script", "script")] {
        sides.cp(&["script", dest]);
        check_same(sides.here.join("script"), sides.there.join(name));
    }
    sides.cp(&["./:odd", "script", ":./"]);
    check_same(sides.here.join(":odd"), sides.there.join(":odd"));
    // And back.
    fs::create_dir(sides.here.join("dir")).expect("create a directory");
    write(sides.there.join("data"), vec![9; 200_000], 0o750);
    for (dest, name) in [(".", "data"), ("dir", "dir/data"), ("dir/", "dir/data"), ("other", "other"), ("data", "data")]
    {
        sides.cp(&[":./data", dest]);
        check_same(sides.there.join("data"), sides.here.join(name));
    }
    sides.cp(&[":./data", ":./:odd", "dir"]);
    check_same(sides.there.join(":odd"), sides.here.join("dir/:odd"));
    sides.cp(&[":./script", "./:new"]);
    check_same(sides.there.join("script"), sides.here.join(":new"));
    let names: Vec<_> =
        fs::read_dir(&sides.here).expect("list").map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with(".tlctl")), "{names:?}");
}

#[test]
fn a_file_that_is_replaced_keeps_its_mode() {
    let sides = Sides::new();
    for (from, to) in [("new", ":./old"), (":./new", "old")] {
        let (source, target) = if from == "new" { (&sides.here, &sides.there) } else { (&sides.there, &sides.here) };
        write(source.join("new"), "new", 0o755);
        write(target.join("old"), "old", 0o606);
        sides.cp(&[from, to]);
        let mode = fs::metadata(target.join("old")).expect("examine").mode();
        assert_eq!((read(target.join("old")), mode & 0o7777), (b"new".to_vec(), 0o606));
    }
}

#[test]
fn a_relative_path_is_below_the_home_and_a_user_can_be_given() {
    if skip_without_root() {
        return;
    }
    let sides = Sides::new();
    write(sides.here.join("a"), "a", 0o644);
    sides.cp(&["a", ":"]);
    sides.cp(&["a", ":b"]);
    sides.cp(&["--user", "root", "a", ":c"]);
    let listing = "cd; stat -c '%n %U %a' a b c";
    assert_eq!(sides.daemon.run_sh(listing).stdout(), "a tl-user 644\nb tl-user 644\nc root 644");
    write(sides.there.join("private"), "private", 0o600);
    sides.expect_failure(&[":./private", "x"], "Permission denied");
    sides.cp(&["--user=root", ":./private", "x"]);
    assert_eq!(read(sides.here.join("x")), b"private");
    sides.expect_failure(&["a", ":/root/a"], "/root");
    sides.expect_failure(&["--user", "nobody-at-all", "a", ":x"], "nobody-at-all");
}

#[test]
fn standard_input_and_output_are_files_or_archives() {
    let sides = Sides::new();
    let content: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
    sides.cp_from(&content, &["-", ":./file"]);
    assert!(read(sides.there.join("file")) == content);
    assert!(sides.cp_to_stdout(&[":./file", "-"]) == content);
    sides.cp_from(b"", &["-", ":./empty"]);
    assert_eq!((read(sides.there.join("empty")), sides.cp_to_stdout(&[":./empty", "-"])), (vec![], vec![]));
    // A folder is an archive, whose names are below it.
    make_tree(&sides.here.join("tree"));
    fs::create_dir(sides.there.join("tree")).expect("create a directory");
    fs::set_permissions(sides.there.join("tree"), Permissions::from_mode(0o777)).expect("set the mode");
    let packed =
        Command::new("tar").args(["-C", "tree", "-c", "."]).current_dir(&sides.here).output().expect("run tar");
    sides.cp_from(&packed.stdout, &["-", ":./tree"]);
    assert_eq!(tree(&sides.there.join("tree")), tree(&sides.here.join("tree")));
    let archive = sides.cp_to_stdout(&[":./tree/", "-"]);
    fs::create_dir(sides.here.join("unpacked")).expect("create a directory");
    let unpack =
        Command::new("tar").args(["-C", "unpacked", "-xp"]).current_dir(&sides.here).stdin(Stdio::piped()).spawn();
    let mut unpack = unpack.expect("run tar");
    unpack.stdin.take().expect("its stdin").write_all(&archive).expect("write");
    assert!(unpack.wait().expect("wait").success());
    assert_eq!(tree(&sides.here.join("unpacked")), tree(&sides.here.join("tree")));
    expect_failure(&sides.run_from(b"no archive at all", &["-", ":./tree"]), 1, "archive");
    expect_failure(&sides.run_from(&packed.stdout[..packed.stdout.len() / 2], &["-", ":./tree"]), 1, "archive");
    expect_failure(&sides.run_from(b"x", &["-", ":./nothing/"]), 1, "there is no directory");
}

#[test]
fn a_tree_is_the_same_after_a_round_trip() {
    let sides = Sides::new();
    let original = sides.here.join("tree");
    make_tree(&original);
    let right = tree(&original);
    // To a new name, into a directory, and its content only.
    sides.cp(&["tree", ":./new"]);
    sides.cp(&["tree", ":./"]);
    sides.cp(&["tree/.", ":./content"]);
    sides.cp(&["tree/.", ":./content"]);
    for name in ["new", "tree", "content"] {
        assert_eq!(tree(&sides.there.join(name)), right, "{name}");
    }
    assert!(!sides.there.join("content/tree").exists());
    let back = sides.here.join("back");
    fs::create_dir(&back).expect("create a directory");
    sides.cp(&[":./tree", "back"]);
    sides.cp(&[":./tree/", "back/new"]);
    sides.cp(&[":./tree/.", "back/content"]);
    sides.cp(&[":./tree/.", "back/content"]);
    for name in ["tree", "new", "content"] {
        assert_eq!(tree(&back.join(name)), right, "{name}");
        let (made, found) = (fs::metadata(back.join(name)).unwrap(), fs::metadata(&original).unwrap());
        assert_eq!((made.mode(), made.mtime()), (found.mode(), found.mtime()), "{name}");
    }
    // Several at once; what is in a directory already stays.
    fs::create_dir(back.join("all")).expect("create a directory");
    write(back.join("all/kept"), "kept", 0o644);
    sides.cp(&[":./new/script", ":./tree", ":./content", "back/all"]);
    assert_eq!(tree(&back.join("all/tree")), right);
    assert_eq!(
        (read(back.join("all/kept")), read(back.join("all/script"))),
        (b"kept".to_vec(), b"#!/bin/sh\n".to_vec())
    );
}

#[test]
fn symlinks_are_copied_as_symlinks_or_followed_with_a_slash_or_an_option() {
    let sides = Sides::new();
    for (source, target, from, to) in [(&sides.here, &sides.there, "", ":./"), (&sides.there, &sides.here, ":./", "")] {
        let from = |name: &str| format!("{from}{name}");
        let to = |name: &str| format!("{to}{name}");
        fs::create_dir(source.join("dir")).expect("create a directory");
        write(source.join("dir/file"), "content", 0o751);
        symlink("dir/file", source.join("link")).expect("link");
        symlink("dir", source.join("dir link")).expect("link");
        let links_to = |name: &str| fs::read_link(target.join(name)).expect("a symlink");
        sides.cp(&[from("link"), to("link2")]);
        sides.cp(&[from("link"), to("link2")]);
        sides.cp(&[from("dir link"), to("dir link2")]);
        assert_eq!((links_to("link2"), links_to("dir link2")), ("dir/file".into(), "dir".into()));
        sides.cp(&["-L".to_owned(), from("link"), to("followed")]);
        check_same(source.join("dir/file"), target.join("followed"));
        sides.cp(&["--follow-link".to_owned(), from("dir link"), to("followed dir")]);
        sides.cp(&[from("dir link/"), to("followed dir2")]);
        for name in ["followed dir", "followed dir2"] {
            check_same(source.join("dir/file"), target.join(name).join("file"));
        }
        for name in ["link", "dir link", "dir/file", "link2", "dir link2", "followed"] {
            let _ = (fs::remove_file(source.join(name)), fs::remove_file(target.join(name)));
        }
        let _ = (fs::remove_dir_all(source.join("dir")), fs::remove_dir_all(target.join("dir")));
        for name in ["followed dir", "followed dir2"] {
            sides.daemon.run_as_root(&format!("rm -r '{}'", target.join(name).display()));
        }
    }
}

#[test]
fn a_pipe_and_a_file_of_proc_are_read_as_streams() {
    let sides = Sides::new();
    let fifo = sides.here.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).expect("create a FIFO");
    std::thread::scope(|scope| {
        scope.spawn(|| fs::write(&fifo, "through a pipe").expect("write"));
        sides.cp(&["fifo", ":./file"]);
    });
    assert_eq!(read(sides.there.join("file")), b"through a pipe");
    sides.cp(&["/proc/sys/kernel/ostype", ":./"]);
    assert_eq!(read(sides.there.join("ostype")), b"Linux\n");
    sides.cp(&[":/proc/sys/kernel/ostype", "os"]);
    assert_eq!(read(sides.here.join("os")), b"Linux\n");
    sides.cp(&[":./file", "/dev/null"]);
    assert!(fs::metadata("/dev/null").expect("examine").file_type().is_char_device());
    let mut command = sides.command(&["/dev/fd/0", ":./stdin"]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("start the client");
    child.stdin.take().expect("its stdin").write_all(b"a symlink to a pipe").expect("write");
    assert!(wait_for(child, "cp /dev/fd/0").status.success());
    assert_eq!(read(sides.there.join("stdin")), b"a symlink to a pipe");
}

#[test]
fn memory_does_not_grow_with_the_file() {
    let sides = Sides::new();
    let size: u64 = 64 << 20;
    let big = File::create(sides.here.join("big")).expect("create a file");
    let piece: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    for _ in 0..size >> 20 {
        (&big).write_all(&piece).expect("write");
    }
    fs::create_dir(sides.here.join("dir")).expect("create a directory");
    fs::hard_link(sides.here.join("big"), sides.here.join("dir/big")).expect("link");
    let limited = |args: &[&str], input: Option<File>| {
        let client = sides.command(args);
        // The data of the client, without what is mapped from files.
        let mut command = Command::new("prlimit");
        command.arg("--data=16777216").arg(client.get_program()).args(client.get_args()).current_dir(&sides.here);
        command.envs(client.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.stdin(input.map_or(Stdio::null(), Stdio::from)).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = finish(command);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let is_right =
        |path: PathBuf| fs::metadata(&path).expect("examine").len() == size && read(path).starts_with(&piece);
    limited(&["big", ":./new"], None);
    limited(&["big", ":./new"], None);
    limited(&["-", ":./stdin"], Some(File::open(sides.here.join("big")).expect("open")));
    limited(&["dir", ":./dir"], None);
    for name in ["new", "stdin", "dir/big"] {
        assert!(is_right(sides.there.join(name)), "{name}");
    }
    limited(&[":./new", "file"], None);
    limited(&[":./dir", "folder"], None);
    for name in ["file", "folder/big"] {
        assert!(is_right(sides.here.join(name)), "{name}");
    }
    assert_eq!(limited(&[":./new", "-"], None).len() as u64, size);
}

#[test]
fn every_failure_is_one_sentence() {
    let sides = Sides::new();
    write(sides.here.join("file"), "here", 0o644);
    write(sides.there.join("file"), "there", 0o644);
    for dir in [sides.here.join("dir/file"), sides.there.join("dir/file")] {
        fs::create_dir_all(dir).expect("create directories");
    }
    mkfifo(&sides.there.join("fifo"), Mode::S_IRWXU).expect("create a FIFO");
    symlink("file", sides.here.join("link")).expect("link");
    for (args, part) in [
        (&["absent", ":./x"][..], "cp: cannot read \"absent\": No such file"),
        (&["file/.", ":./x"], "cp: cannot read \"file/.\": Not a directory"),
        (&["file", ":./absent/x"], "cp: there is no directory"),
        (&["file", ":./absent/"], "cp: there is no directory"),
        (&["file", ":./file/x"], "is not a directory"),
        (&["file", ":./dir"], "directory"),
        (&["dir", ":./file"], "cp: \"dir\" is a directory, and"),
        (&["file", "dir", ":./absent"], "is no directory, which several files need"),
        (&["file", "dir", ":./file"], "is no directory, which several files need"),
        (&["file", ":../x"], ".."),
        (&["file", ":./fifo"], "is not a regular file"),
        (&[":./absent", "x"], "cp: there is no file or directory"),
        (&[":./absent", "-"], "cp: there is no file or directory"),
        (&[":./file/.", "x"], "is not a directory"),
        (&[":./file", "absent/x"], "cp: cannot create a file in \"absent/\": No such file"),
        (&[":./file", "absent/"], "cp: there is no directory \"absent/\""),
        (&[":./file", "file/"], "cp: cannot write \"file/\": Not a directory"),
        (&[":./file", "dir"], "cp: \"dir/file\" is a directory, which a file does not replace"),
        (&[":./dir", "file"], "is a directory, and \"file\" is none"),
        (&[":./file", ":./dir", "file"], "cp: \"file\" is no directory, which several files need"),
        (&[":./fifo", "x"], "is neither a file nor a directory nor a symlink"),
        (&[":./file", "link"], "cp: \"link\" is a symlink, which is not followed"),
        (&[":../x", "x"], ".."),
    ] {
        sides.expect_failure(args, part);
    }
    assert_eq!((read(sides.here.join("file")), read(sides.there.join("file"))), (b"here".to_vec(), b"there".to_vec()));
    expect_failure(&sides.run(&["file", "x"]), 2, "cp: both sides are on this host");
    // Of several, one that fails does not keep the others from being copied.
    let output = sides.run(&["absent1", "file", "absent2", ":./dir"]);
    assert_eq!(output.status.code(), Some(1));
    let lines = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(lines.lines().count() == 3 && lines.contains("\"absent1\"") && lines.contains("\"absent2\""), "{lines}");
    let output = sides.run(&[":./absent", ":./fifo", ":./file", "dir2"]);
    expect_failure(&output, 1, "\"dir2\" is no directory");
    // Names of the sandbox are harmless for a terminal.
    let evil = ":./a\x1b[31m\r\nb\u{202e}c";
    sides.expect_failure(&[evil, "x"], "a\\");
    sides.expect_failure(&["file", &format!("{evil}/x")], "a\\");
    // Nothing is left of what failed.
    assert!(!sides.here.join("x").exists() && !sides.there.join("x").exists());
}

#[test]
fn a_full_disk_here_or_there_is_an_error_and_leaves_nothing() {
    if skip_without_root() {
        return;
    }
    let options = crate::harness::Options::default();
    let daemon = options
        .prepare("mkdir -p /mnt && mount -t tmpfs -o size=1m none /mnt && chmod 777 /mnt; exec \"$0\" \"$@\"")
        .start();
    let sides = Sides::of(daemon);
    write(sides.here.join("big"), vec![1; 8 << 20], 0o644);
    fs::create_dir(sides.here.join("dir")).expect("create a directory");
    fs::hard_link(sides.here.join("big"), sides.here.join("dir/big")).expect("link");
    for args in [["big", ":/mnt/big"], ["dir", ":/mnt/dir"]] {
        sides.expect_failure(&args, "space");
    }
    expect_failure(&sides.run_from(&vec![1; 8 << 20], &["-", ":/mnt/x"]), 1, "space");
    assert_eq!(sides.daemon.run_as_root("find /mnt -type f"), "");
    let mut command = sides.command(&[":./big", "-"]);
    sides.cp(&["big", ":./"]);
    command.stdout(File::options().write(true).open("/dev/full").expect("open"));
    expect_failure(&finish(command), 1, "cannot write the output");
}

#[test]
fn an_archive_is_not_written_to_a_terminal() {
    let sides = Sides::new();
    let terminal = openpty(None, None).expect("open a terminal");
    let mut command = sides.command(&[":./", "-"]);
    command.stdout(Stdio::from(terminal.slave));
    expect_failure(&finish(command), 1, "not written to a terminal");
}

/// What the service below answers to `GET /files/stat`.
const STAT: &str = "{\"type\":\"file\",\"mode\":\"0644\",\"modified_at\":1000,\"target\":null}";

/// A daemon that answers every stat with this type and every download with these bytes, and then closes the connection.
fn service(kind: &'static str, download: Vec<u8>) -> String {
    let port = tcp_service(move |mut socket| {
        let stat = STAT.replace("file", kind);
        let _ = match request_line(&mut socket) {
            line if line.contains("/files/stat") => {
                write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{stat}", stat.len())
            }
            _ => socket.write_all(&download),
        };
    });
    format!("http://127.0.0.1:{port}")
}

fn request_line(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && socket.read(&mut byte).unwrap_or(0) == 1 {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned()
}

fn response(length: Option<usize>, body: &[u8]) -> Vec<u8> {
    match length {
        Some(length) => [format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes(), body].concat(),
        None => [
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n", body.len()).as_bytes(),
            body,
            b"\r\n",
        ]
        .concat(),
    }
}

#[test]
fn a_download_that_is_cut_is_an_error_and_leaves_no_file() {
    let sides = Sides::new();
    write(sides.here.join("old"), "old", 0o644);
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(5);
    header.set_mode(0o644);
    archive.append_data(&mut header, "whole", &b"whole"[..]).expect("build the archive");
    header.set_size(100_000);
    archive.append_data(&mut header, "cut", &vec![7; 100_000][..]).expect("build the archive");
    let archive = archive.into_inner().expect("build the archive");
    for (kind, cut) in [
        ("file", response(Some(10), b"12345")),
        ("file", response(None, b"12345")),
        ("directory", response(Some(archive.len()), &archive[..3000])),
        ("directory", response(None, &archive[..3000])),
        // Only the end of the chunks is missing.
        ("directory", response(None, &archive)),
    ] {
        let url = service(kind, cut.clone());
        for dest in ["new", "old", "-"] {
            if kind == "directory" && dest == "old" {
                continue;
            }
            let output = sides.run(&["--url", &url, ":/x", dest]);
            expect_failure(&output, 1, "has closed the connection early");
        }
        let left: Vec<_> = tree(&sides.here).into_keys().map(|name| String::from_utf8(name).expect("UTF-8")).collect();
        let _ = fs::remove_dir_all(sides.here.join("new"));
        if kind == "file" {
            assert_eq!(left, ["old"], "{kind}");
        } else if cut.len() < archive.len() {
            assert_eq!(left, ["new", "new/whole", "old"], "what was whole stays");
        }
        assert_eq!(read(sides.here.join("old")), b"old");
    }
    // Where the end cannot be told from a cut, nothing is copied.
    let url = service("file", b"HTTP/1.0 200 OK\r\n\r\n12345".to_vec());
    let output = sides.run(&["--url", &url, ":/x", "new"]);
    expect_failure(&output, 1, "does not say where its response ends");
    assert!(!sides.here.join("new").exists());
}

#[test]
fn a_hostile_archive_writes_nothing_outside_of_the_destination() {
    let sides = Sides::new();
    let outside = sides.here.join("outside");
    fs::create_dir(&outside).expect("create a directory");
    write(outside.join("victim"), "victim", 0o600);
    let before = tree(&outside);
    let target = outside.to_str().expect("UTF-8").to_owned();
    // Names are written raw: a builder refuses them.
    let entry = |kind: u8, name: &str, link: &str, content: &[u8], mode: u32| {
        let mut header = tar::Header::new_ustar();
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_cksum();
        let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
        [header.as_bytes(), content, &padding].concat()
    };
    let file = |name: &str| entry(b'0', name, "", b"hostile", 0o644);
    for (what, entries) in [
        ("..", file("../outside/victim")),
        ("deep ..", file("a/../../outside/victim")),
        ("absolute", file(&format!("{target}/victim"))),
        ("symlink", [entry(b'2', "dir", &target, b"", 0o777), file("dir/victim")].concat()),
        ("symlink to itself", [entry(b'2', "dir", "../outside", b"", 0o777), file("dir/new")].concat()),
        ("symlink of a file", [entry(b'2', "file", &format!("{target}/victim"), b"", 0o777), file("file")].concat()),
        (
            "directory through a symlink",
            [entry(b'2', "dir", &target, b"", 0o777), entry(b'5', "dir/sub", "", b"", 0o777)].concat(),
        ),
        (
            "mode through a symlink",
            [entry(b'2', "dir", &target, b"", 0o777), entry(b'5', "dir", "", b"", 0o777)].concat(),
        ),
        ("hard link", [entry(b'1', "file", &format!("{target}/victim"), b"", 0o644), file("file")].concat()),
        ("hard link with ..", [entry(b'1', "file", "../outside/victim", b"", 0o644), file("file")].concat()),
        (
            "hard link through a symlink",
            [entry(b'2', "dir", &target, b"", 0o777), entry(b'1', "file", "dir/victim", b"", 0o644), file("file")]
                .concat(),
        ),
        ("device", entry(b'3', "device", "", b"", 0o666)),
        ("set-user-ID", entry(b'0', "suid", "", b"x", 0o6755)),
    ] {
        let archive = [entries, vec![0; 1024]].concat();
        let url = service("directory", response(Some(archive.len()), &archive));
        let dest = sides.here.join("dest");
        let output = sides.run(&["--url", &url, ":/x", "dest"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            output.status.success() || output.status.code() == Some(1) && message.lines().count() == 1,
            "{what}: {message}"
        );
        assert_eq!(tree(&outside), before, "{what}: {message}");
        for (name, (kind, mode, ..)) in tree(&dest) {
            assert!(kind != '?' && mode & 0o6000 == 0, "{what}: {name:?} has the mode {mode:o}");
        }
        assert_eq!(tree(&sides.here).into_keys().filter(|name| !name.starts_with(b"dest")).count(), 2, "{what}");
        fs::remove_dir_all(&dest).expect("remove the copy");
    }
}

#[test]
fn a_symlink_that_came_from_the_sandbox_is_not_followed_by_a_later_copy() {
    let sides = Sides::new();
    let outside = sides.here.join("outside");
    fs::create_dir(&outside).expect("create a directory");
    write(outside.join("victim"), "victim", 0o600);
    let before = tree(&outside);
    let dest = sides.here.join("dest");
    fs::create_dir(&dest).expect("create a directory");
    write(sides.there.join("file"), "new", 0o644);
    fs::create_dir(sides.there.join("dir")).expect("create a directory");
    write(sides.there.join("dir/victim"), "new", 0o644);
    symlink(outside.join("victim"), dest.join("file")).expect("link");
    symlink(&outside, dest.join("dir")).expect("link");
    sides.cp(&[":./file", "dest"]);
    assert!(fs::symlink_metadata(dest.join("file")).expect("examine").is_file());
    sides.expect_failure(&[":./dir", "dest"], "is a directory, and \"dest/dir\" is none");
    sides.cp(&[":./dir", "./dest/new"]);
    assert_eq!(tree(&outside), before);
}

#[test]
fn an_error_in_the_middle_of_an_upload_is_shown() {
    let sides = Sides::new();
    write(sides.here.join("big"), vec![1; 8 << 20], 0o644);
    let received = std::sync::Arc::new(AtomicUsize::new(0));
    let counter = received.clone();
    let port = tcp_service(move |mut socket| {
        if request_line(&mut socket).contains("/files/stat") {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{STAT}", STAT.len());
            return;
        }
        let count = socket.read(&mut [0; 65536]).unwrap_or(0);
        let error = "{\"error\":\"the archive is bad: \\u001b[31m\",\"code\":\"BAD_ARCHIVE\"}";
        let _ = write!(socket, "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{error}", error.len());
        // The rest stays unread, so that the client cannot send it.
        counter.fetch_add(count, Ordering::SeqCst);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let _ = socket.read_to_end(&mut Vec::new());
    });
    let url = format!("http://127.0.0.1:{port}");
    expect_failure(&sides.run(&["--url", &url, "big", ":/x"]), 1, "the archive is bad: ");
    assert!(received.load(Ordering::SeqCst) > 0);
    // While standard input has nothing to read, too.
    let mut command = sides.command(&["--url", &url, "-", ":/x"]);
    let mut child = command.stdin(Stdio::piped()).spawn().expect("start the client");
    let mut stdin = child.stdin.take().expect("its stdin");
    stdin.write_all(b"some").expect("write");
    let silent = service("file", Vec::new());
    expect_failure(&sides.run(&["--url", &silent, "big", ":/x"]), 1, "closed the connection early");
    stdin.write_all(&[0; 70_000]).ok();
    expect_failure(&wait_for(child, "cp with an open stdin"), 1, "the archive is bad: ");
    drop(stdin);
}

#[test]
fn a_signal_leaves_no_temporary_file() {
    let sides = Sides::new();
    let port = tcp_service(|mut socket| {
        if request_line(&mut socket).contains("/files/stat") {
            let _ = write!(socket, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{STAT}", STAT.len());
            return;
        }
        let _ = socket.write_all(&response(Some(1 << 30), b"begin"));
        // Until the client is gone.
        let _ = socket.read(&mut [0]);
    });
    let url = format!("http://127.0.0.1:{port}");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let child = sides.command(&["--url", &url, ":/x", "new"]).spawn().expect("start the client");
        let temporary = || fs::read_dir(&sides.here).expect("list").next().map(|entry| entry.expect("an entry").path());
        let path = wait_until(TIMEOUT, "the file is begun", temporary);
        wait_until(TIMEOUT, "it has content", || (fs::metadata(&path).ok()?.len() == 5).then_some(()));
        kill(Pid::from_raw(child.id() as i32), signal).expect("send the signal");
        let output = wait_for(child, "cp");
        assert_eq!((output.status.code(), temporary()), (Some(128 + signal as i32), None), "{signal}");
    }
}

#[test]
fn an_archive_of_more_than_the_daemon_allows_is_refused() {
    let sides = Sides::of(start_daemon_with(&["--max-archive", "100K", "--max-archive-entries", "10"]));
    for name in ["few", "many", "large"] {
        fs::create_dir(sides.here.join(name)).expect("create a directory");
    }
    write(sides.here.join("few/file"), vec![1; 50_000], 0o644);
    for number in 0..20 {
        write(sides.here.join(format!("many/{number}")), "x", 0o644);
    }
    write(sides.here.join("large/file"), vec![1; 200_000], 0o644);
    sides.cp(&["few", ":./few"]);
    assert_eq!(read(sides.there.join("few/file")).len(), 50_000);
    sides.expect_failure(&["many", ":./many"], "10");
    sides.expect_failure(&["large", ":./large"], "102400");
    assert!(!sides.there.join("large/file").exists());
}
