//! Terminal clients that misbehave or are slow, and the resources they release.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use tungstenite::Message;

use crate::harness::websocket::{
    Session, SessionEnd, UPGRADE, client_frame, close_code_after, read_to_end, try_open, upgrade_response,
};
use crate::harness::{Daemon, TIMEOUT, procfs, start_daemon, wait_until};

/// Runs `job` and waits until the daemon has no more threads and descriptors than before.
fn check_releases_resources(daemon: &Daemon, job: impl FnOnce()) {
    // The count may include an idle connection of the harness.
    let before = daemon.threads_and_descriptors();
    job();
    daemon.wait_until_released(before);
}

fn start_echo(daemon: &Daemon) -> Session {
    daemon.pty_sh("stty raw -echo; echo up; exec cat")
}

fn websocket_path(session: &Session) -> String {
    format!("/pty/{}/ws", session.id)
}

#[test]
fn attaching_requires_the_token_of_the_session() {
    let daemon = start_daemon();
    let session = start_echo(&daemon);
    let path = websocket_path(&session);
    let bearer = format!("Bearer {}", daemon.token);
    let last = if session.token.ends_with('0') { '1' } else { '0' };
    let almost = format!("{}{last}", &session.token[..63]);
    let open = |path: &str, headers: &[(&str, &str)]| try_open(&daemon, path, headers).map(drop);
    assert_eq!(open(&path, &[("X-PTY-Token", &session.token)]), Ok(()));
    assert_eq!(open(&format!("{path}?token={}", session.token), &[]), Ok(()));
    for wrong in ["", "x", &almost, &session.token[..63], &daemon.token] {
        assert_eq!(open(&path, &[("X-PTY-Token", wrong)]), Err(403), "{wrong}");
        assert_eq!(open(&format!("{path}?token={wrong}"), &[]), Err(403), "{wrong}");
    }
    // The header takes precedence, and the token of the daemon does not replace that of the session.
    assert_eq!(open(&format!("{path}?token={}", session.token), &[("X-PTY-Token", "x")]), Err(403));
    assert_eq!(open(&path, &[("Authorization", &bearer)]), Err(403));
    assert_eq!(open(&path, &[]), Err(403));
    let other = start_echo(&daemon);
    assert_eq!(open(&path, &[("X-PTY-Token", &other.token)]), Err(403));
    assert_eq!(open("/pty/00000000000000000000000000000000/ws", &[("X-PTY-Token", &session.token)]), Err(404));
    // All other requests about a session require the token of the daemon.
    for (method, rest) in [("GET", ""), ("DELETE", ""), ("POST", "/resize")] {
        let request = format!(
            "{method} /api/v1/pty/{}{rest} HTTP/1.1\r\nHost: x\r\nX-PTY-Token: {}\r\n\r\n",
            session.id, session.token
        );
        let response =
            crate::harness::response::ResponseStream::send(daemon.connect(), request.as_bytes()).into_response(method);
        response.expect_error(401, "UNAUTHORIZED", "");
    }
}

