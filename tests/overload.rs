//! More clients than connections, threads or memory: metadata, signals and DELETE are still served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::baseline::{Baseline, while_serving};
use crate::harness::faults::{TestCgroup, hang_etc, hanging_directory, limit_address_space};
use crate::harness::response::ResponseStream;
use crate::harness::{
    Daemon, Options, TIMEOUT, check_most_take_less, pid_of, procfs, skip_without_root, start_daemon_with, wait_until,
};

/// Connections of the daemon, and how many of them may serve long requests.
const CONNECTIONS: usize = 64;
const LONG_REQUESTS: usize = 56;

fn start_with_few_connections() -> Daemon {
    start_daemon_with(&["--max-processes", "100", "--max-connections", &CONNECTIONS.to_string()])
}

/// Checks that health, metadata, start, signal and DELETE are served, each on a new connection.
fn check_short_requests_are_served(daemon: &Daemon) {
    check_most_take_less(Duration::from_secs(3), 10, || {
        assert_eq!(daemon.try_health(), Some(200));
        let close = |method: &str, path: &str, body: &str| {
            daemon.open(method, path, "Connection: close\r\n", body.as_bytes()).into_response(path)
        };
        close("GET", "/processes", "").expect(200);
        let start = json!({"command": "sleep", "args": ["4300"]}).to_string();
        let pid = pid_of(&close("POST", "/processes", &start).expect(201));
        close("POST", &format!("/processes/{pid}/signal"), "{\"signal\":18}").expect(200);
        close("DELETE", &format!("/processes/{pid}"), "").expect(204);
    });
}

fn check_long_requests_are_refused(daemon: &Daemon, path: &str) {
    let refused = daemon.get(path);
    refused.expect_error(503, "OUT_OF_RESOURCES", &format!("{LONG_REQUESTS} connections"));
    assert!(refused.header("retry-after").is_some());
}

#[test]
fn followers_get_at_most_seven_eighths_of_the_connections() {
    let daemon = start_with_few_connections();
    let pid = daemon.sh("echo up; sleep 4310");
    let path = format!("/processes/{pid}/stdout/follow");
    let mut served = Vec::new();
    for _ in 0..CONNECTIONS + 10 {
        let stream = ResponseStream::read(daemon.send_get(&path)).expect("a response");
        served.extend((stream.status == 200).then_some(stream));
    }
    assert_eq!(served.len(), LONG_REQUESTS);
    check_short_requests_are_served(&daemon);
    check_long_requests_are_refused(&daemon, &path);
    for path in ["wait", "output"] {
        check_long_requests_are_refused(&daemon, &format!("/processes/{pid}/{path}"));
    }
    // When one follow ends, another may begin.
    drop(served.pop());
    wait_until(TIMEOUT, "another follow is accepted", || {
        (ResponseStream::read(daemon.send_get(&path)).expect("a response").status == 200).then_some(())
    });
}

#[test]
fn starts_that_hang_in_etc_leave_connections_for_short_requests() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon_with(&["--max-connections", "8"]);
    let sleep = daemon.sh("sleep 4320");
    hang_etc(&daemon);
    let body = json!({"command": "true"}).to_string();
    for path in ["/processes", "/pty"] {
        let head = daemon.request_head("POST", path, &format!("Content-Length: {}\r\n", body.len()));
        // Each client gives up, until one is refused.
        wait_until(TIMEOUT, "a start is refused", || {
            let mut client = daemon.connect();
            client.set_read_timeout(Some(Duration::from_millis(100))).expect("set a timeout");
            client.write_all((head.clone() + &body).as_bytes()).expect("send the request");
            let mut status = [0; 12];
            client.read_exact(&mut status).is_ok_and(|()| status == *b"HTTP/1.1 503").then_some(())
        });
    }
    let begun = Instant::now();
    assert_eq!(daemon.try_health(), Some(200));
    let refused = daemon.open("POST", "/processes", "Connection: close\r\n", body.as_bytes());
    refused.into_response("POST /processes").expect_error(503, "OUT_OF_RESOURCES", "start processes");
    daemon.delete(&format!("/processes/{sleep}")).expect(204);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn hanging_file_requests_count_after_their_clients_have_disconnected() {
    if skip_without_root() {
        return;
    }
    let daemon = start_with_few_connections();
    let dir = hanging_directory(&daemon);
    let path = format!("/files?user=root&path={}/x", dir.display());
    // The first request for the path waits for the FUSE server, the next ones for the first. Threads may also wait for
    // their clients, or for locks.
    let is_hanging =
        |at: &&String| ["fuse", "request_wait", "d_alloc", "d_wait"].iter().any(|function| at.contains(function));
    let hanging = || procfs::waiting_threads(daemon.pid, "http-conn").iter().filter(is_hanging).count();
    for asked in 1..=LONG_REQUESTS {
        let client = daemon.send_get(&path);
        wait_until(TIMEOUT, "the request hangs", || (hanging() >= asked).then_some(()));
        drop(client);
    }
    check_long_requests_are_refused(&daemon, &path);
    for _ in 0..CONNECTIONS {
        drop(daemon.send_get(&path));
    }
    check_short_requests_are_served(&daemon);
    check_long_requests_are_refused(&daemon, "/files/list?path=/");
    assert!(hanging() >= LONG_REQUESTS, "{}", hanging());
}

