//! A log disk that does not respond stops the capture of output and nothing else.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::response::CompletedRun;
use crate::harness::{Daemon, Options, TIMEOUT, bound_command, pid_of, skip, skip_without_root, wait_until};

const SERVER: &str = include_str!("disk.py");

/// Time limit for an operation that does not wait for the disk; long enough for a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// A FUSE file system that can stop responding. Its server runs outside the namespace of the daemon, so it outlives the
/// daemon.
struct Disk {
    dir: TempDir,
    server: Child,
    answers: BufReader<ChildStdout>,
}

impl Disk {
    fn mount() -> Disk {
        let dir = tempfile::tempdir().expect("create a directory");
        let mut command = bound_command("python3");
        command.args(["-c", SERVER]).arg(dir.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = command.spawn().expect("start python3");
        let answers = BufReader::new(server.stdout.take().expect("stdout of the server"));
        let mut disk = Disk { dir, server, answers };
        disk.expect_answer("mounted");
        disk
    }

    fn log_dir(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn expect_answer(&mut self, right: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("read the answer of the server");
        assert_eq!(line.trim(), right);
    }

    /// Sends a signal to the server and waits for its answer.
    fn set(&mut self, signal: Signal, right: &str) {
        kill(Pid::from_raw(self.server.id() as i32), signal).expect("signal the server");
        self.expect_answer(right);
    }

    /// Makes the disk stop responding, and waits until the log writer of the daemon hangs in a write.
    fn die(&mut self, daemon: &Daemon) {
        self.set(Signal::SIGUSR1, "dead");
        wait_until_writer_hangs(daemon, &["fuse", "request"]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

/// An ext4 file system that can be frozen. A write to a frozen file system waits in the kernel and is not ended by
/// SIGKILL, like a write to a disk that does not respond.
struct FreezableDisk(TempDir);

impl FreezableDisk {
    /// None where no ext4 file system can be created or mounted on a loop device.
    fn mount() -> Option<FreezableDisk> {
        let dir = tempfile::tempdir().expect("create a directory");
        let (image, mounted) = (dir.path().join("image"), dir.path().join("mounted"));
        std::fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("create an image");
        std::fs::create_dir(&mounted).expect("create a directory");
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        (made && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted))).then(|| FreezableDisk(dir))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mounted")
    }

    fn freeze(&self) -> Freeze<'_> {
        assert!(Command::new("fsfreeze").arg("-f").arg(self.path()).status().expect("fsfreeze").success());
        Freeze(self)
    }
}

/// Keeps the file system frozen. Must be dropped before the daemon, which cannot end while a write hangs.
struct Freeze<'a>(&'a FreezableDisk);

impl Drop for Freeze<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(self.0.path()).status();
    }
}

impl Drop for FreezableDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Waits until the log writer waits in a kernel function whose name contains one of these words.
fn wait_until_writer_hangs(daemon: &Daemon, words: &[&str]) {
    let tasks = format!("/proc/{}/task", daemon.pid);
    wait_until(TIMEOUT, "the log writer waits for the disk", || {
        std::fs::read_dir(&tasks).expect("the threads").flatten().find(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            read("comm") == "log-writer\n" && words.iter().any(|word| read("wchan").contains(word))
        })
    });
}

fn start(log_dir: &Path) -> Daemon {
    let log_dir = log_dir.display().to_string();
    Options::default().args(&["--log-dir", &log_dir, "--shutdown-grace", "0.5"]).start()
}

/// Starts a process that writes a line every 20 ms without end; its PID.
fn start_ticking(daemon: &Daemon) -> u64 {
    let pid = daemon.sh("while :; do echo tick; sleep 0.02; done");
    wait_until(TIMEOUT, "the process writes", || (daemon.lines(pid, "stdout").len() > 3).then_some(()));
    pid
}

/// Runs `job` and fails if it takes longer than [`SOON`].
fn soon<T>(what: &str, job: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = job();
    assert!(begun.elapsed() < SOON, "{what}: {:?}", begun.elapsed());
    result
}

fn checked_service(listener: &TcpListener) -> Value {
    let port = listener.local_addr().expect("local address").port();
    json!({
        "command": "sleep", "args": ["600"], "name": "web",
        "restart": {"policy": "always", "initial_backoff_ms": 0},
        "health_check": {
            "type": "tcp", "port": port, "initial_delay_ms": 0, "interval_ms": 50, "timeout_ms": 2_000, "failure_threshold": 2,
        },
    })
}

