//! Each thread of the daemon panics once. Threads that hold nothing of others come back within 5 s, and nothing else
//! notices; without the others the daemon shuts down in order.
//!
//! Needs the feature `fault-injection` of `tl-init`, with which a thread panics at the next turn of its loop if there is
//! a file with its name (`tl_os::thread::fault_point`).

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs)]
// The harness has more than these tests use.
#![allow(dead_code, unused_imports)]

mod harness;

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use harness::response::{EventStream, ResponseStream};
use harness::{Daemon, Options, TIMEOUT, skip_without_root, wait_until, wait_until_ok};

/// Time within which everything is back to normal after a panic; ten times as much on a busy machine.
const RECOVERY: Duration = Duration::from_secs(50);

/// A daemon whose threads can be made to panic.
struct Victim {
    daemon: Daemon,
    faults: TempDir,
    /// The configuration directory, with an empty directory for services.
    config: TempDir,
}

impl Victim {
    fn start(args: &[&str]) -> Victim {
        Victim::start_with(Options::default(), args)
    }

    fn start_with(options: Options, args: &[&str]) -> Victim {
        let (faults, config) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(config.path().join("services")).unwrap();
        let options = options.env("TL_FAULTS", path(faults.path()));
        let daemon = options.args(&["--config-dir", path(config.path())]).args(args).start();
        Victim { daemon, faults, config }
    }

    /// Makes the next turn of this thread panic.
    fn arm(&self, thread: &str) {
        fs::write(self.faults.path().join(thread), "").unwrap();
    }

    /// Repeats `provoke` until the thread has panicked.
    fn wait_for_panic(&self, thread: &str, mut provoke: impl FnMut()) {
        wait_until(TIMEOUT, &format!("{thread} panics"), || {
            provoke();
            (!self.faults.path().join(thread).exists()).then_some(())
        });
        let line = format!("thread {thread} panicked");
        wait_until(TIMEOUT, &format!("{line:?} is logged"), || self.daemon.log().contains(&line).then_some(()));
    }

