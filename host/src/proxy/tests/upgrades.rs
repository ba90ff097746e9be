//! WebSockets and other upgrades.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::client::Client;
use super::daemon::host_and_daemon;
use super::{Host, TIMEOUT, canned, read_head, tcp_service, wait_until};

const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                           Sec-WebSocket-Accept: of-the-server\r\nSec-WebSocket-Protocol: chat\r\n\r\n";

/// A server that upgrades each connection and then calls `serve`, with what it has read after the head.
fn upgrading(serve: impl Fn(TcpStream, Vec<u8>) + Send + Sync + 'static) -> SocketAddr {
    tcp_service(move |mut stream| {
        let (head, rest) = read_head(&stream);
        assert!(head.contains("\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"), "{head}");
        assert!(head.contains("\r\nSec-WebSocket-Key: "), "{head}");
        stream.write_all(SWITCHING).unwrap();
        serve(stream, rest);
    })
}

fn upgraded(host: &Host) -> Client {
    let mut client = host.connect();
    let reply = client.request("GET", "env", "/ws", UPGRADE, "");
    assert_eq!((reply.status, reply.header("Upgrade")), (101, Some("websocket")));
    assert_eq!(reply.header("Sec-WebSocket-Accept"), Some("of-the-server"));
    assert_eq!(reply.header("Sec-WebSocket-Protocol"), Some("chat"));
    client
}

fn host(addr: SocketAddr) -> Host {
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    host
}

#[test]
fn bytes_that_arrive_with_the_heads_are_not_lost() {
    let addr = tcp_service(|mut stream| {
        let (_, mut rest) = read_head(&stream);
        stream.write_all(&[SWITCHING, b"early-bird"].concat()).unwrap();
        while rest.len() < 10 {
            let mut piece = [0; 16];
            let read = stream.read(&mut piece).unwrap();
            rest.extend_from_slice(&piece[..read]);
        }
        stream.write_all(&rest).unwrap();
    });
    let host = host(addr);
    let mut client = host.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: env\r\n{}{UPGRADE}\r\nwith-head.", super::AUTH));
    assert_eq!(client.head().status, 101);
    assert_eq!(client.take(20), b"early-birdwith-head.");
}

#[test]
fn either_side_may_end_its_output_first() {
    let addr = upgrading(|mut stream, _| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    let host = host(addr);
    let mut client = upgraded(&host);
    client.send("abc");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.is_cut());
    assert_eq!(client.buffer, b"cba");
    wait_until("it is closed", || host.numbers.read().open_upgraded == 0);

    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let addr = upgrading(move |mut stream, _| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        tell.lock().unwrap().send(all).unwrap();
    });
    host.add("env", addr, "secret", &[]);
    let mut client = upgraded(&host);
    assert!(client.is_cut());
    assert_eq!(client.buffer, b"bye");
    client.send("still here");
    drop(client);
    assert_eq!(told.recv_timeout(TIMEOUT).unwrap(), b"still here");
    wait_until("it is closed", || host.numbers.read().open_upgraded == 0);
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn large_amounts_pass_both_ways_at_once() {
    const LENGTH: usize = 16 << 20;
    let addr = upgrading(|stream, rest| {
        assert!(rest.is_empty());
        let mut writer = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            writer.write_all(&noise(LENGTH, 1)).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut all = Vec::new();
        (&stream).read_to_end(&mut all).unwrap();
        assert!(all == noise(LENGTH, 2));
        sender.join().unwrap();
    });
    let host = host(addr);
    let client = upgraded(&host);
    let mut writer = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        writer.write_all(&noise(LENGTH, 2)).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut all = client.buffer;
    (&client.stream).read_to_end(&mut all).unwrap();
    assert!(all == noise(LENGTH, 1), "{} bytes", all.len());
    sender.join().unwrap();
    let numbers = host.numbers.read();
    assert_eq!((numbers.received_bytes, numbers.sent_bytes), (LENGTH as u64, LENGTH as u64));
}

