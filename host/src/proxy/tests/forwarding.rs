//! What a server behind the proxy sees, and how its answers reach the client.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::{AUTH, Host, KEY, canned, read_head, tcp_service, wait_until};

/// A server that keeps the heads of its requests.
fn recorder(answer: &'static str) -> (std::net::SocketAddr, Arc<Mutex<Vec<String>>>) {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let of_server = Arc::clone(&heads);
    let addr = tcp_service(move |mut stream| {
        of_server.lock().unwrap().push(read_head(&stream).0);
        stream.write_all(answer.as_bytes()).unwrap();
    });
    (addr, heads)
}

#[test]
fn the_program_sees_the_request_as_it_was_sent_without_the_key() {
    let (addr, heads) = recorder("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let host = Host::start();
    host.add("env", addr, "secret", &[addr.port()]);
    let mut client = host.connect();
    let name = format!("{}-env.localhost:9443", addr.port());
    let headers = format!("X-A: 1\r\nX-Key: {KEY}\r\nConnection: X-B\r\nX-B: 2\r\n");
    let reply = client.request("PURGE", &name, "/a%2Fb/../c?d=%20+&&?", &headers, "");
    assert_eq!((reply.status, reply.text()), (200, "ok"));
    let head = heads.lock().unwrap().remove(0);
    let lines: Vec<&str> = head.trim_end().split("\r\n").collect();
    let right = [
        "PURGE /a%2Fb/../c?d=%20+&&? HTTP/1.1",
        &format!("Host: {name}"),
        "X-A: 1",
        "X-Forwarded-For: 127.0.0.1",
        &format!("X-Forwarded-Host: {name}"),
        "X-Forwarded-Proto: http",
        "Connection: close",
    ];
    assert_eq!(lines, right);
    // The daemon gets its token.
    client.get("env.local", "/?");
    let head = heads.lock().unwrap().remove(0);
    assert!(head.starts_with("GET /? HTTP/1.1\r\nHost: env.local\r\n"), "{head}");
    assert!(head.contains("\r\nAuthorization: Bearer secret\r\n") && !head.contains(KEY), "{head}");
}

#[test]
fn the_head_of_the_answer_is_passed_on() {
    let host = Host::start();
    let ask = |method: &str, answer: &'static [u8]| {
        host.add("env", canned(answer), "secret", &[]);
        host.connect().request(method, "env.local", "/", "", "")
    };
    let reply = ask(
        "GET",
        b"HTTP/1.1 299 Odd\r\nServer: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nX: \xc3\xa9\r\nContent-Length: 1\r\n\r\nz",
    );
    assert_eq!((reply.status, reply.text()), (299, "z"));
    assert!(reply.head.contains("Set-Cookie: a\r\nSet-Cookie: b\r\n") && reply.head.contains("Server: x\r\n"));
    assert!(reply.head.contains("X: é\r\n") && reply.header("Content-Type").is_none(), "{}", reply.head);
    let reply = ask("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 123\r\n\r\n");
    assert_eq!(reply.header("Content-Length"), Some("123"));
    let reply = ask("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!((reply.header("Content-Length"), reply.header("Transfer-Encoding")), (None, Some("chunked")));
    let reply = ask("GET", b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n");
    assert_eq!((reply.status, reply.header("Content-Length"), reply.header("X")), (204, None, Some("1")));
    let reply = ask("GET", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 9\r\n\r\n");
    assert_eq!((reply.status, reply.header("ETag")), (304, Some("x")));
    let reply = ask("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((reply.status, reply.header("Content-Length")), (200, Some("0")));
    // A body without a length ends with the connection, and is framed anew.
    let reply = ask("GET", b"HTTP/1.0 200 OK\r\n\r\nup to the end");
    assert_eq!((reply.text(), reply.header("Transfer-Encoding")), ("up to the end", Some("chunked")));
    let reply = ask("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nab\r\n3\r\ncde\r\n0\r\nX: y\r\n\r\n");
    assert_eq!(reply.text(), "abcde");
    let reply = ask("GET", b"HTTP/1.1 426 x\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((reply.status, reply.header("Upgrade")), (426, Some("websocket")));
}

#[test]
fn a_slow_answer_arrives_byte_by_byte() {
    let (go, gone) = mpsc::channel::<()>();
    let gone = Mutex::new(gone);
    let addr = tcp_service(move |mut stream| {
        read_head(&stream);
        for piece in ["HTTP/1.1 200 OK\r\nContent-", "Length: 3\r\n\r\na", "b", "c"] {
            stream.write_all(piece.as_bytes()).unwrap();
            gone.lock().unwrap().recv().unwrap();
        }
    });
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    let mut client = host.connect();
    client.send_request("GET", "env.local", "/", "", "");
    go.send(()).unwrap();
    assert_eq!(client.head().status, 200);
    for byte in ["a", "b", "c"] {
        assert_eq!(client.take(1), byte.as_bytes(), "only then is the next one sent");
        go.send(()).unwrap();
    }
}

#[test]
fn an_answer_before_the_end_of_the_request_is_passed_on() {
    // It answers after the head, and reads no more.
    let addr = tcp_service(|mut stream| {
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // As long as the client is not cut off.
        let _ = stream.read(&mut [0; 1]);
    });
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    let mut client = host.connect();
    client.send(format!("PUT /big HTTP/1.1\r\nHost: env.local\r\n{AUTH}Content-Length: 100000000\r\n\r\n"));
    client.send([b'x'; 1000]);
    let reply = client.reply();
    assert_eq!((reply.status, reply.text(), reply.header("Connection")), (413, "big", Some("close")));
    assert!(client.is_cut());
}

#[test]
fn an_answer_may_depend_on_the_rest_of_the_request() {
    // Echoes each piece before it reads the next one.
    let addr = tcp_service(|mut stream| {
        let (head, rest) = read_head(&stream);
        assert!(head.contains("Transfer-Encoding: chunked"), "{head}");
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        stream.write_all(&rest).unwrap();
        let mut piece = [0; 4096];
        loop {
            match stream.read(&mut piece) {
                Ok(read @ 1..) => stream.write_all(&piece[..read]).unwrap(),
                _ => return,
            }
            if piece.starts_with(b"0\r\n\r\n") {
                return;
            }
        }
    });
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    let mut client = host.connect();
    client.send(format!("POST / HTTP/1.1\r\nHost: env.local\r\n{AUTH}Transfer-Encoding: chunked\r\n\r\n"));
    assert_eq!(client.head().status, 200);
    for word in ["one", "two"] {
        client.send(format!("3\r\n{word}\r\n"));
        assert_eq!(client.chunk(), format!("000003\r\n{word}\r\n").as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.chunk(), b"0\r\n\r\n");
    assert_eq!(client.chunk(), b"");
}

/// A daemon that answers one request on each connection, and closes it when the second one has arrived.
fn closes_at_the_second(connections: &Arc<AtomicUsize>) -> std::net::SocketAddr {
    let connections = Arc::clone(connections);
    tcp_service(move |mut stream| {
        connections.fetch_add(1, SeqCst);
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        let _ = stream.read(&mut [0; 1]);
    })
}

#[test]
fn a_kept_connection_that_is_stale_fails_no_request() {
    let connections = Arc::new(AtomicUsize::new(0));
    let host = Host::start();
    host.add("env", closes_at_the_second(&connections), "secret", &[]);
    let mut client = host.connect();
    for number in 1..=5 {
        assert_eq!(client.get("env.local", "/").text(), "ok");
        assert_eq!(connections.load(SeqCst), number, "sent again on a new connection");
    }
}

#[test]
fn a_request_that_must_not_be_repeated_gets_a_new_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let host = Host::start();
    host.add("env", closes_at_the_second(&connections), "secret", &[]);
    let mut client = host.connect();
    for number in 1..=3 {
        assert_eq!(client.request("POST", "env.local", "/", "", "x").text(), "ok");
        assert_eq!(connections.load(SeqCst), number);
    }
}

#[test]
fn a_connection_to_the_daemon_is_used_again() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&connections);
    let addr = tcp_service(move |mut stream| {
        counted.fetch_add(1, SeqCst);
        loop {
            if stream.peek(&mut [0; 1]).unwrap_or(0) == 0 {
                return;
            }
            read_head(&stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n").unwrap();
        }
    });
    let host = Host::start();
    host.add("env", addr, "secret", &[]);
    let mut client = host.connect();
    for _ in 0..20 {
        assert_eq!(client.get("env.local", "/").text(), "ok");
    }
    assert_eq!(connections.load(SeqCst), 1);
    assert_eq!(host.proxy.pool.count(), 1);
}

#[test]
fn what_passes_is_counted() {
    let host = Host::start();
    host.add("env", canned(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"), "secret", &[]);
    let mut client = host.connect();
    assert_eq!(client.request("POST", "env.local", "/", "", "abc").text(), "hello");
    assert_eq!(client.get("none.local", "/").status, 404);
    wait_until("both have ended", || host.numbers.read().open == 0);
    let numbers = host.numbers.read();
    assert_eq!((numbers.requests, numbers.failed), (2, 1));
    assert_eq!((numbers.received_bytes, numbers.sent_bytes), (3, 5));
    std::thread::sleep(Duration::ZERO);
}
