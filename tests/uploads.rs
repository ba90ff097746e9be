//! Uploads replace a file completely or not at all, whatever interrupts them.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::files::{files, names, put};
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Response, TIMEOUT, procfs, reset, skip_without_root, start_daemon, wait_until};

/// Head and body of an upload as sent on the wire.
fn upload(daemon: &Daemon, path: &Path, chunked: bool, content: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let framing = match chunked {
        true => "Transfer-Encoding: chunked\r\n".to_owned(),
        false => format!("Content-Length: {}\r\n", content.len()),
    };
    let head = daemon.request_head("PUT", &files(path, ""), &framing);
    let mut body = content.to_vec();
    if chunked {
        let (first, rest) = content.split_at(content.len() / 3);
        body = format!("{:x}\r\n", first.len()).into_bytes();
        body.extend_from_slice(first);
        body.extend_from_slice(format!("\r\n{:x}\r\n", rest.len()).as_bytes());
        body.extend_from_slice(rest);
        body.extend_from_slice(b"\r\n0\r\n\r\n");
    }
    (head.into_bytes(), body)
}

#[test]
fn an_interrupted_upload_leaves_the_old_file() {
    let daemon = start_daemon();
    let dir = daemon.scratch().join("cut");
    fs::create_dir(&dir).expect("create a directory");
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).expect("make it accessible to all");
    let file = dir.join("file");
    // Counted with the client's keep-alive connection.
    daemon.list();
    let before = daemon.threads_and_descriptors();
    put(&daemon, &file, "", b"the old content").expect(204);
    let cut = |content: &[u8], chunked: bool, at: &mut dyn Iterator<Item = usize>| {
        let (head, body) = upload(&daemon, &file, chunked, content);
        for (turn, at) in at.take_while(|at| *at < body.len()).enumerate() {
            let mut socket = daemon.connect();
            let _ = socket.write_all(&[&head, &body[..at]].concat());
            if turn % 2 == 0 {
                let _ = socket.shutdown(Shutdown::Write);
                let mut response = Vec::new();
                let _ = socket.read_to_end(&mut response);
                assert!(response.starts_with(b"HTTP/1.1 400 "), "{at}: {}", String::from_utf8_lossy(&response));
            } else {
                reset(socket);
            }
            assert_eq!(fs::read(&file).expect("the file"), b"the old content", "{at}");
        }
    };
    for chunked in [false, true] {
        cut(b"new content, up to here or there", chunked, &mut (0..));
        cut(&vec![b'x'; 1 << 20], chunked, &mut (0..).step_by(170_001));
    }
    // The last uploads may still be ending.
    daemon.wait_until_released(before);
    assert_eq!(names(&daemon, &dir), ["file"]);
    assert_eq!(fs::read(&file).expect("the file"), b"the old content");
    // A complete upload replaces the file.
    let (head, body) = upload(&daemon, &file, true, b"the new content");
    assert_eq!(ResponseStream::send(daemon.connect(), &[head, body].concat()).status, 204);
    assert_eq!(fs::read(&file).expect("the file"), b"the new content");
}

#[test]
fn concurrent_uploads_leave_one_complete_version() {
    const SIZE: usize = 300_000;
    let daemon = start_daemon();
    let dir = daemon.scratch().join("parallel");
    fs::create_dir(&dir).expect("create a directory");
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).expect("make it accessible to all");
    let file = dir.join("file");
    let whole = |content: &[u8]| content.len() == SIZE && content.iter().all(|byte| *byte == content[0]);
    put(&daemon, &file, "", &[b'x'; SIZE]).expect(204);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                assert!(whole(&daemon.get(&files(&file, "")).body), "a partial version was read");
            }
        });
        let writers: Vec<_> = (0..50_u8)
            .map(|number| {
                scope.spawn({
                    let (daemon, file) = (&daemon, &file);
                    move || put(daemon, file, "", &[number; SIZE]).expect(204)
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| drop(writer.join().expect("an upload")));
        done.store(true, Ordering::SeqCst);
        reader.join().expect("the reader");
    });
    let content = fs::read(&file).expect("the file");
    assert!(whole(&content) && content[0] < 50);
    assert_eq!(names(&daemon, &dir), ["file"]);
}

/// Size of the file in MiB; the benchmark uses 1,024.
const MIB: u64 = 96;