#[test]
fn a_fork_bomb_does_not_block_health_metadata_and_delete() {
    if skip_without_root() {
        return;
    }
    for options in [Options::default(), Options::default().without_cgroup()] {
        // A limit above the number of PIDs lets the user take every PID.
        let daemon = options.pid_max(1500).args(&["--max-tasks", "1000000"]).start();
        let bomb = "while (1) { my $child = fork; select undef, undef, undef, 0.3 unless defined $child }";
        let pid = pid_of(&daemon.start_process(&json!({"command": "perl", "args": ["-e", bomb]})));
        let request = |path: &str| ResponseStream::read(daemon.send_get(path)).expect("a response").status;
        // Once all PIDs have been used, the kernel does not reuse the first 300.
        wait_until(TIMEOUT, "no PID is left", || {
            let last = procfs::descendants(daemon.pid).len() > 1_150;
            (last && request("/processes/1/wait") == 503).then_some(())
        });
        for _ in 0..48 {
            assert_eq!(daemon.try_health(), Some(200));
            assert_eq!(request(&format!("/processes/{pid}")), 200);
        }
        // Connections without a request delay no other.
        let _halves: Vec<TcpStream> = (0..20).map(|_| daemon.connect()).collect();
        let delete = daemon.open("DELETE", &format!("/processes/{pid}"), "Connection: close\r\n", b"");
        assert_eq!(delete.status, 204);
        wait_until(TIMEOUT, "the bomb has ended", || (procfs::descendants(daemon.pid).len() < 10).then_some(()));
        assert_eq!(daemon.run_sh("echo x").stdout(), "x");
    }
}

/// Starts of threads and forks fail (EAGAIN), because the daemon's cgroup may have no more tasks.
#[test]
fn short_requests_are_served_while_no_thread_can_be_started() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon_with(&["--max-processes", "100"]);
    let Some(cgroup) = TestCgroup::new("pids") else { return };
    let held = pid_of(&daemon.start_process(&json!({"command": "sleep", "args": ["4340"]})));
    daemon.sh("sleep 4340");
    let baseline = Baseline::of(&daemon);
    for pid in procfs::with_fork_server(daemon.pid) {
        cgroup.write("cgroup.procs", pid);
    }
    let ask = |method: &str, path: &str, body: &str| {
        daemon.open(method, path, "Connection: close\r\n", body.as_bytes()).into_response(path)
    };
    let start = json!({"command": "true"}).to_string();
    for _ in 0..3 {
        // A connection of the baseline that ends frees its task for another thread.
        wait_until(TIMEOUT, "no thread can be started", || {
            cgroup.write("pids.max", 0);
            (ask("GET", "/processes/1/wait", "").status == 503).then_some(())
        });
        while_serving(&daemon, || {
            for (method, path, body) in [
                ("POST", "/processes", &*start),
                ("POST", "/processes/run", &*start),
                ("POST", "/pty", &*start),
                ("GET", &*format!("/processes/{held}/output/follow"), ""),
                ("GET", "/files?path=/etc/passwd", ""),
            ] {
                ask(method, path, body).expect_error(503, "OUT_OF_RESOURCES", "");
            }
            ask("GET", &format!("/processes/{held}"), "").expect(200);
            ask("POST", &format!("/processes/{held}/signal"), "{\"signal\": 18}").expect(200);
        });
        cgroup.write("pids.max", "max");
        assert_eq!(daemon.run_sh("echo x").stdout(), "x", "a thread and a process can be started again");
    }
    cgroup.write("pids.max", 0);
    assert_eq!(ask("DELETE", &format!("/processes/{held}"), "").status, 204);
    daemon.wait_for_processes("sleep 4340", 1);
    cgroup.write("pids.max", "max");
    baseline.check_restored(&daemon);
}

#[test]
fn the_daemon_survives_exhausted_memory_and_recovers() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon_with(&["--max-processes", "100"]);
    for room in [4, 16, 64, 200] {
        limit_address_space(&daemon, Some((procfs::kilobytes(daemon.pid, "VmSize") << 10) + (room << 20)));
        // Clients without a token that never complete their heads.
        let head = format!("GET /api/v1/info HTTP/1.1\r\nX: {}", "x".repeat(60_000));
        let mut clients = Vec::new();
        for number in 0..900 {
            let mut client = daemon.connect();
            let half = &head.as_bytes()[..if number % 3 == 0 { 60_000 } else { 5_000 }];
            // A refused connection may be reset.
            let _ = std::io::Write::write_all(&mut client, half);
            clients.push(client);
        }
        // While the clients are connected, any result is allowed; afterwards health must answer.
        daemon.try_health();
        for client in &clients {
            let _ = client.shutdown(std::net::Shutdown::Both);
        }
        drop(clients);
        wait_until(TIMEOUT, "health answers", || (daemon.try_health() == Some(200)).then_some(()));
    }
    limit_address_space(&daemon, None);
    wait_until(TIMEOUT, "a command runs", || {
        let response = daemon.post("/processes/run", &json!({"command": "true"}));
        (response.status == 200).then_some(())
    });
}

/// The C library aborts when some of its own allocations fail, for example at the start of a thread.
#[test]
fn unauthenticated_clients_cannot_exhaust_the_memory_for_new_threads() {
    let daemon = Options::default().max_address_space(80 << 20).start();
    let head = format!("GET /api/v1/health HTTP/1.1\r\nX: {}", "x".repeat(60_000));
    for _ in 0..4 {
        let clients: Vec<TcpStream> = (0..280)
            .map(|_| {
                let mut client = daemon.connect();
                // A refused connection may be reset.
                let _ = std::io::Write::write_all(&mut client, head.as_bytes());
                client
            })
            .collect();
        assert!(daemon.try_health().is_some(), "a response of any status");
        drop(clients);
        wait_until(TIMEOUT, "health answers", || (daemon.try_health() == Some(200)).then_some(()));
    }
}
