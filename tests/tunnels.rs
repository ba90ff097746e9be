//! Tunnels to ports of the loopback interface.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tungstenite::protocol::CloseFrame;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use crate::harness::websocket::{UPGRADE, client_frame, close_code_after, try_open, upgrade_response};
use crate::harness::{TIMEOUT, procfs, reserve_closed_port, skip, start_daemon, tcp_service};

fn echo_service() -> u16 {
    tcp_service(|mut stream| {
        let mut copy = stream.try_clone().expect("duplicate the socket");
        let _ = std::io::copy(&mut copy, &mut stream);
    })
}

/// Reads binary messages until `count` bytes or a Close have come; returns both.
fn receive(socket: &mut WebSocket<TcpStream>, count: usize) -> (Vec<u8>, Option<CloseFrame>) {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        match socket.read().expect("a message") {
            Message::Binary(piece) => bytes.extend_from_slice(&piece),
            Message::Close(words) => return (bytes, words),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("unexpected message: {other:?}"),
        }
    }
    (bytes, None)
}

fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn bytes_pass_in_both_directions_in_any_framing() {
    let daemon = start_daemon();
    let port = echo_service();
    let before = daemon.threads_and_descriptors();
    let mut tunnel = daemon.tunnel(port);
    for size in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        let bytes = pattern(size);
        tunnel.send(Message::binary(bytes.clone())).expect("send");
        assert_eq!(receive(&mut tunnel, size).0, bytes);
    }
    // Fragments with a ping between them, sent byte by byte.
    let bytes = [
        client_frame(0x02, b"one "),
        client_frame(0x89, b"ping"),
        client_frame(0x00, b"two "),
        client_frame(0x80, b"three"),
    ]
    .concat();
    bytes.iter().for_each(|byte| tunnel.get_mut().write_all(&[*byte]).expect("send"));
    let (mut text, mut ponged) = (Vec::new(), false);
    while text.len() < 13 || !ponged {
        match tunnel.read().expect("a message") {
            Message::Binary(piece) => text.extend_from_slice(&piece),
            Message::Pong(payload) => ponged = payload == "ping",
            other => panic!("unexpected message: {other:?}"),
        }
    }
    assert_eq!(text, b"one two three");
    tunnel.close(None).expect("close");
    let (rest, words) = receive(&mut tunnel, 1);
    assert!(rest.is_empty() && words.is_none_or(|words| words.code == CloseCode::Normal));
    drop(tunnel);
    daemon.wait_until_released(before);
}

#[test]
fn the_end_of_the_service_closes_the_tunnel_with_1000() {
    let daemon = start_daemon();
    let before = daemon.threads_and_descriptors();
    let port = tcp_service(|mut stream| {
        stream.write_all(&pattern(3_000_000)).expect("send");
    });
    let mut tunnel = daemon.tunnel(port);
    let (bytes, words) = receive(&mut tunnel, usize::MAX);
    assert_eq!(bytes, pattern(3_000_000), "all of it comes before the close");
    assert_eq!(words.map(|words| words.code), Some(CloseCode::Normal));
    drop(tunnel);
    daemon.wait_until_released(before);
}

/// Data in flight when the service ends must reach a client that is slow and still sends.
#[test]
fn a_slow_client_gets_everything_the_service_sent() {
    let daemon = start_daemon();
    let port = tcp_service(|mut stream| {
        stream.write_all(&pattern(2_000_000)).expect("send");
    });
    let mut tunnel = daemon.tunnel(port);
    setsockopt(tunnel.get_ref(), sockopt::RcvBuf, &65_536).expect("set the buffer size");
    let mut bytes = Vec::new();
    let words = loop {
        let message = tunnel.read().expect("a message");
        // Reads so slowly that the whole takes longer than the daemon waits for a client that reads nothing.
        std::thread::sleep(Duration::from_micros(5 * message.len() as u64));
        match message {
            Message::Binary(piece) => bytes.extend_from_slice(&piece),
            Message::Close(words) => break words,
            Message::Pong(_) => {}
            other => panic!("unexpected message: {other:?}"),
        }
        let _ = tunnel.get_mut().write_all(&client_frame(0x89, b"here"));
    };
    assert!(bytes == pattern(2_000_000), "{} bytes", bytes.len());
    assert_eq!(words.map(|words| words.code), Some(CloseCode::Normal));
}

