//! Health checks of managed processes, also while the daemon or the machine is paused.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Daemon, TIMEOUT, pid_of, procfs, reserve_closed_port, start_daemon, wait_until};

/// A service inside the test that answers probes as the test sets it, independently of the supervised process.
struct Service {
    port: u16,
    state: Arc<AtomicU8>,
    seen: Arc<Mutex<Vec<Instant>>>,
}

const HEALTHY: u8 = 0;
const UNHEALTHY: u8 = 1;
/// Accepts connections and does not answer.
const FROZEN: u8 = 2;

impl Service {
    fn new() -> Service {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
        let port = listener.local_addr().expect("local address").port();
        let (state, seen) = (Arc::new(AtomicU8::new(HEALTHY)), Arc::new(Mutex::new(Vec::new())));
        let (to_answer, times) = (Arc::clone(&state), Arc::clone(&seen));
        // The thread ends with the process of the test.
        std::thread::spawn(move || {
            let mut frozen = Vec::new();
            for stream in listener.incoming().flatten() {
                times.lock().expect("the lock").push(Instant::now());
                match to_answer.load(Ordering::SeqCst) {
                    FROZEN => frozen.push(stream),
                    state => answer_probe(stream, state),
                }
            }
        });
        Service { port, state, seen }
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
    }

    fn probes(&self) -> usize {
        self.seen.lock().expect("the lock").len()
    }

    fn check(&self, kind: &str, interval: u64, threshold: u64) -> Value {
        json!({
            "type": kind, "port": self.port, "initial_delay_ms": 0, "interval_ms": interval,
            // A long timeout, so that a busy machine does not fail probes.
            "timeout_ms": 20_000, "failure_threshold": threshold,
        })
    }
}

fn answer_probe(stream: TcpStream, state: u8) {
    let mut lines = BufReader::new(&stream).lines();
    // A TCP probe sends nothing.
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let words = if state == HEALTHY { "HTTP/1.0 204 So\r\n\r\n" } else { "HTTP/1.1 500 No\r\n\r\n" };
    let _ = (&stream).write_all(words.as_bytes());
}

fn start_checked(daemon: &Daemon, name: &str, policy: &str, script: &str, check: &Value) -> Value {
    daemon.start_process(&json!({
        "command": "sh", "args": ["-c", script], "name": name, "stop_grace_ms": 200, "health_check": check,
        // A long backoff, so that a busy machine does not pass it between two looks at the state.
        "restart": {"policy": policy, "initial_backoff_ms": 5_000},
    }))
}

fn managed_info(daemon: &Daemon, name: &str) -> Value {
    daemon.get(&format!("/processes/{name}")).expect(200)["managed"].take()
}

fn wait_for_health(daemon: &Daemon, name: &str, status: &str) -> Value {
    wait_until(TIMEOUT, &format!("{name} is {status}"), || {
        let managed = managed_info(daemon, name);
        (managed["health_status"] == status).then_some(managed)
    })
}

