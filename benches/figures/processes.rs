//! Figures of the daemon as a supervisor: memory, restarts, health checks, and its own start.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::response::ResponseStream;
use crate::harness::{Options, TIMEOUT, pid_of, procfs, start_daemon, start_daemon_with, wait_until};
use crate::measure::{percentiles, row, spawn_true, timed};
use crate::requests::Client;

/// Memory of the daemon: idle, per process, and after many runs.
pub fn memory() {
    let daemon = start_daemon();
    let now = || procfs::kilobytes(daemon.pid, "VmRSS") as f64;
    let idle = now();
    row("memory idle, MB", idle / 1e3, None);
    let pids: Vec<u64> = (0..200).map(|_| daemon.sh("exec sleep 9000")).collect();
    row("memory per running process, kB", (now() - idle) / 200.0, None);
    for pid in pids {
        daemon.delete(&format!("/processes/{pid}")).expect(204);
    }
    for _ in 0..300 {
        daemon.run_sh("echo x");
    }
    row("memory after 500 ended, MB", now() / 1e3, None);
    let before = now();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::run_true(&daemon)).collect();
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| (0..2_500).for_each(|_| client.send()));
        }
    });
    row("memory growth over 20,000 runs, MB", (now() - before) / 1e3, None);
}

/// The body that starts a managed process.
fn service(name: &str, script: &str, check: Value) -> Value {
    let restart = json!({"policy": "always", "initial_backoff_ms": 0});
    json!({"command": "sh", "args": ["-c", script], "name": name, "restart": restart, "health_check": check})
}

/// Time from the kill of a run to the first output of the next one, including the start of its shell. The floor is the
/// start of a shell that writes a line.
pub fn crash_to_running() {
    let daemon = start_daemon();
    let mut times = Vec::new();
    // Four crashes each: after five short runs in a row, a restart waits.
    for n in 0..50 {
        let word = format!("sleep {}", 9_100 + n);
        let info = daemon.start_process(&service(&format!("s{n}"), &format!("echo $$; exec {word}"), json!(null)));
        let mut frames = daemon.follow(pid_of(&info), "stdout");
        frames.next_frame().expect("the process is up");
        for _ in 0..4 {
            let pid = wait_until(TIMEOUT, "the process is up", || daemon.pids_matching(&word).first().copied());
            let pid = Pid::from_raw(pid);
            let begun = Instant::now();
            kill(pid, Signal::SIGKILL).expect("kill it");
            frames.next_frame().expect("the process is up again");
            times.push(begun.elapsed());
        }
        daemon.delete(&format!("/processes/s{n}")).expect(204);
    }
    let echo = || {
        let mut child = Command::new("sh").args(["-c", "echo $$; exec sleep 9000"]).stdout(Stdio::piped()).spawn();
        let child = child.as_mut().expect("run it");
        child.stdout.take().expect("stdout of the process").read_exact(&mut [0]).expect("a byte of output");
        child.kill().and_then(|()| child.wait()).expect("end the process");
    };
    row("crash to running again, p50, ms", percentiles(times)[0], Some(percentiles(timed(200, echo))[0]));
}

/// CPU time, punctuality and memory of 1,000 health checks.
pub fn managed() {
    const COUNT: usize = 1_000;
    let daemon = start_daemon_with(&["--max-processes", "1500"]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let port = listener.local_addr().expect("local address").port();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    // The probes of one process are timed.
    let timed_listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let its_port = timed_listener.local_addr().expect("local address").port();
    let memory = || procfs::kilobytes(daemon.pid, "VmRSS") as f64;
    let before = memory();
    for n in 0..COUNT {
        let port = if n == COUNT / 2 { its_port } else { port };
        let check = json!({"type": "tcp", "port": port, "initial_delay_ms": 1_000});
        daemon.start_process(&service(&format!("s{n}"), "exec sleep 9000", check));
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
    for n in 1..=20 {
        last = probe() - begun;
        offsets.push(last.as_secs_f64() - f64::from(n));
    }
    let spread = offsets.iter().fold(0.0, |most: f64, one| most.max(*one))
        - offsets.iter().fold(0.0, |least: f64, one| least.min(*one));
    let cpu = procfs::cpu_time(daemon.pid) - cpu;
    row("1,000 TCP checks a second, % of a core", 100.0 * cpu.as_secs_f64() / last.as_secs_f64(), None);
    row("jitter of 20 probes (latest - earliest), ms", spread * 1e3, None);
    row("threads of the daemon meanwhile", threads as f64, None);
    row("memory per managed process with a check, kB", (memory() - before) / COUNT as f64, None);
}

/// Time from the start of the daemon to its first response; the floor is [`spawn_true`].
pub fn start_up() {
    let dir = tempfile::tempdir().expect("create a directory");
    let mut best = Duration::MAX;
    for attempt in 0..20 {
        let port = TcpListener::bind("127.0.0.1:0").expect("bind a port").local_addr().expect("local address");
        let state = dir.path().join(attempt.to_string());
        std::fs::create_dir(&state).expect("create a directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tl-init"));
        command.args(["--listen", &port.to_string(), "--log-level", "error"]).stdin(Stdio::null());
        command.arg("--run-dir").arg(state.join("run")).arg("--log-dir").arg(state.join("log"));
        let begun = Instant::now();
        let mut child = command.spawn().expect("start it");
        let mut answered = false;
        while !answered {
            assert!(begun.elapsed() < Duration::from_secs(10), "no answer");
            answered = TcpStream::connect(port).ok().is_some_and(|socket| {
                ResponseStream::try_send(socket, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    .is_some()
            });
        }
        best = best.min(begun.elapsed());
        child.kill().expect("end the process");
        child.wait().expect("wait for the process");
    }
    let floor = timed(200, spawn_true).into_iter().min().unwrap_or_default();
    row("start to first answer, best of 20, ms", best.as_secs_f64() * 1e3, Some(floor.as_secs_f64() * 1e3));
    let begun = Instant::now();
    drop(Options::default().start());
    row("a namespace made, used and removed, ms", begun.elapsed().as_secs_f64() * 1e3, None);
}
