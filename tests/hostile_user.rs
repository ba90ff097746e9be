//! What a program that runs as `tl-user` can do to the daemon, to the processes of other users, and to the API.

use std::io::Write;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use crate::harness::baseline::check_others_are_served;
use crate::harness::{
    Daemon, Options, TIMEOUT, check_most_take_less, pid_of, procfs, skip, skip_without_root, start_daemon, wait_until,
};

/// Runs a Python program as this user; what it prints.
fn python(daemon: &Daemon, user: &str, script: &str, args: &[String]) -> String {
    let args: Vec<&str> = ["-c", script].into_iter().chain(args.iter().map(String::as_str)).collect();
    daemon.run(&json!({"command": "python3", "args": args, "user": user})).stdout()
}

/// Whether a thread of the daemon has the effective id of another user than root.
fn is_acting(daemon: i32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).expect("its threads").flatten();
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    statuses.into_iter().any(|status| {
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:")).expect("its ids");
        ids.split_whitespace().nth(1) != Some("0")
    })
}

/// Tries to signal each process and to change its scheduling and limits; prints what was not refused.
const MOLEST: &str = r#"
import ctypes, fcntl, os, resource, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)

def refused(what, call):
    try:
        call()
        print(what)
    except PermissionError:
        pass

def libc_call(name, *args):
    if getattr(libc, name)(*args) < 0:
        raise OSError(ctypes.get_errno(), name)

acting, ioprio_set = 0, {"x86_64": 251}.get(os.uname().machine, 30)
for pid in map(int, sys.argv[1:]):
    pidfd = os.pidfd_open(pid)
    for number in range(65):
        refused(f"kill {pid} {number}", lambda: os.kill(pid, number))
        refused(f"pidfd {pid} {number}", lambda: libc_call("syscall", 424, pidfd, number, 0, 0))
    for thread in map(int, os.listdir(f"/proc/{pid}/task")):
        ids = open(f"/proc/{pid}/task/{thread}/status").read().split("\nUid:")[1].split()[:4]
        acting += ids[0] == "0" and ids[1] == str(os.geteuid())
        for number in range(65):
            refused(f"tgkill {thread} {number}", lambda: libc_call("tgkill", pid, thread, number))
        refused(f"nice {thread}", lambda: os.setpriority(os.PRIO_PROCESS, thread, 19))
        refused(f"affinity {thread}", lambda: os.sched_setaffinity(thread, {0}))
        refused(f"scheduler {thread}", lambda: os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0)))
        refused(f"I/O priority {thread}", lambda: libc_call("syscall", ioprio_set, 1, thread, 3 << 13))
        refused(f"limits {thread}", lambda: resource.prlimit(thread, resource.RLIMIT_NOFILE, (0, 0)))
        refused(f"attach {thread}", lambda: libc_call("ptrace", 16, thread, 0, 0))
        for name in ("mem", "environ", "maps", "fd/0", "oom_score_adj", "comm"):
            flags = os.O_WRONLY if name in ("oom_score_adj", "comm") else os.O_RDONLY
            refused(f"{name} {thread}", lambda: os.open(f"/proc/{pid}/task/{thread}/{name}", flags))
# A descriptor that sends a signal to its owner when it is ready: the kernel checks who has set that. First this process
# itself, which gets them.
got = []
numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGIO, 34, 64)
for number in numbers:
    signal.signal(number, lambda number, _: got.append(number))
for pid in (os.getpid(), *map(int, sys.argv[1:])):
    for number in numbers + ((signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV) if pid != os.getpid() else ()):
        reading, writing = os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETOWN, pid)
        fcntl.fcntl(reading, fcntl.F_SETSIG, number)
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        os.write(writing, b"x")
        os.close(reading)
        os.close(writing)
print("own signals:", sorted(got) == sorted(numbers))
# Everything that this user may signal, except this process.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(-1, signal.SIGTERM)
print("acting threads:", acting)
"#;

