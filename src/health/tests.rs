//! Tests of the actor with real sockets. Tests that need a separate process run in one: see [`alone`].

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdout, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, setsockopt, sockopt};
use nix::unistd::Pid;

use super::*;
use crate::model::HealthKind;

/// Longer than any step of a test takes, even on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn start() -> (Health, Receiver<Verdict>) {
    let (sender, verdicts) = unbounded();
    let health = Health::start(move |verdict| drop(sender.send(verdict)), || {}).unwrap();
    (health, verdicts)
}

/// A check that begins at once and repeats every 10 ms, with a long timeout.
fn check(kind: HealthKind, port: u16) -> HealthCheck {
    let path = (kind == HealthKind::Http).then(|| "/up".to_owned());
    let (initial_delay_ms, interval_ms, timeout_ms) = (0, 10, 60_000);
    HealthCheck { kind, port, path, initial_delay_ms, interval_ms, timeout_ms, failure_threshold: 3 }
}

/// A port that refuses connections until this is dropped: it is bound and has no listener.
struct Refusing(u16, #[expect(dead_code)] std::os::fd::OwnedFd);

fn bound() -> (std::os::fd::OwnedFd, u16) {
    let fd = socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    socket::bind(fd.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let port = socket::getsockname::<SockaddrIn>(fd.as_raw_fd()).unwrap().port();
    (fd, port)
}

fn refusing() -> Refusing {
    let (fd, port) = bound();
    Refusing(port, fd)
}

/// A service that handles one connection after the other.
struct Service {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    fn new(serve: impl FnMut(TcpStream) + Send + 'static) -> Service {
        Service::on(TcpListener::bind(("127.0.0.1", 0)).unwrap(), serve)
    }

    /// A service whose connections have room for only a few KiB that it has not read.
    fn with_little_room(serve: impl FnMut(TcpStream) + Send + 'static) -> Service {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        setsockopt(&listener, sockopt::RcvBuf, &4096).unwrap();
        Service::on(listener, serve)
    }

    fn on(listener: TcpListener, mut serve: impl FnMut(TcpStream) + Send + 'static) -> Service {
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if seen.load(Ordering::SeqCst) {
                    break;
                }
                serve(stream);
            }
        });
        Service { address, over, thread: Some(thread) }
    }

    /// A service that passes each connection to the test and leaves it open.
    fn handing_over() -> (Service, Receiver<TcpStream>) {
        let (sender, streams) = unbounded();
        (Service::new(move |stream| drop(sender.send(stream))), streams)
    }

    fn port(&self) -> u16 {
        self.address.port()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        let _ = self.thread.take().unwrap().join();
    }
}

fn read_request(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut buf = [0; 4096];
    while !text.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buf) {
            Ok(count) if count > 0 => text.extend(&buf[..count]),
            _ => break,
        }
    }
    String::from_utf8(text).unwrap()
}

