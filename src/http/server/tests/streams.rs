//! Streamed answers, clients that go or do not read, handlers that panic.

use crate::http::server::tests::*;

#[test]
fn a_stream_ends_and_the_connection_goes_on() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    for lines in [0, 1, 3, 100_000] {
        let answer = client.get(&format!("/stream?lines={lines}"));
        assert!(answer.head.contains("Content-Type: text/event-stream"));
        let right: String = (0..lines).map(|line| format!("line {line}\n")).collect();
        assert_eq!(String::from_utf8(answer.body).unwrap(), right);
    }
    assert_eq!(client.get("/hello").status, 200);
}

#[test]
fn a_short_stream_is_one_segment() {
    let fixture = fixture(Options::default());
    let mut client = fixture.connect();
    client.send("GET /stream?lines=3 HTTP/1.1\r\n\r\n");
    let mut all = [0; 4096];
    let read = client.stream.read(&mut all).unwrap();
    assert!(all[..read].ends_with(b"15\r\nline 0\nline 1\nline 2\n\r\n0\r\n\r\n"));
}

#[test]
fn a_client_that_goes_is_noticed() {
    let fixture = fixture(Options::default());
    for (path, begins) in [("/hold", "holding"), ("/silent", "streaming"), ("/endless", "streaming")] {
        let mut client = fixture.connect();
        client.send(format!("GET {path} HTTP/1.1\r\n\r\n"));
        fixture.expect(begins);
        drop(client);
        fixture.expect("gone");
    }
    // With the next request in the pipe already, and by a reset.
    let mut client = fixture.connect();
    client.send("GET /hold HTTP/1.1\r\n\r\nGET /hello HTTP/1.1\r\n\r\n");
    fixture.expect("holding");
    drop(client);
    fixture.expect("gone");
}

#[test]
fn a_client_that_does_not_read_blocks_nobody_else() {
    let fixture = fixture(Options { idle_timeout: Duration::from_millis(200), ..Options::default() });
    let mut slow = fixture.connect();
    slow.send("GET /endless HTTP/1.1\r\n\r\n");
    fixture.expect("streaming");
    assert_eq!(fixture.connect().get("/hello").status, 200);
    // There is no deadline for a stream: long after the idle time it goes on where it was.
    std::thread::sleep(Duration::from_millis(500));
    assert!(fixture.reports.is_empty());
    while slow.read.len() < 32 << 20 {
        slow.more();
    }
    drop(slow);
    fixture.expect("gone");
}

#[test]
fn a_large_answer_arrives_whole_though_the_client_has_closed_its_half() {
    let fixture = fixture(Options::default());
    let all = fixture.all("GET /large HTTP/1.1\r\n\r\n");
    assert_eq!(all.split("\r\n\r\n").nth(1).map(str::len), Some(16 << 20));
}

#[test]
fn a_panic_is_answered_and_costs_one_connection() {
    let fixture = fixture(Options::default());
    for path in ["/panic", "/panic-early"] {
        let mut client = fixture.connect();
        let answer = client.get(path);
        assert_eq!((answer.status, &*code(&answer)), (500, "INTERNAL"));
        assert!(answer.head.contains("Connection: close"));
    }
    let mut client = fixture.connect();
    client.send("GET /panic-late HTTP/1.1\r\n\r\n");
    let all = client.rest();
    assert!(all.ends_with("5\r\nbegun\r\n"), "no last chunk: {all}");
    assert_eq!(fixture.connect().get("/hello").status, 200);
}
