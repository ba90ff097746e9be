//! What a handler that passes requests on to another server needs: the target as it was sent, bodies without waiting,
//! responses without a media type, and responses that begin before the request has ended.

use std::os::fd::AsFd;

use tl_os::poll::{self, Events};

use crate::http::server::tests::*;

fn handle_as_a_proxy(request: &mut Request<'_>) -> Result<Response, ApiError> {
    match request.path() {
        "/target" => {
            let target = request.target();
            Ok(Response::empty(200).with_stream(None, move |body| body.write_all(target.as_bytes())))
        }
        "/count" => {
            let (mut total, mut waits, mut piece) = (0, 0, [0; 1000]);
            loop {
                match request.read_body_now(&mut piece)? {
                    Some(0) => return Ok(Response::json(200, format!("{total} {}", waits > 0))),
                    Some(read) => total += read,
                    None => {
                        waits += 1;
                        poll::wait([(request.as_fd(), Events::READ)], None).unwrap();
                    }
                }
            }
        }
        "/echo" => Ok(Response::empty(200).with_stream(None, echo_body).duplex()),
        "/slow-reader" => Ok(Response::empty(200).with_stream(None, answer_a_slow_reader).duplex()),
        "/simplex" => Ok(Response::empty(200).with_stream(None, echo_body)),
        "/buffered" => Ok(Response::upgrade("x", |socket| {
            let count = socket.buffered().len();
            assert_eq!(socket.read(&mut [0; 64]).unwrap(), count);
            assert!(socket.buffered().is_empty());
            socket.write_all(count.to_string().as_bytes()).unwrap();
        })),
        path => Err(ApiError::no_route(path)),
    }
}

fn echo_body(stream: &mut ResponseStream<'_>) -> std::io::Result<()> {
    stream.flush()?;
    let mut piece = [0; 1000];
    loop {
        match stream.read_body_now(&mut piece)? {
            Some(0) => return Ok(()),
            Some(read) => {
                stream.write_all(&piece[..read])?;
                stream.flush()?;
            }
            None => drop(poll::wait([(stream.as_fd(), Events::READ)], None)?),
        }
    }
}

/// Bytes that no buffers of sockets hold.
const LARGE: usize = 16 << 20;

/// Sends many bytes, and reads the body while the client has no room for them. Then ends the response, reads the rest of the
/// body, and fails unless that is complete.
fn answer_a_slow_reader(stream: &mut ResponseStream<'_>) -> std::io::Result<()> {
    let piece: Vec<u8> = (0..50_000_u32).map(|number| (number % 251) as u8).collect();
    let (mut written, mut is_sent, mut received, mut is_read) = (0, false, 0, false);
    while !is_sent || !is_read {
        while written < LARGE {
            let from = written % piece.len();
            let most = (LARGE - written).min(piece.len() - from);
            let Some(count) = stream.write_now(&piece[from..from + most])? else { break };
            written += count;
        }
        is_sent = written == LARGE && stream.end_now()?;
        let mut into = [0; 4096];
        while let (false, Some(read)) = (is_read, stream.read_body_now(&mut into)?) {
            received += read;
            is_read = read == 0;
        }
        let room = if is_sent { Events::NONE } else { Events::WRITE };
        let more = if is_read { Events::NONE } else { Events::READ };
        if !is_sent || !is_read {
            poll::wait([(stream.as_fd(), room.and(more))], None)?;
        }
    }
    if received == LARGE { Ok(()) } else { Err(std::io::Error::other("the body is not complete")) }
}

fn proxy() -> Fixture {
    let (gate, _) = unbounded();
    let (_, reports) = unbounded();
    let server = Server::bind(SocketAddr::from(([127, 0, 0, 1], 0)), handle_as_a_proxy, Options::new()).unwrap();
    Fixture { server, reports, gate }
}