    /// Checks that a start, a run and a shutdown work as ever, that the thread is back, and that the process is the one
    /// that it was before the panic.
    fn check_all_is_normal(self, thread: &str, process: &Value) {
        let Victim { mut daemon, faults: _faults, config: _config } = self;
        wait_until_ok(RECOVERY, || match daemon.try_health() {
            Some(200) => Ok(()),
            other => Err(format!("health answers {other:?} after a panic of {thread}")),
        });
        assert_eq!(daemon.run_sh("echo complete").stdout(), "complete", "{thread}");
        let pid = process["pid"].as_u64().unwrap();
        let now = daemon.info(pid);
        assert_eq!((&now["status"], &now["pid"]), (&json!("running"), &process["pid"]), "{thread}: {now}");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(0), "{thread}");
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A process that is there before a panic, and that says when it gets SIGTERM: it writes `asked` to a file.
fn start_witness(daemon: &Daemon) -> (Value, std::path::PathBuf) {
    let asked = daemon.scratch().join("asked");
    let script =
        format!("trap 'echo asked >>{}; exit 0' TERM; echo ready; while :; do sleep 0.05; done", asked.display());
    let started = daemon.start_process(&json!({"command": "sh", "args": ["-c", script]}));
    daemon.wait_for_stdout(started["pid"].as_u64().unwrap(), &["ready"]);
    (started, asked)
}

/// A process with the name `echo` that prints each line of its stdin.
fn start_echo(daemon: &Daemon) {
    daemon.start_process(&json!({
        "command": "sh", "args": ["-c", "while read -r line; do echo \"$line\"; done"], "stdin_mode": "pipe",
        "name": "echo", "restart": {"policy": "never"},
    }));
}

fn write_to_echo(daemon: &Daemon, line: &str) {
    daemon.request("POST", "/processes/echo/stdin", Some(format!("{line}\n").as_bytes())).expect(204);
}

#[test]
fn a_panic_in_the_thread_of_a_connection_is_a_500_on_that_connection_only() {
    let victim = Victim::start(&[]);
    let (witness, _) = start_witness(&victim.daemon);
    start_echo(&victim.daemon);
    // Its log is open from its first output on.
    write_to_echo(&victim.daemon, "before");
    wait_until(TIMEOUT, "its first line is there", || {
        let output = victim.daemon.get("/processes/echo/stdout").expect(200);
        (output["lines"] == json!(["before"])).then_some(())
    });
    let before = victim.daemon.threads_and_descriptors();
    let path = "/processes/echo/stdout/follow";
    let mut other = EventStream::new(ResponseStream::read(victim.daemon.send_get(path)).unwrap());
    assert_eq!(other.next_frame().unwrap().data["line"], "before");
    let request = victim.daemon.request_head("GET", "/info", "Connection: close\r\n");
    // The panic may hit the thread of an earlier connection, which then ends without a response.
    wait_until(TIMEOUT, "a request is answered with 500", || {
        victim.arm("http-conn");
        let response = ResponseStream::send(victim.daemon.connect(), request.as_bytes()).into_response("GET /info");
        assert!(response.status == 200 || response.json()["code"] == "INTERNAL", "{}", response.status);
        (response.status == 500).then_some(())
    });
    victim.wait_for_panic("http-conn", || {});
    write_to_echo(&victim.daemon, "after the panic");
    assert_eq!(other.next_frame().unwrap().data["line"], "after the panic");
    drop(other);
    victim.daemon.wait_until_released(before);
    victim.check_all_is_normal("http-conn", &witness);
}

#[test]
fn the_port_is_served_again_after_a_panic_of_the_accept_loop() {
    let victim = Victim::start(&[]);
    let (witness, _) = start_witness(&victim.daemon);
    for _ in 0..2 {
        victim.arm("http-accept");
        victim.wait_for_panic("http-accept", || drop(victim.daemon.connect()));
        wait_until(RECOVERY, "a new connection is served", || (victim.daemon.try_health() == Some(200)).then_some(()));
    }
    victim.check_all_is_normal("http-accept", &witness);
}

#[test]
fn waits_for_ports_and_their_events_go_on_after_a_panic_of_the_thread_that_watches_them() {
    let victim = Victim::start(&[]);
    let daemon = &victim.daemon;
    let (witness, _) = start_witness(daemon);
    let mut stream = daemon.events("?ports=true", "");
    let (closed, _reserved) = crate::harness::reserve_closed_port();
    let waiting = daemon.send_get(&format!("/ports/{closed}/wait?timeout=50"));
    victim.arm("ports");
    victim.wait_for_panic("ports", || {});
    let listener = std::net::TcpListener::bind(("127.0.0.2", closed)).expect("bind the port");
    let met = ResponseStream::read(waiting).unwrap().into_response("the wait");
    assert_eq!(met.expect(200)["open"], true);
    let mut next_kind = || {
        let about = std::iter::from_fn(|| stream.next_frame()).find(|frame| frame.data["port"] == closed);
        about.expect("another event").event
    };
    // Only then: the thread may still pause after its panic.
    assert_eq!(next_kind(), "port.opened");
    drop(listener);
    assert_eq!(next_kind(), "port.closed");
    drop(stream);
    victim.check_all_is_normal("ports", &witness);
}

#[test]
fn short_requests_are_served_again_after_a_panic_of_a_reserve_thread() {
    if skip_without_root() {
        return;
    }
    // No PID is left for the thread of a connection.
    let victim = Victim::start_with(Options::default().pid_max(600), &["--max-tasks", "1000000"]);
    let daemon = &victim.daemon;
    let bomb = "while (1) { my $child = fork; select undef, undef, undef, 0.3 unless defined $child }";
    let pid = daemon.start_process(&json!({"command": "perl", "args": ["-e", bomb]}))["pid"].clone();
    wait_until(TIMEOUT, "no PID is left", || (daemon.try_status("/processes/1/wait") == Some(503)).then_some(()));
    let metadata = format!("/processes/{pid}");
    victim.arm("http-reserve");
    victim.wait_for_panic("http-reserve", || request(daemon, &metadata));
    for _ in 0..20 {
        wait_until(RECOVERY, "metadata is served", || (daemon.try_status(&metadata) == Some(200)).then_some(()));
    }
    let delete = daemon.open("DELETE", &metadata, "Connection: close\r\n", b"");
    assert_eq!(delete.status, 204);
    wait_until(TIMEOUT, "a command runs", || {
        (daemon.try_status("/processes/1/wait") != Some(503)).then(|| daemon.run_sh("echo x")).map(|run| run.stdout())
    });
}

#[test]
fn health_checks_continue_after_a_panic_of_their_thread() {
    let victim = Victim::start(&[]);
    let (witness, _) = start_witness(&victim.daemon);
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let check = json!({
        "type": "tcp", "port": service.local_addr().unwrap().port(), "interval_ms": 500, "initial_delay_ms": 0,
        "failure_threshold": 2,
    });
    let body = json!({"command": "sleep", "args": ["4400"], "name": "checked", "restart": {"policy": "never"}, "health_check": check});
    victim.daemon.start_process(&body);
    let health = || victim.daemon.get("/processes/checked").expect(200)["managed"]["health_status"].clone();
    wait_until(TIMEOUT, "it is healthy", || (health() == "healthy").then_some(()));
    victim.arm("health");
    victim.wait_for_panic("health", || {});
    // The new thread probes: it finds that the port is closed.
    drop(service);
    wait_until(RECOVERY, "it is unhealthy", || (health() == "unhealthy").then_some(()));
    victim.check_all_is_normal("health", &witness);
}

#[test]
fn signals_and_services_work_after_a_panic_of_their_threads() {
    for thread in ["signals", "services"] {
        let victim = Victim::start(&[]);
        let (witness, _) = start_witness(&victim.daemon);
        victim.arm(thread);
        victim.wait_for_panic(thread, || victim.daemon.signal(Signal::SIGHUP));
        let file = victim.config.path().join("services/web.json");
        fs::write(file, json!({"command": "sleep", "args": ["4410"], "name": "web"}).to_string()).unwrap();
        wait_until(RECOVERY, "the new service runs", || {
            victim.daemon.signal(Signal::SIGHUP);
            (victim.daemon.get("/processes/web").status == 200).then_some(())
        });
        victim.check_all_is_normal(thread, &witness);
    }
}

#[test]
fn the_copy_of_output_continues_after_a_panic_of_its_thread() {
    let victim = Victim::start(&["--console-output"]);
    let (witness, _) = start_witness(&victim.daemon);
    start_echo(&victim.daemon);
    victim.arm("console");
    victim.wait_for_panic("console", || write_to_echo(&victim.daemon, "before"));
    write_to_echo(&victim.daemon, "after the panic");
    wait_until(RECOVERY, "the line is copied", || victim.daemon.log().contains("echo | after the panic").then_some(()));
    victim.check_all_is_normal("console", &witness);
}

/// Checks the shutdown after a panic of this thread: it says why, each process is asked to end first, and the status is
/// that of a failure.
fn check_orderly_shutdown(thread: &str, message: &str, provoke: impl Fn(&Daemon)) {
    let victim = Victim::start(&["--shutdown-grace", "30"]);
    let (_, asked) = start_witness(&victim.daemon);
    victim.arm(thread);
    victim.wait_for_panic(thread, || provoke(&victim.daemon));
    let Victim { mut daemon, .. } = victim;
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(1), "{thread}: {}", daemon.log());
    assert_eq!(fs::read_to_string(asked).unwrap_or_default(), "asked\n", "{thread}: SIGTERM, once");
    assert!(daemon.log().contains(message), "{thread}: {}", daemon.log());
}