#[test]
fn uploads_and_downloads_of_96_mib_use_bounded_memory() {
    let daemon = start_daemon();
    let path = daemon.scratch().join("large");
    let block = vec![b'x'; 1 << 20];
    put(&daemon, &path, "", &block).expect(204);
    daemon.get(&files(&path, ""));
    let before = procfs::kilobytes(daemon.pid, "VmHWM");
    let (head, _) = upload(&daemon, &path, false, b"");
    let head = String::from_utf8(head).expect("text").replace("Length: 0", &format!("Length: {}", MIB << 20));
    let mut socket = daemon.connect();
    socket.write_all(head.as_bytes()).expect("the head");
    (0..MIB).for_each(|_| socket.write_all(&block).expect("the body"));
    assert_eq!(ResponseStream::read(socket).expect("a response").status, 204);
    let mut response = daemon.open("GET", &files(&path, ""), "", b"").expect_status(200);
    assert_eq!(std::io::copy(&mut response, &mut std::io::sink()).expect("all of it"), MIB << 20);
    let grown = procfs::kilobytes(daemon.pid, "VmHWM").saturating_sub(before);
    assert!(grown < 4096, "{grown} kB more");
}

#[test]
fn file_requests_release_their_threads_and_descriptors() {
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let (file, large) = (scratch.join("file"), scratch.join("large"));
    // Counted with the client's keep-alive connection.
    daemon.list();
    let before = daemon.threads_and_descriptors();
    let once = || {
        put(&daemon, &file, "", b"x").expect(204);
        daemon.get(&files(&file, ""));
        daemon.get(&files(scratch.join("absent"), ""));
        put(&daemon, &scratch, "", b"x").expect_error(400, "IS_DIRECTORY", "");
        names(&daemon, &scratch);
    };
    File::create(&large).and_then(|file| file.set_len(1 << 30)).expect("create a file");
    for _ in 0..30 {
        once();
        // A client that stops reading and disconnects.
        drop(daemon.open("GET", &files(&large, ""), "", b"").expect_status(200));
        drop(daemon.open("HEAD", &files(&large, ""), "", b"").expect_status(200));
        let (head, body) = upload(&daemon, &file, false, &[b'x'; 5000]);
        daemon.connect().write_all(&[&head, &body[..100]].concat()).expect("some of it");
        daemon.delete(&files(&file, "")).expect(204);
    }
    daemon.wait_until_released(before);
}

/// The response to an upload that may be refused before its whole body was read.
fn response_to_refused(daemon: &Daemon, path: &Path, chunked: bool, content: &[u8]) -> Response {
    let (head, body) = upload(daemon, path, chunked, content);
    let mut socket = daemon.connect();
    socket.write_all(&head).expect("the head");
    let mut sender = socket.try_clone().expect("duplicate the socket");
    std::thread::scope(|scope| {
        scope.spawn(move || sender.write_all(&body));
        ResponseStream::read(socket).expect("a response").into_response("refused")
    })
}

#[test]
fn a_full_disk_is_507_and_leaves_the_old_file() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let dir = daemon.scratch().join("small");
    daemon.run_as_root(&format!("mkdir {0}; mount -t tmpfs -o size=1m,mode=777 tmpfs {0}", dir.display()));
    let file = dir.join("file");
    put(&daemon, &file, "", b"old").expect(204);
    let content = vec![b'x'; 2 << 20];
    // With the length announced, and without.
    for chunked in [false, true] {
        response_to_refused(&daemon, &file, chunked, &content).expect_error(507, "NO_SPACE", "file");
        assert_eq!(daemon.get(&files(&file, "")).body, b"old");
        wait_until(TIMEOUT, "nothing else is left there", || (names(&daemon, &dir) == ["file"]).then_some(()));
    }
    put(&daemon, &file, "", &content[..1 << 19]).expect(204);
    // Written in place on a disk that is too full for the file to grow.
    let small = "echo other >other; echo behind >behind; mount --bind behind other; chmod 666 behind";
    daemon.run_as_root(&format!("cd {}; {small}", dir.display()));
    let old = daemon.get(&files(dir.join("other"), "")).body;
    response_to_refused(&daemon, &dir.join("other"), true, &content[..400_000]).expect_error(507, "NO_SPACE", "other");
    assert!(daemon.get(&files(dir.join("other"), "")).body == old);
}