#[test]
fn a_close_of_the_client_shuts_down_only_its_own_direction() {
    let daemon = start_daemon();
    // The service answers after it has read everything.
    let port = tcp_service(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("all of it");
        let sum: u64 = all.iter().map(|byte| u64::from(*byte)).sum();
        stream.write_all(&pattern(2_000_000)).expect("send");
        stream.write_all(format!("{} {sum}", all.len()).as_bytes()).expect("send");
    });
    let before = daemon.threads_and_descriptors();
    let mut tunnel = daemon.tunnel(port);
    let sent = pattern(2_500_000);
    for piece in sent.chunks(100_000) {
        tunnel.send(Message::binary(piece.to_vec())).expect("send");
    }
    // Sends the Close as raw bytes: after a Close of its own, tungstenite reads no more data.
    tunnel.get_mut().write_all(&client_frame(0x88, b"\x03\xe8that is all")).expect("send");
    // Shutting down the sending side of the connection as well means no more than the Close.
    tunnel.get_mut().shutdown(std::net::Shutdown::Write).expect("close that half");
    let (bytes, words) = receive(&mut tunnel, usize::MAX);
    let sum: u64 = sent.iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(bytes[..2_000_000], pattern(2_000_000));
    assert_eq!(String::from_utf8_lossy(&bytes[2_000_000..]), format!("2500000 {sum}"));
    let words = words.expect("its Close is answered");
    assert_eq!((words.code, words.reason.as_str()), (CloseCode::Normal, "that is all"));
    drop(tunnel);
    daemon.wait_until_released(before);
}

#[test]
fn a_closed_port_is_502_and_an_invalid_port_400() {
    let daemon = start_daemon();
    let (free, _held) = reserve_closed_port();
    let bearer = format!("Authorization: Bearer {}\r\n", daemon.token);
    let upgrade = format!("{bearer}{UPGRADE}");
    let path = |port: &str| format!("/tunnels/tcp{port}");
    // The harness keeps this connection open, so it is made before the count.
    daemon.post("/tunnels/tcp?port=80", &serde_json::json!({})).expect_error(405, "METHOD_NOT_ALLOWED", "");
    let before = daemon.threads_and_descriptors();
    let gone = path(&format!("?port={free}"));
    upgrade_response(&daemon, &gone, &upgrade).expect_error(502, "CONNECTION_REFUSED", &free.to_string());
    for port in ["", "?port=", "?port=0", "?port=65536", "?port=-1", "?port=http", "?port=8+0", "?ports=80"] {
        upgrade_response(&daemon, &path(port), &upgrade).expect_error(400, "INVALID_REQUEST", "`port`");
        upgrade_response(&daemon, &path(port), &bearer).expect_error(400, "INVALID_REQUEST", "`port`");
    }
    // Also port 9501, whatever port the daemon listens on: a proxy may forward it (docs/api.md, Tunnels).
    for port in [daemon.addr.port(), 9501] {
        let own = path(&format!("?port={port}"));
        upgrade_response(&daemon, &own, &upgrade).expect_error(400, "INVALID_REQUEST", "own");
    }
    upgrade_response(&daemon, &gone, &bearer).expect_error(426, "UPGRADE_REQUIRED", "");
    upgrade_response(&daemon, &gone, UPGRADE).expect_error(401, "UNAUTHORIZED", "");
    let short = upgrade.replace("dGhlIHNhbXBsZSBub25jZQ==", "dGhl");
    upgrade_response(&daemon, &gone, &short).expect_error(400, "INVALID_REQUEST", "Sec-WebSocket-Key");
    daemon.wait_until_released(before);
}

#[test]
fn a_service_on_the_ipv6_loopback_is_reached() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return skip("IPv6") };
    let daemon = start_daemon();
    let port = listener.local_addr().expect("local address").port();
    let mut tunnel = daemon.tunnel(port);
    let (mut stream, _) = listener.accept().expect("the tunnel's connection");
    stream.write_all(b"six").expect("send");
    assert_eq!(receive(&mut tunnel, 3).0, b"six");
}

#[test]
fn invalid_frames_close_the_tunnel_with_their_code() {
    let daemon = start_daemon();
    let port = echo_service();
    let before = daemon.threads_and_descriptors();
    for (bytes, code) in [
        (client_frame(0x81, b"text"), Some(1003)),
        (client_frame(0x01, b"te"), Some(1003)),
        (client_frame(0x82, &vec![0; (1 << 20) + 1]), Some(1009)),
        ([&[0x82, 0xff, 0x7f][..], &[0xff; 7], &[0; 4]].concat(), Some(1009)),
        (vec![0x82, 0x01, 0x02], Some(1002)),
        (client_frame(0x83, b"x"), Some(1002)),
        (client_frame(0xc2, b"x"), Some(1002)),
        (client_frame(0x80, b"x"), Some(1002)),
        ([client_frame(0x02, b"x"), client_frame(0x82, b"y")].concat(), Some(1002)),
        (client_frame(0x09, b"x"), Some(1002)),
        (client_frame(0x89, &[0; 126]), Some(1002)),
    ] {
        assert_eq!(close_code_after(daemon.tunnel(port), &bytes), code, "{:?}", &bytes[..bytes.len().min(20)]);
    }
    daemon.wait_until_released(before);
}

#[test]
fn a_reset_by_the_service_closes_the_tunnel_with_an_error() {
    let daemon = start_daemon();
    let port = tcp_service(|mut stream| {
        // The kernel resets a connection that is closed with unread data.
        stream.read_exact(&mut [0]).expect("a byte");
        stream.peek(&mut [0]).expect("another");
    });
    let mut tunnel = daemon.tunnel(port);
    tunnel.send(Message::binary(vec![0; 1000])).expect("send");
    let words = receive(&mut tunnel, 1).1.expect("a Close with a payload");
    assert_eq!(words.code, CloseCode::Error, "{words:?}");
}

