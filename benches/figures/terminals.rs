//! Figures of tunnels and of terminal sessions.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use crate::bench::{Bench, megabytes_per_second, milliseconds};
use crate::floors::{bulk_service, read_some};
use crate::harness::start_daemon;
use crate::harness::websocket::client_frame;
use crate::report::Rounds;

/// Throughput of a tunnel in both directions; the floor is a plain connection to the same service.
pub fn tunnel(bench: &mut Bench) {
    const BLOCK: usize = 256 << 10;
    let daemon = start_daemon();
    let bytes = bench.count(512 << 20, 1 << 20);
    let (source, sink) = (bulk_service(bytes, true), bulk_service(bytes, false));
    let read = |socket: &mut TcpStream| {
        // The client may have read the first bytes together with the response to its handshake.
        let (mut block, mut left) = (vec![0; BLOCK], bytes - (64 << 10));
        vec![megabytes_per_second(
            bytes,
            milliseconds(|| {
                while left > 0 {
                    let got = read_some(socket, &mut block);
                    assert!(got > 0, "the connection ended early");
                    left = left.saturating_sub(got);
                }
            }),
        )]
    };
    // Reads raw bytes from the socket: parsing frames is work of the client.
    let pair = bench.rounds(
        || read(daemon.tunnel(source.port()).get_mut()),
        || read(&mut TcpStream::connect(source).expect("connect")),
    );
    bench.report.median("tunnel from the service", "MB/s", &pair, "a plain connection", None);
    let block = vec![0; BLOCK];
    let frame = client_frame(0x82, &block);
    let write = |socket: &mut TcpStream, piece: &[u8], answer: &mut dyn FnMut(&mut TcpStream)| {
        let send = || {
            (0..bytes / BLOCK).for_each(|_| socket.write_all(piece).expect("send"));
            answer(socket);
        };
        vec![megabytes_per_second(bytes, milliseconds(send))]
    };
    let pair = bench.rounds(
        || {
            let mut tunnel = daemon.tunnel(sink.port());
            // A frame of one byte.
            write(tunnel.get_mut(), &frame, &mut |socket| socket.read_exact(&mut [0; 3]).expect("an answer"))
        },
        || {
            let mut plain = TcpStream::connect(sink).expect("connect");
            write(&mut plain, &block, &mut |socket| socket.read_exact(&mut [0]).expect("an answer"))
        },
    );
    bench.report.median("tunnel to the service", "MB/s", &pair, "a plain connection", None);
}

/// Echo latency of a terminal, alone and while another session prints 100 MiB.
pub fn terminal(bench: &mut Bench) {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; exec cat");
    let mut echo = daemon.watch(&session);
    echo.expect("up");
    let mut round_trip = || {
        milliseconds(|| {
            echo.type_in("x");
            echo.expect("x");
        })
    };
    (0..bench.count(500, 5)).for_each(|_| _ = round_trip());
    let count = bench.count(1_000, 10);
    let mut times = Rounds::default();
    (0..bench.options.rounds).for_each(|_| times.push((0..count).map(|_| round_trip()).collect()));
    for percent in [50.0, 99.0] {
        bench.report.percentile(&format!("echo of a terminal, p{percent}"), "ms", &times, percent, None, None);
    }
    let bytes = bench.count(100 << 20, 1 << 20);
    let large = daemon.pty_sh(&format!("stty raw -echo; echo up; read -r line; head -c {bytes} /dev/zero"));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut terminal = daemon.watch(&large);
            terminal.expect("up\n");
            terminal.output.clear();
            let begun = Instant::now();
            // The program starts to write only now: of output without a client, only the last 1 MiB is kept.
            terminal.type_in("go\n");
            assert_eq!(terminal.wait_for_end().exit, Some(0));
            assert_eq!(terminal.output.len(), bytes);
            megabytes_per_second(bytes, begun.elapsed().as_secs_f64() * 1e3)
        });
        let mut times = Vec::new();
        while !reader.is_finished() {
            times.push(round_trip());
        }
        let mut busy = Rounds::default();
        busy.push(times);
        bench.report.percentile("echo while another session prints, p99", "ms", &busy, 99.0, None, None);
        let speed = reader.join().expect("the reader");
        bench.report.value("output of the other session", "MB/s", speed, None);
    });
}
