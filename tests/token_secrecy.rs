//! Code in the sandbox that runs as another user than the daemon cannot find its token: not in /proc, not in files, not
//! in the memory of the daemon, of the fork server, or of a process that has not executed its program yet.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;

use serde_json::json;

use crate::harness::faults::Lease;
use crate::harness::{Daemon, Options, TIMEOUT, TOKEN, pid_of, procfs, skip_without_root, wait_until};

/// In the environment of the daemon, which no command may see.
const SECRET: &str = "environment-of-the-daemon";

/// Every user can enter the directories that contain the run directory and the log directory.
const OPEN_STATE: &str = "chmod 755 \"${TL_INIT_RUN_DIR%/run}\"";

/// Opens everything that it finds below the directories and prints what it can read; then tries each way to the memory
/// and the descriptors of the processes. A line that begins with `!` says what must not have worked.
const SPY: &str = r#"
import ctypes, errno, os, stat, sys
libc = ctypes.CDLL(None, use_errno=True)
pids, dirs = [int(pid) for pid in sys.argv[1].split(",")], sys.argv[2:]

def show(path):
    try:
        kind = os.lstat(path).st_mode
        if stat.S_ISDIR(kind):
            names = os.listdir(path)
        else:
            if stat.S_ISLNK(kind):
                print(path, "->", os.readlink(path))
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            print(path, os.read(fd, 1 << 20))
            return os.close(fd)
    except OSError as error:
        return
    for name in names:
        # One of many threads, and no endless paths.
        if name not in ("task", "cwd", "root") or path.count("/") < 4:
            show(path + "/" + name)

for path in dirs:
    show(path)

class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def must_fail(what, result, allowed=(errno.EPERM, errno.EACCES)):
    if result != -1 or ctypes.get_errno() not in allowed:
        print("!", what, result, ctypes.get_errno())

def must_be_denied(pid, name, flags=os.O_RDONLY):
    try:
        os.close(os.open(f"/proc/{pid}/{name}", flags))
        print("!", pid, name)
    except PermissionError:
        pass