/// A request that may find no server any more.
fn request(daemon: &Daemon, path: &str) {
    let _ = daemon.try_status(path);
}

#[test]
fn a_panic_of_the_supervisor_ends_the_daemon_in_order() {
    let message = "the supervisor thread has panicked: shutting down";
    check_orderly_shutdown("supervisor", message, |daemon| request(daemon, "/processes"));
}

#[test]
fn a_panic_of_the_main_thread_ends_the_daemon_in_order() {
    let message = "the main thread has panicked: shutting down";
    check_orderly_shutdown("main", message, |daemon| daemon.signal(Signal::SIGHUP));
}

#[test]
fn a_panic_of_a_thread_that_the_supervisor_needs_ends_the_daemon_in_order() {
    // What each thread gets to do: a restart is output, a look at /etc/passwd and the end of a tree.
    let restarting = json!({
        "command": "sh", "args": ["-c", "echo x; setsid sleep 4420 & exit 1"],
        "restart": {"policy": "always", "initial_backoff_ms": 0, "max_backoff_ms": 100},
    });
    for thread in ["output", "log-writer", "users", "trees"] {
        let message = format!("the {thread} thread has panicked: shutting down");
        check_orderly_shutdown(thread, &message, |daemon| {
            // The daemon may end before it answers.
            let body = restarting.to_string();
            let head = daemon.request_head("POST", "/processes", &format!("Content-Length: {}\r\n", body.len()));
            if let Ok(mut client) = TcpStream::connect(daemon.addr) {
                let _ = client.write_all(format!("{head}{body}").as_bytes());
            }
        });
    }
}

#[test]
fn a_main_process_that_can_no_longer_be_waited_for_ends_the_container() {
    let command = ["--", "sh", "-c", "trap 'exit 7' USR1; while :; do sleep 0.05; done"];
    let victim = Victim::start(&command);
    victim.arm("main-process");
    victim.daemon.signal(Signal::SIGUSR1);
    victim.wait_for_panic("main-process", || {});
    let Victim { mut daemon, .. } = victim;
    assert_eq!(daemon.wait_for_exit(TIMEOUT).code(), Some(1), "{}", daemon.log());
}