/// Reads until the peer closes.
fn drain(mut stream: TcpStream) {
    stream.set_read_timeout(Some(LONG / 2)).unwrap();
    let mut buf = [0; 4096];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => panic!("the connection is still open"),
            Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// All connections that were made to a service so far.
///
/// There can be more than a test waits for: on a busy machine, the health thread may take a delay for a gap and probe
/// again.
fn connected_so_far(service: &Service, streams: &Receiver<TcpStream>) -> Vec<TcpStream> {
    let marker = TcpStream::connect(service.address).unwrap();
    let is_marker = |stream: &TcpStream| stream.peer_addr().ok() == marker.local_addr().ok();
    std::iter::repeat_with(|| streams.recv_timeout(LONG).unwrap()).take_while(|stream| !is_marker(stream)).collect()
}

fn reset(stream: TcpStream) {
    setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

/// Writes `piece` repeatedly until the peer closes.
fn endless(mut stream: TcpStream, piece: &[u8]) {
    while stream.write_all(piece).is_ok() {}
}

#[track_caller]
fn expect_http(timeout_ms: u64, want: Result<(), &str>, serve: impl FnMut(TcpStream) + Send + 'static) {
    let service = Service::new(serve);
    let (health, verdicts) = start();
    health.watch(UnitId(1), 7, HealthCheck { timeout_ms, ..check(HealthKind::Http, service.port()) });
    let (mut seen, end) = (0, Instant::now() + LONG);
    while seen < 2 {
        let verdict = verdicts.recv_timeout(LONG).unwrap();
        assert_eq!((verdict.unit, verdict.watch), (UnitId(1), 7));
        match (&verdict.outcome, want) {
            (Ok(()), Ok(())) => {}
            // On a busy machine the first bytes of the service may be late, too.
            (Err(why), Err("did not finish its status line within 1000 ms"))
                if why.ends_with(" did not answer within 1000 ms") && Instant::now() < end =>
            {
                continue;
            }
            (Err(why), Err(want)) => {
                assert!(why.starts_with(&format!("127.0.0.1:{} ", service.port())), "{why}");
                assert!(why.contains(want), "{why:?}, not {want:?}");
            }
            (got, want) => panic!("{got:?}, not {want:?}"),
        }
        seen += 1;
    }
    // Ends the probes first, so that the service does not wait for one of them.
    drop(health);
}

fn expect_answer(want: Result<(), &str>, answer: impl AsRef<[u8]> + Send + 'static) {
    expect_http(60_000, want, move |mut stream| {
        let request = read_request(&mut stream);
        assert!(request.is_empty() || request.starts_with("GET /up HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        let _ = stream.write_all(answer.as_ref());
    });
}

#[test]
fn http_responses_with_2xx_or_3xx_are_healthy() {
    expect_answer(Ok(()), "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    expect_answer(Ok(()), "HTTP/1.0 204\r\n");
    expect_answer(Ok(()), "HTTP/1.1 399 Odd\n");
    expect_answer(Err("answered with status 400, not 2xx or 3xx"), "HTTP/1.1 400 Bad Request\r\n\r\n");
    expect_answer(Err("answered with status 500, not 2xx or 3xx"), "HTTP/1.0 500 \r\n\r\n");
    expect_answer(Err("answered with status 103, not 2xx or 3xx"), "HTTP/1.1 103 Early Hints\r\n\r\n");
    expect_answer(Err(r#"answered with what is not HTTP: "SSH-2.0-x\r\n""#), "SSH-2.0-x\r\n");
    expect_answer(Err("answered with what is not HTTP"), vec![0xff; 1 << 20]);
    expect_answer(Err("closed the connection without an answer"), "");
    expect_answer(Err("closed the connection within its status line"), "HTTP/1.1 200 O");
    expect_answer(Err("a status line of more than 1024 bytes"), format!("HTTP/1.1 200 {}", "x".repeat(1 << 20)));
}

#[test]
fn http_is_healthy_before_the_headers_are_complete() {
    expect_http(60_000, Ok(()), |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nX: ");
        drain(stream);
    });
}

#[test]
fn http_an_endless_header_is_not_read() {
    expect_http(60_000, Ok(()), |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        endless(stream, &[b'x'; 4096]);
    });
}

#[test]
fn http_an_endless_status_line_is_not_read() {
    expect_http(60_000, Err("a status line of more than 1024 bytes"), |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 ");
        endless(stream, &[b'x'; 4096]);
    });
}

#[test]
fn http_without_a_response_times_out() {
    expect_http(50, Err("did not answer within 50 ms"), drain);
}

#[test]
fn http_with_half_a_status_line_times_out() {
    expect_http(1000, Err("did not finish its status line within 1000 ms"), |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 2");
        drain(stream);
    });
}

#[test]
fn http_a_status_line_that_arrives_byte_by_byte_without_end_times_out() {
    expect_http(1000, Err("did not finish its status line within 1000 ms"), |mut stream| {
        for byte in b"HTTP/1.1 200 ".iter().chain(std::iter::repeat(&b'x')) {
            if stream.write_all(&[*byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn http_a_connection_closed_at_once_fails() {
    // If the request has arrived by then, the close is a reset, else a FIN.
    expect_http(60_000, Err("the connection"), |stream| drop(stream.shutdown(Shutdown::Both)));
}

#[test]
fn http_a_connection_reset_at_once_fails() {
    expect_http(60_000, Err("reset the connection"), |mut stream| {
        read_request(&mut stream);
        reset(stream);
    });
}

/// Longer than what the kernel takes of a request that is not read. Not much longer: a probe that needs more than 250 ms
/// to make the request, as one of 16 MiB does on a busy machine, is a gap.
fn long_path() -> String {
    format!("/{}", "x".repeat(4 << 20))
}

#[test]
fn http_a_request_that_is_not_read_times_out() {
    let mut held = Vec::new();
    let service = Service::with_little_room(move |stream| held.push(stream));
    let (health, verdicts) = start();
    let path = Some(long_path());
    health.watch(UnitId(1), 1, HealthCheck { path, timeout_ms: 100, ..check(HealthKind::Http, service.port()) });
    let why = verdicts.recv_timeout(LONG).unwrap().outcome.unwrap_err();
    assert!(why.contains("did not read the request within 100 ms"), "{why}");
    drop(health);
}

#[test]
fn http_a_response_before_the_request_is_read_counts() {
    // It answers every connection: on a busy machine the first ones may be given up because of a gap.
    let mut held = Vec::new();
    let service = Service::with_little_room(move |mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 414 URI Too Long\r\n\r\n");
        held.push(stream);
    });
    let (health, verdicts) = start();
    health.watch(UnitId(1), 1, HealthCheck { path: Some(long_path()), ..check(HealthKind::Http, service.port()) });
    let why = verdicts.recv_timeout(LONG).unwrap().outcome.unwrap_err();
    assert!(why.contains("status 414"), "{why}");
    drop(health);
}

#[test]
fn a_probe_of_a_port_without_a_listener_fails() {
    let (health, verdicts) = start();
    let refused = refusing();
    for (unit, kind) in [(1, HealthKind::Tcp), (2, HealthKind::Http)] {
        health.watch(UnitId(unit), 1, check(kind, refused.0));
    }
    for _ in 0..10 {
        let why = verdicts.recv_timeout(LONG).unwrap().outcome.unwrap_err();
        // The rest of the sentence is about [::1], if the machine has it.
        assert!(why.starts_with(&format!("127.0.0.1:{} refused the connection", refused.0)), "{why}");
    }
}

/// Listens on [::1]; on 127.0.0.1 the same port refuses connections.
fn listen_on_ipv6_only() -> (TcpListener, u16, Refusing) {
    loop {
        let refused = refusing();
        if let Ok(listener) = TcpListener::bind(("::1", refused.0)) {
            return (listener, refused.0, refused);
        }
    }
}

#[test]
fn a_service_on_ipv6_only_is_probed() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("a_service_on_ipv6_only_is_probed: skipped, there is no IPv6");
        return;
    }
    /// The request that ends the service.
    const END: &str = "END\r\n\r\n";
    let (listener, port, _refusing) = listen_on_ipv6_only();
    let (health, verdicts) = start();
    let serving = thread::spawn({
        let listener = listener.try_clone().unwrap();
        move || {
            let mut hosts = Vec::new();
            loop {
                let mut stream = listener.accept().unwrap().0;
                let request = read_request(&mut stream);
                if request == END {
                    return hosts;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
                // The connection of the TCP check sends no request.
                hosts.extend(request.lines().nth(1).map(str::to_owned));
            }
        }
    });
    for (unit, kind) in [(1, HealthKind::Tcp), (2, HealthKind::Http)] {
        health.watch(UnitId(unit), 1, check(kind, port));
    }
    let mut counts = [0; 2];
    while counts.iter().any(|count| *count < 5) {
        let verdict = verdicts.recv_timeout(LONG).unwrap();
        assert_eq!(verdict.outcome, Ok(()));
        counts[verdict.unit.0 as usize - 1] += 1;
    }
    drop(health);
    TcpStream::connect(("::1", port)).unwrap().write_all(END.as_bytes()).unwrap();
    let hosts = serving.join().unwrap();
    assert!(hosts.len() >= 5 && hosts.iter().all(|host| *host == format!("Host: [::1]:{port}")), "{hosts:?}");
    // The failure names the address that was reached. This connection stays in the backlog.
    let (health, verdicts) = start();
    health.watch(UnitId(3), 1, HealthCheck { timeout_ms: 50, ..check(HealthKind::Http, port) });
    let why = verdicts.recv_timeout(LONG).unwrap().outcome.unwrap_err();
    assert_eq!(why, format!("[::1]:{port} did not answer within 50 ms"));
    drop((health, listener));
}

#[test]
fn tcp_is_healthy_once_connected() {
    let (health, verdicts) = start();
    let silent = Service::new(drain);
    let closing = Service::new(drop);
    let resetting = Service::new(reset);
    for (unit, service) in [&silent, &closing, &resetting].into_iter().enumerate() {
        health.watch(UnitId(unit as u64), 1, check(HealthKind::Tcp, service.port()));
    }
    let mut counts = [0; 3];
    while counts.iter().any(|count| *count < 20) {
        let verdict = verdicts.recv_timeout(LONG).unwrap();
        assert_eq!(verdict.outcome, Ok(()));
        counts[verdict.unit.0 as usize] += 1;
    }
    drop(health);
}

#[test]
fn tcp_a_full_backlog_times_out() {
    let (fd, port) = bound();
    socket::listen(&fd, Backlog::new(0).unwrap()).unwrap();
    let queued = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let (health, verdicts) = start();
    for (unit, kind) in [(1, HealthKind::Tcp), (2, HealthKind::Http)] {
        health.watch(UnitId(unit), 1, HealthCheck { timeout_ms: 50, ..check(kind, port) });
    }
    for _ in 0..4 {
        let why = verdicts.recv_timeout(LONG).unwrap().outcome.unwrap_err();
        assert!(why.contains("did not accept a connection within 50 ms"), "{why}");
    }
    drop(queued);
}

#[test]
fn a_verdict_changes_with_the_service() {
    let status = Arc::new(AtomicBool::new(true));
    let seen = status.clone();
    let service = Service::new(move |mut stream| {
        read_request(&mut stream);
        let up = seen.load(Ordering::SeqCst);
        let _ = stream.write_all(if up { b"HTTP/1.1 200 OK\r\n" } else { b"HTTP/1.1 503 No\r\n" });
    });
    let (health, verdicts) = start();
    health.watch(UnitId(1), 1, check(HealthKind::Http, service.port()));
    for up in [true, false, true] {
        status.store(up, Ordering::SeqCst);
        while verdicts.recv_timeout(LONG).unwrap().outcome.is_ok() != up {}
    }
    drop(health);
}

#[test]
fn no_probe_begins_early() {
    let service = Service::new(drop);
    let (health, verdicts) = start();
    let watched = Instant::now();
    let spec = HealthCheck { initial_delay_ms: 150, interval_ms: 50, ..check(HealthKind::Tcp, service.port()) };
    health.watch(UnitId(1), 1, spec);
    for n in 0..5 {
        verdicts.recv_timeout(LONG).unwrap();
        assert!(watched.elapsed() >= Duration::from_millis(150 + n * 50), "{n}: {:?}", watched.elapsed());
    }
}

#[test]
fn a_new_watch_replaces_the_earlier_one() {
    let (silent, streams) = Service::handing_over();
    let good = Service::new(drop);
    let (health, verdicts) = start();
    health.watch(UnitId(1), 1, check(HealthKind::Http, silent.port()));
    let mut in_flight = streams.recv_timeout(LONG).unwrap();
    read_request(&mut in_flight);
    health.watch(UnitId(1), 2, check(HealthKind::Tcp, good.port()));
    drain(in_flight);
    for _ in 0..5 {
        assert_eq!(verdicts.recv_timeout(LONG).unwrap(), Verdict { unit: UnitId(1), watch: 2, outcome: Ok(()) });
    }
    connected_so_far(&silent, &streams).into_iter().for_each(drain);
}

#[test]
fn unwatch_closes_the_connection() {
    let (silent, streams) = Service::handing_over();
    let good = Service::new(drop);
    let (health, verdicts) = start();
    health.watch(UnitId(1), 1, check(HealthKind::Http, silent.port()));
    let mut in_flight = streams.recv_timeout(LONG).unwrap();
    read_request(&mut in_flight);
    health.unwatch(UnitId(1));
    health.unwatch(UnitId(99));
    drain(in_flight);
    health.watch(UnitId(2), 1, check(HealthKind::Tcp, good.port()));
    for _ in 0..5 {
        assert_eq!(verdicts.recv_timeout(LONG).unwrap().unit, UnitId(2));
    }
    connected_so_far(&silent, &streams).into_iter().for_each(drain);
}

#[test]
fn dropping_the_handle_ends_the_thread() {
    let (silent, streams) = Service::handing_over();
    let (health, verdicts) = start();
    health.watch(UnitId(1), 1, check(HealthKind::Http, silent.port()));
    let mut in_flight = streams.recv_timeout(LONG).unwrap();
    read_request(&mut in_flight);
    drop(health);
    drain(in_flight);
    assert!(verdicts.recv().is_err(), "the thread has ended without a verdict");
}

#[test]
fn the_fin_budget_runs_out_and_recovers() {
    let mut budget = FinBudget::default();
    let minute = Duration::from_secs(60);
    let allowed = |budget: &mut FinBudget, from: u32| {
        (0..60_000).filter(|ms| budget.take(minute * from + minute / 60_000 * *ms)).count()
    };
    let first = allowed(&mut budget, 0);
    assert!((1490..=1510).contains(&first), "{first}");
    let second = allowed(&mut budget, 1);
    assert!((990..=1010).contains(&second), "{second}");
    assert!((0..500).all(|_| budget.take(minute * 3)));
    assert!(!budget.take(minute * 3));
}

/// Runs one test of `solo` in a separate process, with its own threads, descriptors and limits.
fn alone(name: &str) -> Process {
    let mut process = Process::new(std::env::current_exe().unwrap());
    process.args([&format!("health::tests::solo::{name}"), "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    process.env(ALONE, "1").stdin(Stdio::null()).stderr(Stdio::piped()).stdout(Stdio::piped());
    process
}

const ALONE: &str = "TL_TEST_ALONE";

#[track_caller]
fn passes_alone(name: &str) {
    let output = alone(name).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{}\n{out}\n{err}", output.status);
    print!("{out}");
}

#[test]
fn descriptors_are_closed_after_each_probe() {
    passes_alone("descriptors_are_closed_after_each_probe");
}

#[test]
fn without_descriptors_there_is_no_verdict() {
    passes_alone("without_descriptors_there_is_no_verdict");
}

#[test]
fn a_thousand_checks_per_second_are_probed_on_time() {
    passes_alone("a_thousand_checks_per_second_are_probed_on_time");
}

#[test]
fn an_idle_thread_does_not_wake_up() {
    passes_alone("an_idle_thread_does_not_wake_up");
}

struct Stopped {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Stopped {
    /// The next verdict that it prints. The test runner prints other lines too.
    fn verdict(&mut self) -> String {
        self.lines
            .by_ref()
            .map(Result::unwrap)
            .find_map(|line| line.split_once("verdict ").map(|it| it.1.to_owned()))
            .unwrap()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The interval and the timeout of the probes of the daemon that is suspended.
const PERIOD: Duration = Duration::from_secs(2);

/// Regression: a suspended daemon took its own pause for a timeout of the service.
#[test]
fn a_suspended_daemon_does_not_fail_its_services() {
    let (sender, held) = unbounded();
    let answers = Arc::new(AtomicBool::new(false));
    let seen = answers.clone();
    let service = Service::new(move |mut stream| {
        if seen.load(Ordering::SeqCst) {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
            read_request(&mut stream);
        } else {
            let _ = sender.send(stream);
        }
    });
    // No probe begins before this.
    let mut earliest = Instant::now();
    let mut child = alone("prints_verdicts").env("PORT", service.port().to_string()).spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut daemon = Stopped { child, lines };
    let (mut passed, end) = (0, earliest + LONG);
    while passed < 2 {
        let in_flight = held.recv_timeout(LONG).unwrap();
        kill(pid, Signal::SIGSTOP).unwrap();
        let before = earliest.elapsed();
        // Longer than the timeout and the interval.
        thread::sleep(Duration::from_millis(3000));
        answers.store(true, Ordering::SeqCst);
        let continued = Instant::now();
        kill(pid, Signal::SIGCONT).unwrap();
        std::iter::once(in_flight).chain(held.try_iter()).for_each(drain);
        let verdict = daemon.verdict();
        answers.store(false, Ordering::SeqCst);
        if verdict == "Ok(())" {
            passed += 1;
            earliest = continued + PERIOD;
        } else {
            // On a busy machine the time while it was not suspended may have been too long as well.
            let is_late = before + continued.elapsed() >= PERIOD;
            assert!(is_late && Instant::now() < end, "{verdict}");
            earliest = continued;
        }
    }
}

mod solo {
    use super::*;

    fn is_alone() -> bool {
        std::env::var_os(ALONE).is_some()
    }

    fn descriptors() -> usize {
        fs::read_dir("/proc/self/fd").unwrap().count()
    }

    /// The directory of the health thread in /proc.
    fn health_thread() -> std::path::PathBuf {
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let tasks: Vec<_> = tasks.filter(|task| fs::read_to_string(task.join("comm")).unwrap() == "health\n").collect();
        let [task] = &tasks[..] else { panic!("one thread, not {tasks:?}") };
        task.clone()
    }

    /// Whether the health thread sleeps, rather than waits for a processor.
    fn is_asleep() -> bool {
        fs::read_to_string(health_thread().join("status")).unwrap().contains("State:\tS")
    }

    /// The health thread's CPU time, and the number of its voluntary context switches.
    fn thread_costs() -> (Duration, u64) {
        let task = health_thread();
        let cpu = fs::read_to_string(task.join("schedstat")).unwrap();
        let cpu = Duration::from_nanos(cpu.split(' ').next().unwrap().parse().unwrap());
        let status = fs::read_to_string(task.join("status")).unwrap();
        let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
        (cpu, sleeps.trim().parse().unwrap())
    }

    #[test]
    #[ignore = "run by the test of the same name, in a separate process"]
    fn descriptors_are_closed_after_each_probe() {
        if !is_alone() {
            return;
        }
        let (silent, streams) = Service::handing_over();
        let good = Service::new(drop);
        let before = descriptors();
        for _ in 0..3 {
            let (health, verdicts) = start();
            let idle = descriptors();
            for unit in 0..50 {
                health.watch(UnitId(unit), 1, check(HealthKind::Http, silent.port()));
            }
            health.watch(UnitId(50), 1, check(HealthKind::Tcp, good.port()));
            let held: Vec<TcpStream> = (0..50).map(|_| streams.recv_timeout(LONG).unwrap()).collect();
            for _ in 0..50 {
                assert_eq!(verdicts.recv_timeout(LONG).unwrap().unit, UnitId(50));
            }
            assert!(descriptors() >= idle + 100);
            for unit in 0..25 {
                health.unwatch(UnitId(unit));
            }
            drop(health);
            held.into_iter().chain(connected_so_far(&silent, &streams)).for_each(drain);
            assert_eq!(descriptors(), before);
        }
    }

    struct Log(Sender<String>);

    impl log::Log for Log {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let _ = self.0.send(record.args().to_string());
        }
        fn flush(&self) {}
    }

    #[test]
    #[ignore = "run by the test of the same name, in a separate process"]
    fn without_descriptors_there_is_no_verdict() {
        if !is_alone() {
            return;
        }
        let (sender, logged) = unbounded();
        log::set_logger(Box::leak(Box::new(Log(sender)))).unwrap();
        log::set_max_level(log::LevelFilter::Warn);
        let refused = refusing();
        let (health, verdicts) = start();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard).unwrap();
        health.watch(UnitId(1), 1, check(HealthKind::Tcp, refused.0));
        let warning = logged.recv_timeout(LONG).unwrap();
        assert!(warning.contains("Too many open files"), "{warning}");
        // Further intervals bring neither a verdict nor another warning.
        assert!(verdicts.recv_timeout(Duration::from_millis(50)).is_err());
        assert!(logged.try_recv().is_err(), "the warning is logged once");
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        assert!(verdicts.recv_timeout(LONG).unwrap().outcome.is_err());
    }

    /// The figures are asserted only in a release build (`cargo test --release a_thousand`, on a quiet machine).
    /// Otherwise they are printed.
    #[test]
    #[ignore = "run by the test of the same name, in a separate process"]
    fn a_thousand_checks_per_second_are_probed_on_time() {
        if !is_alone() {
            return;
        }
        const CHECKS: u64 = 1000;
        let service = Service::new(drop);
        let (sender, verdicts) = unbounded();
        let health = Health::start(move |verdict| drop(sender.send((verdict, Instant::now()))), || {}).unwrap();
        let watched = Instant::now();
        for unit in 0..CHECKS {
            let spec = check(HealthKind::Tcp, service.port());
            health.watch(UnitId(unit), 1, HealthCheck { initial_delay_ms: 100 + unit, interval_ms: 1000, ..spec });
        }
        let mut last: HashMap<UnitId, Instant> = HashMap::new();
        let mut late = Vec::new();
        let mut costs = None;
        let mut until = watched + LONG;
        while let Ok((verdict, at)) = verdicts.recv_timeout(until.saturating_duration_since(Instant::now())) {
            assert_eq!(verdict.outcome, Ok(()));
            let due = match last.insert(verdict.unit, at) {
                Some(before) => before + Duration::from_secs(1),
                None => watched + Duration::from_millis(100 + verdict.unit.0),
            };
            late.push(at.saturating_duration_since(due));
            costs.get_or_insert_with(|| (thread_costs(), Instant::now()));
            if last.len() as u64 == CHECKS {
                until = watched + Duration::from_millis(5100);
            }
        }
        let ((cpu, sleeps), from) = costs.unwrap();
        let (cpu, sleeps) = (thread_costs().0 - cpu, thread_costs().1 - sleeps);
        let share = cpu.as_secs_f64() / from.elapsed().as_secs_f64();
        assert_eq!(last.len() as u64, CHECKS);
        late.sort();
        let (median, worst) = (late[late.len() / 2], late[late.len() - 1]);
        println!(
            "{} probes in {:.1?}: late by {median:.1?} in the median, {worst:.1?} at worst; {:.1} % of a core, \
             {:.1?} and {:.2} wake-ups per probe",
            late.len(),
            from.elapsed(),
            share * 100.0,
            cpu / late.len() as u32,
            sleeps as f64 / late.len() as f64,
        );
        if !cfg!(debug_assertions) {
            assert!(share < 0.05 && worst < Duration::from_millis(100));
        }
    }

    #[test]
    #[ignore = "run by the test of the same name, in a separate process"]
    fn an_idle_thread_does_not_wake_up() {
        if !is_alone() {
            return;
        }
        let (health, verdicts) = start();
        let service = Service::new(drop);
        let spec = check(HealthKind::Tcp, service.port());
        health.watch(UnitId(1), 1, HealthCheck { interval_ms: 86_400_000, ..spec });
        verdicts.recv_timeout(LONG).unwrap();
        let sleeps_in_half_a_second = || {
            let before = thread_costs().1;
            thread::sleep(Duration::from_millis(500));
            thread_costs().1 - before
        };
        // At first the thread may not be asleep yet.
        let end = Instant::now() + LONG;
        while !is_asleep() || sleeps_in_half_a_second() > 0 {
            assert!(Instant::now() < end, "it wakes up again and again");
        }
        assert_eq!(sleeps_in_half_a_second(), 0);
    }

    /// The daemon of `a_suspended_daemon_does_not_fail_its_services`.
    #[test]
    #[ignore = "run by another test, in a separate process"]
    fn prints_verdicts() {
        if !is_alone() {
            return;
        }
        let Some(port) = std::env::var("PORT").ok().and_then(|port| port.parse().ok()) else { return };
        let (health, verdicts) = start();
        let [interval_ms, timeout_ms] = [PERIOD.as_millis() as u64; 2];
        health.watch(UnitId(1), 1, HealthCheck { interval_ms, timeout_ms, ..check(HealthKind::Http, port) });
        for verdict in verdicts {
            println!("verdict {:?}", verdict.outcome);
        }
    }
}
