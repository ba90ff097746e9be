//! Figures of the daemon as a supervisor: its own start, restarts after a crash, and health checks.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::beacon::Reports;
use crate::bench::{Bench, milliseconds};
use crate::floors::{as_user, end};
use crate::harness::options::program;
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Options, TIMEOUT, pid_of, procfs, start_daemon, start_daemon_with, wait_until};
use crate::report::{Goal, Rounds};

/// The body that starts a managed process, which restarts at once.
fn service(name: &str, command: &[&str], check: Value) -> Value {
    let restart = json!({"policy": "always", "initial_backoff_ms": 0});
    let (command, args) = (command[0], &command[1..]);
    json!({"command": command, "args": args, "name": name, "restart": restart, "health_check": check})
}

/// Kills a process whose command line contains `word`; the time until `is_up` returns, in milliseconds.
fn crash(daemon: &Daemon, word: &str, is_up: impl FnOnce()) -> f64 {
    let pid = wait_until(TIMEOUT, "the process is up", || daemon.pids_matching(word).first().copied());
    milliseconds(|| {
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill it");
        is_up();
    })
}

/// Crashes a managed process four times: after five short runs in a row, a restart waits.
fn crash_beacon(daemon: &Daemon, reports: &Reports, beacon: &str, name: &str) -> Vec<f64> {
    let word = format!("{} {name} ", reports.path.display());
    let path = reports.path.display().to_string();
    daemon.start_process(&service(name, &[beacon, &path, name], json!(null)));
    reports.wait();
    let times = (0..4).map(|_| crash(daemon, &word, || reports.wait())).collect();
    daemon.delete(&format!("/processes/{name}")).expect(204);
    times
}

/// The same for a shell that writes a line; the time ends when a follower has got that line.
fn crash_shell(daemon: &Daemon, name: &str, seconds: usize) -> Vec<f64> {
    let word = format!("sleep {seconds}");
    let info = daemon.start_process(&service(name, &["sh", "-c", &format!("echo $$; exec {word}")], json!(null)));
    let mut frames = daemon.follow(pid_of(&info), "stdout");
    frames.next_frame().expect("the process is up");
    let times = (0..4).map(|_| crash(daemon, &word, || drop(frames.next_frame().expect("it is up again")))).collect();
    daemon.delete(&format!("/processes/{name}")).expect(204);
    times
}

/// Time from the kill of a process to the first action of its next run.
pub fn crash_to_running(bench: &mut Bench) {
    let daemon = start_daemon();
    let reports = bench.programs.reports("crashes");
    let beacon = bench.programs.beacon.display().to_string();
    let services = bench.count(20, 1);
    let mut number = 0;
    let mut name = || {
        number += 1;
        format!("s{number}")
    };
    let floor = || {
        // As before each crash of the daemon's processes.
        daemon.pids_matching("no process");
        let mut child = None;
        let time = milliseconds(|| {
            child = Some(as_user(&beacon).arg(&reports.path).spawn().expect("start it"));
            reports.wait();
        });
        child.into_iter().for_each(end);
        time
    };
    let pair = bench.rounds(
        || (0..services).flat_map(|_| crash_beacon(&daemon, &reports, &beacon, &name())).collect(),
        || (0..services * 4).map(|_| floor()).collect(),
    );
    let goals = [(50.0, Some(Goal::RatioAtMost(1.5))), (99.0, None)];
    bench.report.latency("crash to running again", "ms", &pair, "fork, setuid, exec", &goals);

    let mut seconds = 9_100;
    let mut shell = || {
        seconds += 1;
        crash_shell(&daemon, &format!("shell{seconds}"), seconds)
    };
    let echo = || {
        let mut child: Option<Child> = None;
        let time = milliseconds(|| {
            let mut shell = Command::new("sh");
            shell.args(["-c", "echo $$; exec sleep 9000"]).stdout(Stdio::piped());
            let child = child.insert(shell.spawn().expect("run it"));
            child.stdout.take().expect("stdout of the process").read_exact(&mut [0]).expect("a byte of output");
        });
        child.into_iter().for_each(end);
        time
    };
    let services = bench.count(10, 1);
    let pair =
        bench.rounds(|| (0..services).flat_map(|_| shell()).collect(), || (0..services * 4).map(|_| echo()).collect());
    bench.report.latency("crash of a shell to its first line", "ms", &pair, "spawn of the shell", &[(50.0, None)]);
}

