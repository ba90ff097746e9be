//! Servers that misbehave, and clients that vanish.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc;

use nix::sys::socket::{setsockopt, sockopt};

use super::{AUTH, Host, canned, read_head, tcp_service, wait_until};

fn reset(stream: &TcpStream) {
    setsockopt(stream, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
}

fn host(addr: SocketAddr) -> Host {
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    host
}

#[test]
fn what_is_no_response_is_a_500_because_the_request_was_passed_on() {
    for answer in [
        &b""[..],
        b"HTTP/1.1 200 OK\r\nContent-",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"\0\xff\0\xff",
    ] {
        let host = host(canned(answer));
        let mut client = host.connect();
        // A GET too: what it does in the program of a user is not known.
        for (method, body) in [("GET", ""), ("OPTIONS", ""), ("POST", "x"), ("DELETE", "")] {
            let reply = client.request(method, "env.local", "/", "", body);
            let shown = String::from_utf8_lossy(answer);
            assert_eq!((reply.status, reply.code().as_str()), (500, "BAD_RESPONSE"), "{method} {shown:?}");
        }
        assert_eq!(client.request("HEAD", "env.local", "/", "", "").status, 500);
    }
    let endless = tcp_service(|mut stream| {
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        while stream.write_all(b"X: 0123456789012345678901234567890123456789\r\n").is_ok() {}
    });
    assert_eq!(host(endless).connect().get("env.local", "/").status, 500);
}

#[test]
fn an_answer_that_ends_too_early_cuts_the_connection() {
    for (answer, begin) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"[..], &b"short"[..]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n", b"5\r\nshort\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\nx\r\n", b""),
    ] {
        let host = host(canned(answer));
        let mut client = host.connect();
        client.send_request("GET", "env.local", "/", "", "");
        assert_eq!(client.head().status, 200);
        assert!(client.is_cut());
        assert_eq!(client.buffer, begin);
    }
    let reset_in_the_body = tcp_service(|mut stream| {
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nup to a reset").unwrap();
        reset(&stream);
    });
    let host = host(reset_in_the_body);
    let mut client = host.connect();
    client.send_request("GET", "env.local", "/", "", "");
    // The kernel may discard what was sent before a reset.
    client.stream.set_read_timeout(Some(super::TIMEOUT)).unwrap();
    assert!(client.is_cut());
    assert!(!client.buffer.ends_with(b"0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&client.buffer));
}

/// A server that reads until its client is gone, and then says so.
fn watcher() -> (SocketAddr, mpsc::Receiver<usize>) {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let addr = tcp_service(move |mut stream| {
        let (_, rest) = read_head(&stream);
        let (mut total, mut piece) = (rest.len(), [0; 65536]);
        while let Ok(read @ 1..) = stream.read(&mut piece) {
            total += read;
        }
        tell.lock().unwrap().send(total).unwrap();
    });
    (addr, told)
}

#[test]
fn a_client_that_vanishes_within_its_upload_ends_the_request() {
    for resets in [false, true] {
        let (addr, told) = watcher();
        let host = host(addr);
        let mut client = host.connect();
        client.send(format!("PUT / HTTP/1.1\r\nHost: env\r\n{AUTH}Content-Length: 100000000\r\n\r\n"));
        client.send(vec![b'x'; 1_000_000]);
        if resets {
            wait_until("all has arrived", || host.numbers.read().received_bytes == 1_000_000);
            reset(&client.stream);
        }
        drop(client);
        assert_eq!(told.recv_timeout(super::TIMEOUT), Ok(1_000_000));
        wait_until("the request has ended", || host.numbers.read().open == 0);
    }
}

#[test]
fn a_client_that_vanishes_before_the_answer_ends_the_request() {
    for resets in [false, true] {
        let (addr, told) = watcher();
        let host = host(addr);
        let mut client = host.connect();
        client.send_request("POST", "env", "/", "", "abc");
        wait_until("the request was passed on", || host.numbers.read().received_bytes == 3);
        if resets {
            reset(&client.stream);
        }
        drop(client);
        assert_eq!(told.recv_timeout(super::TIMEOUT), Ok(3));
        wait_until("the request has ended", || host.numbers.read().open == 0);
    }
}

#[test]
fn a_client_that_vanishes_within_the_answer_ends_the_request() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let addr = tcp_service(move |mut stream| {
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
        tell.lock().unwrap().send(()).unwrap();
    });
    let host = host(addr);
    let mut client = host.connect();
    client.send_request("GET", "env", "/", "", "");
    assert_eq!(client.head().status, 200);
    drop(client);
    assert_eq!(told.recv_timeout(super::TIMEOUT), Ok(()));
}

#[test]
fn a_client_that_ends_its_output_still_gets_the_answer() {
    // The server sees the end of the client's output, as it would without the proxy.
    let addr = tcp_service(|mut stream| {
        read_head(&stream);
        stream.read_to_end(&mut Vec::new()).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").unwrap();
    });
    let host = host(addr);
    let mut client = host.connect();
    client.send_request("GET", "env", "/", "", "");
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.reply().text(), "late");
}

#[test]
fn a_malformed_body_never_reaches_its_end() {
    let (addr, told) = watcher();
    let host = host(addr);
    let mut client = host.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: env\r\n{AUTH}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"));
    wait_until("the chunk was passed on", || host.numbers.read().received_bytes == 3);
    client.send("zz\r\n");
    assert_eq!(client.reply().status, 400);
    // The chunk, and not the last chunk.
    assert_eq!(told.recv_timeout(super::TIMEOUT), Ok("000003\r\nabc\r\n".len()));
}

#[test]
fn two_hosts_and_two_ids_are_refused() {
    let host = host(canned(b"HTTP/1.1 204 x\r\n\r\n"));
    let id = "X-Tensorlake-Sandbox-Id: env\r\n";
    for (headers, status) in [
        ("Host: env\r\nHost: env\r\n".to_owned(), 400),
        (format!("Host: env\r\nHost: env\r\n{id}"), 400),
        (format!("Host: env\r\n{id}{id}"), 400),
        (format!("Host: env\r\n{id}X-Tensorlake-Sandbox-Id: other\r\n"), 400),
        (format!("Host: x\r\n{id}"), 204),
    ] {
        let mut client = host.connect();
        client.send(format!("GET / HTTP/1.1\r\n{headers}{AUTH}\r\n"));
        assert_eq!(client.reply().status, status, "{headers}");
    }
}
