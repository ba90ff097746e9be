//! A disk of the logs that does not answer: it stops output, and nothing else.

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
use crate::harness::{Daemon, Options, TIMEOUT, bound_command, pid_of, skip_without_root, wait_until};

const SERVER: &str = include_str!("disk.py");

/// As long as an operation may take that does not wait for the disk. A busy machine takes its time.
const SOON: Duration = Duration::from_secs(5);

/// A file system whose disk can die. Its server is outside of the daemon's namespace: the end of the daemon does not end it.
struct Disk {
    dir: TempDir,
    server: Child,
    answers: BufReader<ChildStdout>,
}

impl Disk {
    fn mount() -> Disk {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = bound_command("python3");
        command.args(["-c", SERVER]).arg(dir.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server = command.spawn().expect("start python3");
        let answers = BufReader::new(server.stdout.take().expect("its stdout"));
        let mut disk = Disk { dir, server, answers };
        disk.says("mounted");
        disk
    }

    fn log_dir(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn says(&mut self, right: &str) {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("read its answer");
        assert_eq!(line.trim(), right);
    }

    fn set(&mut self, signal: Signal, right: &str) {
        kill(Pid::from_raw(self.server.id() as i32), signal).expect("signal it");
        self.says(right);
    }

    /// Dies; then the daemon writes a log, and waits for that.
    fn die(&mut self, daemon: &Daemon) {
        self.set(Signal::SIGUSR1, "dead");
        await_writer(daemon, &["fuse", "request"]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

/// An ext4 file system that can be frozen: whatever writes to it waits in the kernel, and not even SIGKILL ends that. So does a disk
/// that does not answer.
struct Frozen(TempDir);

impl Frozen {
    /// None where there is no loop device.
    fn mount() -> Option<Frozen> {
        let dir = tempfile::tempdir().expect("a directory");
        let (image, mounted) = (dir.path().join("image"), dir.path().join("mounted"));
        std::fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("make an image");
        std::fs::create_dir(&mounted).expect("a directory");
        let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
        let made = run(Command::new("mkfs.ext4").arg("-q").arg(&image));
        (made && run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mounted))).then(|| Frozen(dir))
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("mounted")
    }

    fn freeze(&self) -> Freeze<'_> {
        assert!(Command::new("fsfreeze").arg("-f").arg(self.path()).status().expect("fsfreeze").success());
        Freeze(self)
    }
}

/// Dropped, it thaws: before a daemon that could not end otherwise.
struct Freeze<'a>(&'a Frozen);

impl Drop for Freeze<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(self.0.path()).status();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Waits until the thread that writes logs waits in the kernel, in a function whose name has one of these words.
fn await_writer(daemon: &Daemon, words: &[&str]) {
    let tasks = format!("/proc/{}/task", daemon.pid);
    wait_until(TIMEOUT, "the writer of the logs waits for the disk", || {
        std::fs::read_dir(&tasks).expect("its threads").flatten().find(|task| {
            let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            read("comm") == "log-writer\n" && words.iter().any(|word| read("wchan").contains(word))
        })
    });
}

fn start(log_dir: &Path) -> Daemon {
    let log_dir = log_dir.display().to_string();
    Options::default().args(&["--log-dir", &log_dir, "--shutdown-grace", "0.5"]).start()
}

/// Writes a line now and then, for ever.
fn ticking(daemon: &Daemon) -> u64 {
    let pid = daemon.sh("while :; do echo tick; sleep 0.02; done");
    wait_until(TIMEOUT, "it writes", || (daemon.lines(pid, "stdout").len() > 3).then_some(()));
    pid
}

fn soon<T>(what: &str, job: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let result = job();
    assert!(begun.elapsed() < SOON, "{what}: {:?}", begun.elapsed());
    result
}

fn checked_service(listener: &TcpListener) -> Value {
    let port = listener.local_addr().expect("its address").port();
    json!({
        "command": "sleep", "args": ["600"], "name": "web",
        "restart": {"policy": "always", "initial_backoff_ms": 0},
        "health_check": {
            "type": "tcp", "port": port, "initial_delay_ms": 0, "interval_ms": 50, "timeout_ms": 2_000, "failure_threshold": 2,
        },
    })
}

/// All that does not need the disk goes on.
fn everything_else_goes_on(daemon: &Daemon, listener: TcpListener, service: u64) {
    let status = |pid: u64| daemon.info(pid)["status"].clone();
    let sleep = soon("start", || pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["600"]}))));
    soon("list", || assert!(daemon.list().iter().any(|info| info["pid"] == sleep)));
    soon("an exec that fails", || {
        daemon.post("/processes", &json!({"command": "no-such-program"})).expect_error(400, "COMMAND_NOT_FOUND", "")
    });
    soon("health", || assert_eq!(daemon.try_health(), Some(200)));
    // One without output, one whose line the writer has not come to, and one that writes more than is taken meanwhile.
    for script in ["exit 7", "echo hello; exit 7"] {
        let pid = daemon.sh(script);
        let info = soon(script, || {
            wait_until(TIMEOUT, "it has ended", || {
                let info = daemon.info(pid);
                (info["status"] == "exited").then_some(info)
            })
        });
        assert_eq!(info["exit_code"], 7, "{script}");
    }
    let flood = daemon.sh("yes");
    let stdin = pid_of(&daemon.start_process(&json!({"command": "cat", "stdin_mode": "pipe"})));
    soon("stdin", || daemon.request("POST", &format!("/processes/{stdin}/stdin"), Some(b"hello\n")).expect(204));
    soon("the end of stdin", || {
        daemon.request("POST", &format!("/processes/{stdin}/stdin/close"), Some(b"")).expect(204);
        wait_until(TIMEOUT, "it has ended", || (status(stdin) == "exited").then_some(()));
    });
    soon("signal", || daemon.post(&format!("/processes/{sleep}/signal"), &json!({"signal": 15})).expect(200));
    soon("reap", || wait_until(TIMEOUT, "it is reaped", || (status(sleep) == "signaled").then_some(())));
    soon("kill", || daemon.delete(&format!("/processes/{flood}")).expect(204));
    soon("the end of what writes", || {
        wait_until(TIMEOUT, "it has ended", || (status(flood) == "signaled").then_some(()));
    });
    soon("a check that fails", || {
        drop(listener);
        wait_until(TIMEOUT, "the service is started again", || {
            (daemon.info(service)["managed"]["restart_count"].as_u64() > Some(0)).then_some(())
        });
    });
    soon("stop", || daemon.delete(&format!("/processes/{service}")).expect(204));
    assert_eq!(daemon.info(service)["managed"]["status"], "stopped");
}