#[test]
fn the_target_is_as_it_was_sent_and_no_media_type_is_added() {
    let fixture = proxy();
    let mut client = fixture.connect();
    for target in ["/target", "/target?", "/target?a=%20+&&=?b"] {
        client.send(format!("GET {target} HTTP/1.1\r\n\r\n"));
        let response = client.response();
        assert_eq!(String::from_utf8_lossy(&response.body), target);
        assert!(!response.head.contains("Content-Type"), "{}", response.head);
    }
}

#[test]
fn a_body_is_read_without_waiting() {
    let fixture = proxy();
    let mut client = fixture.connect();
    client.send("POST /count HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello");
    assert_eq!(client.response().body, b"5 false");
    // With the client's `Expect`, the first look sends the interim response and finds nothing.
    client.send("POST /count HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.take(25), b"HTTP/1.1 100 Continue\r\n\r\n");
    client.send("hello");
    assert!(client.response().body.starts_with(b"5 "));
    client.send("POST /count HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe");
    client.send("llo\r\n0\r\n\r\n");
    assert!(client.response().body.starts_with(b"5 "));
    client.send("POST /count HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n");
    assert_eq!(client.response().status, 400);
}

#[test]
fn a_response_may_begin_before_the_request_has_ended() {
    let fixture = proxy();
    let mut client = fixture.connect();
    client.send("POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    let head = b"HTTP/1.1 200 OK\r\n";
    assert_eq!(client.take(head.len()), head);
    while !client.read.windows(4).any(|part| part == b"\r\n\r\n") {
        client.more();
    }
    client.read.clear();
    for word in ["one", "two"] {
        client.send(format!("3\r\n{word}\r\n"));
        assert_eq!(client.take(8), format!("3\r\n{word}\r\n").as_bytes());
    }
    client.send("0\r\n\r\n");
    assert_eq!(client.rest(), "0\r\n\r\n", "the connection ends");
}

#[test]
fn a_client_that_waits_for_continue_gets_none_after_the_response_has_begun() {
    let fixture = proxy();
    let mut client = fixture.connect();
    client.send("POST /echo HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    while !client.read.windows(4).any(|part| part == b"\r\n\r\n") {
        client.more();
    }
    client.send("abc");
    let text = client.rest();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && !text.contains("100 Continue"), "{text}");
    assert!(text.ends_with("3\r\nabc\r\n0\r\n\r\n"), "{text}");
}

#[test]
fn only_a_duplex_response_reads_the_rest_of_the_body() {
    let fixture = proxy();
    let text = fixture.all("POST /simplex HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    assert!(text.ends_with("\r\n\r\n0\r\n\r\n"), "{text}");
}

#[test]
fn bytes_that_came_with_an_upgrade_are_in_the_buffer() {
    let fixture = proxy();
    let text = fixture.all("GET /buffered HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nearly");
    assert!(text.ends_with("\r\n\r\n5"), "{text}");
}

#[test]
fn a_client_that_reads_after_its_upload_gets_what_was_written_meanwhile() {
    let fixture = proxy();
    let mut client = fixture.connect();
    client.send(format!("POST /slow-reader HTTP/1.1\r\nContent-Length: {LARGE}\r\n\r\n"));
    client.send(vec![b'x'; LARGE]);
    while !client.read.windows(4).any(|part| part == b"\r\n\r\n") {
        client.more();
    }
    let head = client.read.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    client.read.drain(..head + 4);
    let mut total = 0;
    loop {
        while !client.read.contains(&b'\n') {
            client.more();
        }
        let end = client.read.iter().position(|byte| *byte == b'\n').unwrap();
        let line = String::from_utf8(client.take(end + 1)).unwrap();
        let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let chunk = client.take(length + 2);
        assert!(chunk.ends_with(b"\r\n"));
        let is_right = |(at, byte): (usize, &u8)| usize::from(*byte) == (total + at) % 50_000 % 251;
        assert!(chunk[..length].iter().enumerate().all(is_right), "after {total} bytes");
        total += length;
        if length == 0 {
            break;
        }
    }
    assert_eq!(total, LARGE);
    assert_eq!(client.rest(), "", "the connection ends");
}