#[test]
fn a_file_that_cannot_be_replaced_by_rename_is_written_in_place() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let at = |name: &str| scratch.join(name);
    // A mount point cannot be replaced by rename.
    let (behind, mounted) = (at("behind"), at("mounted"));
    daemon.run_as_root(&format!("cd {}; echo old, and long >behind; : >mounted; chmod 666 behind", scratch.display()));
    daemon.run_as_root(&format!("mount --bind {} {}", behind.display(), mounted.display()));
    let (head, body) = upload(&daemon, &mounted, false, b"cut off");
    let mut socket = daemon.connect();
    socket.write_all(&[&head, &body[..3]].concat()).expect("some of it");
    let _ = socket.shutdown(Shutdown::Write);
    let _ = socket.read_to_end(&mut Vec::new());
    assert_eq!(
        fs::read(&behind).expect("behind"),
        b"old, and long\n",
        "nothing is written before the upload is complete"
    );
    for content in [&b"new"[..], b"new, and longer than the old", b""] {
        put(&daemon, &mounted, "", content).expect(204);
        assert_eq!(fs::read(&behind).expect("behind"), content);
    }
    // A writable file in a directory where the user cannot create files, and one of root in a sticky directory.
    let dir = at("closed");
    fs::create_dir(&dir).expect("create a directory");
    let own = dir.join("own");
    fs::write(&own, "old").expect("write the file");
    fs::set_permissions(&own, PermissionsExt::from_mode(0o666)).expect("set the mode");
    let common = at("common");
    fs::copy(&own, &common).expect("copy the file");
    for file in [&own, &common] {
        let before = fs::metadata(file).expect("the file").ino();
        put(&daemon, file, "", b"new").expect(204);
        let meta = fs::metadata(file).expect("the file");
        assert_eq!((fs::read(file).expect("the file"), meta.ino(), meta.uid()), (b"new".to_vec(), before, 0));
        fs::set_permissions(file, PermissionsExt::from_mode(0o644)).expect("for root");
        put(&daemon, file, "", b"newer").expect_error(403, "PERMISSION_DENIED", "");
        assert_eq!(fs::read(file).expect("the file"), b"new");
    }
    assert_eq!(names(&daemon, &dir), ["own"]);
}

#[test]
fn a_replaced_file_keeps_mode_and_owner_where_the_user_may_set_them() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let about = |path: &str| daemon.run_sh(&format!("stat -c '%U:%G %a' {path}")).stdout();
    for name in ["private", "script"] {
        put(&daemon, name, "", b"old").expect(204);
    }
    daemon.run_sh("cd; chmod 600 private; chmod 755 script");
    // A file that root replaces keeps its owner.
    put(&daemon, "/home/tl-user/private", "&user=root", b"new").expect(204);
    assert_eq!(about("private"), "tl-user:tl-user 600");
    put(&daemon, "script", "", b"new").expect(204);
    assert_eq!(about("script"), "tl-user:tl-user 755");
    // The user cannot give a file to root: it is written in place if its mode allows, and refused otherwise.
    daemon.run_as_root("cd ~tl-user; echo x >roots; echo x >common; chmod 4755 roots; chmod 4757 common");
    put(&daemon, "roots", "", b"new").expect_error(403, "PERMISSION_DENIED", "roots");
    assert_eq!((daemon.get(&files("roots", "")).body, about("roots")), (b"x\n".to_vec(), "root:root 4755".to_owned()));
    put(&daemon, "common", "", b"new").expect(204);
    assert_eq!((daemon.get(&files("common", "")).body, about("common")), (b"new".to_vec(), "root:root 757".to_owned()));
    // The user cannot give a file to a foreign group: as its owner the user writes it in place.
    daemon.run_as_root("cd ~tl-user; echo x >other; chown tl-user:777 other; chmod 660 other");
    put(&daemon, "other", "", b"new").expect(204);
    assert_eq!(
        (daemon.get(&files("other", "")).body, about("other")),
        (b"new".to_vec(), "tl-user:UNKNOWN 660".to_owned())
    );
    // A write in place removes setuid and setgid, even by root.
    let (behind, mounted) = ("/home/tl-user/behind", "/home/tl-user/mounted");
    daemon
        .run_as_root(&format!("echo x >{behind}; chmod 6755 {behind}; : >{mounted}; mount --bind {behind} {mounted}"));
    put(&daemon, mounted, "&user=root", b"new").expect(204);
    assert_eq!(about("behind"), "root:root 755");
}

