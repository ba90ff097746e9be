//! What a process inherits from the daemon, whatever the daemon was started with, and whichever process forks it: the
//! fork server, or the daemon itself.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use crate::harness::{Daemon, Options, pid_of, procfs, skip_without_root};

/// Becomes the daemon with a state that no command must see.
const DIRTY: &str = r#"
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
number = {"x86_64": (248, 250, 126), "aarch64": (217, 219, 91)}[os.uname().machine]
libc.syscall(number[1], 1, None)
assert libc.syscall(number[0], b"user", b"planted", b"x", 1, -3) > 0, ctypes.get_errno()
os.setpriority(os.PRIO_PROCESS, 0, 5)
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.sched_setaffinity(0, {0})
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM, 40})
for ignored in (signal.SIGHUP, signal.SIGCHLD, signal.SIGTTOU, 41, 64):
    signal.signal(ignored, signal.SIG_IGN)
header, sets = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
assert libc.syscall(number[2] - 1, header, sets) == 0
low = struct.unpack("6I", sets.raw)
# CAP_CHOWN and CAP_NET_RAW.
sets = struct.pack("6I", low[0], low[1], 1 | 1 << 13, low[3], low[4], low[5])
assert libc.syscall(number[2], header, sets) == 0
for capability in (0, 13):
    assert libc.prctl(47, 2, capability, 0, 0) == 0
# CAP_SYS_TIME leaves the bounding set.
assert libc.prctl(24, 25, 0, 0, 0) == 0
# A signal at the death of the parent, and SECBIT_NO_SETUID_FIXUP, with which a change of the user keeps capabilities.
assert libc.prctl(1, signal.SIGUSR1, 0, 0, 0) == 0
assert libc.prctl(28, 4, 0, 0, 0) == 0
# A seccomp filter that allows everything: BPF_RET with SECCOMP_RET_ALLOW.
instruction = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7fff0000))
assert libc.prctl(22, 2, struct.pack("HL", 1, ctypes.addressof(instruction)), 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"#;

/// Prints what a process can find out about itself, and whether it possesses the planted key.
const REPORT: &str = r#"
import ctypes, json, os, resource
libc = ctypes.CDLL(None, use_errno=True)
add, request, keyctl = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[os.uname().machine]
status = dict(line.rstrip("\n").split(":", 1) for line in open("/proc/self/status"))
report = {name: status[name].strip() for name in
          ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Umask",
           "Groups")}
report["securebits"] = libc.prctl(27, 0, 0, 0, 0)
report["namespaces"] = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
report["root"] = [os.stat("/").st_dev, os.stat("/").st_ino]
report["death signal"] = (lambda number: (libc.prctl(2, ctypes.byref(number), 0, 0, 0), number.value)[1])(ctypes.c_int(-1))
report["keeps capabilities"] = libc.prctl(7, 0, 0, 0, 0)
report["subreaper"] = (lambda number: (libc.prctl(37, ctypes.byref(number), 0, 0, 0), number.value)[1])(ctypes.c_int(-1))
report["nice"] = os.getpriority(os.PRIO_PROCESS, 0)
report["policy"] = os.sched_getscheduler(0)
report["affinity"] = sorted(os.sched_getaffinity(0))
report["core"] = resource.getrlimit(resource.RLIMIT_CORE)
report["descriptors"] = resource.getrlimit(resource.RLIMIT_NOFILE)
report["memory lock"] = resource.getrlimit(resource.RLIMIT_MEMLOCK)
report["oom"] = int(open("/proc/self/oom_score_adj").read())
report["open"] = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:3]
report["files"] = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) in (7, 8)]
report["directory"] = os.getcwd()
report["leads"] = [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()]
try:
    open("/dev/tty")
    report["terminal"] = True
except OSError:
    report["terminal"] = False
report["environment"] = sorted(os.environ)
report["found"] = [libc.syscall(keyctl, 10, -3, b"user", b"planted", 0), libc.syscall(request, b"user", b"planted", None, 0)]
report["kept"] = libc.syscall(add, b"user", b"own", b"x", 1, -3) > 0 and libc.syscall(request, b"user", b"own", None, 0) > 0
try:
    os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"-1")
    report["protects itself"] = os.geteuid() != 0
