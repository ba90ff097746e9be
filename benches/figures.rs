//! What the daemon costs, each figure beside the floor that this machine sets in the same minute: absolute times
//! say more about the machine than about us, so look at the ratios.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(unreachable_pub, missing_docs, dead_code)]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use harness::http::Stream;
use harness::{Daemon, Options, PATIENCE, daemon, daemon_with, machine, pid_of, wait_until};

/// Figures of a daemon that they share.
type Figures = fn(&Daemon);

fn main() {
    println!("{:<44} {:>12} {:>12} {:>8}", "", "tl-init", "floor", "ratio");
    // `cargo bench --bench figures -- WORD`: only those whose name has it.
    let only = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let of_a_daemon: [(&str, Figures); 5] = [
        ("requests", latency),
        ("requests", throughput),
        ("requests", health),
        ("tunnel", tunnel),
        ("terminal", terminal),
    ];
    let wanted: Vec<_> = of_a_daemon.iter().filter(|(name, _)| name.contains(&only)).collect();
    if !wanted.is_empty() {
        let daemon = daemon();
        wanted.iter().for_each(|(_, figures)| figures(&daemon));
    }
    let others: [(&str, fn()); 6] = [
        ("capture", capture),
        ("files", files),
        ("memory", memory),
        ("crash", crash_to_running),
        ("managed", managed),
        ("start-up", start_up),
    ];
    others.iter().filter(|(name, _)| name.contains(&only)).for_each(|(_, figures)| figures());
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_tl-init")).expect("the program").len();
    row("size of the stripped program, MB", size as f64 / 1e6, None);
}

fn row(what: &str, ours: f64, floor: Option<f64>) {
    match floor {
        Some(floor) => println!("{what:<44} {ours:>12.3} {floor:>12.3} {:>8.2}", ours / floor),
        None => println!("{what:<44} {ours:>12.3} {:>12} {:>8}", "-", "-"),
    }
}

/// Milliseconds at p50, p90 and p99.
fn percentiles(mut times: Vec<Duration>) -> [f64; 3] {
    times.sort();
    [50, 90, 99].map(|percent| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3)
}

fn timed(count: usize, mut job: impl FnMut()) -> Vec<Duration> {
    let one = |_| {
        let begun = Instant::now();
        job();
        begun.elapsed()
    };
    (0..count).map(one).collect()
}

/// Jobs per second done by 8 threads, each with a job of its own.
fn rate<J: FnMut() + Send>(count: usize, jobs: Vec<J>) -> f64 {
    let threads = jobs.len();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for mut job in jobs {
            scope.spawn(move || (0..count / threads).for_each(|_| job()));
        }
    });
    count as f64 / begun.elapsed().as_secs_f64()
}

/// A client on a connection of its own that sends one request again and again.
struct Client {
    socket: Option<TcpStream>,
    request: Vec<u8>,
    expected: &'static [u8],
}

impl Client {
    fn new(daemon: &Daemon, head: &str, body: &str, expected: &'static [u8]) -> Client {
        let socket = daemon.connect();
        socket.set_nodelay(true).expect("no delay");
        let request = format!(
            "{head} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
            daemon.token,
            body.len()
        );
        Client { socket: Some(socket), request: request.into_bytes(), expected }
    }

    /// Runs `/bin/true` as the default user.
    fn run_true(daemon: &Daemon) -> Client {
        let body = json!({"command": "/bin/true"}).to_string();
        Client::new(daemon, "POST /api/v1/processes/run", &body, b"\"exit_code\":0")
    }

    fn health(daemon: &Daemon) -> Client {
        Client::new(daemon, "GET /api/v1/health", "", b"true")
    }

    fn ask(&mut self) {
        let socket = self.socket.take().expect("the connection");
        let mut stream = Stream::send(socket, &self.request);
        let mut body = Vec::new();
        stream.read_to_end(&mut body).expect("the whole body");
        let found = body.windows(self.expected.len()).any(|window| window == self.expected);
        assert!(found, "{}", String::from_utf8_lossy(&body));
        self.socket = Some(stream.into_socket());
    }
}