/// CPU time, punctuality and memory of 1,000 health checks.
pub fn managed(bench: &mut Bench) {
    let count = bench.count(1_000, 4);
    let daemon = start_daemon_with(&["--max-processes", "1500"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let port = listener.local_addr().expect("local address").port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    // The probes of one process are timed.
    let timed_listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let its_port = timed_listener.local_addr().expect("local address").port();
    let memory = || procfs::kilobytes(daemon.pid, "VmRSS") as f64;
    let before = memory();
    for n in 0..count {
        let port = if n == count / 2 { its_port } else { port };
        let check = json!({"type": "tcp", "port": port, "initial_delay_ms": 1_000});
        daemon.start_process(&service(&format!("s{n}"), &["/bin/sleep", "9000"], check));
    }
    let threads = procfs::threads(daemon.pid).len();
    let probe = || timed_listener.accept().map(|_| Instant::now()).expect("a probe");
    // Skips the probes that are already in the queue of the listener.
    let (mut begun, mut next) = (probe(), probe());
    while next - begun < Duration::from_millis(500) {
        (begun, next) = (next, probe());
    }
    let (begun, mut last) = (next, Duration::ZERO);
    let cpu = procfs::cpu_time(daemon.pid);
    let mut offsets = vec![0.0];
    for n in 1..=bench.count(20, 1) {
        last = probe() - begun;
        offsets.push(last.as_secs_f64() - n as f64);
    }
    let spread = offsets.iter().fold(0.0, |most: f64, one| most.max(*one))
        - offsets.iter().fold(0.0, |least: f64, one| least.min(*one));
    let cpu = procfs::cpu_time(daemon.pid) - cpu;
    let report = &mut bench.report;
    let share = 100.0 * cpu.as_secs_f64() / last.as_secs_f64();
    report.value("1,000 TCP checks a second, share of a core", "%", share, None);
    report.value("jitter of 20 probes, latest - earliest", "ms", spread * 1e3, None);
    report.value("threads of the daemon meanwhile", "", threads as f64, None);
    let each = (memory() - before) / count as f64;
    report.value("memory per managed process with a check", "KiB", each, None);
}

/// Starts a daemon beside this program, in the directory `state`, and ends it; the time until it has answered.
fn start_and_ask(state: &std::path::Path) -> f64 {
    let port = TcpListener::bind("127.0.0.1:0").expect("bind a port").local_addr().expect("local address");
    std::fs::create_dir(state).expect("create a directory");
    let mut command = Command::new(program());
    command.args(["--listen", &port.to_string(), "--log-level", "error"]).stdin(Stdio::null());
    command.arg("--run-dir").arg(state.join("run")).arg("--log-dir").arg(state.join("log"));
    let begun = Instant::now();
    let child = command.spawn().expect("start it");
    let mut answered = false;
    while !answered {
        assert!(begun.elapsed() < Duration::from_secs(10), "no answer");
        answered = TcpStream::connect(port).ok().is_some_and(|socket| {
            ResponseStream::try_send(socket, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .is_some()
        });
    }
    let time = begun.elapsed().as_secs_f64() * 1e3;
    end(child);
    time
}

/// Time from the start of the daemon to its first response.
pub fn start_up(bench: &mut Bench) {
    let dir = bench.programs.directory("start-up");
    let mut number = 0;
    let ours = || {
        number += 1;
        start_and_ask(&dir.join(number.to_string()))
    };
    let floor = || {
        milliseconds(|| {
            assert!(Command::new(&bench.programs.nothing).status().expect("run it").success());
        })
    };
    let pair = bench.latencies(bench.count(20, 2), ours, floor);
    let (name, floor) = ("start to first answer", "exec of a static program");
    let goals = [(50.0, Some(Goal::AtMost(2.5))), (99.0, None)];
    bench.report.latency(name, "ms", &pair, floor, &goals);
    let of_floor = Some((floor, &pair.floor));
    bench.report.percentile(&format!("{name}, best"), "ms", &pair.ours, 0.0, of_floor, None);
    let mut namespaces = Rounds::default();
    let count = bench.options.rounds;
    (0..count).for_each(|_| namespaces.push(vec![milliseconds(|| drop(Options::default().start()))]));
    bench.report.percentile("a namespace made, used and removed", "ms", &namespaces, 50.0, None, None);
    let size = std::fs::metadata(program()).expect("the program").len();
    bench.report.value("size of the stripped program", "MB", size as f64 / 1e6, Some(Goal::AtMost(3.0)));
}
