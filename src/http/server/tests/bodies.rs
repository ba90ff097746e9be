//! Bodies: measured, chunked, too large, late, left unread.

use crate::http::server::tests::*;

fn post(path: &str, fields: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\n{fields}\r\n{body}")
}

fn chunked(path: &str, body: &str) -> String {
    post(path, "Transfer-Encoding: chunked\r\n", body)
}

#[test]
fn however_it_is_framed() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    for request in [
        post("/echo", "Content-Length: 5\r\n", "hello"),
        chunked("/echo", "2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: x\r\n\r\n"),
    ] {
        client.send(&request);
        assert_eq!(client.answer().body, b"hello");
        for byte in request.as_bytes() {
            client.send([*byte]);
        }
        assert_eq!(client.answer().body, b"hello");
    }
    for request in [post("/echo", "", ""), post("/echo", "Content-Length: 0\r\n", ""), chunked("/echo", "0\r\n\r\n")] {
        client.send(request);
        assert_eq!(client.answer().body, b"");
    }
    assert_eq!(client.get("/hello").status, 200);
}

#[test]
fn expect_is_answered_when_the_body_is_wanted() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    for path in ["/echo", "/count"] {
        client.send(post(path, "Expect: 100-continue\r\nContent-Length: 5\r\n", ""));
        assert_eq!(client.take(25), b"HTTP/1.1 100 Continue\r\n\r\n");
        client.send("hello");
        assert_eq!(client.answer().status, 200);
    }
    // A client that does not wait gets no word in between.
    client.send(post("/echo", "Expect: 100-continue\r\nContent-Length: 5\r\n", "hello"));
    assert_eq!(client.answer().status, 200);
    // One whose body is not wanted is told so instead, and whether it sends it is open: the connection ends.
    client.send(post("/hello", "Expect: 100-continue\r\nContent-Length: 5\r\n", ""));
    let answer = client.answer();
    assert!(answer.status == 200 && answer.head.contains("Connection: close"));
    assert_eq!(client.rest(), "");
}

#[test]
fn too_large_bodies() {
    let fixture = fixture(Options { max_body: 1000, ..Options::default() });
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
        let answer = client.answer();
        assert_eq!((answer.status, &*code(&answer)), (413, "BODY_TOO_LARGE"), "{request}");
    }
    let mut client = fixture.connect();
    client.send(post("/echo", "Content-Length: 1000\r\n", &"x".repeat(1000)));
    assert_eq!(client.answer().body.len(), 1000);
    client.send(chunked("/echo", &format!("3e8\r\n{}\r\n0\r\n\r\n", "x".repeat(1000))));
    assert_eq!(client.answer().body.len(), 1000);
}

#[test]
fn a_streamed_body_has_no_limit() {
    let fixture = fixture(Options { max_body: 1000, ..Options::default() });
    let piece = vec![b'x'; 1 << 20];
    let mut client = fixture.connect();
    client.send(format!("POST /count HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 64 << 20));
    (0..64).for_each(|_| client.send(&piece));
    assert_eq!(client.answer().body, b"67108864");
    client.send("POST /count HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..32 {
        client.send("100000\r\n");
        client.send(&piece);
        client.send("\r\n");
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.answer().body, b"33554432");
}

#[test]
fn late_and_broken_bodies() {
    let fixture = fixture(Options { idle_timeout: Duration::from_millis(300), ..Options::default() });
    for request in [post("/echo", "Content-Length: 5\r\n", "hell"), chunked("/count", "5\r\nhell")] {
        let mut late = fixture.connect();
        late.send(&request);
        let answer = late.answer();
        assert_eq!((answer.status, &*code(&answer)), (408, "REQUEST_TIMEOUT"));
        let broken = fixture.all(&request);
        assert!(broken.starts_with("HTTP/1.1 400") && broken.contains("Connection: close"), "{broken}");
    }
    let malformed = fixture.all(chunked("/echo", "x\r\n"));
    assert!(malformed.starts_with("HTTP/1.1 400") && malformed.contains("Connection: close"), "{malformed}");
}

#[test]
fn a_little_unread_body_costs_nothing() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    for _ in 0..3 {
        // In one segment: it is there when the answer is ready.
        client.send(post("/hello", "Content-Length: 1000\r\n", &"x".repeat(1000)));
        assert!(!client.answer().head.contains("Connection: close"));
        client.send(chunked("/hello", "5\r\nhello\r\n0\r\n\r\n"));
        assert!(!client.answer().head.contains("Connection: close"));
    }
}

#[test]
fn an_answer_before_a_long_body_is_seen_and_the_connection_ends() {
    let fixture = fixture(Options::default());
    for length in [70_000, 200_000] {
        let mut client = fixture.connect();
        client.send(post("/hello", &format!("Content-Length: {length}\r\n"), ""));
        // The server has answered and closed its half by now, and reads on so that this is no error.
        client.send("x".repeat(length));
        let answer = client.answer();
        assert!(answer.status == 200 && answer.head.contains("Connection: close"));
        assert_eq!(client.rest(), "");
    }
    // What tiny_http's own server dies of.
    let mut client = fixture.connect();
    client.send(post("/hello", "Content-Length: 10000000000000\r\n", "x"));
    assert_eq!(client.answer().status, 200);
    let mut client = fixture.connect();
    client.send(chunked("/hello", "ffffffff\r\nx"));
    assert_eq!(client.answer().status, 200);
}