#[test]
fn a_client_that_disconnects_ends_the_connection_to_the_service() {
    let daemon = start_daemon();
    let (sender, receiver) = channel();
    let port = tcp_service(move |mut stream| {
        let _ = stream.write_all(b"hello");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        let _ = sender.send(rest.len());
    });
    let before = daemon.threads_and_descriptors();
    for way in 0..3 {
        let mut tunnel = daemon.tunnel(port);
        assert_eq!(receive(&mut tunnel, 5).0, b"hello");
        tunnel.send(Message::binary(vec![0; 10_000])).expect("send");
        match way {
            0 => drop(tunnel),
            1 => tunnel.get_ref().shutdown(Shutdown::Both).expect("shut down"),
            _ => {
                // Sends a Close and does not wait for the answer.
                tunnel.get_mut().write_all(&client_frame(0x88, b"")).expect("send");
                drop(tunnel);
            }
        }
        let read = receiver.recv_timeout(TIMEOUT).expect("the service sees the end");
        assert!(read == 10_000 || way < 2, "{read}");
    }
    daemon.wait_until_released(before);
}

#[test]
fn backpressure_bounds_memory_in_both_directions() {
    let daemon = start_daemon();
    let (sender, receiver) = channel();
    // The service reads nothing and reports how much it could send before its write timed out.
    let port = tcp_service(move |mut stream| {
        stream.set_write_timeout(Some(Duration::from_millis(500))).expect("set the timeout");
        let mut sent = 0;
        while let Ok(count) = stream.write(&[0; 100_000]) {
            sent += count;
        }
        let _ = sender.send((sent, stream));
    });
    let before = procfs::kilobytes(daemon.pid, "VmRSS");
    let mut tunnel = daemon.tunnel(port);
    tunnel.get_ref().set_write_timeout(Some(Duration::from_millis(500))).expect("set the timeout");
    let mut sent = 0;
    while tunnel.send(Message::binary(vec![0; 100_000])).is_ok() {
        sent += 100_000;
    }
    let (from_service, _stream) = receiver.recv_timeout(TIMEOUT).expect("the service cannot send more");
    let grown = procfs::kilobytes(daemon.pid, "VmHWM").saturating_sub(before);
    assert!(sent < 64 << 20 && from_service < 64 << 20, "{sent} and {from_service} are in the kernel's buffers");
    assert!(grown < 8 << 10, "{grown} KiB");
}

#[test]
fn two_hundred_concurrent_tunnels_carry_their_own_bytes() {
    let daemon = start_daemon();
    let port = echo_service();
    let before = daemon.threads_and_descriptors();
    let begun = Instant::now();
    let mut tunnels: Vec<_> = (0..200).map(|_| daemon.tunnel(port)).collect();
    for round in 0..3 {
        for (number, tunnel) in tunnels.iter_mut().enumerate() {
            tunnel.send(Message::binary(pattern(1_000 * round + number))).expect("send");
        }
        for (number, tunnel) in tunnels.iter_mut().enumerate() {
            let size = 1_000 * round + number;
            assert_eq!(receive(tunnel, size).0, pattern(size));
        }
    }
    assert!(begun.elapsed() < TIMEOUT);
    assert_eq!(daemon.try_health(), Some(200));
    drop(tunnels);
    daemon.wait_until_released(before);
}

#[test]
fn a_tunnel_requires_the_bearer_token() {
    let daemon = start_daemon();
    let port = echo_service();
    let path = format!("/tunnels/tcp?port={port}");
    assert_eq!(try_open(&daemon, &path, &[]).err(), Some(401));
    assert_eq!(try_open(&daemon, &path, &[("Authorization", "Bearer x")]).err(), Some(401));
}

#[test]
fn a_tunnel_to_a_program_that_goes_on_is_closed_by_a_shutdown() {
    let time_of_shutdown = || {
        // The service runs outside of the daemon's namespace, so the shutdown does not end it.
        let mut daemon = start_daemon();
        let mut tunnel = daemon.tunnel(echo_service());
        tunnel.send(Message::binary("hello")).expect("send");
        assert_eq!(receive(&mut tunnel, 5).0, b"hello");
        let begun = Instant::now();
        daemon.signal(nix::sys::signal::Signal::SIGTERM);
        daemon.wait_for_exit(TIMEOUT);
        let took = begun.elapsed();
        let close = receive(&mut tunnel, 1).1.expect("a closing frame");
        assert_eq!((close.code, close.reason.as_str()), (CloseCode::Away, "shutting down"));
        took
    };
    // A busy machine delays one shutdown or another, but not each.
    let times: Vec<_> = (0..5).map(|_| time_of_shutdown()).take_while(|time| *time >= Duration::from_secs(1)).collect();
    assert!(times.len() < 5, "{times:?}");
}