#[test]
fn it_cannot_signal_stop_or_slow_down_the_daemon_the_fork_server_or_another_user() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let server = wait_until(TIMEOUT, "the fork server waits", || procfs::fork_server(daemon.pid));
    let roots = pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["4860"], "user": "root"})));
    let others = pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["4861"], "user": "4242"})));
    let before = daemon.threads_and_descriptors();
    // A thread that acts as the user meanwhile: it waits for the rest of an upload.
    let mut upload = daemon.connect();
    let head = daemon.request_head("PUT", "/files?path=slow", "Content-Length: 2\r\nConnection: close\r\n");
    upload.write_all(format!("{head}x").as_bytes()).expect("send the beginning");
    wait_until(TIMEOUT, "a thread acts as the user", || is_acting(daemon.pid).then_some(()));
    let pids = ["1".to_owned(), procfs::inner_pid(server).to_string(), roots.to_string(), others.to_string()];
    for (user, acting) in [("tl-user", 1), ("4243", 0)] {
        let printed = python(&daemon, user, MOLEST, &pids);
        assert_eq!(printed, format!("own signals: True\nacting threads: {acting}"), "{user}");
    }
    upload.write_all(b"y").expect("send the end");
    let answer = std::io::read_to_string(upload).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(procfs::fork_server(daemon.pid), Some(server), "the same fork server waits");
    for pid in [roots, others] {
        assert_eq!(daemon.info(pid)["status"], "running");
    }
    let sleeping = ["sleep 4860", "sleep 4861"].map(|words| daemon.wait_for_processes(words, 1)[0]);
    for pid in [daemon.pid, server].into_iter().chain(sleeping) {
        let state = procfs::status(pid, "State").expect("its state");
        assert!(!state.starts_with(['T', 't', 'Z']), "{pid} is stopped or has ended: {state}");
    }
    daemon.wait_until_released(before);
    check_others_are_served(&daemon);
    // A signal that shuts down is in the log of the daemon, and so is one whose sender is not authorised. The first is
    // the one that the test sends.
    let of_signals =
        || -> Vec<String> { daemon.log().lines().filter(|line| line.contains("signal ")).map(str::to_owned).collect() };
    assert!(of_signals().is_empty(), "{:?}", of_signals());
    daemon.signal(Signal::SIGTERM);
    let logged = wait_until(TIMEOUT, "the daemon logs a signal", || Some(of_signals()).filter(|all| !all.is_empty()));
    assert!(logged.len() == 1 && logged[0].contains("signal 15: shutting down"), "{logged:?}");
}

