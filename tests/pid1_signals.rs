//! Signals of every number to PID 1 from inside its namespace: from another user none has an effect, from root those with
//! a meaning (docs/operations.md, Signals).

use std::io::Write;

use serde_json::json;

use crate::harness::baseline::{Baseline, check_others_are_served};
use crate::harness::{Daemon, Options, TIMEOUT, skip_without_root, start_daemon};

/// Sends each signal of its arguments to PID 1 as a process and to each of its threads, once with a forged sender.
/// Prints the numbers of the signals that the kernel has accepted.
const SEND: &str = r#"
import ctypes, errno, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
tids = [int(name) for name in os.listdir("/proc/1/task")]
accepted = set()
for number in map(int, sys.argv[1:]):
    # siginfo with SI_QUEUE, PID 0 and UID 0 (rt_sigqueueinfo(2)); the system call has this number on both architectures
    # that are published.
    info = ctypes.create_string_buffer(struct.pack("iiiiii", number, 0, -1, 0, 0, 0), 128)
    queue = {"x86_64": 129, "aarch64": 138}[os.uname().machine]
    results = [libc.kill(1, number), libc.syscall(queue, 1, number, info)]
    results += [libc.tgkill(1, tid, number) for tid in tids]
    if 0 in results:
        accepted.add(number)
    else:
        assert ctypes.get_errno() in (errno.EPERM, errno.EINVAL), (number, ctypes.get_errno())
print(*sorted(accepted))
"#;

/// SIGRTMIN is 34.
const SHUT_DOWN: [(i32, i32); 11] =
    [(2, 130), (10, 0), (12, 0), (15, 0), (30, 0), (37, 0), (38, 0), (39, 0), (47, 0), (48, 0), (49, 0)];

fn send(daemon: &Daemon, user: &str, signals: impl Iterator<Item = i32>) -> String {
    let arguments = ["-c".to_owned(), SEND.to_owned()].into_iter().chain(signals.map(|signal| signal.to_string()));
    let arguments: Vec<String> = arguments.collect();
    daemon.run(&json!({"command": "python3", "args": arguments, "user": user})).stdout()
}

/// Signals 1 to 64 from a process of tl-user, and those without a meaning from one of root: SIGKILL, SIGSTOP and SIGSEGV
/// among them.
#[test]
fn pid_1_survives_every_signal_from_inside() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let sleep = daemon.sh("exec sleep 4795");
    let before = Baseline::of(&daemon);
    assert_eq!(send(&daemon, "tl-user", 1..=64), "", "the kernel accepts none");
    check_others_are_served(&daemon);
    let without_meaning = || (1..=64).filter(|signal| SHUT_DOWN.iter().all(|(other, _)| signal != other));
    let all: Vec<String> = without_meaning().map(|signal| signal.to_string()).collect();
    for _ in 0..20 {
        assert_eq!(send(&daemon, "root", without_meaning()), all.join(" "), "the kernel accepts all");
    }
    check_others_are_served(&daemon);
    assert_eq!(daemon.info(sleep)["status"], "running");
    before.check_restored(&daemon);
    assert!(!daemon.log().contains("ERROR"), "{}", daemon.log());
}

#[test]
fn each_shutdown_signal_from_root_inside_shuts_down() {
    if skip_without_root() {
        return;
    }
    for (signal, code) in SHUT_DOWN {
        let mut daemon = Options::default().args(&["--shutdown-grace", "20"]).start();
        let kill = json!({"command": "kill", "args": [format!("-{signal}"), "1"], "user": "root"});
        let kill = kill.to_string();
        let head = daemon.request_head("POST", "/processes", &format!("Content-Length: {}\r\n", kill.len()));
        // The daemon may end before it has sent the response.
        let mut client = daemon.connect();
        client.write_all(format!("{head}{kill}").as_bytes()).expect("send the request");
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(code), "signal {signal}");
    }
}