except OSError:
    report["protects itself"] = False
print(json.dumps(report))
"#;

/// The report of a process of this user. `padding` is one argument more; if it is long, the daemon forks the process
/// itself.
fn report(daemon: &Daemon, user: &str, padding: usize) -> Value {
    let longest = "x".repeat(100_000.min(padding));
    let padding = vec![json!(longest); padding.div_ceil(100_000)];
    let run = |command: &str, args: &[&str]| {
        let args: Vec<Value> = args.iter().map(|arg| json!(arg)).chain(padding.clone()).collect();
        daemon.run(&json!({"command": command, "args": args, "user": user, "working_dir": "/"}))
    };
    let mut report: Value = serde_json::from_str(&run("/usr/bin/python3", &["-c", REPORT]).stdout()).expect("a report");
    // Python handles and ignores some signals. This program does not; it complains about files with the other names.
    for line in run("/usr/bin/cat", &["/proc/self/status"]).lines("stdout") {
        let (field, value) = line.split_once(':').expect("a field");
        if field.starts_with("Sig") || field == "ShdPnd" {
            report[field] = json!(value.trim());
        }
    }
    report
}

/// Checks what is the same however the daemon was started.
fn check_clean(report: &Value, user: &str, what: &str) {
    let none = "0000000000000000";
    let is_root = user == "root";
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(report[set], none, "{what}: {set}");
    }
    for set in ["CapPrm", "CapEff"] {
        assert_eq!(report[set] == none, !is_root, "{what}: {set} is {}", report[set]);
    }
    let environment = ["HOME", "INVOCATION_ID", "LANG", "LOGNAME", "PATH", "SHELL", "USER"];
    for (field, expected) in [
        ("NoNewPrivs", json!("0")),
        ("SigBlk", json!(none)),
        ("SigIgn", json!(none)),
        ("SigCgt", json!(none)),
        ("SigPnd", json!(none)),
        ("ShdPnd", json!(none)),
        ("Umask", json!("0022")),
        ("death signal", json!(0)),
        ("keeps capabilities", json!(0)),
        ("subreaper", json!(0)),
        ("oom", json!(0)),
        ("open", json!([0, 1, 2])),
        ("files", json!([])),
        ("directory", json!("/")),
        ("leads", json!([true, true])),
        ("terminal", json!(false)),
        ("found", json!([-1, -1])),
        ("kept", json!(true)),
        ("protects itself", json!(false)),
    ] {
        assert_eq!(report[field], expected, "{what}: {field}");
    }
    // Root has those of /etc/group.
    let groups = report["Groups"].as_str().expect("groups");
    assert!(is_root || groups.is_empty() || groups == user, "{what}: {groups}");
    let names: Vec<&str> = report["environment"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
    assert!(environment.iter().all(|name| names.contains(name)), "{what}: {names:?}");
    // Python sets LC_CTYPE itself.
    assert!(names.iter().all(|name| environment.contains(name) || *name == "LC_CTYPE"), "{what}: {names:?}");
}

