//! Standard streams of a process: packet mode, ownership, and reopening them by path.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::OFlag;
use nix::sys::stat::fstat;
use nix::unistd::pipe2;
use serde_json::{Value, json};

use crate::harness::{Daemon, Options, TIMEOUT, is_root, pid_of, procfs, skip_without_root, start_daemon, wait_until};

fn count_pipes(daemon: &Daemon) -> usize {
    procfs::descriptors(daemon.pid).iter().filter(|(_, target)| target.starts_with("pipe:")).count()
}

/// Sets `O_DIRECT` on stdout and stderr, so that each write becomes a packet (pipe(7)).
const SET_PACKET_MODE: &str = "import fcntl, os, sys
for fd in (1, 2):
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
";

#[test]
fn output_in_packet_mode_is_complete_and_its_pipes_are_closed() {
    let daemon = start_daemon();
    // Counted before the first run: the end of a run is reported shortly before its pipes are closed.
    let before = count_pipes(&daemon);
    let script = format!("{SET_PACKET_MODE}for n in range(200):\n    os.write(1 + n % 2, b'%d\\n' % n)\n");
    for _ in 0..10 {
        let run = daemon.run(&json!({"command": "python3", "args": ["-c", script]}));
        for (stream, parity) in [("stdout", 0), ("stderr", 1)] {
            let right: Vec<String> = (0..200).filter(|n| n % 2 == parity).map(|n| n.to_string()).collect();
            assert_eq!(run.lines(stream), right, "{stream}");
        }
    }
    wait_until(TIMEOUT, "the pipes are closed", || (count_pipes(&daemon) <= before).then_some(()));
}

#[test]
fn mixed_packet_and_plain_writes_lose_nothing_at_any_pipe_size() {
    let daemon = start_daemon();
    for size in [4096, 1 << 20] {
        // Alternates plain writes and packets of all lengths, faster than they are read.
        let script = format!(
            "{SET_PACKET_MODE}fcntl.fcntl(1, 1031, {size})
flags = fcntl.fcntl(1, fcntl.F_GETFL)
for n in range(3000):
    fcntl.fcntl(1, fcntl.F_SETFL, flags if n % 7 < 4 else flags & ~os.O_DIRECT)
    os.write(1, (b'%d:' % n).ljust(n * 131 % 4096, b'z') + b'\\n')
"
        );
        let pid = pid_of(&daemon.start_process(&json!({"command": "python3", "args": ["-c", script]})));
        assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
        let right: String = (0..3000).map(|n: usize| format!("{:z<1$}\n", format!("{n}:"), n * 131 % 4096)).collect();
        assert!(daemon.raw_output(pid, "stdout") == right.as_bytes(), "{size}");
    }
}

#[test]
fn a_process_can_reopen_its_streams_as_any_user() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    let users = [Value::Null, json!("root"), json!("4242:7"), json!({"uid": 1, "gid": 4243})];
    for user in users {
        let run = |script: &str| daemon.run(&json!({"command": "sh", "args": ["-ec", script], "user": user}));
        let ended = run("echo one >/dev/stderr; echo two >/dev/stdout; echo three >/proc/self/fd/2");
        assert_eq!(ended.code(), Some(0), "{user}: {}", ended.last);
        assert_eq!(
            (ended.lines("stdout"), ended.lines("stderr")),
            (vec!["two".into()], vec!["one".into(), "three".into()])
        );
        let ended = run("echo one | tee /dev/stderr; stat -L -c '%u %a' /dev/stdout; id -u");
        let lines = ended.lines("stdout");
        assert_eq!((&lines[0], &lines[1]), (&"one".to_owned(), &format!("{} 600", lines[2])), "{user}");
        assert_eq!(ended.lines("stderr"), ["one"], "{user}");
        let body =
            json!({"command": "sh", "args": ["-ec", "exec cat </dev/stdin"], "user": user, "stdin_mode": "pipe"});
        let pid = pid_of(&daemon.start_process(&body));
        daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"typed\n")).expect(204);
        daemon.post(&format!("/processes/{pid}/stdin/close"), &json!({})).expect(204);
        assert_eq!(
            (daemon.wait_for_end(pid)["exit_code"].clone(), daemon.lines(pid, "stdout")),
            (json!(0), vec!["typed".into()])
        );
    }
    // /dev/null keeps its owner and mode.
    let run = daemon.run(&json!({"command": "stat", "args": ["-c", "%u %g %a", "/dev/null"], "user": "root"}));
    assert_eq!(run.stdout(), "0 0 666");
}

