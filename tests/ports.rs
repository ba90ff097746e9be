//! Ports: which processes listen, waits for a port, and the events about ports (docs/api.md, Ports).

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::response::{EventStream, ResponseStream};
use crate::harness::{
    Daemon, Options, Response, TIMEOUT, check_times, pid_of, procfs, reserve_closed_port, skip_without_root,
    start_daemon, start_daemon_with, tcp_service, wait_until,
};

/// Listens at each of the addresses in its arguments, of IPv6 if they have a colon, and prints the ports. Then does what
/// its first argument says.
const LISTEN: &str = "
import os, socket, sys, time
sockets = []
for address in sys.argv[2:]:
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    s = socket.socket(family)
    s.bind((address, 0))
    s.listen()
    sockets.append(s)
print(*[s.getsockname()[1] for s in sockets], flush=True)
exec(sys.argv[1])
time.sleep(6000)
";

/// The body of a start of [`LISTEN`].
fn listen(then: &str, addresses: &[&str]) -> Value {
    let args = [&["-c", LISTEN, then], addresses].concat();
    json!({"command": "python3", "args": args})
}

/// The ports that the process prints in its first line.
fn printed(daemon: &Daemon, pid: u64) -> Vec<u64> {
    let line = wait_until(TIMEOUT, "the process prints its ports", || daemon.lines(pid, "stdout").first().cloned());
    line.split(' ').map(|port| port.parse().expect("a number")).collect()
}

/// The entries of a port.
fn entries(daemon: &Daemon, port: u64) -> Vec<Value> {
    let mut listing = daemon.get("/ports").expect(200);
    let all: Vec<Value> = serde_json::from_value(listing["ports"].take()).expect("a list of ports");
    let keys: Vec<(u64, &str)> =
        all.iter().map(|entry| (entry["port"].as_u64().unwrap(), entry["address"].as_str().unwrap())).collect();
    assert!(keys.is_sorted_by_key(|(port, _)| *port), "{keys:?}");
    all.into_iter().filter(|entry| entry["port"] == port).collect()
}

fn entry(daemon: &Daemon, port: u64) -> Value {
    let mut entries = entries(daemon, port);
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries.remove(0)
}

/// A wait that answers at once or after `timeout`.
fn wait(daemon: &Daemon, port: impl std::fmt::Display, query: &str) -> Value {
    daemon.get(&format!("/ports/{port}/wait?{query}")).expect(200)
}

/// Begins a wait, and returns when the daemon watches ports for it.
fn begin_wait(daemon: &Daemon, port: impl std::fmt::Display, query: &str) -> TcpStream {
    let socket = daemon.send_get(&format!("/ports/{port}/wait?{query}"));
    wait_until(TIMEOUT, "the daemon watches ports", || is_watching(daemon).then_some(()));
    socket
}

fn answer(socket: TcpStream) -> Value {
    let response = ResponseStream::read(socket).expect("a response").expect_status(200).into_response("the wait");
    Response::expect(&response, 200)
}

fn is_watching(daemon: &Daemon) -> bool {
    procfs::threads(daemon.pid).iter().any(|thread| thread == "ports")
}

fn wait_until_nothing_is_watched(daemon: &Daemon) {
    wait_until(TIMEOUT, "the thread `ports` ends", || (!is_watching(daemon)).then_some(()));
}

/// An address with the port of [`reserve_closed_port`], which nothing else takes, and which is free at this address.
const FREE: &str = "127.0.0.2";

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

#[test]
fn sockets_of_ipv4_and_ipv6_are_listed_with_their_owner() {
    let daemon = start_daemon();
    let mut addresses = vec!["127.0.0.1", "0.0.0.0", "127.0.0.2"];
    if has_ipv6() {
        addresses.extend(["::1", "::"]);
    }
    let mut body = listen("", &addresses);
    body["name"] = json!("web");
    let info = daemon.start_process(&body);
    let ports = printed(&daemon, pid_of(&info));
    assert_eq!(ports.len(), addresses.len());
    for (port, address) in ports.iter().zip(addresses) {
        let entry = entry(&daemon, *port);
        assert_eq!((&entry["address"], &entry["name"]), (&json!(address), &json!("web")), "{entry}");
        assert_eq!((&entry["pid"], &entry["handle"]), (&info["pid"], &info["handle"]), "{entry}");
        assert!(entry["command"].as_str().is_some_and(|command| command.starts_with("python")), "{entry}");
    }
    daemon.delete("/processes/web").expect(204);
    assert_eq!(entries(&daemon, ports[0]), [Value::Null; 0]);
}