#[test]
fn an_invalid_websocket_handshake_is_refused() {
    let daemon = start_daemon();
    let session = start_echo(&daemon);
    let path = websocket_path(&session);
    let token = format!("X-PTY-Token: {}\r\n", session.token);
    check_releases_resources(&daemon, || {
        upgrade_response(&daemon, &path, &token).expect_error(426, "UPGRADE_REQUIRED", "WebSocket");
        let refused = upgrade_response(&daemon, &path, "");
        refused.expect_error(426, "UPGRADE_REQUIRED", "WebSocket");
        assert_eq!((refused.header("upgrade"), refused.header("connection")), (Some("websocket"), Some("Upgrade")));
        upgrade_response(&daemon, "/pty/nobody/ws", "").expect_error(404, "SESSION_NOT_FOUND", "nobody");
        upgrade_response(&daemon, &path, "X-PTY-Token: x\r\n").expect_error(403, "INVALID_TOKEN", "token");
        for (with, without) in [
            ("", "Connection: Upgrade\r\n"),
            ("", "Upgrade: websocket\r\n"),
            ("Upgrade: h2c\r\n", "Upgrade: websocket\r\n"),
        ] {
            let headers = format!("{token}{with}{}", UPGRADE.replace(without, ""));
            upgrade_response(&daemon, &path, &headers).expect_error(426, "UPGRADE_REQUIRED", "");
        }
        for (old, new, part) in [
            ("dGhlIHNhbXBsZSBub25jZQ==", "", "Sec-WebSocket-Key"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", "Sec-WebSocket-Key"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "not base64 at all!!!!!!!", "Sec-WebSocket-Key"),
            ("Version: 13", "Version: 8", "Sec-WebSocket-Version"),
            ("Sec-WebSocket-Version: 13\r\n", "", "Sec-WebSocket-Version"),
            ("Upgrade: websocket\r\n", "Upgrade: websocket\r\nContent-Length: 3\r\n", "body"),
        ] {
            let headers = format!("{token}{}", UPGRADE.replace(old, new));
            upgrade_response(&daemon, &path, &headers).expect_error(400, "INVALID_REQUEST", part);
        }
    });
    let gone = format!("/pty/{}/resize", "x".repeat(32));
    daemon.post(&gone, &json!({"rows": 1, "cols": 1})).expect_error(404, "SESSION_NOT_FOUND", "xxx");
    daemon.delete("/pty/x").expect_error(404, "SESSION_NOT_FOUND", "x");
    daemon.get("/pty/x").expect_error(404, "SESSION_NOT_FOUND", "x");
    daemon.post(&format!("/pty/{}/resize", session.id), &json!({"rows": 1})).expect_error(
        400,
        "INVALID_REQUEST",
        "cols",
    );
    daemon.post("/pty/x/ws", &json!({})).expect_error(405, "METHOD_NOT_ALLOWED", "");
}

#[test]
fn unknown_messages_are_ignored_and_fragments_are_joined() {
    let daemon = start_daemon();
    let session = start_echo(&daemon);
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    check_releases_resources(&daemon, || {
        let mut noisy = daemon.watch(&session);
        for message in [
            Message::text("\u{0}typed as text"),
            Message::text(""),
            Message::binary(vec![]),
            Message::binary(vec![1, 2, 3]),
            Message::binary(vec![3, 0, 0, 0, 0]),
            Message::binary(vec![77; 1000]),
            Message::Ping("are you there".into()),
            Message::Pong("".into()),
        ] {
            noisy.socket.send(message).expect("send");
        }
        let payload = b"\0fragmented";
        let pieces = payload.chunks(3).enumerate().map(|(at, piece)| {
            let first = if at == 0 { 0x02 } else { 0x00 };
            let last = if (at + 1) * 3 >= payload.len() { 0x80 } else { 0 };
            [client_frame(first | last, piece), if last == 0 { client_frame(0x89, b"in between") } else { vec![] }]
                .concat()
        });
        let bytes: Vec<u8> = pieces.flatten().collect();
        // Sends each byte separately.
        bytes.iter().for_each(|byte| noisy.socket.get_mut().write_all(&[*byte]).expect("send"));
        wait_until(TIMEOUT, "a pong", || match noisy.socket.read() {
            Ok(Message::Pong(payload)) => {
                assert!(payload == "are you there" || payload == "in between", "{payload:?}");
                Some(())
            }
            Ok(_) => None,
            Err(error) => panic!("{error}"),
        });
        noisy.disconnect();
    });
    terminal.expect("fragmented");
    assert!(!terminal.text().contains("typed as text"));
}

#[test]
fn invalid_frames_close_the_connection_with_their_code() {
    let daemon = start_daemon();
    let session = start_echo(&daemon);
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    check_releases_resources(&daemon, || {
        let over = vec![0; (1 << 20) + 1];
        for (bytes, code) in [
            (client_frame(0x82, &over), Some(1009)),
            // A huge length is announced, and the payload is never sent.
            ([&[0x82, 0xff, 0x7f][..], &[0xff; 7], &[0; 4]].concat(), Some(1009)),
            ([client_frame(0x02, &over[2..]), client_frame(0x80, b"xx")].concat(), Some(1009)),
            (vec![0x82, 0x01, 0x02], Some(1002)),
            (client_frame(0x83, b"x"), Some(1002)),
            (client_frame(0xc2, b"x"), Some(1002)),
            (client_frame(0x80, b"x"), Some(1002)),
            (client_frame(0x09, b"x"), Some(1002)),
            (client_frame(0x89, &[0; 126]), Some(1002)),
            (client_frame(0x81, b"\xff\xfe"), Some(1007)),
        ] {
            assert_eq!(
                close_code_after(daemon.attach(&session).socket, &bytes),
                code,
                "{:?}",
                &bytes[..bytes.len().min(20)]
            );
        }
        let mut garbage = daemon.attach(&session);
        let _ = garbage.socket.get_mut().write_all(b"GET / HTTP/1.1\r\n\r\n");
        assert!(read_to_end(garbage.socket.get_ref(), TIMEOUT).is_ok());
    });
    // A message of the largest allowed size.
    terminal.type_in(vec![b'y'; (1 << 20) - 1]);
    terminal.expect(&"y".repeat((1 << 20) - 1));
}

#[test]
fn output_is_held_back_until_the_client_is_ready() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; read -r line; head -c 3000000 /dev/zero; sleep 4740");
    let mut patient = daemon.attach(&session);
    let mut impatient = daemon.attach(&session);
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    let quiet = patient.socket.get_ref();
    quiet.set_read_timeout(Some(Duration::from_millis(100))).expect("set the timeout");
    assert!(patient.socket.read().is_err(), "nothing before READY");
    patient.socket.get_ref().set_read_timeout(Some(TIMEOUT)).expect("set the timeout");
    patient.ready();
    patient.expect("up");
    terminal.type_in("go\r\n");
    let close = impatient.wait_for_end().close.expect("a Close with a payload");
    assert_eq!(close.0, 1008, "{close:?}");
    for terminal in [&mut terminal, &mut patient] {
        while terminal.output.len() < 3_000_000 {
            terminal.expect("\0");
        }
    }
}