/// Tries to take the port of the API, and to use the API without the token. Prints what was not refused.
const STRANGER: &str = r#"
import socket, sys
port = int(sys.argv[1])
for address in sys.argv[2:]:
    for option in (0, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        thief = socket.socket()
        if option:
            thief.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            thief.bind((address, port))
            thief.listen()
            print("listens", address, option)
        except OSError:
            pass
        thief.close()
def status(line, headers):
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(f"{line} HTTP/1.1\r\nHost: x\r\n{headers}Connection: close\r\n\r\n".encode())
    return client.makefile("rb").readline().split()[1].decode()
for line in ("GET /api/v1/processes", "GET /api/v1/info", "GET /api/v1/metrics", "GET /api/v1/boot", "GET /api/v1/pty",
             "GET /api/v1/files?path=/etc/passwd", "DELETE /api/v1/processes/1", "GET /api/v1/tunnels/tcp?port=1"):
    for headers in ("", "Authorization: Bearer\r\n", "Authorization: Bearer x\r\n", "X-PTY-Token: x\r\n"):
        if status(line, headers) != "401":
            print(line, headers)
print(status("GET /api/v1/health", ""))
"#;

#[test]
fn it_can_connect_to_the_api_but_not_use_it_or_take_its_port() {
    if skip_without_root() {
        return;
    }
    for (listen, addresses) in [("127.0.0.1:0", "127.0.0.1 0.0.0.0"), ("0.0.0.0:0", "127.0.0.1 0.0.0.0 127.0.0.2")] {
        let daemon = Options::default().args(&["--listen", listen]).start();
        let port = daemon.addr.port().to_string();
        let args: Vec<String> = [&*port].into_iter().chain(addresses.split(' ')).map(str::to_owned).collect();
        assert_eq!(python(&daemon, "tl-user", STRANGER, &args), "200", "{listen}");
    }
}

/// Opens the terminals, and pushes input into those that it can open. Prints what was not refused.
const EAVESDROP: &str = r#"
import fcntl, os, sys, termios
for path in sys.argv[1:]:
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        try:
            fd = os.open(path, flags | os.O_NOCTTY | os.O_NONBLOCK)
            print("opened", path, flags)
            fcntl.ioctl(fd, termios.TIOCSTI, b"x")
            print("typed", path)
        except OSError:
            pass
"#;

#[test]
fn it_cannot_open_the_terminal_of_another_user() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let mut paths = vec!["/dev/console".to_owned()];
    for user in ["root", "4242", "tl-user"] {
        let path = daemon.scratch().join(format!("terminal-of-{user}"));
        let script = format!("tty >{}; echo $$ >>{}; exec sleep 4862", path.display(), path.display());
        daemon.post("/pty", &json!({"command": "sh", "args": ["-c", script], "user": user})).expect(201);
        let (terminal, pid) = wait_until(TIMEOUT, "the session knows its terminal", || {
            let text = std::fs::read_to_string(&path).ok()?;
            let (terminal, pid) = text.split_once('\n')?;
            Some((terminal.to_owned(), pid.trim().parse::<i32>().ok()?))
        });
        paths.extend([terminal, format!("/proc/{pid}/fd/0"), format!("/proc/{pid}/fd/1")]);
    }
    let others = &paths[..7];
    assert_eq!(python(&daemon, "tl-user", EAVESDROP, others), "");
    assert_eq!(python(&daemon, "4242", EAVESDROP, &[&others[..4], &paths[7..]].concat()), "");
    // Its own terminal it can open, from another session too.
    assert!(python(&daemon, "tl-user", EAVESDROP, &paths[7..]).contains("opened"));
}

/// Cgroups belong to root. Prints what was not refused.
const REGROUP: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
mount = next(line.split()[1] for line in open("/proc/mounts") if line.split()[2] == "cgroup2")
own = next(line[3:].strip() for line in open("/proc/self/cgroup") if line.startswith("0::"))
of_daemon = next(line[3:].strip() for line in open("/proc/1/cgroup") if line.startswith("0::"))

def attack(prefix):
    for group in {own, os.path.dirname(own), of_daemon, os.path.dirname(of_daemon)}:
        base = prefix + group
        for name, value in (("cgroup.procs", "0"), ("cgroup.procs", "1"), ("cgroup.kill", "1"), ("cgroup.freeze", "1"),
                            ("cgroup.type", "threaded"), ("cgroup.subtree_control", "+cpu"), ("pids.max", "1"),
                            ("memory.max", "0"), ("cpu.weight", "10000")):
            try:
                open(f"{base}/{name}", "w").write(value)
                print("wrote", base, name)
            except OSError:
                pass
        for change in (lambda: os.mkdir(f"{base}/mine"), lambda: os.rmdir(base), lambda: os.chmod(base, 0o777),
                       lambda: os.rename(base, base + "x")):
            try:
                change()
                print("changed", base)
            except OSError:
                pass

print(own != of_daemon)
attack(mount)
# A user namespace, with mounts and cgroups of its own.
if libc.unshare(0x10000000 | 0x20000 | 0x2000000) == 0:
    ids = os.geteuid()
    attack(mount)
    print("moved" if libc.mount(b"none", b"/mnt", b"cgroup2", 0, None) == 0 and attack("/mnt") else "")
"#;

