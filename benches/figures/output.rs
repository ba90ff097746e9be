//! Figures of captured output: capture, listing, replay and followers.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::json;

use crate::bench::{Bench, megabytes_per_second, milliseconds};
use crate::floors::{bulk_service, drain, read_some};
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, pid_of, procfs, start_daemon_with};
use crate::report::{Goal, Rounds};
use crate::usage::{memory_of, own_processes};

/// A daemon that keeps the whole output of the largest figure.
pub fn daemon_for_output() -> Daemon {
    start_daemon_with(&["--log-limit", "1500M", "--log-total", "2G", "--keep-ended", "1"])
}

/// Writes a file of `bytes` bytes in lines of 62 bytes.
pub fn write_lines(path: &Path, bytes: usize) {
    let line = [&[b'x'; 61], b"\n".as_slice()].concat();
    let block = line.repeat(16 << 10);
    let mut file = File::create(path).expect("a file");
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(block.len());
        file.write_all(&block[..piece]).expect("write it");
        left -= piece;
    }
    file.sync_all().expect("sync it");
}

/// Runs a shell script whose time is a floor.
fn shell(dir: &Path, script: &str) {
    assert!(Command::new("sh").args(["-c", script]).current_dir(dir).status().expect("run the shell").success());
}

/// Runs `cat FILE` as a process to its end; its PID.
pub fn run_cat(daemon: &Daemon, file: &Path) -> u64 {
    let pid = pid_of(&daemon.start_process(&json!({"command": "cat", "args": [file]})));
    assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
    pid
}

/// Requests the whole stdout of a process, as JSON or as raw bytes; the bytes of the body.
pub fn get_output(daemon: &Daemon, pid: u64, raw: bool) -> usize {
    let accept = if raw { "Accept: application/octet-stream\r\n" } else { "" };
    let stream = daemon.open("GET", &format!("/processes/{pid}/stdout"), accept, b"");
    drain(stream.expect_status(200))
}

/// The largest RssAnon, in KiB, that the daemon has while `job` runs, sampled every few milliseconds.
fn peak_anonymous(daemon: &Daemon, job: impl FnOnce()) -> f64 {
    let own = own_processes(daemon.pid);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let mut most = 0.0_f64;
            while !done.load(Ordering::Relaxed) {
                most = most.max(memory_of(&own).anonymous);
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            most
        });
        job();
        done.store(true, Ordering::Relaxed);
        sampler.join().expect("the sampler")
    })
}

/// Throughput of capture, in 20 runs: a slow second mode of the daemon would show in the spread of the rounds.
pub fn capture(bench: &mut Bench) {
    let bytes = bench.count(1 << 30, 1 << 20);
    let daemon = daemon_for_output();
    let scratch = daemon.scratch();
    let source = scratch.join("source");
    write_lines(&source, bytes);
    let speed = |job: &dyn Fn()| vec![megabytes_per_second(bytes, milliseconds(job))];
    run_cat(&daemon, &source);
    let (mut ours, mut floor, mut piped) = (Rounds::default(), Rounds::default(), Rounds::default());
    let mut peak = 0.0_f64;
    for round in 0..bench.count(20, 2) {
        peak = peak.max(peak_anonymous(&daemon, || ours.push(speed(&|| _ = run_cat(&daemon, &source)))));
        floor.push(speed(&|| shell(&scratch, "cat source >copy")));
        if round < bench.options.rounds {
            piped.push(speed(&|| shell(&scratch, "cat source | cat >copy")));
        }
    }
    let report = &mut bench.report;
    let (name, goal) = ("capture of 1 GiB in 62-byte lines", Some(Goal::RatioAtLeast(0.8)));
    report.percentile(name, "MB/s", &ours, 50.0, Some(("cat >file", &floor)), goal);
    report.percentile(&format!("{name}, slowest run"), "MB/s", &ours, 0.0, Some(("cat >file", &floor)), goal);
    report.percentile(&format!("{name}, by pipe"), "MB/s", &ours, 50.0, Some(("cat | cat >file", &piped)), None);
    let largest = own_processes(daemon.pid).into_iter().map(|pid| procfs::kilobytes(pid, "VmHWM")).max();
    let largest = largest.unwrap_or_default() as f64 / 1024.0;
    report.value("memory during capture (VmHWM)", "MiB", largest, Some(Goal::AtMost(8.0)));
    report.value("memory during capture (RssAnon)", "MiB", peak / 1024.0, None);
}