#[test]
fn a_process_inherits_nothing_but_what_is_documented() {
    if skip_without_root() {
        return;
    }
    // `set -- …` puts a program between the shell and the daemon.
    let prepare = format!(
        "umask 077; trap '' USR1 QUIT; exec 7</etc/hostname 8<>/dev/null; ulimit -c 4096; ulimit -S -n 200
         cd /usr; export SECRET=x; set -- /usr/bin/python3 -c '{DIRTY}' \"$@\""
    );
    let daemon = Options::default().prepare(&prepare).start();
    let of_daemon = |field: &str| json!(procfs::status(daemon.pid, field).expect(field));
    let bounding = of_daemon("CapBnd");
    let has_set_time = u64::from_str_radix(bounding.as_str().expect("a set"), 16).expect("a set") & 1 << 25 != 0;
    assert!(!has_set_time && of_daemon("Seccomp") == "2", "it was started with a smaller set and with a filter");
    let namespaces = fs::read_dir(format!("/proc/{}/ns", daemon.pid)).expect("its namespaces").map(|entry| {
        let entry = entry.expect("a namespace");
        let target = fs::read_link(entry.path()).expect("a link");
        (entry.file_name().to_string_lossy().into_owned(), json!(target.to_string_lossy()))
    });
    let namespaces = Value::Object(namespaces.collect());
    let root = fs::metadata(format!("/proc/{}/root/.", daemon.pid)).expect("its root");
    for (user, padding) in [("4242", 0), ("4242", 300_000), ("root", 0), ("root", 300_000)] {
        let (report, what) = (report(&daemon, user, padding), format!("{user}, {padding} bytes of arguments"));
        check_clean(&report, user, &what);
        for (field, expected) in [
            ("CapBnd", bounding.clone()),
            ("NoNewPrivs", of_daemon("NoNewPrivs")),
            ("Seccomp", of_daemon("Seccomp")),
            ("Seccomp_filters", of_daemon("Seccomp_filters")),
            // SECBIT_NO_SETUID_FIXUP
            ("securebits", json!(4)),
            ("namespaces", namespaces.clone()),
            ("root", json!([root.dev(), root.ino()])),
            ("nice", json!(5)),
            // SCHED_BATCH
            ("policy", json!(3)),
            ("affinity", json!([0])),
            ("core", json!([4096 * 512, 4096 * 512])),
        ] {
            assert_eq!(report[field], expected, "{what}: {field} is as the daemon was started with");
        }
        assert_eq!(report["descriptors"][0], 200, "{what}: the daemon has raised its own");
    }
}

#[test]
fn a_process_of_a_subreaper_inherits_nothing_but_what_is_documented() {
    if skip_without_root() {
        return;
    }
    let daemon = Options::subreaper().env("SECRET", "x").soft_limit("nofile", 300).start();
    for (user, padding) in [("4242", 0), ("4242", 300_000), ("root", 0), ("root", 300_000)] {
        let (report, what) = (report(&daemon, user, padding), format!("{user}, {padding} bytes of arguments"));
        check_clean(&report, user, &what);
        assert_eq!(report["descriptors"][0], 300, "{what}");
        for field in ["CapBnd", "Seccomp"] {
            assert_eq!(report[field], procfs::status(daemon.pid, field).expect(field), "{what}: {field}");
        }
        assert_eq!(report["securebits"], 0, "{what}");
    }
}

/// Prints the number of a key that it puts into its session keyring, or that it finds there.
const KEY: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None)
add, request, keyctl = {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)}[os.uname().machine]
if sys.argv[1] == "add":
    print(libc.syscall(add, b"user", b"of-a-command", b"secret", 6, -3) > 0, flush=True)
    sys.stdin.read()
else:
    print(libc.syscall(request, b"user", b"of-a-command", None, 0), libc.syscall(keyctl, 10, -3, b"user", b"of-a-command", 0))
"#;

/// A process possesses all keys in its session keyring, whoever has put them there.
#[test]
fn a_key_of_one_command_is_not_possessed_by_another() {
    if skip_without_root() {
        return;
    }
    // A container engine gives the first process a session keyring, which all that it forks would share.
    let join = "import ctypes, os, sys; number = {\"x86_64\": 250, \"aarch64\": 219}[os.uname().machine]; \
                ctypes.CDLL(None).syscall(number, 1, None); os.execvp(sys.argv[1], sys.argv[1:])";
    let daemon = Options::default().prepare(&format!("set -- /usr/bin/python3 -c '{join}' \"$@\"")).start();
    for owner in ["root", "tl-user"] {
        let add = json!({"command": "python3", "args": ["-c", KEY, "add"], "user": owner, "stdin_mode": "pipe"});
        let pid = pid_of(&daemon.start_process(&add));
        daemon.wait_for_stdout(pid, &["True"]);
        for user in ["root", "tl-user", "4242"] {
            let search = json!({"command": "python3", "args": ["-c", KEY, "search"], "user": user});
            assert_eq!(daemon.run(&search).stdout(), "-1 -1", "{user} looks for a key of {owner}");
        }
        daemon.delete(&format!("/processes/{pid}")).expect(204);
    }
}