for pid in pids:
    for name in ("environ", "maps", "smaps", "auxv", "mem", "pagemap", "stack", "io", "fd", "fdinfo", "map_files"):
        must_be_denied(pid, name)
    must_be_denied(pid, "mem", os.O_RDWR)
    for name in ("fd/0", "fd/3", "cwd/.", "root/etc/passwd", "exe", "ns/mnt", f"task/{pid}/mem", f"task/{pid}/environ"):
        must_be_denied(pid, name)
    for name in ("cwd", "root", "exe"):
        try:
            print("!", pid, name, os.readlink(f"/proc/{pid}/{name}"))
        except PermissionError:
            pass
    must_fail("attach", libc.ptrace(16, pid, 0, 0))
    must_fail("seize", libc.ptrace(0x4206, pid, 0, 0))
    buffer = ctypes.create_string_buffer(8)
    local, remote = Vector(ctypes.addressof(buffer), 8), Vector(0x400000, 8)
    must_fail("readv", libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
    must_fail("writev", libc.process_vm_writev(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))
    pidfd = libc.syscall(434, pid, 0)
    for number in range(16):
        must_fail("getfd", libc.syscall(438, pidfd, number, 0))
    # The kernel asks for CAP_SYS_NICE or the rights of a tracer: process_madvise, kcmp.
    must_fail("madvise", libc.syscall(440, pidfd, ctypes.byref(remote), 1, 20, 0))
    must_fail("kcmp", libc.syscall({"x86_64": 312}.get(os.uname().machine, 272), pid, os.getpid(), 0, 0, 0))
# Into the mount namespace of the daemon: a user namespace of its own gives no right over another.
os.unshare = getattr(os, "unshare", lambda flags: libc.unshare(flags))
if libc.unshare(0x10000000) == 0:
    for pid in pids:
        must_be_denied(pid, "environ")
        must_be_denied(pid, "mem")
        must_fail("attach from a user namespace", libc.ptrace(16, pid, 0, 0))
print("done")
"#;

/// What a program that `user` runs can learn: [`SPY`]. Fails if it finds one of `secrets`, or something must not work.
fn spy(daemon: &Daemon, user: &str, pids: &[i32], dirs: &[&Path], secrets: &[&str]) {
    let out = daemon.scratch().join(format!("found-by-{user}"));
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let script = "python3 -c \"$0\" \"$@\" >\"$OUT\" 2>&1; tail -n 1 \"$OUT\"";
    let mut args = vec![json!("-c"), json!(script), json!(SPY), json!(pids.join(","))];
    args.extend(pids.iter().map(|pid| json!(format!("/proc/{pid}"))));
    args.extend(dirs.iter().map(|dir| json!(dir)));
    let run = daemon.run(&json!({"command": "sh", "args": args, "user": user, "env": {"OUT": out}}));
    assert_eq!(run.stdout(), "done", "{}", fs::read_to_string(&out).unwrap_or_default());
    let found = fs::read(&out).expect("what it has printed");
    let found = String::from_utf8_lossy(&found);
    let broken: Vec<&str> = found.lines().filter(|line| line.starts_with('!')).collect();
    assert_eq!(broken, [""; 0], "{user}");
    assert!(found.contains("/proc/1/status"), "it reads what every user can read");
    for secret in secrets {
        assert!(!found.contains(secret), "{user} has found {secret}");
    }
}

/// Whether the memory of a process contains `text`.
fn memory_contains(pid: i32, text: &str) -> bool {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings");
    maps.lines().any(|line| {
        let (range, rest) = line.split_once(' ').expect("a range");
        let (start, end) = range.split_once('-').expect("two addresses");
        let [start, end] = [start, end].map(|address| u64::from_str_radix(address, 16).expect("an address"));
        let mut bytes = vec![0; usize::try_from(end - start).expect("a length").min(64 << 20)];
        let is_readable = rest.starts_with('r') && memory.read_exact_at(&mut bytes, start).is_ok();
        is_readable && bytes.windows(text.len()).any(|part| part == text.as_bytes())
    })
}

#[test]
fn a_command_of_another_user_finds_the_token_nowhere() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().env("SECRET", SECRET).prepare(OPEN_STATE).start();
    let state = daemon.state_dir();
    let server = wait_until(TIMEOUT, "the fork server waits", || procfs::fork_server(daemon.pid));
    let shown = daemon.start_process(&json!({"command": "sleep", "args": ["4850"], "user": "root"}));
    assert_eq!(fs::metadata(state.join("run/token")).expect("the token").permissions().mode() & 0o7777, 0o600);
    for user in ["tl-user", "4242", "65534:65534"] {
        let pids = [1, procfs::inner_pid(server), i32::try_from(pid_of(&shown)).expect("a PID")];
        let token = &*daemon.token;
        spy(&daemon, user, &pids, &[&state, Path::new("/dev/shm"), Path::new("/proc/self")], &[token, SECRET]);
    }
    assert!(!daemon.log().contains(&daemon.token), "the log of the daemon");
    assert!(daemon.run_as_root("cat /proc/1/environ | tr '\\0' '\\n'").contains(SECRET), "root can read it");
}

#[test]
fn a_command_of_another_user_finds_a_given_token_nowhere() {
    if skip_without_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("create a directory");
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("set the mode");
    let file = dir.path().join("secret");
    fs::write(&file, TOKEN).expect("write the token");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o400)).expect("set the mode");
    let options = Options::default().args(&["--token-file", file.to_str().expect("a path")]);
    // Logs everything, each request too.
    let daemon = options.args(&["--log-level", "trace"]).prepare(OPEN_STATE).start();
    let state = daemon.state_dir();
    assert!(!state.join("run/token").exists(), "it is not copied");
    spy(&daemon, "tl-user", &[1], &[&state, dir.path()], &[TOKEN]);
    assert!(!daemon.log().contains(TOKEN), "the log of the daemon");
}