#[test]
fn a_client_that_does_not_read_is_dropped_and_delays_no_other() {
    let daemon = start_daemon();
    // Writes in parts, because on a busy machine the reader may be late by a second.
    let script = "stty raw -echo; echo up; n=1; while [ $n -lt 5000000 ]; do read -r line; \
                  seq -f %015.0f $n $((n + 249999)) | cat; n=$((n + 250000)); done; sleep 4741";
    let session = daemon.pty_sh(script);
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    let idle = daemon.watch(&session);
    daemon.wait_for_clients(TIMEOUT, &session, 2);
    let before = procfs::kilobytes(daemon.pid, "VmRSS");
    let begun = Instant::now();
    for part in 1..=20 {
        terminal.ask("go", &format!("{:015}\n", part * 250_000));
    }
    let took = begun.elapsed();
    assert!(terminal.output.len() > 80_000_000 && took < TIMEOUT, "{took:?}");
    daemon.wait_for_clients(TIMEOUT, &session, 1);
    let grown = procfs::kilobytes(daemon.pid, "VmHWM").saturating_sub(before);
    assert!(grown < 24 << 10, "{grown} KiB for a backlog of 8 MiB");
    // The dropped client may still read a Close.
    drop(idle);
    check_releases_resources(&daemon, || {
        daemon.watch(&session).disconnect();
    });
}

#[test]
fn a_client_that_falls_too_far_behind_is_closed_with_1008() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; read -r line; head -c 40000000 /dev/zero; sleep 4744");
    let mut slow = daemon.watch(&session);
    slow.expect("up");
    slow.type_in("go\n");
    // It is dropped because of its backlog, before the first ping after 30 s.
    daemon.wait_for_clients(Duration::from_secs(25), &session, 0);
    let ended = slow.wait_for_end();
    assert!(slow.output.len() < 40_000_000 && ended.exit.is_none());
    let (code, reason) = ended.close.expect("a Close with a payload");
    assert!(code == 1008 && reason.contains("too slow"), "{code} {reason}");
    assert_eq!(daemon.pty_info(&session)["is_alive"], true);
}

/// Data in flight when the session ends must reach a client that is slow and still sends input.
#[test]
fn a_slow_client_gets_all_output_and_the_exit() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; read -r line; head -c 2000000 /dev/zero; exit 3");
    let mut slow = daemon.watch(&session);
    slow.expect("up");
    setsockopt(slow.socket.get_ref(), sockopt::RcvBuf, &65_536).expect("set the buffer size");
    slow.type_in("go\n");
    let (mut seen, mut exit) = (0, None);
    let close = loop {
        let message = slow.socket.read().expect("the rest");
        // Reads so slowly that the whole takes longer than the daemon waits for a client that reads nothing.
        std::thread::sleep(Duration::from_micros(5 * message.len() as u64));
        match message {
            Message::Binary(bytes) => match bytes.split_first() {
                Some((0, data)) => seen += data.len(),
                Some((3, code)) => exit = Some(code.to_vec()),
                _ => {}
            },
            Message::Close(close) => break close.expect("a Close with a payload"),
            _ => {}
        }
        let _ = slow.socket.get_mut().write_all(&client_frame(0x82, b"\0x"));
    };
    assert_eq!((seen, exit), (2_000_000, Some(vec![0, 0, 0, 3])));
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1000, "exit:3"));
}

/// Repeatedly reads `bytes` bytes and sleeps for `millis` ms, until `over` returns true.
fn read_slowly(socket: &mut TcpStream, bytes: usize, millis: u64, mut over: impl FnMut() -> bool) {
    let mut buffer = vec![0; bytes];
    while !over() {
        socket.read_exact(&mut buffer).expect("more to read");
        std::thread::sleep(Duration::from_millis(millis));
    }
}