/// Throughput of `GET …/stdout` as JSON and as raw bytes, and of a replay as events.
pub fn listing(bench: &mut Bench) {
    let bytes = bench.count(1 << 30, 1 << 20);
    let daemon = daemon_for_output();
    let source = daemon.scratch().join("source");
    write_lines(&source, bytes);
    let pid = run_cat(&daemon, &source);
    let speed = |job: &dyn Fn()| vec![megabytes_per_second(bytes, milliseconds(job))];
    let read = || vec![megabytes_per_second(bytes, milliseconds(|| drain(File::open(&source).expect("open"))))];
    let hwm = || procfs::kilobytes(daemon.pid, "VmHWM") as f64;
    let before = hwm();
    let (name, floor) = ("GET of 1 GiB of output", "reading the file");
    let pair = bench.rounds(|| speed(&|| assert_eq!(get_output(&daemon, pid, true), bytes)), read);
    bench.report.median(&format!("{name}, raw"), "MB/s", &pair, floor, Some(Goal::RatioAtLeast(0.7)));
    let service = bulk_service(bytes, true);
    let socket = || {
        let socket = std::net::TcpStream::connect(service).expect("connect");
        speed(&|| assert_eq!(drain(&socket), bytes))
    };
    let mut plain = Rounds::default();
    (0..bench.options.rounds).for_each(|_| plain.push(socket()));
    let floor_of_socket = Some(("a plain connection", &plain));
    bench.report.percentile(&format!("{name}, raw, by socket"), "MB/s", &pair.ours, 50.0, floor_of_socket, None);
    let pair = bench.rounds(|| speed(&|| assert!(get_output(&daemon, pid, false) > bytes)), read);
    bench.report.median(&format!("{name}, JSON"), "MB/s", &pair, floor, Some(Goal::AtLeast(400.0)));
    bench.report.value(&format!("{name}, memory growth"), "MiB", (hwm() - before) / 1024.0, Some(Goal::AtMost(1.0)));
    let mut replay = Rounds::default();
    for _ in 0..bench.options.rounds.min(2) {
        let frames = daemon.follow(pid, "stdout").into_reader();
        replay.push(vec![megabytes_per_second(bytes, milliseconds(|| drain(frames)))]);
    }
    bench.report.percentile("replay of 1 GiB as events", "MB/s", &replay, 50.0, None, None);
}

/// Reads a follow of `count` numbers to its end; its bytes. Fails if a line is missing.
fn read_follow(mut stream: ResponseStream, count: usize) -> usize {
    let mut block = vec![0; 256 << 10];
    let (mut objects, mut total, mut gap) = (0, 0, false);
    loop {
        let got = read_some(&mut stream, &mut block);
        if got == 0 {
            break;
        }
        total += got;
        objects += block[..got].iter().filter(|byte| **byte == b'{').count();
        // Of all events, only `gap` has this letter.
        gap |= block[..got].contains(&b'g');
    }
    // Each line is one object, and so is the end.
    assert!(!gap && objects == count + 1, "{} of {count} lines, gap: {gap}", objects - 1);
    total
}

/// Time from the first line to the end of all `followers`, in seconds, and the bytes that each got.
pub fn follow(daemon: &Daemon, followers: usize, lines: usize) -> (f64, usize) {
    let script = format!("read -r go; exec seq 1000000 {}", 999_999 + lines);
    let body = json!({"command": "sh", "args": ["-c", script], "stdin_mode": "pipe"});
    let pid = pid_of(&daemon.start_process(&body));
    let path = format!("/processes/{pid}/stdout/follow");
    let streams: Vec<_> = (0..followers).map(|_| daemon.open("GET", &path, "", b"").expect_status(200)).collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> =
            streams.into_iter().map(|stream| scope.spawn(move || read_follow(stream, lines))).collect();
        let begun = Instant::now();
        assert_eq!(daemon.request("POST", &format!("/processes/{pid}/stdin"), Some(b"go\n")).status, 204);
        let bytes = readers.into_iter().map(|reader| reader.join().expect("a follower")).max();
        (begun.elapsed().as_secs_f64(), bytes.unwrap_or_default())
    })
}

/// 200,000 lines to 20 and to 500 followers. The floor sends the same bytes over as many plain connections.
pub fn followers(bench: &mut Bench) {
    let lines = bench.count(200_000, 100);
    let daemon = start_daemon_with(&["--max-connections", "1024"]);
    for (followers, limit) in [(bench.count(20, 2), 1.0), (bench.count(500, 4), 25.0)] {
        let (mut ours, mut floor) = (Rounds::default(), Rounds::default());
        let rounds = if followers > 100 { 1 } else { bench.options.rounds };
        for _ in 0..rounds {
            let (seconds, bytes) = follow(&daemon, followers, lines);
            ours.push(vec![seconds]);
            let service = bulk_service(bytes, true);
            let sockets: Vec<_> =
                (0..followers).map(|_| std::net::TcpStream::connect(service).expect("connect")).collect();
            floor.push(vec![
                milliseconds(|| {
                    std::thread::scope(|scope| {
                        sockets.iter().for_each(|socket| drop(scope.spawn(move || drain(socket))));
                    });
                }) / 1e3,
            ]);
        }
        let name = format!("200,000 lines to {followers} followers");
        let floor = Some(("the same bytes, plain connections", &floor));
        bench.report.percentile(&name, "s", &ours, 50.0, floor, Some(Goal::AtMost(limit)));
    }
}