fn healthy_service(daemon: &Daemon) -> (TcpListener, u64) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let service = pid_of(&daemon.start_process(&checked_service(&listener)));
    wait_until(TIMEOUT, "it is healthy", || {
        (daemon.info(service)["managed"]["health_status"] == "healthy").then_some(())
    });
    (listener, service)
}

#[test]
fn a_disk_of_the_logs_that_lets_nothing_be_killed_stops_output_and_nothing_else() {
    let name = "a_disk_of_the_logs_that_lets_nothing_be_killed_stops_output_and_nothing_else";
    if skip_without_root() {
        return;
    }
    let Some(disk) = Frozen::mount() else { return eprintln!("{name}: skipped, there is no ext4 on a loop device") };
    let mut daemon = start(&disk.path().join("log"));
    ticking(&daemon);
    let (listener, service) = healthy_service(&daemon);
    let frozen = disk.freeze();
    await_writer(&daemon, &["percpu", "rwsem", "freeze", "sb_start"]);
    everything_else_goes_on(&daemon, listener, service);
    daemon.signal(Signal::SIGINT);
    // The shutdown ends every process. The kernel does not let the daemon itself end before its thread has come back.
    soon("shutdown", || daemon.wait_until_gone(TIMEOUT, "tick"));
    drop(frozen);
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130));
    assert!(!daemon.log().contains("the supervisor does not answer"), "{}", daemon.log());
}

#[test]
fn a_dead_disk_of_the_logs_stops_output_and_nothing_else() {
    if skip_without_root() {
        return;
    }
    let mut disk = Disk::mount();
    let mut daemon = start(&disk.log_dir());
    let ticking = ticking(&daemon);
    let (listener, service) = healthy_service(&daemon);
    disk.die(&daemon);
    everything_else_goes_on(&daemon, listener, service);
    let shown = daemon.info(ticking);
    assert_eq!(shown["status"], "running", "{shown}");
    daemon.signal(Signal::SIGINT);
    soon("shutdown", || assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(130)));
    assert!(!daemon.log().contains("the supervisor does not answer"), "{}", daemon.log());
}

#[test]
fn what_was_written_while_the_disk_did_not_answer_is_in_the_log_when_it_does() {
    if skip_without_root() {
        return;
    }
    let mut disk = Disk::mount();
    let daemon = start(&disk.log_dir());
    let ticking = ticking(&daemon);
    let mut follower = daemon.follow(ticking, "stdout");
    disk.die(&daemon);
    let short = daemon.sh("echo hello");
    // Far more than waits for the disk in memory.
    let long = daemon.sh("seq 1 300000");
    wait_until(TIMEOUT, "it has ended", || (daemon.info(short)["status"] == "exited").then_some(()));
    soon("kill", || daemon.delete(&format!("/processes/{ticking}")).expect(204));
    assert_eq!(daemon.info(long)["status"], "running", "it waits for its pipe");
    disk.set(Signal::SIGUSR2, "alive");
    assert_eq!(daemon.wait_for_end(long)["exit_code"], 0);
    let numbers: String = (1..=300_000).map(|number| format!("{number}\n")).collect();
    assert!(daemon.raw_output(long, "stdout") == numbers.as_bytes());
    let deadline = Instant::now() + TIMEOUT;
    wait_until(TIMEOUT, "its line is there", || (daemon.lines(short, "stdout") == ["hello"]).then_some(()));
    while follower.next_frame().is_some_and(|frame| frame.event != "eof") {
        assert!(Instant::now() < deadline, "a follower never ends");
    }
}

/// Writes more than the daemon takes while the disk is dead, until it takes no more.
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
    let mut disk = Disk::mount();
    let daemon = start(&disk.log_dir());
    ticking(&daemon);
    disk.die(&daemon);
    fill_batches(&daemon);
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
    let mut disk = Disk::mount();
    let daemon = start(&disk.log_dir());
    ticking(&daemon);
    disk.die(&daemon);
    fill_batches(&daemon);
    let (_, before) = daemon.threads_and_descriptors();
    for _ in 0..100 {
        let pid = pid_of(&daemon.start_process(&json!({"command": "true"})));
        wait_until(TIMEOUT, "it has ended", || (daemon.info(pid)["status"] == "exited").then_some(()));
    }
    // Fewer than one for each run: connections come and go.
    wait_until(SOON, "the pipes are closed", || (daemon.threads_and_descriptors().1 < before + 10).then_some(()));
}
