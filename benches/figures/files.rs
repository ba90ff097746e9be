//! Figures of files: upload, download and listing.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::response::ResponseStream;
use crate::harness::{procfs, start_daemon};
use crate::measure::{percentiles, row};

/// Sends a body of `length` zero bytes.
fn send_zeros(socket: &mut TcpStream, mut length: usize) {
    let block = vec![0; 256 << 10];
    while length > 0 {
        let piece = &block[..length.min(block.len())];
        socket.write_all(piece).expect("send");
        length -= piece.len();
    }
}

/// Throughput of uploads and downloads beside `cp`, and the time of a listing beside `ls`.
pub fn files() {
    const SIZE: usize = 1 << 30;
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let head = |method: &str, name: &str, more: &str| {
        daemon.request_head(method, &format!("/files?path={}", scratch.join(name).display()), more)
    };
    let put = |name: &str, size: usize| {
        let mut socket = daemon.connect();
        socket.write_all(head("PUT", name, &format!("Content-Length: {size}\r\n")).as_bytes()).expect("send");
        send_zeros(&mut socket, size);
        assert_eq!(ResponseStream::read(socket).expect("a response").status, 204);
    };
    let get = |name: &str| {
        let mut stream = ResponseStream::send(daemon.connect(), head("GET", name, "").as_bytes()).expect_status(200);
        let mut block = vec![0; 256 << 10];
        std::iter::repeat_with(|| stream.read(&mut block).expect("receive")).take_while(|got| *got > 0).sum::<usize>()
    };
    put("small", 1 << 20);
    get("small");
    let before = procfs::kilobytes(daemon.pid, "VmHWM") as f64;
    let (mut ours, mut floor, mut down) = (Duration::MAX, Duration::MAX, Duration::MAX);
    let timed = |best: &mut Duration, job: &dyn Fn()| {
        let begun = Instant::now();
        job();
        *best = (*best).min(begun.elapsed());
    };
    for _ in 0..3 {
        timed(&mut ours, &|| put("large", SIZE));
        timed(&mut floor, &|| {
            // Copies the content to another file and syncs it, as an upload does.
            let script = "cp --sparse=never --reflink=never large copy && sync copy && mv copy copied";
            assert!(Command::new("sh").args(["-c", script]).current_dir(&scratch).status().expect("cp").success());
        });
        timed(&mut down, &|| assert_eq!(get("large"), SIZE));
    }
    let speed = |time: Duration| SIZE as f64 / 1e6 / time.as_secs_f64();
    row("upload of 1 GiB (cp and fsync), MB/s", speed(ours), Some(speed(floor)));
    row("download of 1 GiB (cp and fsync), MB/s", speed(down), Some(speed(floor)));
    row("memory growth by both, MB", (procfs::kilobytes(daemon.pid, "VmHWM") as f64 - before) / 1e3, None);
    let dir = scratch.join("many");
    std::fs::create_dir(&dir).expect("create a directory");
    (0..100_000).for_each(|number| drop(std::fs::File::create(dir.join(format!("entry-{number}"))).expect("a file")));
    let path = format!("/files/list?path={}", dir.display());
    let ours = crate::measure::timed(5, || drop(daemon.open("GET", &path, "", b"").expect_status(200).read_all()));
    let ls = || {
        assert!(Command::new("ls").arg("-l").current_dir(&dir).stdout(Stdio::null()).status().expect("ls").success())
    };
    row(
        "listing 100,000 entries (ls -l), p50, ms",
        percentiles(ours)[0],
        Some(percentiles(crate::measure::timed(5, ls))[0]),
    );
}