/// Checks that everything that does not need the disk still works.
fn check_everything_else_works(daemon: &Daemon, listener: TcpListener, service: u64) {
    let status = |pid: u64| daemon.info(pid)["status"].clone();
    let sleep = soon("start", || pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["600"]}))));
    soon("list", || assert!(daemon.list().iter().any(|info| info["pid"] == sleep)));
    soon("an exec that fails", || {
        daemon.post("/processes", &json!({"command": "no-such-program"})).expect_error(400, "COMMAND_NOT_FOUND", "")
    });
    soon("health", || assert_eq!(daemon.try_health(), Some(200)));
    // A process without output, and one whose output cannot be written to the log yet.
    for script in ["exit 7", "echo hello; exit 7"] {
        let pid = daemon.sh(script);
        let info = soon(script, || {
            wait_until(TIMEOUT, "the process has ended", || {
                let info = daemon.info(pid);
                (info["status"] == "exited").then_some(info)
            })
        });
        assert_eq!(info["exit_code"], 7, "{script}");
    }
    // Writes more than the daemon buffers.
    let flood = daemon.sh("yes");
    let stdin = pid_of(&daemon.start_process(&json!({"command": "cat", "stdin_mode": "pipe"})));
    soon("stdin", || daemon.request("POST", &format!("/processes/{stdin}/stdin"), Some(b"hello\n")).expect(204));
    soon("the end of stdin", || {
        daemon.request("POST", &format!("/processes/{stdin}/stdin/close"), Some(b"")).expect(204);
        wait_until(TIMEOUT, "the process has ended", || (status(stdin) == "exited").then_some(()));
    });
    soon("signal", || daemon.post(&format!("/processes/{sleep}/signal"), &json!({"signal": 15})).expect(200));
    soon("reap", || wait_until(TIMEOUT, "the process is reaped", || (status(sleep) == "signaled").then_some(())));
    soon("kill", || daemon.delete(&format!("/processes/{flood}")).expect(204));
    soon("the end of a process that writes", || {
        wait_until(TIMEOUT, "the process has ended", || (status(flood) == "signaled").then_some(()));
    });
    soon("a failed health check", || {
        drop(listener);
        wait_until(TIMEOUT, "the service is restarted", || {
            (daemon.info(service)["managed"]["restart_count"].as_u64() > Some(0)).then_some(())
        });
    });
    soon("stop", || daemon.delete(&format!("/processes/{service}")).expect(204));
    assert_eq!(daemon.info(service)["managed"]["status"], "stopped");
}

/// Starts a managed process and waits until it is healthy; the port that is probed, and the PID.
fn start_healthy_service(daemon: &Daemon) -> (TcpListener, u64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let service = pid_of(&daemon.start_process(&checked_service(&listener)));
    wait_until(TIMEOUT, "the service is healthy", || {
        (daemon.info(service)["managed"]["health_status"] == "healthy").then_some(())
    });
    (listener, service)
}

#[test]
fn a_frozen_log_disk_stops_output_and_nothing_else() {
    if skip_without_root() {
        return;
    }
    let Some(disk) = FreezableDisk::mount() else {
        return skip("ext4 on a loop device");
    };
    let mut daemon = start(&disk.path().join("log"));
    start_ticking(&daemon);
    let (listener, service) = start_healthy_service(&daemon);
    let frozen = disk.freeze();
    wait_until_writer_hangs(&daemon, &["percpu", "rwsem", "freeze", "sb_start"]);
    check_everything_else_works(&daemon, listener, service);
    daemon.signal(Signal::SIGINT);
    // The shutdown ends every process. The daemon itself can end only after the hanging write of its thread returns.
    soon("shutdown", || daemon.wait_until_gone(TIMEOUT, "tick"));
    drop(frozen);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130));
    assert!(!daemon.log().contains("the supervisor does not answer"), "{}", daemon.log());
}

#[test]
fn a_log_disk_that_does_not_respond_stops_output_and_nothing_else() {
    if skip_without_root() {
        return;
    }
    let mut disk = Disk::mount();
    let mut daemon = start(&disk.log_dir());
    let ticking = start_ticking(&daemon);
    let (listener, service) = start_healthy_service(&daemon);
    disk.die(&daemon);
    check_everything_else_works(&daemon, listener, service);
    let shown = daemon.info(ticking);
    assert_eq!(shown["status"], "running", "{shown}");
    daemon.signal(Signal::SIGINT);
    soon("shutdown", || assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130)));
    assert!(!daemon.log().contains("the supervisor does not answer"), "{}", daemon.log());
}