/// The access ACL `user::rw-, user:uid:rw-, group::---, mask::rw-, other::---` in the format of the kernel.
fn acl_for(uid: u32) -> Vec<u8> {
    const NOBODY: u32 = u32::MAX;
    let entries = [(1_u16, 6_u16, NOBODY), (2, 6, uid), (4, 0, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY)];
    let entries = entries
        .iter()
        .flat_map(|(tag, rights, id)| [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
    2_u32.to_le_bytes().into_iter().chain(entries).collect()
}

fn set_attribute(path: &Path, name: &CStr, value: &[u8]) {
    let file = File::open(path).expect("open the file");
    tl_os::xattr::set(file, name, value).unwrap_or_else(|error| panic!("{name:?} of {path:?}: {error}"));
}

fn attribute(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    tl_os::xattr::get(File::open(path).expect("open the file"), name).expect("read the attribute")
}

const ACL: &CStr = c"system.posix_acl_access";
const DEFAULT_ACL: &CStr = c"system.posix_acl_default";

/// Uploads a file and gives it an ACL and an extended attribute; the group bits of its mode are the mask of the ACL.
fn with_attributes(daemon: &Daemon, file: &Path) -> Vec<u8> {
    put(daemon, file, "", b"old").expect(204);
    let acl = acl_for(4242);
    set_attribute(file, ACL, &acl);
    set_attribute(file, c"user.note", b"kept");
    acl
}

#[test]
fn a_replaced_file_keeps_its_acl_and_extended_attributes() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let file = scratch.join("file");
    let acl = with_attributes(&daemon, &file);
    set_attribute(&file, c"trusted.note", b"root's");
    // A file capability (CAP_NET_RAW, permitted), which belongs to the old content.
    let capability = [1_u32 | 2 << 24, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    set_attribute(&file, c"security.capability", &capability);
    let check = |what: &str, trusted: bool| {
        assert_eq!(attribute(&file, ACL).as_ref(), Some(&acl), "{what}");
        assert_eq!(attribute(&file, c"user.note").as_deref(), Some(&b"kept"[..]), "{what}");
        assert_eq!(attribute(&file, c"security.capability"), None, "{what}");
        if trusted {
            assert_eq!(attribute(&file, c"trusted.note").as_deref(), Some(&b"root's"[..]), "{what}");
        }
        let meta = fs::metadata(&file).expect("the file");
        assert_eq!(meta.mode() & 0o7777, 0o660, "{what}: the mask of the ACL");
        meta
    };
    // Root comes first: other users cannot see `trusted` attributes, and so cannot keep them.
    put(&daemon, &file, "&user=root", b"by root").expect(204);
    let meta = check("root", true);
    let owner = (meta.uid(), meta.gid());
    put(&daemon, &file, "", b"by its owner").expect(204);
    let meta = check("its owner", false);
    assert_eq!((meta.uid(), meta.gid()), owner);
    // A user whom the ACL permits writes in place, because only root can create files of others.
    let before = meta.ino();
    put(&daemon, &file, "&user=4242", b"by another").expect(204);
    let meta = check("another", false);
    assert_eq!((meta.uid(), meta.gid(), meta.ino()), (owner.0, owner.1, before));
    assert_eq!(fs::read(&file).expect("the file"), b"by another");
    put(&daemon, &file, "&user=4243", b"no").expect_error(403, "PERMISSION_DENIED", "file");
    // Other users gain no permission from the mask of the ACL.
    daemon.get(&files(&file, "&user=4243:0")).expect_error(403, "PERMISSION_DENIED", "file");
    daemon.get(&files(&file, &format!("&user=4243:{}", owner.1))).expect_error(403, "PERMISSION_DENIED", "file");
    assert_eq!(names(&daemon, &scratch), ["file"]);
}

#[test]
fn a_default_acl_applies_to_new_files_only() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let dir = daemon.scratch().join("dir");
    fs::create_dir(&dir).expect("create a directory");
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o777)).expect("make it accessible to all");
    let (plain, new, touched) = (dir.join("plain"), dir.join("new"), dir.join("touched"));
    put(&daemon, &plain, "", b"old").expect(204);
    set_attribute(&dir, DEFAULT_ACL, &acl_for(4242));
    // A replaced file without an ACL has none afterwards.
    put(&daemon, &plain, "", b"new").expect(204);
    assert_eq!(attribute(&plain, ACL), None);
    assert_eq!(fs::metadata(&plain).expect("the file").mode() & 0o7777, 0o644);
    // A new file gets the same ACL and mode as from any other program.
    put(&daemon, &new, "", b"new").expect(204);
    daemon.run_sh(&format!("echo new >{}", touched.display()));
    assert!(attribute(&new, ACL).is_some());
    assert_eq!(attribute(&new, ACL), attribute(&touched, ACL));
    let mode = |path: &Path| fs::metadata(path).expect("the file").mode();
    assert_eq!(mode(&new), mode(&touched));
}
