//! More clients than connections, and the shutdown of the server.

use std::time::Instant;

use crate::http::connection::entry::EVICTION_GRACE;
use crate::http::server::tests::*;

fn with_capacity(max_connections: usize) -> Fixture {
    fixture(Options::new().max_connections(max_connections))
}

#[test]
fn the_connection_that_is_idle_longest_is_evicted() {
    let fixture = with_capacity(2);
    let [mut first, mut second] = [1, 2].map(|idle| {
        let mut client = fixture.connect();
        assert_eq!(client.get("/hello").status, 200);
        // The response arrives a moment before the connection is idle.
        while fixture.server.connections.idle() < idle {
            std::thread::yield_now();
        }
        client
    });
    assert_eq!(fixture.connect().get("/hello").status, 200);
    first.expect_no_response();
    assert_eq!(second.get("/hello").status, 200);
}

#[test]
fn without_an_idle_connection_the_slowest_head_is_evicted() {
    let fixture = with_capacity(3);
    let mut busy = fixture.connect();
    busy.send("GET /hold HTTP/1.1\r\n\r\n");
    fixture.expect("holding");
    let mut slow: Vec<_> = (0..2).map(|_| fixture.connect()).collect();
    slow[0].send("GET /hello");
    while fixture.server.connections.len() < 3 {
        std::thread::yield_now();
    }
    assert_eq!(fixture.connect().get("/hello").status, 200);
    slow[0].expect_no_response();
    assert_eq!(slow[1].get("/hello").status, 200);
    assert!(fixture.reports.is_empty());
}

#[test]
fn no_connection_is_evicted_while_no_client_waits() {
    let fixture = with_capacity(2);
    let mut clients: Vec<_> = (0..2).map(|_| fixture.connect()).collect();
    for _ in 0..100 {
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/hello").status, 200));
    }
}

#[test]
fn a_client_waits_while_every_connection_is_busy() {
    let fixture = with_capacity(2);
    let mut busy: Vec<_> = (0..2).map(|_| fixture.connect()).collect();
    for client in &mut busy {
        client.send("GET /silent HTTP/1.1\r\n\r\n");
        fixture.expect("streaming");
    }
    let mut waiting = fixture.connect();
    waiting.send("GET /hello HTTP/1.1\r\n\r\n");
    waiting.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(waiting.stream.read(&mut [0]).is_err(), "every connection is busy");
    waiting.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    drop(busy.pop());
    fixture.expect("gone");
    assert_eq!(waiting.response().status, 200);
}

#[test]
fn a_connection_that_always_has_a_next_request_gives_way_after_a_response() {
    let fixture = with_capacity(1);
    let mut busy = fixture.connect();
    busy.send("GET /gate HTTP/1.1\r\n\r\n".repeat(2));
    fixture.expect("holding");
    let mut waiting = fixture.connect();
    waiting.send("GET /hello HTTP/1.1\r\n\r\n");
    while !fixture.server.connections.is_crowded() {
        std::thread::yield_now();
    }
    fixture.gate.send(()).unwrap();
    let response = busy.response();
    assert!(response.status == 204 && response.head.contains("\r\nConnection: close\r\n"), "{}", response.head);
    assert_eq!(waiting.response().status, 200);
    assert!(fixture.reports.is_empty(), "the second request was not handled");
    // Closed at once, by a reset because of the second request: what lingers keeps its place.
    busy.expect_no_response();
}

#[test]
fn a_client_that_does_not_take_its_response_is_evicted() {
    let fixture = with_capacity(1);
    let mut slow = fixture.connect();
    slow.send("GET /large HTTP/1.1\r\n\r\n");
    slow.more();
    assert_eq!(fixture.connect().get("/hello").status, 200);
}

/// Sends a request on a connection of its own, as an idle one may have been evicted.
fn expect_to_be_served(fixture: &Fixture) {
    let end = Instant::now() + TIMEOUT;
    loop {
        let (begun, mut client) = (Instant::now(), fixture.connect());
        let sent = client.stream.write_all(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        if sent.and_then(|()| client.stream.peek(&mut [0])).is_ok_and(|count| count > 0) {
            return assert_eq!(client.response().status, 200);
        }
        // On a busy machine the request may come so late that the connection was evicted.
        let took = begun.elapsed();
        assert!(took >= EVICTION_GRACE && Instant::now() < end, "evicted after {took:?}");
    }
}

#[test]
fn more_clients_than_connections_are_all_served() {
    let fixture = with_capacity(4);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..50 {
                    expect_to_be_served(&fixture);
                }
            });
        }
    });
}

#[test]
fn ended_connections_leave_the_table() {
    let fixture = with_capacity(64);
    let clients: Vec<_> = (0..50).map(|_| fixture.connect()).collect();
    while fixture.server.connections.len() < 50 {
        std::thread::yield_now();
    }
    drop(clients);
    while fixture.server.connections.len() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn shutdown_closes_idle_connections_and_answers_requests() {
    let fixture = with_capacity(8);
    let mut idle = fixture.connect();
    assert_eq!(idle.get("/hello").status, 200);
    let mut silent = fixture.connect();
    silent.send("GET /hel");
    let mut uploading = fixture.connect();
    uploading.send("POST /echo HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    uploading.take(25);
    fixture.server.shutdown();
    idle.expect_no_response();
    silent.expect_no_response();
    uploading.send("hello");
    let response = uploading.response();
    assert!(response.body == b"hello" && response.head.contains("Connection: close"));
    assert!(TcpStream::connect(fixture.server.local_addr()).is_err());
    fixture.server.shutdown();
}

#[test]
fn a_port_in_use_is_an_error() {
    let fixture = with_capacity(1);
    let handler = |_: &mut Request<'_>| Err(ApiError::disconnected());
    assert!(Server::bind(fixture.server.local_addr(), handler, Options::new()).is_err());
}

#[test]
fn a_client_that_does_not_send_its_body_is_evicted() {
    let fixture = with_capacity(1);
    let mut slow = fixture.connect();
    slow.send("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(fixture.connect().get("/hello").status, 200);
    slow.expect_no_response();
}

#[test]
fn the_memory_of_all_large_heads_is_limited() {
    // No head is late, however long it takes to send all of them.
    let fixture = fixture(Options::new().max_connections(400).head_timeout(Duration::MAX));
    let half = format!("GET /hello HTTP/1.1\r\nX: {}", "x".repeat(40_000));
    let mut clients: Vec<_> = (0..200).map(|_| fixture.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(&half));
    // Each head takes 60 KiB beyond its first buffer.
    let most = (8 << 20) / (60 << 10);
    let refused = |client: &Client| {
        let mut begin = [0; 12];
        client.stream.set_nonblocking(true).unwrap();
        client.stream.peek(&mut begin).is_ok() && begin == *b"HTTP/1.1 503"
    };
    let begun = Instant::now();
    while clients.iter().filter(|client| refused(client)).count() < 200 - most {
        assert!(begun.elapsed() < TIMEOUT);
        std::thread::yield_now();
    }
    drop(clients);
    while fixture.server.connections.len() > 0 {
        std::thread::yield_now();
    }
    let mut large = fixture.connect();
    large.send(format!("{half}\r\n\r\n"));
    assert_eq!(large.response().status, 200);
}