#[test]
fn a_terminal_has_iutf8_and_belongs_to_its_user_and_group_tty() {
    let daemon = start_daemon();
    let script = "stty -a | tr ' ' '\\n' | grep iutf8; stat -c '%u:%G:%a' $(tty); id -u; \
                  echo out >/dev/stdout; echo err >/dev/stderr; cat </dev/stdin";
    let session = daemon.open_pty(&json!({"command": "sh", "args": ["-c", script]}));
    let mut terminal = daemon.watch(&session);
    terminal.expect("err");
    // With IUTF8, erase removes the whole character, not its last byte.
    terminal.type_in("a\u{fc}\x7fb\n\x04");
    terminal.wait_for_end();
    let text = terminal.text();
    let lines: Vec<&str> = text.lines().map(|line| line.trim_end_matches('\r')).collect();
    assert_eq!(lines[0], "iutf8", "{text:?}");
    // Without root, the user namespace has no group `tty`.
    if is_root() {
        assert_eq!(lines[1], format!("{}:tty:620", lines[2]), "{text:?}");
    }
    assert_eq!((lines[3], lines[4], lines.last()), ("out", "err", Some(&"ab")), "{text:?}");
}

/// A daemon whose stderr is `stderr`, with a main process that runs `script` as `tl-user`.
fn start_with_main_process(stderr: OwnedFd, script: &str) -> Daemon {
    Options::default().stderr(stderr).args(&["--", "sh", "-c", script]).start()
}

#[test]
fn a_main_process_can_reopen_an_inherited_pipe() {
    if skip_without_root() {
        return;
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    let script = "echo reopened >/dev/stderr; echo refused >/dev/stdout; echo uid $(id -u) >&2; exec sleep 5300";
    let daemon = start_with_main_process(writer, script);
    let lines = std::io::BufReader::new(std::fs::File::from(reader.try_clone().expect("a second descriptor")));
    let mut said = Vec::new();
    let uid = std::io::BufRead::lines(lines).find_map(|line| {
        said.push(line.expect("a line of UTF-8"));
        said.last()?.strip_prefix("uid ")?.parse::<u32>().ok()
    });
    assert!(said.contains(&"reopened".to_owned()), "{said:?}");
    let uid = uid.expect("a number");
    assert_eq!(fstat(&reader).expect("its owner").st_uid, uid);
    // stdout is a file and stdin is /dev/null: both keep their owner.
    wait_until(TIMEOUT, "the process runs", || daemon.pids_executing("sleep 5300").first().copied());
    assert_eq!(std::fs::metadata("/dev/null").expect("metadata of /dev/null").uid(), 0);
    let log = std::fs::metadata(daemon.log_file()).expect("the log");
    assert_eq!((log.uid(), log.gid()), (0, 0));
    assert!(!daemon.log().contains("refused"), "{}", daemon.log());
}

#[test]
fn foreign_and_named_pipes_keep_their_owner() {
    if skip_without_root() {
        return;
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).expect("a pipe");
    nix::unistd::fchown(&writer, Some(4711.into()), None).expect("change the owner");
    let daemon = start_with_main_process(writer, "exec sleep 5301");
    wait_until(TIMEOUT, "the process runs", || daemon.pids_executing("sleep 5301").first().copied());
    assert_eq!(fstat(&reader).expect("its owner").st_uid, 4711);
    drop(daemon);
    let dir = tempfile::tempdir().expect("create a directory");
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("create a FIFO");
    let fifo = std::fs::File::options().read(true).write(true).open(&path).expect("open the FIFO");
    let daemon = start_with_main_process(fifo.into(), "exec sleep 5302");
    wait_until(TIMEOUT, "the process runs", || daemon.pids_executing("sleep 5302").first().copied());
    assert_eq!(std::fs::metadata(&path).expect("the fifo").uid(), 0);
}

#[test]
fn a_session_is_refused_when_no_terminal_is_free() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    // A devpts with at most two terminals, in the mount namespace of the daemon.
    let script = "mount -t devpts -o newinstance,ptmxmode=0666,max=2 devpts /dev/pts &&
                  mount --bind /dev/pts/ptmx /dev/ptmx";
    let mounted = daemon.run(&json!({"command": "sh", "args": ["-c", script], "user": "root"}));
    assert_eq!(mounted.code(), Some(0), "{}", mounted.last);
    let sessions = [daemon.pty_sh("exec sleep 5310"), daemon.pty_sh("exec sleep 5311")];
    for _ in 0..3 {
        let refused = daemon.post("/pty", &json!({"command": "true"}));
        refused.expect_error(503, "OUT_OF_RESOURCES", "No space left on device");
    }
    assert_eq!(daemon.get("/pty").expect(200)["sessions"].as_array().map(Vec::len), Some(2));
    daemon.delete(&format!("/pty/{}", sessions[0].id)).expect(204);
    // The session is reported to have ended shortly before its terminal is closed.
    wait_until(TIMEOUT, "a terminal is free", || {
        (daemon.post("/pty", &json!({"command": "sleep", "args": ["5312"]})).status == 201).then_some(())
    });
}