/// The same program by fork, setuid, exec and wait: what any supervisor has to do at least.
fn spawn_true() {
    let mut command = Command::new("/bin/true");
    command.stdin(Stdio::null());
    if nix::unistd::geteuid().is_root() {
        command.uid(1000).gid(1000);
    }
    assert!(command.status().expect("run it").success());
}

fn latency(daemon: &Daemon) {
    let mut client = Client::run_true(daemon);
    timed(200, || client.ask());
    let ours = percentiles(timed(2_000, || client.ask()));
    let floor = percentiles(timed(2_000, spawn_true));
    for (name, (ours, floor)) in ["p50", "p90", "p99"].into_iter().zip(ours.into_iter().zip(floor)) {
        row(&format!("run /bin/true, {name}, ms"), ours, Some(floor));
    }
}

fn throughput(daemon: &Daemon) {
    let clients = (0..8).map(|_| Client::run_true(daemon));
    let ours = rate(8_000, clients.map(|mut client| move || client.ask()).collect());
    let floor = rate(8_000, vec![spawn_true; 8]);
    row("runs per second, 8 clients", ours, Some(floor));
}

fn health(daemon: &Daemon) {
    // The floor: one small message each way over the loopback.
    let echo = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = echo.local_addr().expect("its address");
    std::thread::spawn(move || {
        for socket in echo.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut socket, mut buffer) = (socket, [0; 512]);
                while let Ok(got @ 1..) = socket.read(&mut buffer) {
                    let _ = socket.write_all(&buffer[..got]);
                }
            });
        }
    });
    let bounce = || {
        let mut socket = TcpStream::connect(addr).expect("connect");
        socket.set_nodelay(true).expect("no delay");
        let mut buffer = [0; 128];
        move || {
            socket.write_all(&buffer).expect("send");
            socket.read_exact(&mut buffer).expect("receive");
        }
    };
    let mut client = Client::health(daemon);
    timed(1_000, || client.ask());
    let ours = percentiles(timed(20_000, || client.ask()));
    let floor = percentiles(timed(20_000, bounce()));
    row("health, p50, ms", ours[0], Some(floor[0]));
    let clients = (0..8).map(|_| Client::health(daemon));
    let ours = rate(80_000, clients.map(|mut client| move || client.ask()).collect());
    let floor = rate(80_000, (0..8).map(|_| bounce()).collect());
    row("health, requests per second, 8 clients", ours, Some(floor));
}

/// A service that sends `count` bytes to each client, or reads all that it sends and answers with one byte.
fn bulk(count: usize, sends: bool) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        let mut block = vec![0; 256 << 10];
        for mut socket in listener.incoming().flatten() {
            let mut left = count;
            while left > 0 {
                let done = if sends {
                    let piece = left.min(block.len());
                    socket.write(&block[..piece])
                } else {
                    socket.read(&mut block)
                };
                left -= done.expect("the other end is there");
            }
            if !sends {
                let _ = socket.write_all(b".");
            }
        }
    });
    addr
}

fn tunnel(daemon: &Daemon) {
    const BYTES: usize = 1 << 30;
    let rate = |begun: Instant| BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64();
    let mut block = vec![0; 256 << 10];
    let (source, sink) = (bulk(BYTES, true), bulk(BYTES, false));
    let mut plain = TcpStream::connect(source).expect("connect");
    let begun = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        left -= plain.read(&mut block).expect("receive");
    }
    let floor = rate(begun);
    // Off the socket: parsing frames is the client's business.
    let mut tunnel = daemon.tunnel(source.port());
    let begun = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        left = left.saturating_sub(tunnel.get_mut().read(&mut block).expect("receive"));
    }
    row("tunnel from the service, MB/s", rate(begun), Some(floor));
    let mut plain = TcpStream::connect(sink).expect("connect");
    let begun = Instant::now();
    for _ in 0..BYTES / block.len() {
        plain.write_all(&block).expect("send");
    }
    plain.read_exact(&mut [0]).expect("an answer");
    let floor = rate(begun);
    let mut tunnel = daemon.tunnel(sink.port());
    let frame = harness::socket::frame(0x82, &block);
    let begun = Instant::now();
    for _ in 0..BYTES / block.len() {
        tunnel.get_mut().write_all(&frame).expect("send");
    }
    tunnel.read().expect("an answer");
    row("tunnel to the service, MB/s", rate(begun), Some(floor));
}

