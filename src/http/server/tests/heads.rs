//! Heads: good, bad, slow and without end; pipelining and keep-alive.

use std::io::{BufRead, BufReader, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::http::server::tests::*;

const HELLO: &str = "GET /hello HTTP/1.1\r\nHost: x\r\n\r\n";

fn soon() -> Options {
    Options { head_timeout: Duration::from_millis(300), idle_timeout: Duration::from_millis(300), ..Options::default() }
}

#[test]
fn a_deadline_too_far_to_be_told_is_one() {
    let endless = Options { head_timeout: Duration::MAX, idle_timeout: Duration::MAX, ..Options::default() };
    let fixture = fixture(endless);
    let mut client = fixture.connect();
    for _ in 0..2 {
        assert_eq!(client.get("/hello").status, 200);
    }
    client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(client.answer().body, b"hi");
}

#[test]
fn one_connection_answers_again_and_again() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    for _ in 0..3 {
        let answer = client.get("/hello");
        assert_eq!((answer.status, &*answer.body), (200, &b"hello"[..]));
        assert!(answer.head.contains("\r\nServer: tl-init\r\n") && answer.head.contains("\r\nDate: "));
        assert!(!answer.head.contains("Connection"));
        let nothing = client.get("/nothing");
        assert_eq!(nothing.status, 204);
        assert!(!nothing.head.contains("Content-Length"));
        assert_eq!(client.get("/unknown").status, 404);
    }
    assert_eq!(client.rest(), "");
}

#[test]
fn a_head_in_single_bytes() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    for byte in format!("\r\n\n{HELLO}").as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.answer().status, 200);
}

#[test]
fn head_gets_the_head() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    client.send("HEAD /hello HTTP/1.1\r\n\r\nHEAD /stream?lines=5 HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n");
    let all = client.rest();
    assert_eq!(all.matches("HTTP/1.1 200 OK").count(), 2, "{all}");
    assert!(all.contains("Content-Length: 5") && all.contains("chunked") && all.contains("204"));
    assert!(!all.contains("hello") && !all.contains("line 0"));
}

#[test]
fn old_and_closing_clients() {
    let fixture = fixture(Options::default());
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
fn what_is_no_http_is_answered_and_the_connection_closed() {
    let fixture = fixture(Options::default());
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
        // The last would be answered, were the connection used again.
        let all = fixture.all(format!("{request}{}", if request.ends_with('\n') { HELLO } else { "" }));
        assert!(all.starts_with("HTTP/1.1 400 Bad Request"), "{request:?}: {all}");
        assert!(all.contains("Connection: close") && all.contains("\"code\":\"INVALID_REQUEST\""), "{all}");
        assert!(!all.contains("200 OK"), "{request:?}: {all}");
    }
}

#[test]
fn a_refusal_comes_at_once_though_the_client_waits() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    client.send("hello\r\n");
    assert_eq!(client.answer().status, 400);
}

#[test]
fn a_head_without_end() {
    let fixture = fixture(Options { max_head: 16 << 10, ..Options::default() });
    let mut client = fixture.connect();
    client.send(format!("GET /hello HTTP/1.1\r\nA: {}", "a".repeat(16 << 10)));
    let answer = client.answer();
    assert_eq!((answer.status, &*code(&answer)), (431, "HEAD_TOO_LARGE"));
    let mut client = fixture.connect();
    client.send(format!("GET /hello HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(15 << 10)));
    assert_eq!(client.answer().status, 200);
}

#[test]
fn a_slow_head_is_late_even_byte_by_byte() {
    let fixture = fixture(soon());
    let mut silent = fixture.connect();
    let begun = Instant::now();
    assert_eq!(code(&silent.answer()), "REQUEST_TIMEOUT");
    assert!(begun.elapsed() >= Duration::from_millis(250));
    let mut slow = fixture.connect();
    let mut writer = slow.stream.try_clone().unwrap();
    let drip = thread::spawn(move || {
        // Ends when the server has closed.
        while writer.write_all(b"a").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    assert_eq!(slow.answer().status, 408);
    drop(slow);
    drip.join().unwrap();
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let fixture = fixture(soon());
    let mut client = fixture.connect();
    assert_eq!(client.get("/hello").status, 200);
    assert_eq!(client.until_end(), "");
}

#[test]
fn pipelined_requests_are_answered_one_after_another() {
    const COUNT: usize = 300_000;
    let fixture = fixture(Options::default());
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
fn while_answers_are_not_taken_requests_are_not_read() {
    let fixture = fixture(Options { idle_timeout: Duration::from_secs(2), ..Options::default() });
    let mut client = fixture.connect();
    let hundred = HELLO.repeat(100);
    // What the kernel's buffers hold is all that can be sent; in the end the server gives up.
    let mut sent = 0;
    while client.stream.write_all(hundred.as_bytes()).is_ok() {
        sent += hundred.len();
    }
    assert!(sent < 64 << 20, "{sent}");
}