#[test]
fn a_socket_of_a_process_outside_of_the_sandbox_has_no_owner_and_that_of_the_api_is_left_out() {
    let daemon = start_daemon();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let port = listener.local_addr().expect("an address").port();
    let entry = entry(&daemon, port.into());
    let right =
        json!({"port": port, "address": "127.0.0.1", "pid": null, "handle": null, "name": null, "command": null});
    assert_eq!(entry, right);
    assert_eq!(entries(&daemon, daemon.addr.port().into()), [Value::Null; 0]);
    assert_eq!(wait(&daemon, daemon.addr.port(), "timeout=0.5"), json!({"open": false, "port": null}));
}

#[test]
fn two_addresses_with_one_port_are_two_entries_and_two_sockets_with_one_address_are_one() {
    let daemon = start_daemon();
    let second = "
s = [socket.socket() for _ in range(3)]
port = sockets[0].getsockname()[1]
for t, address in zip(s, ['127.0.0.2', '127.0.0.3', '127.0.0.3']):
    t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    t.bind((address, port))
    t.listen()
print('ready', flush=True)";
    let pid = pid_of(&daemon.start_process(&listen(second, &["127.0.0.1"])));
    let port = printed(&daemon, pid)[0];
    wait_until(TIMEOUT, "all sockets listen", || (daemon.lines(pid, "stdout").len() == 2).then_some(()));
    let addresses: Vec<Value> = entries(&daemon, port).iter().map(|entry| entry["address"].clone()).collect();
    assert_eq!(addresses, ["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
}

#[test]
fn many_sockets_are_listed_at_once() {
    const COUNT: usize = 300;
    let daemon = start_daemon();
    let info = daemon.start_process(&listen("", &["127.0.0.1"; COUNT]));
    let ports = printed(&daemon, pid_of(&info));
    let begun = Instant::now();
    let listing = daemon.get("/ports").expect(200);
    let took = begun.elapsed();
    let all = listing["ports"].as_array().expect("a list");
    let owned: Vec<&Value> = all.iter().filter(|entry| entry["handle"] == info["handle"]).collect();
    assert_eq!(owned.len(), COUNT);
    assert!(ports.iter().all(|port| owned.iter().any(|entry| entry["port"] == *port)));
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn a_grandchild_and_an_orphan_belong_to_the_process_whose_tree_they_are_in() {
    for options in Options::all_tree_tracking() {
        let daemon = options.start();
        for script in [
            // A child in a session of its own, while the shell waits for it.
            "setsid python3 -c \"$0\" '' 127.0.0.1 & wait",
            // An orphan in a session of its own.
            "(setsid python3 -c \"$0\" '' 127.0.0.1 &); sleep 6000",
            // A child of an orphan, after the end of the leader.
            "(setsid sh -c 'python3 -c \"$0\" \"\" 127.0.0.1; :' \"$0\" &); sleep 0.1",
        ] {
            let info = daemon.start_process(&json!({"command": "sh", "args": ["-c", script, LISTEN]}));
            let port = printed(&daemon, pid_of(&info))[0];
            let entry = entry(&daemon, port);
            assert_eq!(entry["handle"], info["handle"], "{script}: {entry}");
            assert!(entry["pid"].is_u64() && entry["pid"] != info["pid"], "{script}: {entry}");
            assert!(entry["command"].as_str().is_some_and(|command| command.starts_with("python")), "{entry}");
        }
    }
}

#[test]
fn a_socket_of_another_user_has_its_owner() {
    if skip_without_root() {
        return;
    }
    let daemon = start_daemon();
    for user in ["tl-user", "root", "12345:12345"] {
        let mut body = listen("", &["127.0.0.1"]);
        body["user"] = json!(user);
        // The python3 of a test machine may be one that only root can execute.
        body["command"] = json!("/usr/bin/python3");
        let info = daemon.start_process(&body);
        let port = printed(&daemon, pid_of(&info))[0];
        assert_eq!(entry(&daemon, port)["pid"], info["pid"], "{user}");
    }
}

#[test]
fn an_inherited_socket_is_owned_by_the_oldest_process_that_has_it() {
    let daemon = start_daemon();
    let fork = "
if os.fork():
    sys.stdin.readline()
    os._exit(0)
print(os.getpid(), flush=True)";
    let mut body = listen(fork, &["127.0.0.1"]);
    body["stdin_mode"] = json!("pipe");
    let info = daemon.start_process(&body);
    let port = printed(&daemon, pid_of(&info))[0];
    let lines = || daemon.lines(pid_of(&info), "stdout");
    wait_until(TIMEOUT, "the child runs", || (lines().len() == 2).then_some(()));
    let child: u64 = lines()[1].parse().expect("a PID");
    assert_eq!(entry(&daemon, port)["pid"], info["pid"]);
    daemon.post(&format!("/processes/{}/stdin/close", info["pid"]), &json!({})).expect(204);
    daemon.wait_for_end(pid_of(&info));
    let left = entry(&daemon, port);
    assert_eq!((&left["pid"], &left["handle"]), (&json!(child), &info["handle"]), "{left}");
}

#[test]
fn a_wait_is_answered_when_the_port_is_opened_and_at_once_if_it_is_open() {
    let daemon = start_daemon();
    let (port, _reserved) = reserve_closed_port();
    assert_eq!(wait(&daemon, port, "timeout=0"), json!({"open": false, "port": null}));
    let begun = Instant::now();
    assert_eq!(wait(&daemon, port, "timeout=0.3"), json!({"open": false, "port": null}));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let waiting = begin_wait(&daemon, port, "timeout=50");
    let script = format!("import socket, time; s = socket.create_server(('{FREE}', {port})); time.sleep(6000)");
    let info = daemon.start_process(&json!({"command": "python3", "args": ["-c", script]}));
    let met = answer(waiting);
    assert_eq!(
        (&met["open"], &met["port"]["pid"], &met["port"]["handle"]),
        (&json!(true), &info["pid"], &info["handle"])
    );
    wait_until_nothing_is_watched(&daemon);
    for query in ["", "timeout=0", "timeout=50"] {
        assert_eq!(wait(&daemon, port, query), met);
    }
    assert_eq!(met["port"], entry(&daemon, port.into()));
    daemon.delete(&format!("/processes/{}", info["pid"])).expect(204);
    assert_eq!(wait(&daemon, port, "timeout=0"), json!({"open": false, "port": null}));
    wait_until_nothing_is_watched(&daemon);
}

/// A service that passes the first line of each request to `serve`.
fn http_service(serve: impl Fn(String, TcpStream) + Send + Sync + 'static) -> u16 {
    tcp_service(move |stream| {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        let first = lines.next().unwrap_or_default();
        lines.take_while(|line| !line.is_empty()).for_each(drop);
        serve(first, stream);
    })
}

#[test]
fn a_wait_with_a_path_is_answered_when_the_service_has_answered_with_any_status() {
    let daemon = start_daemon();
    let (tell, told) = mpsc::channel();
    let slow = http_service(move |first, mut stream| {
        tell.send(first).expect("the test goes on");
        thread::sleep(Duration::from_millis(1_500));
        let _ = stream.write_all(b"HTTP/1.1 503 Not yet\r\n\r\n");
    });
    let begun = Instant::now();
    let met = wait(&daemon, slow, "timeout=50&http_path=/a%3Fb=c");
    assert!(begun.elapsed() >= Duration::from_millis(1_500));
    assert_eq!((&met["open"], &met["port"]["port"]), (&json!(true), &json!(slow)));
    assert_eq!(told.try_iter().collect::<Vec<_>>(), ["GET /a?b=c HTTP/1.1"], "a slow service is asked once");
    assert_eq!(wait(&daemon, slow, "timeout=0.2&http_path=/"), json!({"open": false, "port": null}));
    wait_until_nothing_is_watched(&daemon);
}

#[test]
fn a_service_that_does_not_speak_http_yet_is_asked_again() {
    let daemon = start_daemon();
    let is_ready = Arc::new(AtomicBool::new(false));
    let (state, (tell, told)) = (Arc::clone(&is_ready), mpsc::channel());
    let service = http_service(move |_, mut stream| {
        let ready = state.load(Ordering::SeqCst);
        let _ = stream.write_all(if ready { b"HTTP/1.0 404 No\r\n\r\n" } else { b"SSH-2.0-x y\r\n" });
        let _ = tell.send(ready);
    });
    assert_eq!(wait(&daemon, service, "timeout=0.5")["open"], true);
    assert_eq!(wait(&daemon, service, "timeout=0.5&http_path=/"), json!({"open": false, "port": null}));
    let waiting = begin_wait(&daemon, service, "timeout=50&http_path=/");
    told.try_iter().for_each(drop);
    assert!(!told.recv_timeout(TIMEOUT).expect("the service is asked"));
    is_ready.store(true, Ordering::SeqCst);
    assert_eq!(answer(waiting)["open"], true);
}

#[test]
fn more_waits_with_a_path_than_there_may_be_requests_are_all_answered() {
    let daemon = start_daemon();
    let service = http_service(|_, mut stream| {
        thread::sleep(Duration::from_millis(100));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
    });
    let waiting: Vec<TcpStream> =
        (0..50).map(|_| daemon.send_get(&format!("/ports/{service}/wait?timeout=50&http_path=/"))).collect();
    for socket in waiting {
        assert_eq!(answer(socket)["open"], true);
    }
}

#[test]
fn services_that_do_not_answer_do_not_keep_a_wait_for_another_one_from_its_turn() {
    let daemon = start_daemon();
    let silent = tcp_service(|stream| drop((thread::sleep(TIMEOUT), stream)));
    let _waiting: Vec<TcpStream> = (0..20).map(|_| begin_wait(&daemon, silent, "http_path=/")).collect();
    wait_until(TIMEOUT, "the service is asked", || procfs::has_connection_to(silent).then_some(()));
    let service = http_service(|_, mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
    });
    let begun = Instant::now();
    assert_eq!(wait(&daemon, service, "timeout=50&http_path=/")["open"], true);
    println!("the turn came after {:?}", begun.elapsed());
}

#[test]
fn a_client_that_has_gone_leaves_no_thread_and_no_descriptor_behind() {
    let daemon = start_daemon();
    let silent = tcp_service(|stream| drop((thread::sleep(TIMEOUT), stream)));
    let (closed, _reserved) = reserve_closed_port();
    let before = daemon.threads_and_descriptors();
    for end in [Ending::Close, Ending::Reset] {
        let mut waiting: Vec<TcpStream> = (0..10).map(|_| begin_wait(&daemon, closed, "")).collect();
        waiting.extend((0..10).map(|_| begin_wait(&daemon, silent, "http_path=/")));
        wait_until(TIMEOUT, "the service is asked", || procfs::has_connection_to(silent).then_some(()));
        for socket in waiting {
            match end {
                Ending::Close => drop(socket),
                Ending::Reset => crate::harness::reset(socket),
            }
        }
        daemon.wait_until_released(before);
        assert!(!is_watching(&daemon));
    }
}

#[derive(Clone, Copy)]
enum Ending {
    Close,
    Reset,
}

#[test]
fn a_shutdown_ends_waits_at_once() {
    let mut daemon = start_daemon_with(&["--shutdown-grace", "40"]);
    let (closed, _reserved) = reserve_closed_port();
    let silent = tcp_service(|stream| drop((thread::sleep(TIMEOUT), stream)));
    // The shutdown waits for it, and so does not end before the waits are answered.
    let stubborn = daemon.sh("trap '' TERM; echo ready; while :; do sleep 1; done");
    daemon.wait_for_stdout(stubborn, &["ready"]);
    let waiting = [begin_wait(&daemon, closed, ""), begin_wait(&daemon, silent, "http_path=/")];
    wait_until(TIMEOUT, "the service is asked", || procfs::has_connection_to(silent).then_some(()));
    daemon.signal(Signal::SIGTERM);
    for socket in waiting {
        let response = ResponseStream::read(socket).expect("a response").into_response("the wait");
        response.expect_error(503, "SHUTTING_DOWN", "shutting down");
    }
    assert_eq!(daemon.info(stubborn)["status"], "running", "the waits are answered before the shutdown has ended");
    daemon.post(&format!("/processes/{stubborn}/signal"), &json!({"signal": 9})).expect(200);
    daemon.wait_for_exit(TIMEOUT);
}

/// The next event about this port.
fn next_about(stream: &mut EventStream, port: u64) -> (String, Value) {
    loop {
        let frame = stream.next_frame().expect("another event");
        if frame.data["port"] == port {
            return (frame.event, frame.data);
        }
    }
}

#[test]
fn subscriptions_that_want_ports_are_told_when_one_is_opened_and_closed() {
    let daemon = start_daemon();
    let before = daemon.start_process(&listen("", &["127.0.0.1"]));
    let open_before = printed(&daemon, pid_of(&before))[0];
    let mut stream = daemon.events("?ports=true", "");
    let mut others = daemon.events("", "");
    let mut body = listen("sys.stdin.readline(); sockets[0].close()", &["127.0.0.1", "0.0.0.0"]);
    (body["stdin_mode"], body["name"]) = (json!("pipe"), json!("web"));
    let info = daemon.start_process(&body);
    let ports = printed(&daemon, pid_of(&info));
    for (port, address) in ports.iter().zip(["127.0.0.1", "0.0.0.0"]) {
        let mut narrowed = daemon.events(&format!("?ports=true&handle={}", info["handle"]), "Last-Event-ID: 0\r\n");
        let (kind, data) = next_about(&mut narrowed, *port);
        assert_eq!((kind.as_str(), &data["address"]), ("port.opened", &json!(address)), "{data}");
        assert_eq!((&data["handle"], &data["pid"], &data["name"]), (&info["handle"], &info["pid"], &json!("web")));
        assert!(data["command"].is_string() && data["at"].is_u64(), "{data}");
    }
    daemon.post(&format!("/processes/{}/stdin/close", info["pid"]), &json!({})).expect(204);
    let events = [next_about(&mut stream, ports[0]), next_about(&mut stream, ports[0])];
    assert_eq!(events.each_ref().map(|(kind, _)| kind.as_str()), ["port.opened", "port.closed"]);
    assert_eq!(events[1].1["handle"], info["handle"]);
    for process in [&info, &before] {
        daemon.delete(&format!("/processes/{}", process["pid"])).expect(204);
    }
    let (kind, data) = next_about(&mut stream, open_before);
    assert_eq!((kind.as_str(), &data["handle"]), ("port.closed", &before["handle"]), "it was open before: {data}");
    let mut kept = daemon.events("?ports=true&follow=false", "Last-Event-ID: 0\r\n");
    let about: Vec<_> =
        std::iter::from_fn(|| kept.next_frame()).filter(|frame| frame.data["port"] == open_before).collect();
    assert_eq!(about.len(), 1, "what was open before is not told to be opened: {about:?}");
    // The others are told of the processes only.
    let end = pid_of(&daemon.start_process(&json!({"command": "true"})));
    loop {
        let frame = others.next_frame().expect("another event");
        assert!(!frame.event.starts_with("port."), "{frame:?}");
        if frame.data["pid"] == end {
            break;
        }
    }
    drop((stream, others));
    wait_until_nothing_is_watched(&daemon);
}

#[test]
fn bad_requests_are_refused_and_name_the_field() {
    let daemon = start_daemon();
    for port in ["0", "70000", "-1", "http", "1.5", "%20", "99999999999999999999"] {
        daemon.get(&format!("/ports/{port}/wait?timeout=1")).expect_error(400, "INVALID_REQUEST", "`port`");
    }
    for timeout in ["-1", "x", "NaN", ""] {
        let path = format!("/ports/80/wait?timeout={timeout}");
        daemon.get(&path).expect_error(400, "INVALID_REQUEST", "`timeout`");
    }
    for path in ["", "x", "http://x/", "/%0d%0aHost:%20x", "/%00", "/a%20b", "/%C3%A4"] {
        let path = format!("/ports/80/wait?timeout=1&http_path={path}");
        daemon.get(&path).expect_error(400, "INVALID_REQUEST", "`http_path`");
    }
    daemon.get("/ports/80").expect_error(404, "NOT_FOUND", "");
    daemon.post("/ports", &json!({})).expect_error(405, "METHOD_NOT_ALLOWED", "");
    assert!(!is_watching(&daemon));
}

/// The goal is 300 ms at the worst.
#[test]
fn a_wait_is_answered_soon_after_the_port_is_opened() {
    let daemon = start_daemon();
    let (kept, _reserved) = reserve_closed_port();
    let _other = begin_wait(&daemon, kept, "");
    let times = (0..5).map(|_| {
        let (port, _reserved) = reserve_closed_port();
        let waiting = begin_wait(&daemon, port, "timeout=50");
        // By then the daemon looks every 250 ms.
        thread::sleep(Duration::from_millis(1_500));
        let listener = TcpListener::bind((FREE, port)).expect("bind the port");
        let begun = Instant::now();
        assert_eq!(answer(waiting)["open"], true);
        drop(listener);
        begun.elapsed()
    });
    let times: Vec<Duration> = times.collect();
    println!("from listen(2) to the answer: {times:?}");
    check_times(Duration::from_millis(300), times);
}