fn terminal(daemon: &Daemon) {
    let session = daemon.pty_sh("stty raw -echo; echo up; exec cat");
    let mut echo = daemon.watch(&session);
    echo.expect("up");
    let mut round_trip = || {
        echo.type_in("x");
        echo.expect("x");
    };
    timed(500, &mut round_trip);
    let [p50, _, p99] = percentiles(timed(5_000, &mut round_trip));
    row("echo of a terminal, p50, ms", p50, None);
    row("echo of a terminal, p99, ms", p99, None);
    let large = daemon.pty_sh("stty raw -echo; echo up; read -r line; head -c 104857600 /dev/zero");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut terminal = daemon.watch(&large);
            terminal.expect("up\n");
            terminal.shown.clear();
            let begun = Instant::now();
            // What it writes before somebody is ready is not kept whole.
            terminal.type_in("go\n");
            assert_eq!(terminal.end().exit, Some(0));
            assert_eq!(terminal.shown.len(), 100 << 20);
            100.0 * 1.048_576 / begun.elapsed().as_secs_f64()
        });
        let mut times = Vec::new();
        while !reader.is_finished() {
            times.extend(timed(1, &mut round_trip));
        }
        row("echo while another prints 100 MiB, p99, ms", percentiles(times)[2], None);
        row("output of that one, MB/s", reader.join().expect("the reader"), None);
    });
}

fn capture() {
    const MIB: usize = 256;
    let daemon = daemon_with(&["--log-limit", "1073741824"]);
    let source = daemon.scratch().join("source");
    let line = [&[b'x'; 61], b"\n".as_slice()].concat();
    let block = line.repeat((1 << 20) / line.len() + 1);
    let mut file = std::fs::File::create(&source).expect("a file");
    (0..MIB).for_each(|_| file.write_all(&block[..1 << 20]).expect("write it"));
    let megabytes = (MIB << 20) as f64 / 1e6;
    let begun = Instant::now();
    let pid = pid_of(&daemon.start_process(&json!({"command": "cat", "args": [source]})));
    assert_eq!(daemon.ended(pid)["exit_code"], 0);
    let ours = megabytes / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let copied = std::fs::File::create(daemon.scratch().join("copy")).expect("a file");
    // Through a pipe, as ours; a plain copy would not even read the bytes.
    let script = format!("cat {} | cat", source.display());
    assert!(Command::new("sh").args(["-c", &script]).stdout(copied).status().expect("copy it").success());
    let floor = megabytes / begun.elapsed().as_secs_f64();
    row("capture of 62-byte lines (cat | cat >file), MB/s", ours, Some(floor));
    let begun = Instant::now();
    let copied = std::fs::File::create(daemon.scratch().join("copy")).expect("a file");
    assert!(Command::new("cat").arg(&source).stdout(copied).status().expect("copy it").success());
    row("the same beside cat >file, MB/s", ours, Some(megabytes / begun.elapsed().as_secs_f64()));
    let begun = Instant::now();
    let mut frames = daemon.follow(pid, "stdout").into_reader();
    std::io::copy(&mut frames, &mut std::io::sink()).expect("the whole of it");
    row("its replay as events, MB/s of output", megabytes / begun.elapsed().as_secs_f64(), None);
}

/// A body of any length whose bytes cost nothing to make.
fn send_zeros(socket: &mut TcpStream, mut length: usize) {
    let block = vec![0; 256 << 10];
    while length > 0 {
        let piece = &block[..length.min(block.len())];
        socket.write_all(piece).expect("send");
        length -= piece.len();
    }
}

