//! Faults that tests inject: files and file systems that hang, memory that runs out, networks that fail.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;

use super::{Daemon, TIMEOUT, pid_of, skip, wait_until};

/// Takes a write lease on the file and keeps it until stdin ends. The kernel sends SIGIO to the holder of a lease that
/// another process asks for; ignoring it keeps the lease.
const HOLD_LEASE: &str = "
import fcntl, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
file = open(sys.argv[1], 'rb')
fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
print('taken', flush=True)
sys.stdin.read()
";

/// A write lease on a file: an open or an exec of the file waits in the kernel, killably, until the lease is dropped.
pub struct Lease(#[expect(dead_code)] Holder);

impl Lease {
    pub fn take(path: &Path) -> Lease {
        Lease(Holder::start(HOLD_LEASE, path.as_os_str(), "taken"))
    }
}

/// A Python program that holds something until the end of its stdin, and that is killed when this is dropped.
struct Holder(Child);

impl Holder {
    /// Starts the script with this argument, and waits for the line by which it says that it holds it.
    fn start(script: &str, arg: &OsStr, line: &str) -> Holder {
        let mut command = super::bound_command("python3");
        command.args(["-c", script]).arg(arg);
        Holder::of(command, line)
    }

    fn of(mut command: Command, line: &str) -> Holder {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("run python3");
        let stdout = child.stdout.take().expect("stdout of the holder");
        let holder = Holder(child);
        let mut printed = String::new();
        BufReader::new(stdout).read_line(&mut printed).expect("read from the holder");
        assert_eq!(printed.trim_end(), line, "{command:?}");
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Mounts a FUSE file system whose server never answers: any access to it hangs in the kernel.
pub fn hanging_directory(daemon: &Daemon) -> PathBuf {
    let dir = daemon.scratch().join("stuck");
    std::fs::create_dir(&dir).expect("create the mount point");
    let mount = "exec 3<>/dev/fuse; mount -i -t fuse -o fd=3,rootmode=40000,user_id=0,group_id=0,allow_other stuck \
                 \"$0\" && echo mounted && exec sleep 4400";
    let server = daemon.start_process(&json!({"command": "sh", "args": ["-c", mount, dir], "user": "root"}));
    let server = pid_of(&server);
    wait_until(TIMEOUT, "the file system is mounted", || {
        assert_eq!(daemon.info(server)["status"], "running", "{:?}", daemon.lines(server, "output"));
        (daemon.lines(server, "stdout") == ["mounted"]).then_some(())
    });
    dir
}

/// The server of a FUSE file system (linux/fuse.h) at the directory of its argument. It answers FUSE_INIT, reads each
/// other request and never answers it: the process that waits for it cannot be killed.
const UNKILLABLE: &str = r#"
import ctypes, os, struct, sys
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
assert ctypes.CDLL(None, use_errno=True).mount(b"none", sys.argv[1].encode(), b"fuse", 0, options) == 0, ctypes.get_errno()
request = os.read(fuse, 1 << 20)
opcode, unique = struct.unpack_from("=4xIQ", request)
assert opcode == 26, opcode
answer = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 4096, 1, 1, 0, 0)
os.write(fuse, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)
print("mounted", flush=True)
while True:
    os.read(fuse, 1 << 20)
    open(sys.argv[1] + ".read", "w")
"#;

/// A directory in the mount namespace of a daemon: a process that accesses a file in it cannot be killed until this is
/// dropped. Its server is outside of the daemon, which cannot end it.
pub struct UnkillableDirectory {
    path: PathBuf,
    _server: Holder,
}

impl UnkillableDirectory {
    pub fn mount(daemon: &Daemon) -> UnkillableDirectory {
        let path = daemon.scratch().join("unkillable");
        std::fs::create_dir(&path).expect("create the mount point");
        let mut command = super::bound_command("nsenter");
        command.args(["--target", &daemon.pid.to_string(), "--mount", "python3", "-c", UNKILLABLE]).arg(&path);
        UnkillableDirectory { path, _server: Holder::of(command, "mounted") }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a process waits for an answer.
    pub fn has_request(&self) -> bool {
        self.path.with_extension("read").exists()
    }
}

/// Mounts a FUSE file system that never answers over /etc: a lookup in /etc/passwd hangs in the kernel.
pub const HANGING_ETC: &str = r#"
import ctypes, os, time
fuse = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
assert ctypes.CDLL(None, use_errno=True).mount(b"none", b"/etc", b"fuse", 0, options) == 0, ctypes.get_errno()
print("mounted", flush=True)
time.sleep(600)
"#;

/// Makes every access to /etc hang in the kernel, for a daemon in a namespace of its own.
pub fn hang_etc(daemon: &Daemon) {
    let body = json!({"command": "python3", "args": ["-c", HANGING_ETC], "user": "root"});
    let pid = pid_of(&daemon.start_process(&body));
    daemon.wait_for_stdout(pid, &["mounted"]);
}

/// Sets the limit of the address space of the daemon, in bytes; none removes it.
pub fn limit_address_space(daemon: &Daemon, bytes: Option<u64>) {
    let limit = bytes.map_or("unlimited".to_owned(), |bytes| bytes.to_string());
    let mut command = Command::new("prlimit");
    command.args(["--pid", &daemon.pid.to_string(), &format!("--as={limit}:")]);
    assert!(command.status().expect("run prlimit").success());
}

/// Attaches a socket filter that drops every packet to descriptor 0 (socket(7), SO_ATTACH_FILTER).
const DROP_PACKETS: &str = "
import ctypes, socket, struct
instruction = ctypes.create_string_buffer(struct.pack('HBBI', 0x06, 0, 0, 0))
program = struct.pack('HL', 1, ctypes.addressof(instruction))
socket.socket(fileno=0).setsockopt(socket.SOL_SOCKET, 26, program)
";

/// Makes the kernel drop everything that arrives for this socket, as if the network were gone.
pub fn cut_off(socket: &TcpStream) {
    let copy = OwnedFd::from(socket.try_clone().expect("duplicate the socket"));
    let status = Command::new("python3").args(["-c", DROP_PACKETS]).stdin(copy).status();
    assert!(status.expect("run python3").success(), "attach the filter");
}

/// A cgroup of version 1 with this controller, for a test; none, and a test that is skipped, where the controller is
/// not mounted.
pub struct TestCgroup(PathBuf);

impl TestCgroup {
    pub fn new(controller: &str) -> Option<TestCgroup> {
        let mounts = std::fs::read_to_string("/proc/mounts").expect("read /proc/mounts");
        let has_it = |line: &&str| line.contains(" cgroup ") && line.split([' ', ',']).any(|word| word == controller);
        let Some(mount) = mounts.lines().find(has_it).and_then(|line| line.split(' ').nth(1)) else {
            skip("a controller of cgroups of version 1");
            return None;
        };
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tl-test.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(mount).join(name);
        std::fs::create_dir(&dir).expect("make a cgroup");
        Some(TestCgroup(dir))
    }

    pub fn write(&self, file: &str, value: impl ToString) {
        std::fs::write(self.0.join(file), value.to_string()).expect(file);
    }
}

impl Drop for TestCgroup {
    /// Its members go to the cgroup above.
    fn drop(&mut self) {
        wait_until(TIMEOUT, "the cgroup can be removed", || {
            for member in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
                let _ = std::fs::write(self.0.join("../cgroup.procs"), member);
            }
            std::fs::remove_dir(&self.0).ok()
        });
    }
}

/// A frozen cgroup of version 1: its processes handle no signal, not even SIGKILL, until it is dropped.
pub struct Freezer(TestCgroup);

impl Freezer {
    /// None, and a test that is skipped, where the controller is not mounted.
    pub fn freeze(pid: i32) -> Option<Freezer> {
        let freezer = Freezer(TestCgroup::new("freezer")?);
        freezer.0.write("cgroup.procs", pid);
        freezer.set("FROZEN");
        Some(freezer)
    }

    fn set(&self, state: &str) {
        self.0.write("freezer.state", state);
        wait_until(TIMEOUT, state, || {
            let now = std::fs::read_to_string(self.0.0.join("freezer.state")).expect("the state");
            (now.trim() == state).then_some(())
        });
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.set("THAWED");
    }
}

/// Stops one thread as a debugger does, until stdin ends (ptrace(2): PTRACE_SEIZE, PTRACE_INTERRUPT).
const STOP_THREAD: &str = "
import ctypes, os, sys
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
thread = int(sys.argv[1])
assert ptrace(0x4206, thread, 0, 0) == 0 and ptrace(0x4207, thread, 0, 0) == 0, ctypes.get_errno()
os.waitpid(thread, 0x40000000)
print('stopped', flush=True)
sys.stdin.read()
";

/// A thread of the daemon that does not run until this is dropped.
pub struct StoppedThread(#[expect(dead_code)] Holder);

impl StoppedThread {
    pub fn of(daemon: &Daemon, name: &str) -> StoppedThread {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).expect("list the threads").flatten();
        let is_named =
            |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name);
        let task = tasks.map(|task| task.path()).find(is_named).unwrap_or_else(|| panic!("no thread {name}"));
        StoppedThread(Holder::start(STOP_THREAD, task.file_name().expect("a thread id"), "stopped"))
    }
}
