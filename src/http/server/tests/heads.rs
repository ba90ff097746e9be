//! Request heads: valid, invalid, slow and endless; pipelining and persistent connections.

use std::io::{BufRead, BufReader, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::http::server::tests::*;

const HELLO: &str = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";

const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_timeout_too_long_for_a_deadline_is_accepted() {
    let endless = Options::new().head_timeout(Duration::MAX).idle_timeout(Duration::MAX);
    let fixture = fixture(endless);
    let mut client = fixture.connect();
    for _ in 0..2 {
        assert_eq!(client.get("/hello").status, 200);
    }
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.response().body, b"hi");
}

#[test]
fn one_connection_serves_many_requests() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    for _ in 0..3 {
        let response = client.get("/hello");
        assert_eq!((response.status, &*response.body), (200, &b"hello"[..]));
        assert!(response.head.contains("\r\nServer: tl-init\r\n") && response.head.contains("\r\nDate: "));
        assert!(!response.head.contains("Connection"));
        let nothing = client.get("/nothing");
        assert_eq!(nothing.status, 204);
        assert!(!nothing.head.contains("Content-Length"));
        assert_eq!(client.get("/unknown").status, 404);
    }
    assert_eq!(client.rest(), "");
}

#[test]
fn a_head_may_arrive_byte_by_byte_after_blank_lines() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    for byte in format!("\r\n\n{HELLO}").as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.response().status, 200);
}

#[test]
fn a_head_request_gets_no_body() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    client.send("HEAD /hello HTTP/1.1\r\n\r\nHEAD /stream?lines=5 HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n");
    let all = client.rest();
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 2, "{all}");
    assert!(all.contains("Content-Length: 5") && all.contains("chunked") && all.contains("204"));
    assert!(!all.contains("hello") && !all.contains("line 0"));
}

#[test]
fn http_1_0_and_connection_close_end_the_connection() {
    let fixture = fixture(Options::new());
    for request in
        ["GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET /hello HTTP/1.1\r\nConnection: close\r\n\r\n"]
    {
        let mut client = fixture.connect();
        client.send(request);
        let all = client.until_end();
        assert!(
            all.starts_with("HTTP/1.1 200") && all.contains("Connection: close") && all.ends_with("hello"),
            "{all}"
        );
    }
    let mut old = fixture.connect();
    old.send("GET /stream?lines=2 HTTP/1.0\r\n\r\n");
    let all = old.until_end();
    assert!(all.ends_with("\r\n\r\nline 0\nline 1\n") && !all.contains("chunked"), "{all}");
}

#[test]
fn an_invalid_head_is_400_and_the_connection_ends() {
    let fixture = fixture(Options::new());
    for request in [
        "hello\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03",
        "GET /hello HTTP/2.0\r\n\r\n",
        "GET hello HTTP/1.1\r\n\r\n",
        "GET /hello HTTP/1.1\r\nA : b\r\n\r\n",
        "POST /echo HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "POST /echo HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        "POST /echo HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        "GET /hello",
    ] {
        // The second request would be answered if the connection were used again.
        let all = fixture.all(format!("{request}{}", if request.ends_with('\n') { HELLO } else { "" }));
        assert!(all.starts_with("HTTP/1.1 400 Bad Request"), "{request:?}: {all}");
        assert!(all.contains("Connection: close") && all.contains("\"code\":\"INVALID_REQUEST\""), "{all}");
        assert!(!all.contains("200 OK"), "{request:?}: {all}");
    }
}

#[test]
fn an_invalid_head_is_refused_before_it_ends() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    client.send("hello\r\n");
    assert_eq!(client.response().status, 400);
}

#[test]
fn a_head_above_the_limit_is_431() {
    let fixture = fixture(Options::new().max_head(16 << 10));
    let mut client = fixture.connect();
    client.send(format!("GET /hello HTTP/1.1\r\nA: {}", "a".repeat(16 << 10)));
    let response = client.response();
    assert_eq!((response.status, &*code(&response)), (431, "HEAD_TOO_LARGE"));
    let mut client = fixture.connect();
    client.send(format!("GET /hello HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(15 << 10)));
    assert_eq!(client.response().status, 200);
}

#[test]
fn a_slow_head_is_408_even_if_bytes_keep_arriving() {
    let fixture = fixture(Options::new().head_timeout(SHORT));
    let begun = Instant::now();
    let mut silent = fixture.connect();
    assert_eq!(code(&silent.response()), "REQUEST_TIMEOUT");
    assert!(begun.elapsed() >= SHORT);
    let mut slow = fixture.connect();
    let mut writer = slow.stream.try_clone().unwrap();
    let drip = thread::spawn(move || {
        // Ends when the server has closed the connection.
        while writer.write_all(b"a").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    assert_eq!(slow.response().status, 408);
    drop(slow);
    drip.join().unwrap();
}

#[test]
fn an_idle_connection_is_closed_without_a_response() {
    let fixture = fixture(Options::new().idle_timeout(SHORT));
    let mut client = fixture.connect();
    assert_eq!(client.get("/hello").status, 200);
    assert_eq!(client.until_end(), "");
}

#[test]
fn pipelined_requests_are_answered_one_after_another() {
    const COUNT: usize = 300_000;
    let fixture = fixture(Options::new());
    let client = fixture.connect();
    let mut writer = client.stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let hundred = "GET /nothing HTTP/1.1\r\n\r\n".repeat(100);
        for _ in 0..COUNT / 100 {
            writer.write_all(hundred.as_bytes()).unwrap();
        }
    });
    let mut answers = BufReader::new(client.stream).lines();
    for _ in 0..COUNT {
        assert_eq!(answers.next().unwrap().unwrap(), "HTTP/1.1 204 No Content");
        while !answers.next().unwrap().unwrap().is_empty() {}
    }
    sender.join().unwrap();
}

#[test]
fn requests_are_not_read_while_responses_are_not_taken() {
    let fixture = fixture(Options::new().idle_timeout(Duration::from_secs(2)));
    let mut client = fixture.connect();
    let hundred = HELLO.repeat(100);
    // No more can be sent than the kernel's buffers hold. Eventually the server closes the connection.
    let mut sent = 0;
    while client.stream.write_all(hundred.as_bytes()).is_ok() {
        sent += hundred.len();
    }
    assert!(sent < 64 << 20, "{sent}");
}
