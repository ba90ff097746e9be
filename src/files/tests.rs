//! Reading, replacing and removing files, with the rights of the user that runs the tests.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::sys::stat::Mode;
use tempfile::TempDir;

use super::read::WHOLE;
use super::*;

fn path(path: impl AsRef<Path>) -> FilePath {
    FilePath::parse(path.as_ref().as_os_str().as_bytes(), "/").unwrap()
}

fn put(target: impl AsRef<Path>, content: &[u8]) -> Result<(), FileError> {
    let path = path(target);
    let mut upload = Upload::begin(&path, Some(content.len() as u64), Condition::default())?;
    content.chunks(1000).try_for_each(|piece| upload.write(piece))?;
    upload.commit()
}

fn get(target: impl AsRef<Path>) -> Result<Vec<u8>, FileError> {
    Ok(match read(&path(target))? {
        Content::Whole(bytes) => bytes,
        Content::Long(file, length) => {
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        }
        Content::Unmeasured(begin, _) => begin,
    })
}

/// The names in a directory.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn content_that_was_written_is_read_back() {
    let dir = dir();
    let file = dir.path().join("file");
    for size in [0, 1, WHOLE - 1, WHOLE, WHOLE + 1, 1 << 20, 3] {
        let content: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        put(&file, &content).unwrap();
        assert!(get(&file).unwrap() == content, "{size}");
        assert_eq!(names(dir.path()), ["file"]);
    }
}

#[test]
fn missing_parent_directories_are_created() {
    let dir = dir();
    put(dir.path().join("a/./b//c/file"), b"x").unwrap();
    assert_eq!(fs::read(dir.path().join("a/b/c/file")).unwrap(), b"x");
    fs::write(dir.path().join("plain"), "").unwrap();
    assert!(matches!(put(dir.path().join("plain/x"), b""), Err(FileError::NotADirectory(_))));
    symlink("nowhere", dir.path().join("link")).unwrap();
    assert!(matches!(put(dir.path().join("link/x"), b""), Err(FileError::NotFound(_))));
    assert_eq!(names(dir.path()), ["a", "link", "plain"]);
}

#[test]
fn a_replaced_file_keeps_mode_and_owner() {
    let dir = dir();
    let file = dir.path().join("file");
    fs::write(&file, "old").unwrap();
    for bits in [0o600, 0o640, 0o755, 0o4711, 0o400, 0] {
        fs::set_permissions(&file, PermissionsExt::from_mode(bits)).unwrap();
        put(&file, b"new").unwrap();
        // A write drops set-user-id.
        assert_eq!(mode(&file), bits & 0o777, "{bits:o}");
    }
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&file, Some(4242), Some(4243)).unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o4755)).unwrap();
        put(&file, b"newer").unwrap();
        let meta = fs::metadata(&file).unwrap();
        assert_eq!((meta.uid(), meta.gid(), mode(&file)), (4242, 4243, 0o755));
    }
}

#[test]
fn a_hard_link_keeps_the_old_content() {
    let dir = dir();
    let (file, other) = (dir.path().join("file"), dir.path().join("other"));
    fs::write(&file, "old").unwrap();
    fs::hard_link(&file, &other).unwrap();
    let reader = File::open(&file).unwrap();
    put(&file, b"new!").unwrap();
    assert_eq!((fs::read(&file).unwrap(), fs::read(&other).unwrap()), (b"new!".to_vec(), b"old".to_vec()));
    let mut seen = [0; 8];
    assert_eq!(reader.read_at(&mut seen, 0).unwrap(), 3, "a reader still sees the old content");
}

#[test]
fn symlinks_are_followed() {
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/target"), "old").unwrap();
    symlink("sub/link2", at("link1")).unwrap();
    symlink("../sub/target", at("sub/link2")).unwrap();
    put(at("link1"), b"new").unwrap();
    assert_eq!(fs::read(at("sub/target")).unwrap(), b"new");
    assert_eq!(get(at("link1")).unwrap(), b"new");
    // Dangling links, relative and absolute, into a directory that does not exist yet.
    symlink("made/here", at("dangling")).unwrap();
    put(at("dangling"), b"1").unwrap();
    assert_eq!(fs::read(at("made/here")).unwrap(), b"1");
    symlink(at("there"), at("absolute")).unwrap();
    put(at("absolute"), b"2").unwrap();
    assert_eq!(fs::read(at("there")).unwrap(), b"2");
    symlink("sub", at("to-dir")).unwrap();
    put(at("to-dir/new"), b"3").unwrap();
    assert_eq!(fs::read(at("sub/new")).unwrap(), b"3");
    assert!(matches!(put(at("to-dir"), b""), Err(FileError::IsDirectory(_))));
    symlink("sub/", at("to-form")).unwrap();
    assert!(matches!(put(at("to-form"), b""), Err(FileError::IsDirectory(_))));
    symlink("loop", at("loop")).unwrap();
    assert!(matches!(put(at("loop"), b""), Err(FileError::Invalid(_))));
    assert!(matches!(get(at("loop")), Err(FileError::Invalid(_))));
    for link in ["link1", "dangling", "absolute", "to-dir", "loop"] {
        assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link}");
    }
    // Removing a symlink does not remove its target.
    remove(&path(at("link1"))).unwrap();
    assert!(at("sub/link2").exists() && !at("link1").exists());
}