#[test]
fn it_cannot_change_cgroups() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    if crate::harness::cgroups::cgroup_of(daemon.pid).is_none() {
        return skip("cgroups of version 2");
    }
    assert_eq!(python(&daemon, "tl-user", REGROUP, &[]).trim_end(), "True");
    assert_eq!(daemon.run_sh("echo ran").stdout(), "ran");
    assert!(!daemon.log().contains("cgroup"), "{}", daemon.log());
}

/// Mounts of its own over the directories that the daemon uses, in a mount namespace of its own.
#[test]
fn mounts_in_a_namespace_of_its_own_are_not_seen_by_the_daemon() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let state = daemon.state_dir();
    let mount = "exec unshare --user --map-root-user --mount sh -c '
        for dir in /etc /proc /home /dev /run /tmp; do mount -t tmpfs none $dir || exit 7; done
        mkdir /etc/x; echo root::0:0::/:/bin/sh >/etc/passwd; echo mounted; exec sleep 4863'";
    let pid = daemon.sh(mount);
    wait_until(TIMEOUT, "it has mounted", || {
        let info = daemon.info(pid);
        let lines = daemon.lines(pid, "output");
        if info["status"] != "running" { Some(lines == ["mounted"]) } else { (lines == ["mounted"]).then_some(true) }
    });
    if daemon.info(pid)["status"] != "running" {
        eprintln!("{:?}", daemon.lines(pid, "output"));
        return skip("user namespaces");
    }
    assert_eq!(daemon.run_sh("id -un; cd; pwd").stdout(), "tl-user\n/home/tl-user");
    assert!(state.join("run/address").exists());
    // The daemon finds its processes in its own /proc, and ends them.
    daemon.delete_tree(pid, &["sleep 4863"]);
}

/// Latency of requests while programs of `tl-user` use all CPUs: loops, each in a session of its own, for which Linux has
/// a separate share of the CPU (sched(7), autogroup). Measured with 64 of them: 16 ms for a health request, 110 ms for a
/// run. Here are fewer, because they delay other programs of the machine as much.
#[test]
fn busy_programs_delay_requests_by_no_more_than_documented() {
    if skip_without_root() {
        return;
    }
    let without = Options::default().without_cgroup();
    for daemon in [start_daemon(), without.start()] {
        let hog = "for i in $(seq 16); do setsid sh -c 'while :; do :; done' hog-4864 & done; echo started; wait";
        let pid = daemon.sh(hog);
        wait_until(TIMEOUT, "they run", || (daemon.pids_matching("hog-4864").len() >= 17).then_some(()));
        check_most_take_less(Duration::from_millis(160), 40, || assert_eq!(daemon.try_health(), Some(200)));
        check_most_take_less(Duration::from_millis(1_100), 7, || assert_eq!(daemon.run_sh("echo x").stdout(), "x"));
        daemon.delete_tree(pid, &["hog-4864"]);
        assert_eq!(daemon.list().iter().filter(|info| info["status"] == "running").count(), 0);
    }
}

/// A program that uses up its descriptors and the pages for pipes of its user (`fs.pipe-user-pages-soft`).
#[test]
fn a_program_that_uses_up_its_own_limits_harms_no_other() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let greedy = "import os, time
fds = []
try:
    while True:
        fds.append(os.open('/dev/null', os.O_RDONLY))
except OSError:
    pass
for fd in fds[-3000:]:
    os.close(fd)
try:
    while True:
        fds.extend(os.pipe())
except OSError:
    pass
print('full', flush=True)
time.sleep(600)";
    let body = json!({"command": "python3", "args": ["-c", greedy], "user": "tl-user"});
    let pids: Vec<u64> = (0..4).map(|_| pid_of(&daemon.start_process(&body))).collect();
    pids.iter().for_each(|pid| daemon.wait_for_stdout(*pid, &["full"]));
    assert_eq!(daemon.run_sh("echo x; id -un").stdout(), "x\ntl-user");
    for pid in pids {
        daemon.delete(&format!("/processes/{pid}")).expect(204);
    }
}