#[test]
fn output_waits_for_a_client_that_keeps_reading() {
    let daemon = start_daemon();
    // The program writes in small pieces, so that the terminal is empty again and again.
    let session = daemon.pty_sh("stty raw -echo; echo up; read -r line; seq 1 20000000 | cat; sleep 4746");
    let mut terminal = daemon.watch(&session);
    terminal.expect("up");
    terminal.type_in("go\n");
    let begun = Instant::now();
    // The client reads half as fast as needed, so it is dropped once it is 8 MiB behind, which takes time at 8 MiB/s.
    read_slowly(terminal.socket.get_mut(), 16 << 10, 4, || daemon.client_count(&session) == 0);
    assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
}

#[test]
fn a_client_that_reads_the_replay_slowly_stays_attached() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; head -c 1200000 /dev/zero; echo up; sleep 4747");
    let mut other = daemon.watch(&session);
    other.expect("up");
    let mut slow = daemon.attach(&session);
    setsockopt(slow.socket.get_ref(), sockopt::RcvBuf, &4096).expect("set the buffer size");
    slow.ready();
    let begun = Instant::now();
    // The client must read what was sent within 60 s. It answers no pings, so it is dropped after 85 s.
    read_slowly(slow.socket.get_mut(), 1000, 100, || begun.elapsed() > Duration::from_secs(70));
    assert_eq!(daemon.client_count(&session), 2);
}

#[test]
fn a_client_that_pings_and_does_not_read_is_dropped() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("stty raw -echo; echo up; read -r line; head -c 6000000 /dev/zero; sleep 4745");
    let mut idle = daemon.watch(&session);
    idle.expect("up");
    idle.type_in("go\n");
    let begun = Instant::now();
    let mut socket = idle.socket.get_ref().try_clone().expect("duplicate the socket");
    socket.set_write_timeout(Some(Duration::from_millis(100))).expect("set the timeout");
    wait_until(Duration::from_secs(110), "the client is dropped", || {
        // The client does not read the pongs either, so the write may fail when buffers are full.
        let _ = socket.write_all(&client_frame(0x89, b"here"));
        std::thread::sleep(Duration::from_millis(100));
        (daemon.client_count(&session) == 0).then_some(())
    });
    assert!(begun.elapsed() > Duration::from_secs(50), "{:?}", begun.elapsed());
    drop(idle);
}

#[test]
fn ended_clients_and_sessions_release_threads_and_descriptors() {
    let daemon = start_daemon();
    // Creates what the daemon creates only once.
    let session = daemon.pty_sh("echo up; read -r line");
    daemon.watch(&session).ask("x", "up");
    daemon.wait_for_session_end(&session);
    check_releases_resources(&daemon, || {
        for round in 0..30 {
            let session = daemon.pty_sh("echo up; read -r line");
            let mut terminals: Vec<_> = (0..3).map(|_| daemon.watch(&session)).collect();
            terminals[0].expect("up");
            match round % 3 {
                // The session ends by itself, by DELETE, or after its clients have disconnected.
                0 => {
                    terminals[0].type_in("\n");
                    for terminal in &mut terminals {
                        assert_eq!(terminal.wait_for_end(), SessionEnd::exited(0));
                    }
                }
                1 => drop(daemon.delete(&format!("/pty/{}", session.id)).expect(204)),
                _ => {
                    drop(terminals);
                    daemon.watch(&session).type_in("\n");
                }
            }
        }
    });
    // Input is delivered even if its client disconnects at once.
    wait_until(TIMEOUT, "all sessions have ended", || {
        let list = daemon.get("/pty").expect(200);
        list["sessions"].as_array().is_some_and(|all| all.iter().all(|one| one["is_alive"] == false)).then_some(())
    });
}

/// Only missing pongs distinguish an unreachable client from a silent one.
#[test]
fn a_client_that_answers_no_pings_is_dropped_within_90_s() {
    let daemon = start_daemon();
    let session = daemon.pty_sh("sleep 4743");
    let mut alive = daemon.watch(&session);
    let silent = daemon.watch(&session);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // Reading makes the client answer pings.
        let alive = scope.spawn(move || alive.wait_for_end());
        daemon.wait_for_clients(Duration::from_secs(110), &session, 1);
        assert!(begun.elapsed() > Duration::from_secs(55), "{:?}", begun.elapsed());
        daemon.delete(&format!("/pty/{}", session.id)).expect(204);
        let ended = alive.join().expect("the reading thread");
        assert_eq!(ended.close.map(|(code, _)| code), Some(1001));
    });
    drop(silent);
}