#[test]
fn an_unhealthy_process_is_stopped_and_restarted() {
    let (daemon, service) = (start_daemon(), Service::new());
    // The process ignores SIGTERM and uses its whole grace.
    let script = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let first = start_checked(&daemon, "web", "on_failure", script, &service.check("http", 100, 3));
    daemon.wait_for_stdout(pid_of(&first), &["up"]);
    assert_eq!(first["managed"]["health_check"]["path"], "/");
    wait_for_health(&daemon, "web", "healthy");
    let begun = Instant::now();
    service.set(UNHEALTHY);
    let waiting = wait_until(TIMEOUT, "the process is stopped because it is unhealthy", || {
        let info = daemon.get("/processes/web").expect(200);
        (info["managed"]["status"] == "backing_off").then_some(info)
    });
    assert_eq!((&waiting["signal"], &waiting["managed"]["health_status"]), (&json!(9), &json!("unhealthy")));
    assert_eq!(waiting["managed"]["consecutive_health_failures"], 3);
    let error = waiting["managed"]["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("500"), "{waiting}");
    service.set(HEALTHY);
    wait_until(TIMEOUT, "the process was restarted", || {
        (managed_info(&daemon, "web")["restart_count"] == 1).then_some(())
    });
    // Threshold × interval + grace + backoff is 5.5 s; the margin is for a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // The first failure may come at once. Times are rounded to milliseconds.
    assert!(begun.elapsed() >= Duration::from_millis(5_380), "{:?}", begun.elapsed());
    wait_for_health(&daemon, "web", "healthy");
    assert_ne!(daemon.get("/processes/web").expect(200)["pid"], first["pid"]);
}

#[test]
fn an_unhealthy_process_with_policy_never_keeps_running_and_can_recover() {
    let (daemon, service) = (start_daemon(), Service::new());
    let first = start_checked(&daemon, "web", "never", "exec sleep 4901", &service.check("http", 50, 2));
    wait_for_health(&daemon, "web", "healthy");
    service.set(UNHEALTHY);
    let sick = wait_for_health(&daemon, "web", "unhealthy");
    assert!(sick["last_error"].is_string() && sick["consecutive_health_failures"].as_u64() >= Some(2), "{sick}");
    let probed = service.probes();
    wait_until(TIMEOUT, "probes continue", || (service.probes() > probed + 3).then_some(()));
    service.set(HEALTHY);
    let well = wait_for_health(&daemon, "web", "healthy");
    assert_eq!(well["consecutive_health_failures"], 0);
    let now = daemon.get("/processes/web").expect(200);
    assert_eq!((&now["pid"], &now["managed"]["restart_count"]), (&first["pid"], &json!(0)));
}

#[test]
fn restarts_after_refused_probes_stop_at_max_restarts() {
    let daemon = start_daemon();
    let (port, _held) = reserve_closed_port();
    let info = daemon.start_process(&json!({
        "command": "sleep", "args": ["4902"], "name": "gone",
        "restart": {"policy": "on_failure", "max_restarts": 1, "initial_backoff_ms": 10},
        "health_check": {"type": "tcp", "port": port, "initial_delay_ms": 10, "interval_ms": 20, "failure_threshold": 2},
    }));
    let ended = daemon.get(&format!("/processes/{}/wait?timeout=50", pid_of(&info))).expect(200);
    let managed = &ended["managed"];
    assert_eq!((&managed["status"], &managed["restart_count"]), (&json!("stopped"), &json!(1)), "{ended}");
    assert_eq!((&ended["signal"], &managed["health_status"]), (&json!(15), &json!("unhealthy")));
    let error = managed["last_error"].as_str().unwrap_or_default();
    assert!(error.contains("1 restarts") && error.contains("unhealthy"), "{error}");
}

/// Stops the daemon for longer than any interval, timeout, grace and backoff of the test. With `service_too` the probed
/// service pauses as well, as on a paused machine.
fn check_pause(service_too: bool) {
    let (daemon, service) = (start_daemon(), Service::new());
    let mut check = service.check("http", 100, 2);
    check["timeout_ms"] = json!(3_000);
    let web = start_checked(&daemon, "web", "on_failure", "exec sleep 4911", &check);
    wait_for_health(&daemon, "web", "healthy");
    // Two more processes: one ignores SIGTERM, one waits for its restart.
    let deaf = daemon.start_process(&json!({
        "command": "sh", "args": ["-c", "trap '' TERM; echo up; while :; do sleep 4912; done"], "name": "deaf",
        "stop_grace_ms": 4_000, "restart": {"policy": "never"},
    }));
    daemon.wait_for_stdout(pid_of(&deaf), &["up"]);
    // DELETE answers after 2 s.
    daemon.delete("/processes/deaf").expect(204);
    let crash =
        json!({"command": "false", "name": "crash", "restart": {"policy": "always", "initial_backoff_ms": 3_000}});
    daemon.start_process(&crash);
    wait_until(TIMEOUT, "the process is backing off", || {
        (managed_info(&daemon, "crash")["status"] == "backing_off").then_some(())
    });
    if service_too {
        service.set(FROZEN);
    }
    daemon.signal(Signal::SIGSTOP);
    std::thread::sleep(Duration::from_millis(3_500));
    service.set(HEALTHY);
    daemon.signal(Signal::SIGCONT);
    let probed = service.probes();
    // The backoff expires once, not once for each interval that passed.
    wait_until(TIMEOUT, "the process was restarted once and backs off again", || {
        let crash = managed_info(&daemon, "crash");
        let restarted = crash["restart_count"].as_u64();
        assert!(restarted <= Some(1), "{crash}");
        (restarted == Some(1) && crash["status"] == "backing_off").then_some(())
    });
    daemon.wait_until_gone(TIMEOUT, "sleep 4912");
    wait_until(TIMEOUT, "probes continue", || {
        let web = managed_info(&daemon, "web");
        assert_eq!((&web["health_status"], &web["restart_count"]), (&json!("healthy"), &json!(0)), "{web}");
        (service.probes() > probed + 10).then_some(())
    });
    assert_eq!(daemon.get("/processes/web").expect(200)["pid"], web["pid"]);
}

#[test]
fn a_daemon_that_was_stopped_for_a_while_counts_no_failure() {
    check_pause(false);
}

#[test]
fn a_pause_of_daemon_and_service_counts_no_failure() {
    check_pause(true);
}

#[test]
fn two_hundred_checks_use_one_thread_little_cpu_and_stay_on_schedule() {
    const PROCESSES: usize = 200;
    let daemon = start_daemon();
    let (crowd, watched) = (TcpListener::bind("127.0.0.1:0").expect("bind a port"), Service::new());
    let port = crowd.local_addr().expect("local address").port();
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    std::thread::spawn(move || {
        for _ in crowd.incoming() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    // Threads that serve connections start and end.
    let threads =
        || procfs::threads(daemon.pid).into_iter().filter(|name| !name.starts_with("http")).collect::<Vec<_>>();
    // Threads set their names themselves, and the services thread starts after the API listens.
    let one_main = |names: &Vec<String>| {
        names.iter().filter(|name| *name == "tl-init").count() == 1 && names.iter().any(|name| name == "services")
    };
    let before = wait_until(TIMEOUT, "all have their names", || Some(threads()).filter(one_main));
    for n in 0..PROCESSES {
        let check = json!({"type": "tcp", "port": if n == 0 { watched.port } else { port }, "initial_delay_ms": 5 * n});
        let body = json!({"command": "sleep", "args": ["4921"], "name": format!("s{n}"), "health_check": check});
        daemon.start_process(&body);
    }
    wait_until(TIMEOUT, "all are healthy", || {
        daemon.list().iter().all(|info| info["managed"]["health_status"] == "healthy").then_some(())
    });
    let (cpu, all, probes) = (procfs::cpu_time(daemon.pid), answered.load(Ordering::SeqCst), watched.probes());
    wait_until(TIMEOUT, "some more probes have come", || (watched.probes() >= probes + 5).then_some(()));
    let cpu = procfs::cpu_time(daemon.pid) - cpu;
    let all = (answered.load(Ordering::SeqCst) - all) as u32;
    // The goal is 0.05 ms for each probe with the release binary: 5 % of a CPU for a thousand checks.
    assert!(cpu < Duration::from_micros(500) * all, "{cpu:?} for {all} probes");
    wait_until(TIMEOUT, "the threads are as before: the checks have started none", || {
        (threads() == before).then_some(())
    });
    let seen = watched.seen.lock().expect("the lock");
    // Most are on schedule. On a busy machine, some are late, and several may be accepted at once after that.
    let mut between: Vec<Duration> = seen.windows(2).map(|two| two[1] - two[0]).collect();
    between.sort();
    let usual = between[between.len() / 2];
    assert!(usual > Duration::from_millis(900) && usual < Duration::from_millis(2_000), "{between:?}");
}