fn files() {
    const SIZE: usize = 1 << 30;
    let daemon = daemon();
    let scratch = daemon.scratch();
    let head = |method: &str, name: &str, more: &str| {
        let path = scratch.join(name);
        format!(
            "{method} /api/v1/files?path={} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n{more}\r\n",
            path.display(),
            daemon.token
        )
    };
    let put = |name: &str, size: usize| {
        let mut socket = daemon.connect();
        socket.write_all(head("PUT", name, &format!("Content-Length: {size}\r\n")).as_bytes()).expect("send");
        send_zeros(&mut socket, size);
        assert_eq!(Stream::read(socket).expect("an answer").status, 204);
    };
    let get = |name: &str| {
        let mut stream = Stream::send(daemon.connect(), head("GET", name, "").as_bytes()).expect_status(200);
        let mut block = vec![0; 256 << 10];
        std::iter::repeat_with(|| stream.read(&mut block).expect("receive")).take_while(|got| *got > 0).sum::<usize>()
    };
    put("small", 1 << 20);
    get("small");
    let before = machine::kilobytes(daemon.pid, "VmHWM") as f64;
    let (mut ours, mut floor, mut down) = (Duration::MAX, Duration::MAX, Duration::MAX);
    let timed = |best: &mut Duration, job: &dyn Fn()| {
        let begun = Instant::now();
        job();
        *best = (*best).min(begun.elapsed());
    };
    for _ in 0..3 {
        timed(&mut ours, &|| put("large", SIZE));
        timed(&mut floor, &|| {
            // As dd does it: the content of a file to another file, and fsync.
            let script = "cp --sparse=never --reflink=never large copy && sync copy && mv copy copied";
            assert!(Command::new("sh").args(["-c", script]).current_dir(&scratch).status().expect("cp").success());
        });
        timed(&mut down, &|| assert_eq!(get("large"), SIZE));
    }
    let speed = |time: Duration| SIZE as f64 / 1e6 / time.as_secs_f64();
    row("upload of 1 GiB (cp and fsync), MB/s", speed(ours), Some(speed(floor)));
    row("download of it (cp and fsync), MB/s", speed(down), Some(speed(floor)));
    row("memory grown by both, MB", (machine::kilobytes(daemon.pid, "VmHWM") as f64 - before) / 1e3, None);
    let dir = scratch.join("many");
    std::fs::create_dir(&dir).expect("a directory");
    (0..100_000).for_each(|number| drop(std::fs::File::create(dir.join(format!("entry-{number}"))).expect("a file")));
    let path = format!("/files/list?path={}", dir.display());
    let ours = self::timed(5, || drop(daemon.open("GET", &path, "", b"").expect_status(200).read_all()));
    let ls = || {
        assert!(Command::new("ls").arg("-l").current_dir(&dir).stdout(Stdio::null()).status().expect("ls").success())
    };
    row("listing 100,000 entries (ls -l), p50, ms", percentiles(ours)[0], Some(percentiles(self::timed(5, ls))[0]));
}

fn memory() {
    let daemon = daemon();
    let now = || machine::kilobytes(daemon.pid, "VmRSS") as f64;
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
            scope.spawn(|| (0..2_500).for_each(|_| client.ask()));
        }
    });
    row("memory grown over 20,000 runs, MB", (now() - before) / 1e3, None);
}

fn service(name: &str, script: &str, check: serde_json::Value) -> serde_json::Value {
    let restart = json!({"policy": "always", "initial_backoff_ms": 0});
    json!({"command": "sh", "args": ["-c", script], "name": name, "restart": restart, "health_check": check})
}