#[test]
fn anything_but_a_regular_file_is_rejected() {
    let dir = dir();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    symlink("/dev/zero", dir.path().join("zero")).unwrap();
    for special in [&fifo, &socket, &dir.path().join("zero"), Path::new("/dev/null")] {
        assert!(matches!(get(special), Err(FileError::NotARegularFile(_))), "{special:?}");
        assert!(matches!(put(special, b"x"), Err(FileError::NotARegularFile(_))), "{special:?}");
    }
    for form in ["", ".", "sub/.", "sub/"] {
        fs::create_dir_all(dir.path().join("sub")).unwrap();
        let target = format!("{}/{form}", dir.path().display());
        assert!(matches!(get(&target), Err(FileError::IsDirectory(_))), "{target}");
        assert!(matches!(put(&target, b"x"), Err(FileError::IsDirectory(_))), "{target}");
        assert!(matches!(remove(&path(&target)), Err(FileError::IsDirectory(_))), "{target}");
    }
    for form in ["/", "//", "/."] {
        assert!(matches!(remove(&path(form)), Err(FileError::IsDirectory(_))), "{form}");
    }
    let absent = dir.path().join("absent");
    assert!(matches!(get(&absent), Err(FileError::NotFound(_))));
    assert!(matches!(remove(&path(&absent)), Err(FileError::NotFound(_))));
    assert!(matches!(remove(&path(absent.join(""))), Err(FileError::NotFound(_))));
    let long = dir.path().join("x".repeat(300));
    for error in [get(&long).err(), put(&long, b"").err(), put(format!("/{}", "x/".repeat(3000)), b"").err()] {
        assert!(matches!(error, Some(FileError::Invalid(_) | FileError::IsDirectory(_))), "{error:?}");
    }
    remove(&path(&fifo)).unwrap();
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    assert_eq!(names(dir.path()), ["socket", "sub", "zero"]);
}

#[test]
fn an_upload_that_is_dropped_or_fails_leaves_no_file() {
    let dir = dir();
    let file = dir.path().join("file");
    fs::write(&file, "old").unwrap();
    let target = path(&file);
    let mut upload = Upload::begin(&target, None, Condition::default()).unwrap();
    upload.write(b"new").unwrap();
    assert_eq!(names(dir.path()), ["file"], "it has no name yet");
    drop(upload);
    assert_eq!((names(dir.path()), fs::read(&file).unwrap()), (vec!["file".to_owned()], b"old".to_vec()));
    // The directory is removed during the upload.
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).unwrap();
    let target = path(sub.join("file"));
    let upload = Upload::begin(&target, None, Condition::default()).unwrap();
    fs::remove_dir(&sub).unwrap();
    assert!(matches!(upload.commit(), Err(FileError::NotFound(_))));
    // The target is replaced by a directory during the upload.
    let target = path(&sub);
    let upload = Upload::begin(&target, None, Condition::default()).unwrap();
    fs::create_dir(&sub).unwrap();
    assert!(matches!(upload.commit(), Err(FileError::IsDirectory(_))));
    assert_eq!(names(dir.path()), ["file", "sub"]);
}

#[test]
fn an_upload_that_does_not_fit_on_the_disk_is_rejected_before_its_content() {
    let dir = dir();
    let target = path(dir.path().join("file"));
    for length in [1 << 62, u64::MAX] {
        assert!(
            matches!(Upload::begin(&target, Some(length), Condition::default()), Err(FileError::NoSpace { .. })),
            "{length}"
        );
    }
    assert!(names(dir.path()).is_empty());
}

