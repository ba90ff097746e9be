//! Request bodies: with a length, chunked, too large, late, and left unread.

use std::time::Instant;

use crate::http::server::tests::*;

fn post(path: &str, headers: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\n{headers}\r\n{body}")
}

fn chunked(path: &str, body: &str) -> String {
    post(path, "Transfer-Encoding: chunked\r\n", body)
}

#[test]
fn a_body_arrives_whole_with_either_framing_even_byte_by_byte() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    for request in [
        post("/echo", "Content-Length: 5\r\n", "hello"),
        chunked("/echo", "2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: x\r\n\r\n"),
    ] {
        client.send(&request);
        assert_eq!(client.response().body, b"hello");
        for byte in request.as_bytes() {
            client.send([*byte]);
        }
        assert_eq!(client.response().body, b"hello");
    }
    for request in [post("/echo", "", ""), post("/echo", "Content-Length: 0\r\n", ""), chunked("/echo", "0\r\n\r\n")] {
        client.send(request);
        assert_eq!(client.response().body, b"");
    }
    assert_eq!(client.get("/hello").status, 200);
}

#[test]
fn continue_is_sent_when_the_body_is_read() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    for path in ["/echo", "/count"] {
        client.send(post(path, "Expect: 100-continue\r\nContent-Length: 5\r\n", ""));
        assert_eq!(client.take(25), b"HTTP/1.1 100 Continue\r\n\r\n");
        client.send("hello");
        assert_eq!(client.response().status, 200);
    }
    // A client that does not wait for it gets no `100 Continue`.
    client.send(post("/echo", "Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"));
    assert_eq!(client.response().status, 200);
    // A client whose body is not read gets the final response. It may or may not send the body, so the connection ends.
    client.send(post("/hello", "Expect: 100-continue\r\nContent-Length: 5\r\n", ""));
    let response = client.response();
    assert!(response.status == 200 && response.head.contains("Connection: close"));
    assert_eq!(client.rest(), "");
}

#[test]
fn a_body_above_the_limit_is_413() {
    let fixture = fixture(Options::new().max_body(1000));
    for request in [
        post("/echo", "Content-Length: 1001\r\n", ""),
        post("/echo", "Content-Length: 1001\r\n", &"x".repeat(1001)),
        post("/echo", "Expect: 100-continue\r\nContent-Length: 1001\r\n", ""),
        post("/echo", "Content-Length: 10000000000000\r\n", "x"),
        post("/echo", "Content-Length: 18446744073709551615\r\n", "x"),
        chunked("/echo", &format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001))),
        chunked("/echo", &"1\r\nx\r\n".repeat(1001)),
    ] {
        let mut client = fixture.connect();
        client.send(&request);
        let response = client.response();
        assert_eq!((response.status, &*code(&response)), (413, "BODY_TOO_LARGE"), "{request}");
    }
    let mut client = fixture.connect();
    client.send(post("/echo", "Content-Length: 1000\r\n", &"x".repeat(1000)));
    assert_eq!(client.response().body.len(), 1000);
    client.send(chunked("/echo", &format!("3e8\r\n{}\r\n0\r\n\r\n", "x".repeat(1000))));
    assert_eq!(client.response().body.len(), 1000);
}

#[test]
fn a_body_that_is_read_in_pieces_has_no_limit() {
    let fixture = fixture(Options::new().max_body(1000));
    let piece = vec![b'x'; 1 << 20];
    let mut client = fixture.connect();
    client.send(format!("POST /count HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 64 << 20));
    (0..64).for_each(|_| client.send(&piece));
    assert_eq!(client.response().body, b"67108864");
    client.send("POST /count HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..32 {
        client.send("100000\r\n");
        client.send(&piece);
        client.send("\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.response().body, b"33554432");
}

#[test]
fn a_late_body_is_408_and_a_broken_one_400() {
    let impatient = fixture(Options::new().idle_timeout(Duration::from_millis(300)));
    let fixture = fixture(Options::new());
    for request in [post("/echo", "Content-Length: 5\r\n", "hell"), chunked("/count", "5\r\nhell")] {
        let mut late = impatient.connect();
        late.send(&request);
        let response = late.response();
        assert_eq!((response.status, &*code(&response)), (408, "REQUEST_TIMEOUT"));
        let broken = fixture.all(&request);
        assert!(broken.starts_with("HTTP/1.1 400") && broken.contains("Connection: close"), "{broken}");
    }
    let malformed = fixture.all(chunked("/echo", "x\r\n"));
    assert!(malformed.starts_with("HTTP/1.1 400") && malformed.contains("Connection: close"), "{malformed}");
}

#[test]
fn a_short_unread_body_leaves_the_connection_open() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    for _ in 0..3 {
        // Head and body are one segment, so the body has arrived when the response is ready.
        client.send(post("/hello", "Content-Length: 1000\r\n", &"x".repeat(1000)));
        assert!(!client.response().head.contains("Connection: close"));
        client.send(chunked("/hello", "5\r\nhello\r\n0\r\n\r\n"));
        assert!(!client.response().head.contains("Connection: close"));
    }
}

#[test]
fn a_response_before_a_long_body_arrives_and_the_connection_ends() {
    let fixture = fixture(Options::new());
    for length in [70_000, 200_000] {
        let end = Instant::now() + TIMEOUT;
        let all = loop {
            let (begun, mut client, mut all) = (Instant::now(), fixture.connect(), String::new());
            client.send(post("/hello", &format!("Content-Length: {length}\r\n"), ""));
            // The server has answered and closed its sending direction by now, and reads on so that this does not fail.
            let sent = client.stream.write_all("x".repeat(length).as_bytes());
            let ended = sent.and_then(|()| client.stream.shutdown(Shutdown::Write));
            match ended.and_then(|()| client.stream.read_to_string(&mut all)) {
                Ok(_) => break all,
                // It reads on for 2 s only, which is too short for a client that a busy machine holds up.
                Err(error) => assert!(begun.elapsed() >= Duration::from_secs(2) && Instant::now() < end, "{error}"),
            }
        };
        assert!(all.starts_with("HTTP/1.1 200 ") && all.contains("Connection: close"), "{all}");
        assert!(all.ends_with("\r\n\r\nhello"), "{all}");
    }
    // This request aborts tiny_http's own server.
    let mut client = fixture.connect();
    client.send(post("/hello", "Content-Length: 10000000000000\r\n", "x"));
    assert_eq!(client.response().status, 200);
    let mut client = fixture.connect();
    client.send(chunked("/hello", "ffffffff\r\nx"));
    assert_eq!(client.response().status, 200);
}
