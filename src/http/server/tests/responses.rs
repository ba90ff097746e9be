//! Responses that a handler must not send as they are: a status without a body, a length that is not that of the body.

use std::sync::Arc;

use crossbeam_channel::unbounded;

use crate::http::connection::table::ConnectionTable;
use crate::http::server::reserve::Reserve;
use crate::http::server::tests::*;

#[test]
fn a_status_without_a_body_gets_none_and_the_next_response_is_in_its_place() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    for query in ["status=204", "status=304", "status=204&stream", "status=304&stream"] {
        let response = client.get(&format!("/status?{query}"));
        assert!(query.contains(&response.status.to_string()), "{query}: {}", response.head);
        assert!(!response.head.contains("Content-Length") && !response.head.contains("Transfer-Encoding"), "{query}");
        assert_eq!(client.get("/hello").body, b"hello", "{query}");
    }
}

#[test]
fn an_interim_status_is_500() {
    let fixture = fixture(Options::new());
    for status in [100, 101, 199] {
        let response = fixture.connect().get(&format!("/status?status={status}"));
        assert_eq!((response.status, &*code(&response)), (500, "INTERNAL"), "{status}");
    }
}

#[test]
fn a_body_of_another_length_than_announced_never_becomes_part_of_the_next_response() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    assert_eq!(client.get("/announced?length=200000&pieces=2&piece=100000").body.len(), 200_000);
    assert_eq!(client.get("/hello").body, b"hello");
    // Nothing has been sent when the writer ends.
    for query in ["length=10&pieces=1&piece=11", "length=10&pieces=1&piece=9", "length=0&pieces=1&piece=1"] {
        let mut client = fixture.connect();
        client.send(format!("GET /announced?{query} HTTP/1.1\r\n\r\nGET /hello HTTP/1.1\r\n\r\n"));
        let all = client.rest();
        assert!(all.starts_with("HTTP/1.1 500 ") && !all.contains("hello") && !all.contains('x'), "{query}: {all}");
    }
    for (pieces, sent) in [(3, 200_000), (1, 100_000)] {
        let mut client = fixture.connect();
        // In one segment, which the server reads as a whole: it would answer an unread one with a reset.
        let query = format!("length=200000&pieces={pieces}&piece=100000");
        client.send(format!("GET /announced?{query} HTTP/1.1\r\n\r\nGET /hello HTTP/1.1\r\n\r\n"));
        let all = client.rest();
        let body = all.split_once("\r\n\r\n").unwrap().1;
        assert!(body.len() <= sent && body.bytes().all(|byte| byte == b'x'), "{} bytes", body.len());
    }
}

#[test]
fn a_pause_that_no_clock_can_hold_lasts_until_the_client_disconnects() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    client.send("GET /pause HTTP/1.1\r\n\r\n");
    fixture.expect("streaming");
    drop(client);
    fixture.expect("gone");
}

#[test]
fn a_server_name_that_no_head_can_hold_is_refused_at_once() {
    for name in ["a\r\nSet-Cookie: b", "a\nb", "caf\u{e9}", "a\0"] {
        let handler = |_: &mut Request<'_>| Err(ApiError::disconnected());
        let bound = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), handler, Options::new().server_name(name));
        assert_eq!(bound.unwrap_err().kind(), std::io::ErrorKind::InvalidInput, "{name:?}");
    }
}

#[test]
fn an_upgraded_handler_learns_that_the_server_is_shutting_down() {
    let time_of_shutdown = || {
        let fixture = fixture(Options::new());
        let mut client = fixture.connect();
        client.send("GET /stopping HTTP/1.1\r\n\r\n");
        fixture.expect("serving");
        let begun = std::time::Instant::now();
        fixture.server.shutdown();
        fixture.expect("stopping");
        begun.elapsed()
    };
    assert_one_is_short(time_of_shutdown);
}

/// Checks that one of some shutdowns takes less than a second: a busy machine delays one or another, but not each.
fn assert_one_is_short(time_of_shutdown: impl Fn() -> Duration) {
    let times: Vec<_> = (0..5).map(|_| time_of_shutdown()).take_while(|time| *time >= Duration::from_secs(1)).collect();
    assert!(times.len() < 5, "{times:?}");
}

#[test]
fn a_client_that_stays_connected_after_its_last_response_does_not_delay_a_shutdown() {
    assert_one_is_short(|| {
        let fixture = fixture(Options::new());
        let mut client = fixture.connect();
        // The body does not come: the connection is kept open for a moment, in case the client still sends it.
        client.send("POST /nothing HTTP/1.1\r\nContent-Length: 100\r\n\r\n");
        assert_eq!(client.response().status, 204);
        let begun = std::time::Instant::now();
        fixture.server.shutdown();
        begun.elapsed()
    });
}

/// What a reserve thread answers to a GET of this path.
fn on_reserve(path: &str) -> Received {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut client = Client { stream, read: Vec::new() };
    let accepted = listener.accept().unwrap().0;
    accepted.set_nonblocking(true).unwrap();
    client.send(format!("GET {path} HTTP/1.1\r\n\r\n"));
    let (report, _reports) = unbounded();
    let handler: Arc<dyn crate::http::server::Handler> =
        Arc::new(move |request: &mut Request<'_>| handle(request, &report));
    let reserve = Reserve::start(&handler, &Options::new()).unwrap();
    reserve.take(Arc::new(ConnectionTable::new(1).unwrap()).add(accepted)).unwrap();
    client.response()
}

#[test]
fn a_reserve_thread_serves_neither_upgrades_nor_streams_without_a_deadline() {
    assert_eq!(on_reserve("/hello").status, 200);
    // These handlers do not call `begin_long`.
    for path in ["/upgrade", "/silent", "/stream?lines=1"] {
        let response = on_reserve(path);
        assert_eq!((response.status, &*code(&response)), (503, "OUT_OF_RESOURCES"), "{path}");
    }
}
