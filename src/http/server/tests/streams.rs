//! Streamed responses, upgrades, clients that disconnect or do not read, and handlers that panic.

use crate::http::message::ExchangeObserver;
use crate::http::server::tests::*;

#[test]
fn a_connection_is_used_again_after_a_stream() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    for lines in [0, 1, 3, 100_000] {
        let response = client.get(&format!("/stream?lines={lines}"));
        assert!(response.head.contains("Content-Type: text/event-stream"));
        let right: String = (0..lines).map(|line| format!("line {line}\n")).collect();
        assert_eq!(String::from_utf8(response.body).unwrap(), right);
    }
    assert_eq!(client.get("/hello").status, 200);
}

#[test]
fn a_short_stream_is_one_segment() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    client.send("GET /stream?lines=3 HTTP/1.1\r\n\r\n");
    let mut all = [0; 4096];
    let read = client.stream.read(&mut all).unwrap();
    assert!(all[..read].ends_with(b"15\r\nline 0\nline 1\nline 2\n\r\n0\r\n\r\n"));
}

#[test]
fn large_and_small_pieces_of_a_stream_come_in_order_in_every_framing() {
    let fixture = fixture(Options::new());
    let sizes = "1,16384,3,100000,16383,65536,0,200000,5";
    let mut right = Vec::new();
    for (n, size) in sizes.split(',').enumerate() {
        right.extend(vec![b'a' + n as u8; size.parse().unwrap()]);
    }
    let mut client = fixture.connect();
    for length in ["", &format!("&length={}", right.len())] {
        let response = client.get(&format!("/pieces?sizes={sizes}{length}"));
        assert!(response.body == right, "{}", response.head);
    }
    assert_eq!(client.get("/hello").status, 200);
    let mut old = fixture.connect();
    old.send(format!("GET /pieces?sizes={sizes} HTTP/1.0\r\n\r\n"));
    let mut all = Vec::new();
    old.stream.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(&right) && all.len() < right.len() + 1_000);
}

#[test]
fn a_large_piece_beyond_the_announced_length_is_refused() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    assert_eq!(client.get("/pieces?sizes=20000&length=19999").status, 500);
}

#[test]
fn a_disconnected_client_is_noticed() {
    let fixture = fixture(Options::new());
    for (path, begins) in [("/hold", "holding"), ("/silent", "streaming"), ("/endless", "streaming")] {
        let mut client = fixture.connect();
        client.send(format!("GET {path} HTTP/1.1\r\n\r\n"));
        fixture.expect(begins);
        drop(client);
        fixture.expect("gone");
    }
    // The same with the next request already sent, which makes the close a reset.
    let mut client = fixture.connect();
    client.send("GET /hold HTTP/1.1\r\n\r\nGET /hello HTTP/1.1\r\n\r\n");
    fixture.expect("holding");
    drop(client);
    fixture.expect("gone");
}

#[test]
fn a_client_that_does_not_read_blocks_no_other() {
    let fixture = fixture(Options::new().idle_timeout(Duration::from_millis(200)));
    let mut slow = fixture.connect();
    slow.send("GET /endless HTTP/1.1\r\n\r\n");
    fixture.expect("streaming");
    assert_eq!(fixture.connect().get("/hello").status, 200);
    // A stream has no deadline: long after the idle timeout it continues where it was.
    std::thread::sleep(Duration::from_millis(500));
    assert!(fixture.reports.is_empty());
    while slow.read.len() < 32 << 20 {
        slow.more();
    }
    drop(slow);
    fixture.expect("gone");
}

#[test]
fn a_large_response_arrives_whole_though_the_client_has_closed_its_sending_direction() {
    let fixture = fixture(Options::new());
    let all = fixture.all("GET /large HTTP/1.1\r\n\r\n");
    assert_eq!(all.split("\r\n\r\n").nth(1).map(str::len), Some(16 << 20));
}

#[test]
fn a_panic_is_500_and_ends_one_connection() {
    let fixture = fixture(Options::new());
    for path in ["/panic", "/panic-early"] {
        let mut client = fixture.connect();
        let response = client.get(path);
        assert_eq!((response.status, &*code(&response)), (500, "INTERNAL"));
        assert!(response.head.contains("Connection: close"));
    }
    let mut client = fixture.connect();
    client.send("GET /panic-late HTTP/1.1\r\n\r\n");
    let all = client.rest();
    assert!(all.ends_with("5\r\nbegun\r\n"), "no last chunk: {all}");
    assert_eq!(fixture.connect().get("/hello").status, 200);
}

#[test]
fn an_observer_is_told_of_the_response_of_a_handler_or_a_stream_that_panics() {
    #[derive(Debug)]
    struct Log(Sender<Option<u16>>);
    impl ExchangeObserver for Log {
        fn answered(&self, _: usize, status: Option<u16>) {
            self.0.send(status).unwrap();
        }
        fn ended(&self, _: usize, _: Duration) {
            self.0.send(None).unwrap();
        }
    }
    let (sender, told) = unbounded();
    let observer: &Log = Box::leak(Box::new(Log(sender)));
    let handler = move |request: &mut Request<'_>| {
        request.observe(observer, 0);
        assert!(request.path() == "/stream", "on purpose");
        Ok(Response::events(|_| panic!("on purpose")))
    };
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), handler, Options::new()).unwrap();
    for (path, status) in [("/handler", 500), ("/stream", 200)] {
        let mut stream = TcpStream::connect(server.local_addr()).unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(told.recv_timeout(TIMEOUT), Ok(Some(status)), "{path}");
        assert_eq!(told.recv_timeout(TIMEOUT), Ok(None), "{path} has ended");
    }
}

#[test]
fn an_invalid_header_is_500_and_is_not_sent() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    let response = client.get("/invalid");
    assert_eq!((response.status, &*code(&response)), (500, "INTERNAL"));
    assert!(!response.head.contains("Set-Cookie"));
}

#[test]
fn an_upgrade_gets_the_bytes_after_the_head_and_the_whole_connection() {
    let fixture = fixture(Options::new());
    let mut client = fixture.connect();
    client.send("GET /upgrade HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ");
    let response = client.response();
    assert!(response.status == 101 && response.head.contains("\r\nUpgrade: echo\r\nConnection: Upgrade\r\n"));
    client.send("late");
    assert_eq!(client.rest(), "early late");
}