#[test]
fn output_written_while_the_log_disk_does_not_respond_is_logged_once_it_responds() {
    if skip_without_root() {
        return;
    }
    let mut disk = Disk::mount();
    let daemon = start(&disk.log_dir());
    let ticking = start_ticking(&daemon);
    let mut follower = daemon.follow(ticking, "stdout");
    disk.die(&daemon);
    let short = daemon.sh("echo hello");
    // Far more than the daemon buffers while the disk does not respond.
    let long = daemon.sh("seq 1 300000");
    wait_until(TIMEOUT, "the process has ended", || (daemon.info(short)["status"] == "exited").then_some(()));
    soon("kill", || daemon.delete(&format!("/processes/{ticking}")).expect(204));
    assert_eq!(daemon.info(long)["status"], "running", "it waits until the daemon reads its pipe");
    disk.set(Signal::SIGUSR2, "alive");
    assert_eq!(daemon.wait_for_end(long)["exit_code"], 0);
    let numbers: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert!(daemon.raw_output(long, "stdout") == numbers.as_bytes());
    let deadline = Instant::now() + TIMEOUT;
    wait_until(TIMEOUT, "the line is in the log", || (daemon.lines(short, "stdout") == ["hello"]).then_some(()));
    while follower.next_frame().is_some_and(|frame| frame.event != "eof") {
        assert!(Instant::now() < deadline, "the follow does not end");
    }
}

/// A daemon whose log disk does not respond, and which reads no more output because all batches are full.
fn daemon_with_full_batches() -> (Disk, Daemon) {
    let mut disk = Disk::mount();
    let daemon = start(&disk.log_dir());
    start_ticking(&daemon);
    disk.die(&daemon);
    fill_batches(&daemon);
    (disk, daemon)
}

/// Starts a program that writes to stdout, and waits until the daemon reads no more of it. The log disk must not respond.
fn fill_batches(daemon: &Daemon) {
    daemon.sh("exec yes");
    let yes = wait_until(TIMEOUT, "it runs", || daemon.pids_executing("yes").first().copied());
    let written = || std::fs::read_to_string(format!("/proc/{yes}/io")).expect("what it has written");
    wait_until(TIMEOUT, "the batches are full", || {
        let before = written();
        std::thread::sleep(Duration::from_millis(300));
        (written() == before).then_some(())
    });
}

#[test]
fn output_that_cannot_be_read_while_the_disk_is_dead_comes_before_the_end_of_its_process() {
    if skip_without_root() {
        return;
    }
    let (mut disk, daemon) = daemon_with_full_batches();
    let script = "echo result; echo error >&2; printf unfinished; exit 3";
    let run = daemon.open_run(&json!({"command": "sh", "args": ["-c", script]}));
    let process = daemon.sh(script);
    let follower = daemon.follow(process, "stdout");
    let restarted = pid_of(&daemon.start_process(&json!({
        "command": "sh", "args": ["-c", "echo first; echo second"], "name": "again",
        "restart": {"policy": "always", "initial_backoff_ms": 0, "max_restarts": 2},
    })));
    soon("the end of a run", || {
        wait_until(TIMEOUT, "it has ended", || (daemon.info(process)["status"] == "exited").then_some(()));
    });
    assert_eq!(daemon.info(process)["exit_code"], 3);
    wait_until(TIMEOUT, "it is started for the last time", || {
        (daemon.info(restarted)["managed"]["restart_count"] == 2).then_some(())
    });
    disk.set(Signal::SIGUSR2, "alive");
    assert_eq!(follower.all_lines(), ["result", "unfinished"]);
    assert_eq!(daemon.lines(process, "stderr"), ["error"]);
    let run = CompletedRun::collect(run);
    assert_eq!((run.code(), run.lines("stdout")), (Some(3), vec!["result".to_owned(), "unfinished".to_owned()]));
    let lines = daemon.follow(restarted, "stdout").all_lines();
    assert_eq!(lines, ["first", "second"].repeat(3));
}

#[test]
fn runs_without_output_hold_no_descriptors_while_the_disk_is_dead() {
    if skip_without_root() {
        return;
    }
    let (_disk, daemon) = daemon_with_full_batches();
    let (_, before) = daemon.threads_and_descriptors();
    for _ in 0..100 {
        let pid = pid_of(&daemon.start_process(&json!({"command": "true"})));
        wait_until(TIMEOUT, "it has ended", || (daemon.info(pid)["status"] == "exited").then_some(()));
    }
    // Fewer than one for each run: connections come and go.
    wait_until(TIMEOUT, "the pipes are closed", || (daemon.threads_and_descriptors().1 < before + 10).then_some(()));
}