#[test]
fn a_reset_of_one_side_ends_both() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let addr = upgrading(move |mut stream, _| {
        let read = stream.read(&mut [0; 16]).map_err(|error| error.kind());
        tell.lock().unwrap().send(read).unwrap();
    });
    let host = host(addr);
    let client = upgraded(&host);
    setsockopt(&client.stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(client);
    assert_eq!(told.recv_timeout(TIMEOUT).unwrap(), Err(std::io::ErrorKind::ConnectionReset));
    wait_until("it is closed", || host.numbers.read().open_upgraded == 0);
}

/// A side that takes nothing fills the buffers; the end of the other side must then be noticed all the same.
#[test]
fn a_client_that_vanishes_while_the_server_takes_nothing_ends_the_connection() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let addr = upgrading(move |stream, _| {
        gone.lock().unwrap().recv().unwrap();
        drop(stream);
    });
    let host = host(addr);
    let client = upgraded(&host);
    client.stream.set_nonblocking(true).unwrap();
    wait_until("all buffers are full", || {
        let full =
            (&client.stream).write(&[0; 65536]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        if full {
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        full && (&client.stream).write(&[0; 65536]).is_err()
    });
    setsockopt(&client.stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(client);
    wait_until("it is closed", || host.numbers.read().open_upgraded == 0);
    go.send(()).unwrap();
}

#[test]
fn an_upgrade_before_the_end_of_the_request_is_no_response() {
    let host = host(canned(SWITCHING));
    let mut client = host.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: env\r\n{}{UPGRADE}Content-Length: 9\r\n\r\nsome", super::AUTH));
    let reply = client.reply();
    assert_eq!((reply.status, reply.code().as_str()), (500, "BAD_RESPONSE"));
}

#[test]
fn an_upgrade_that_is_refused_is_an_ordinary_answer() {
    let host = host(canned(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"));
    let mut client = host.connect();
    let reply = client.request("GET", "env", "/", UPGRADE, "");
    assert_eq!((reply.status, reply.text()), (401, "no"));
    host.add("env", canned(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), "secret", &[]);
    assert_eq!(client.request("GET", "env", "/", UPGRADE, "").text(), "ok");
}

#[test]
fn a_tunnel_of_the_daemon_works_through_the_proxy() {
    let service = tcp_service(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let (host, _daemon) = host_and_daemon();
    let mut client = host.connect();
    let target = format!("/api/v1/tunnels/tcp?port={}", service.port());
    assert_eq!(client.request("GET", "env.local", &target, UPGRADE, "").status, 101);
    // Masked with zeros: "hello", then a closing frame with 1000.
    client.send(b"\x82\x85\0\0\0\0hello\x88\x82\0\0\0\0\x03\xe8");
    assert_eq!(client.take(7), b"\x82\x05hello");
    assert_eq!(client.take(4), b"\x88\x02\x03\xe8");
    assert!(client.is_cut());
}

/// Shuts the proxy down while the client of a WebSocket stays connected and the sandbox has sent `sent`. Returns what the
/// client gets, and the time.
fn shut_down_after(sent: &'static [u8]) -> (Vec<u8>, Duration) {
    let (ended, end) = mpsc::channel();
    let ended = Mutex::new(ended);
    let addr = upgrading(move |mut stream, _| {
        stream.write_all(sent).unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        ended.lock().unwrap().send(all).unwrap();
    });
    let host = host(addr);
    let mut client = upgraded(&host);
    let mut received = client.take(sent.len()).to_vec();
    let begun = Instant::now();
    host.server.shutdown();
    let took = begun.elapsed();
    assert_eq!(end.recv_timeout(TIMEOUT).expect("the end of the connection to the sandbox"), b"");
    let _ = client.stream.read_to_end(&mut received);
    (received, took)
}

#[test]
fn a_shutdown_closes_web_sockets_at_once_and_between_two_frames() {
    let whole = b"\x82\x02ab";
    let mut last = (Vec::new(), Duration::MAX);
    // A busy machine delays one shutdown or another, but not each.
    for _ in 0..5 {
        last = shut_down_after(whole);
        assert_eq!(last.0, b"\x82\x02ab\x88\x0f\x03\xe9shutting down");
        // The rest of the frame does not come: the connection ends without a closing frame.
        assert_eq!(shut_down_after(b"\x82\x05ab").0, b"\x82\x05ab");
        if last.1 < Duration::from_secs(1) {
            return;
        }
    }
    panic!("{:?}", last.1);
}