/// From the kill to the first word of the next run, the start of its shell included.
fn crash_to_running() {
    let daemon = daemon();
    let mut times = Vec::new();
    // After a fifth short run in a row there is a wait.
    for n in 0..50 {
        let word = format!("sleep {}", 9_100 + n);
        let info = daemon.start_process(&service(&format!("s{n}"), &format!("echo $$; exec {word}"), json!(null)));
        let mut frames = daemon.follow(pid_of(&info), "stdout");
        frames.next_frame().expect("it is up");
        for _ in 0..4 {
            let pid = wait_until(PATIENCE, "it is up", || daemon.find(&word).first().copied());
            let pid = nix::unistd::Pid::from_raw(pid);
            let begun = Instant::now();
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("crash it");
            frames.next_frame().expect("it is up again");
            times.push(begun.elapsed());
        }
        daemon.delete(&format!("/processes/s{n}")).expect(204);
    }
    // The floor: a shell that is started and says a word.
    let echo = || {
        let mut child = Command::new("sh").args(["-c", "echo $$; exec sleep 9000"]).stdout(Stdio::piped()).spawn();
        let child = child.as_mut().expect("run it");
        child.stdout.take().expect("its output").read_exact(&mut [0]).expect("a word");
        child.kill().and_then(|()| child.wait()).expect("end it");
    };
    row("crash to running again, p50, ms", percentiles(times)[0], Some(percentiles(timed(200, echo))[0]));
}

fn managed() {
    const COUNT: usize = 1_000;
    let daemon = daemon_with(&["--max-processes", "1500"]);
    let crowd = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = crowd.local_addr().expect("its address").port();
    std::thread::spawn(move || crowd.incoming().for_each(drop));
    // One of them is looked at closely.
    let one = TcpListener::bind("127.0.0.1:0").expect("a port");
    let its_port = one.local_addr().expect("its address").port();
    let memory = || machine::kilobytes(daemon.pid, "VmRSS") as f64;
    let before = memory();
    for n in 0..COUNT {
        let port = if n == COUNT / 2 { its_port } else { port };
        let check = json!({"type": "tcp", "port": port, "initial_delay_ms": 1_000});
        daemon.start_process(&service(&format!("s{n}"), "exec sleep 9000", check));
    }
    let threads = machine::threads(daemon.pid).len();
    let probe = || one.accept().map(|_| Instant::now()).expect("a probe");
    // What has come so far waits in the queue.
    let (mut begun, mut next) = (probe(), probe());
    while next - begun < Duration::from_millis(500) {
        (begun, next) = (next, probe());
    }
    let (begun, mut last) = (next, Duration::ZERO);
    let cpu = machine::cpu_time(daemon.pid);
    let mut offsets = vec![0.0];
    for n in 1..=20 {
        last = probe() - begun;
        offsets.push(last.as_secs_f64() - f64::from(n));
    }
    let spread = offsets.iter().fold(0.0, |most: f64, one| most.max(*one))
        - offsets.iter().fold(0.0, |least: f64, one| least.min(*one));
    let cpu = machine::cpu_time(daemon.pid) - cpu;
    row("1,000 TCP checks a second, % of a core", 100.0 * cpu.as_secs_f64() / last.as_secs_f64(), None);
    row("the latest of 20 of them after the earliest, ms", spread * 1e3, None);
    row("threads meanwhile, with those of HTTP", threads as f64, None);
    row("memory per managed process with a check, kB", (memory() - before) / COUNT as f64, None);
}

fn start_up() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut best = Duration::MAX;
    for attempt in 0..20 {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let state = dir.path().join(attempt.to_string());
        std::fs::create_dir(&state).expect("a directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tl-init"));
        command.args(["--listen", &port.to_string(), "--log-level", "error"]).stdin(Stdio::null());
        command.arg("--run-dir").arg(state.join("run")).arg("--log-dir").arg(state.join("log"));
        let begun = Instant::now();
        let mut child = command.spawn().expect("start it");
        let mut answered = false;
        while !answered {
            assert!(begun.elapsed() < Duration::from_secs(10), "no answer");
            answered = TcpStream::connect(port).ok().is_some_and(|socket| {
                Stream::try_send(socket, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    .is_some()
            });
        }
        best = best.min(begun.elapsed());
        child.kill().expect("end it");
        child.wait().expect("its end");
    }
    let floor = timed(200, spawn_true).into_iter().min().unwrap_or_default();
    row("start to first answer, best of 20, ms", best.as_secs_f64() * 1e3, Some(floor.as_secs_f64() * 1e3));
    let begun = Instant::now();
    drop(Options::default().start());
    row("a namespace made, used and removed, ms", begun.elapsed().as_secs_f64() * 1e3, None);
}
