//! Figures of files: upload, download and listing.

use std::io::Write;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use crate::bench::{Bench, megabytes_per_second, milliseconds};
use crate::floors::{bulk_service, drain};
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, procfs, start_daemon};
use crate::report::{Goal, Pair};

/// Sends a body of `length` zero bytes.
pub fn send_zeros(socket: &mut TcpStream, mut length: usize) {
    let block = vec![0; 256 << 10];
    while length > 0 {
        let piece = &block[..length.min(block.len())];
        socket.write_all(piece).expect("send");
        length -= piece.len();
    }
}

fn put(daemon: &Daemon, path: &str, size: usize) {
    let mut socket = daemon.connect();
    let head = daemon.request_head("PUT", path, &format!("Content-Length: {size}\r\n"));
    socket.write_all(head.as_bytes()).expect("send");
    send_zeros(&mut socket, size);
    assert_eq!(ResponseStream::read(socket).expect("a response").status, 204);
}

/// Throughput of uploads and downloads beside `cp`, and the time of a listing beside `ls`.
pub fn files(bench: &mut Bench) {
    let size = bench.count(1 << 30, 1 << 20);
    let daemon = start_daemon();
    let scratch = daemon.scratch();
    let path = |name: &str| format!("/files?path={}", scratch.join(name).display());
    let get = |name: &str| drain(daemon.open("GET", &path(name), "", b"").expect_status(200));
    put(&daemon, &path("small"), 1 << 20);
    get("small");
    let hwm = || procfs::kilobytes(daemon.pid, "VmHWM") as f64 / 1024.0;
    let before = hwm();
    let (mut up, mut down) = (Pair::default(), Pair::default());
    for _ in 0..bench.options.rounds.min(3) {
        let speed = |job: &dyn Fn()| vec![megabytes_per_second(size, milliseconds(job))];
        up.ours.push(speed(&|| put(&daemon, &path("large"), size)));
        let floor = speed(&|| {
            // Copies the content to another file and syncs it, as an upload does.
            let script = "cp --sparse=never --reflink=never large copy && sync copy && mv copy copied";
            assert!(Command::new("sh").args(["-c", script]).current_dir(&scratch).status().expect("cp").success());
        });
        up.floor.push(floor);
        down.ours.push(speed(&|| assert_eq!(get("large"), size)));
        let plain = bulk_service(size, true);
        down.floor.push(speed(&|| assert_eq!(drain(TcpStream::connect(plain).expect("connect")), size)));
    }
    bench.report.median("upload of 1 GiB", "MB/s", &up, "cp and fsync", None);
    bench.report.median("download of 1 GiB", "MB/s", &down, "a plain connection", None);
    bench.report.value("memory growth by both", "MiB", hwm() - before, None);
    let dir = scratch.join("many");
    std::fs::create_dir(&dir).expect("create a directory");
    let entries = bench.count(100_000, 100);
    (0..entries).for_each(|number| drop(std::fs::File::create(dir.join(format!("entry-{number}"))).expect("a file")));
    let path = format!("/files/list?path={}", dir.display());
    let list = || milliseconds(|| drop(daemon.open("GET", &path, "", b"").expect_status(200).read_all()));
    let ls = || {
        milliseconds(|| {
            let status = Command::new("ls").arg("-l").current_dir(&dir).stdout(Stdio::null()).status();
            assert!(status.expect("ls").success());
        })
    };
    let pair = bench.latencies(1, list, ls);
    bench.report.median("listing of 100,000 entries", "ms", &pair, "ls -l", None::<Goal>);
}