/// The fork server is forked from the daemon, and all commands from it.
#[test]
fn the_token_is_not_in_the_memory_of_the_fork_server_nor_of_its_children() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().start();
    let server = wait_until(TIMEOUT, "the fork server waits", || procfs::fork_server(daemon.pid));
    assert!(memory_contains(daemon.pid, &daemon.token), "this search finds what is there");
    assert!(!memory_contains(server, &daemon.token), "the fork server has the token in its memory");
    let child = Hanging::start(&daemon, &[]);
    assert_eq!(fs::read_to_string(format!("/proc/{}/comm", child.pid)).expect("its name").trim(), "fork-server");
    assert!(!memory_contains(child.pid, &daemon.token), "a child has the token in its memory");
    // A child that shared this memory could ask the fork server for a process of root.
    let shared = |pid| fs::read_to_string(format!("/proc/{pid}/maps")).expect("its mappings").matches(" rw-s ").count();
    assert_eq!((shared(server), shared(child.pid)), (1, 0), "requests are written to memory that is shared");
    child.check_it_is_closed(&daemon);
}

/// Such a child is a copy of the daemon.
#[test]
fn a_child_that_the_daemon_forks_itself_keeps_its_memory_from_its_user() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::default().start();
    // More than fits into a request to the fork server.
    let arguments = ["x".repeat(100_000), "y".repeat(100_000), "z".repeat(100_000)];
    let child = Hanging::start(&daemon, &arguments);
    let name = fs::read_to_string(format!("/proc/{}/comm", child.pid)).expect("its name");
    assert_eq!(name.trim(), "supervisor", "it is forked by the thread of that name");
    child.check_it_is_closed(&daemon);
}

/// A child of `tl-user` that hangs in its exec.
struct Hanging {
    pid: i32,
    _lease: Lease,
}

impl Hanging {
    fn start(daemon: &Daemon, arguments: &[String]) -> Hanging {
        let program = daemon.script("hangs", "#!/bin/sh\necho ran\n");
        let lease = Lease::take(&program);
        let before = procfs::all_children(daemon.pid);
        let body = json!({"command": program, "args": arguments, "user": "tl-user"}).to_string();
        let head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        let mut request = daemon.connect();
        let head = daemon.request_head("POST", "/processes", &head);
        std::io::Write::write_all(&mut request, [head, body].concat().as_bytes()).expect("send the request");
        let uid = daemon.run_as_root("id -u tl-user");
        let pid = wait_until(TIMEOUT, "a child of tl-user hangs in its exec", || {
            let new = procfs::all_children(daemon.pid).into_iter().filter(|pid| !before.contains(pid));
            new.into_iter().find(|pid| {
                let is_users = procfs::status(*pid, "Uid").is_some_and(|ids| ids.starts_with(&format!("{uid}\t")));
                is_users && fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|at| at.contains("lease"))
            })
        });
        Hanging { pid, _lease: lease }
    }

    /// Checks that its user can neither read nor trace it, although it has the same ids.
    fn check_it_is_closed(&self, daemon: &Daemon) {
        assert_eq!(fs::metadata(format!("/proc/{}/environ", self.pid)).expect("its environment").uid(), 0);
        let secret = &*daemon.token;
        spy(daemon, "tl-user", &[procfs::inner_pid(self.pid)], &[Path::new("/proc/1/status")], &[secret]);
    }
}

/// The kernel writes no core dump of a process with a thread that has acted as another user. Of its user's processes, only
/// those with CAP_SYS_PTRACE may look into it, and on newer kernels those with CAP_PERFMON: here root has neither.
#[test]
fn the_daemon_is_not_dumpable_after_a_file_request_and_its_commands_are() {
    if skip_without_root() {
        return;
    }
    let daemon =
        Options::default().prepare("set -- setpriv --bounding-set -sys_ptrace,-sys_admin,-perfmon \"$@\"").start();
    let look = "for pid in 1 $$; do if cat /proc/$pid/environ >/dev/null 2>&1; then echo yes; else echo no; fi; done";
    // Until then, root can write to the log of a container, as with `echo … >/proc/1/fd/1`.
    assert_eq!(daemon.run_as_root(look), "yes\nyes");
    daemon.get("/files/list?path=/").expect(200);
    assert_eq!(daemon.run_as_root(look), "no\nyes");
    let dumpable = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))";
    for user in ["root", "tl-user"] {
        let run = daemon.run(&json!({"command": "python3", "args": ["-c", dumpable], "user": user}));
        assert_eq!(run.stdout(), "1", "{user}");
    }
}
