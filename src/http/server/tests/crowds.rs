//! More clients than seats, and the end of the server.

use crate::http::server::tests::*;

fn seats(max_connections: usize) -> Fixture {
    fixture(Options { max_connections, ..Options::default() })
}

#[test]
fn the_longest_idle_gives_way() {
    let fixture = seats(2);
    let [mut first, mut second] = [1, 2].map(|idle| {
        let mut client = fixture.connect();
        assert_eq!(client.get("/hello").status, 200);
        // The answer is there a moment before the connection is idle.
        while fixture.server.house.idle() < idle {
            std::thread::yield_now();
        }
        client
    });
    assert_eq!(fixture.connect().get("/hello").status, 200);
    first.ends_unanswered();
    assert_eq!(second.get("/hello").status, 200);
}

#[test]
fn then_the_one_that_has_been_sending_its_head_for_longest() {
    let fixture = seats(3);
    let mut busy = fixture.connect();
    busy.send("GET /hold HTTP/1.1\r\n\r\n");
    fixture.expect("holding");
    let mut slow: Vec<_> = (0..2).map(|_| fixture.connect()).collect();
    slow[0].send("GET /hello");
    while fixture.server.house.taken() < 3 {
        std::thread::yield_now();
    }
    assert_eq!(fixture.connect().get("/hello").status, 200);
    slow[0].ends_unanswered();
    assert_eq!(slow[1].get("/hello").status, 200);
    assert!(fixture.reports.is_empty());
}

#[test]
fn nobody_gives_way_while_nobody_waits() {
    let fixture = seats(2);
    let mut clients: Vec<_> = (0..2).map(|_| fixture.connect()).collect();
    for _ in 0..100 {
        clients.iter_mut().for_each(|client| assert_eq!(client.get("/hello").status, 200));
    }
}

#[test]
fn with_every_seat_busy_the_next_waits_for_an_end() {
    let fixture = seats(2);
    let mut busy: Vec<_> = (0..2).map(|_| fixture.connect()).collect();
    for client in &mut busy {
        client.send("GET /silent HTTP/1.1\r\n\r\n");
        fixture.expect("streaming");
    }
    let mut waiting = fixture.connect();
    waiting.send("GET /hello HTTP/1.1\r\n\r\n");
    waiting.stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(waiting.stream.read(&mut [0]).is_err(), "there is no seat for it");
    waiting.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    drop(busy.pop());
    fixture.expect("gone");
    assert_eq!(waiting.answer().status, 200);
}

#[test]
fn a_client_that_takes_no_answer_gives_way() {
    let fixture = seats(1);
    let mut deaf = fixture.connect();
    deaf.send("GET /large HTTP/1.1\r\n\r\n");
    deaf.more();
    assert_eq!(fixture.connect().get("/hello").status, 200);
}

#[test]
fn everybody_is_served_in_turn() {
    let fixture = seats(4);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..50 {
                    // A connection for each: one that is used again may have been asked to give way.
                    assert_eq!(fixture.connect().get("/hello").status, 200);
                }
            });
        }
    });
}

#[test]
fn seats_are_given_back() {
    let fixture = seats(64);
    let clients: Vec<_> = (0..50).map(|_| fixture.connect()).collect();
    while fixture.server.house.taken() < 50 {
        std::thread::yield_now();
    }
    drop(clients);
    while fixture.server.house.taken() > 0 {
        std::thread::yield_now();
    }
}

#[test]
fn shutdown_ends_what_is_idle_and_answers_what_is_not() {
    let fixture = seats(8);
    let mut idle = fixture.connect();
    assert_eq!(idle.get("/hello").status, 200);
    let mut silent = fixture.connect();
    silent.send("GET /hel");
    let mut uploading = fixture.connect();
    uploading.send("POST /echo HTTP/1.1\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    uploading.take(25);
    fixture.server.shutdown();
    idle.ends_unanswered();
    silent.ends_unanswered();
    uploading.send("hello");
    let answer = uploading.answer();
    assert!(answer.body == b"hello" && answer.head.contains("Connection: close"));
    assert!(TcpStream::connect(fixture.server.local_addr()).is_err());
    fixture.server.shutdown();
}

#[test]
fn a_taken_port_is_an_error() {
    let fixture = seats(1);
    let service = Arc::new(|_: &mut Request<'_>| Err(Problem::Gone));
    assert!(Server::serve(fixture.server.local_addr(), service, Options::default()).is_err());
}

#[test]
fn a_client_whose_body_does_not_come_gives_way() {
    let fixture = seats(1);
    let mut slow = fixture.connect();
    slow.send("POST /echo HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(fixture.connect().get("/hello").status, 200);
    slow.ends_unanswered();
}

#[test]
fn large_heads_together_are_bounded() {
    let fixture = seats(400);
    let half = format!("GET /hello HTTP/1.1\r\nX: {}", "x".repeat(40_000));
    let mut clients: Vec<_> = (0..200).map(|_| fixture.connect()).collect();
    clients.iter_mut().for_each(|client| client.send(&half));
    // Each of them takes 60 KiB beyond its first buffer.
    let most = (8 << 20) / (60 << 10);
    let refused = |client: &Client| {
        let mut begin = [0; 12];
        client.stream.set_nonblocking(true).unwrap();
        client.stream.peek(&mut begin).is_ok() && begin == *b"HTTP/1.1 503"
    };
    let begun = std::time::Instant::now();
    while clients.iter().filter(|client| refused(client)).count() < 200 - most {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    drop(clients);
    while fixture.server.house.taken() > 0 {
        std::thread::yield_now();
    }
    let mut large = fixture.connect();
    large.send(format!("{half}\r\n\r\n"));
    assert_eq!(large.answer().status, 200);
}