#[test]
fn files_in_proc_and_sys_are_read_and_written() {
    let status = String::from_utf8(get("/proc/self/status").unwrap()).unwrap();
    assert!(status.starts_with("Name:") && status.contains("Threads:"), "{status}");
    assert_eq!(get("/proc/sys/kernel/ostype").unwrap(), b"Linux\n");
    if Path::new("/sys/kernel/mm/transparent_hugepage/enabled").exists() {
        // Its reported size is a page.
        assert!(get("/sys/kernel/mm/transparent_hugepage/enabled").unwrap().ends_with(b"\n"));
    }
    // No file can be created in this directory, so the file is written in place.
    let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let score = format!("/proc/{}/oom_score_adj", other.id());
    let written = put(&score, b"321");
    let read = fs::read(&score).unwrap();
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(written.is_ok() && read == b"321\n", "{written:?} {read:?}");
    // The daemon's own entries are denied.
    assert!(matches!(put("/proc/thread-self/comm", b"renamed"), Err(FileError::Denied { .. })));
    assert!(matches!(put("/proc/thread-self/absent", b""), Err(FileError::NotFound(_) | FileError::Denied { .. })));
}

#[test]
fn magic_links_are_not_followed() {
    let dir = dir();
    let mut file = File::create(dir.path().join("secret")).unwrap();
    file.write_all(b"secret").unwrap();
    let fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    symlink(&fd, dir.path().join("link")).unwrap();
    for magic in [Path::new(&fd), &dir.path().join("link"), Path::new("/proc/self/cwd/Cargo.toml")] {
        assert!(matches!(get(magic), Err(FileError::Invalid(_))), "{magic:?}");
        assert!(matches!(put(magic, b"x"), Err(FileError::Invalid(_))), "{magic:?}");
    }
    assert_eq!(fs::read(dir.path().join("secret")).unwrap(), b"secret");
}

#[test]
fn file_names_may_contain_any_bytes() {
    let dir = dir();
    let file = dir.path().join(OsStr::from_bytes(b"\xff\n \\\""));
    put(&file, b"x").unwrap();
    assert_eq!(get(&file).unwrap(), b"x");
    remove(&path(&file)).unwrap();
    assert!(names(dir.path()).is_empty());
}

/// Every operation works without `/proc` or fails with a clear error.
#[test]
fn files_work_without_proc() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("without_proc: skipped, it needs root");
        return;
    }
    let dir = dir();
    let at = |name: &str| dir.path().join(name);
    let work = || {
        use nix::mount::{MsFlags, mount};
        // The mount namespace of this thread alone.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        mount(Some("none"), "/proc", Some("tmpfs"), MsFlags::empty(), nothing).unwrap();
        assert!(!Path::new("/proc/self").exists());
        for content in [b"first", b"other"] {
            put(at("made/file"), content).unwrap();
            assert_eq!(get(at("made/file")).unwrap(), content);
            fs::set_permissions(at("made/file"), PermissionsExt::from_mode(0o640)).unwrap();
            tl_os::xattr::set(File::open(at("made/file")).unwrap(), c"user.note", b"kept").unwrap();
        }
        put(at("made/file"), b"third").unwrap();
        let note = tl_os::xattr::get(File::open(at("made/file")).unwrap(), c"user.note").unwrap();
        assert_eq!((mode(&at("made/file")), note), (0o640, Some(b"kept".to_vec())));
        assert_eq!((list(&path(at("made"))).unwrap().get(1), names(&at("made"))), (None, vec!["file".to_owned()]));
        nix::unistd::mkfifo(&at("fifo"), Mode::S_IRWXU).unwrap();
        assert!(matches!(get(at("fifo")), Err(FileError::NotARegularFile(_))));
        assert!(matches!(put(at("fifo"), b""), Err(FileError::NotARegularFile(_))));
        assert!(matches!(get(at("made")), Err(FileError::IsDirectory(_))));
        let absent = Condition { is_absent: true, ..Condition::default() };
        let target = path(at("made/once"));
        Upload::begin(&target, None, absent).unwrap().commit().unwrap();
        assert!(matches!(Upload::begin(&target, None, absent), Err(FileError::Unmet { .. })));
        remove(&target).unwrap();
        // A procfs at another path has the same entries, and the own ones cannot be identified there.
        fs::create_dir(at("proc")).unwrap();
        mount(Some("proc"), &at("proc"), Some("proc"), MsFlags::empty(), nothing).unwrap();
        for name in ["self/maps", "self/status", "meminfo"] {
            assert!(matches!(get(at("proc").join(name)), Err(FileError::Denied { .. })), "{name}");
        }
    };
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap();
}
