//! Figures of bulk data: tunnels, terminals, and captured output.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Instant;

use serde_json::json;

use crate::harness::websocket::client_frame;
use crate::harness::{Daemon, pid_of, start_daemon_with};
use crate::measure::{percentiles, row, timed};

/// A service that sends `count` bytes to each client, or reads `count` bytes from it and answers with one byte.
fn bulk_service(count: usize, sends: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind a port");
    let addr = listener.local_addr().expect("local address");
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
                left -= done.expect("transfer");
            }
            if !sends {
                let _ = socket.write_all(b".");
            }
        }
    });
    addr
}

/// Throughput of a tunnel in both directions; the floor is a plain connection to the same service.
pub fn tunnel(daemon: &Daemon) {
    const BYTES: usize = 1 << 30;
    let rate = |begun: Instant| BYTES as f64 / 1e6 / begun.elapsed().as_secs_f64();
    let mut block = vec![0; 256 << 10];
    let (source, sink) = (bulk_service(BYTES, true), bulk_service(BYTES, false));
    let mut plain = TcpStream::connect(source).expect("connect");
    let begun = Instant::now();
    let mut left = BYTES;
    while left > 0 {
        left -= plain.read(&mut block).expect("receive");
    }
    let floor = rate(begun);
    // Reads raw bytes from the socket: parsing frames is work of the client.
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
    let frame = client_frame(0x82, &block);
    let begun = Instant::now();
    for _ in 0..BYTES / block.len() {
        tunnel.get_mut().write_all(&frame).expect("send");
    }
    tunnel.read().expect("an answer");
    row("tunnel to the service, MB/s", rate(begun), Some(floor));
}

/// Echo latency of a terminal, alone and while another session prints 100 MiB.
pub fn terminal(daemon: &Daemon) {
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
            terminal.output.clear();
            let begun = Instant::now();
            // The program starts to write only now: of output without a client, only the last 1 MiB is kept.
            terminal.type_in("go\n");
            assert_eq!(terminal.wait_for_end().exit, Some(0));
            assert_eq!(terminal.output.len(), 100 << 20);
            100.0 * 1.048_576 / begun.elapsed().as_secs_f64()
        });
        let mut times = Vec::new();
        while !reader.is_finished() {
            times.extend(timed(1, &mut round_trip));
        }
        row("echo while another session prints, p99, ms", percentiles(times)[2], None);
        row("output of the other session, MB/s", reader.join().expect("the reader"), None);
    });
}

/// Throughput of captured output and of its replay.
pub fn capture() {
    const MIB: usize = 256;
    let daemon = start_daemon_with(&["--log-limit", "1073741824"]);
    let source = daemon.scratch().join("source");
    let line = [&[b'x'; 61], b"\n".as_slice()].concat();
    let block = line.repeat((1 << 20) / line.len() + 1);
    let mut file = std::fs::File::create(&source).expect("a file");
    (0..MIB).for_each(|_| file.write_all(&block[..1 << 20]).expect("write it"));
    let megabytes = (MIB << 20) as f64 / 1e6;
    let begun = Instant::now();
    let pid = pid_of(&daemon.start_process(&json!({"command": "cat", "args": [source]})));
    assert_eq!(daemon.wait_for_end(pid)["exit_code"], 0);
    let ours = megabytes / begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let copied = std::fs::File::create(daemon.scratch().join("copy")).expect("a file");
    // Through a pipe, like the output of a process: a plain copy may not read the bytes at all.
    let script = format!("cat {} | cat", source.display());
    assert!(Command::new("sh").args(["-c", &script]).stdout(copied).status().expect("copy the file").success());
    let floor = megabytes / begun.elapsed().as_secs_f64();
    row("capture of 62-byte lines (cat | cat >file), MB/s", ours, Some(floor));
    let begun = Instant::now();
    let copied = std::fs::File::create(daemon.scratch().join("copy")).expect("a file");
    assert!(Command::new("cat").arg(&source).stdout(copied).status().expect("copy the file").success());
    row("the same (cat >file), MB/s", ours, Some(megabytes / begun.elapsed().as_secs_f64()));
    let begun = Instant::now();
    let mut frames = daemon.follow(pid, "stdout").into_reader();
    std::io::copy(&mut frames, &mut std::io::sink()).expect("the whole of it");
    row("replay of that output as events, MB/s", megabytes / begun.elapsed().as_secs_f64(), None);
}
