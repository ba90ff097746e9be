//! Exposed ports: who may reach them, directly and through the tunnel.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;

use super::daemon::{Daemon, host_and_daemon};
use super::{AUTH, Host, ReachError, TIMEOUT, canned, read_head, tcp_service, wait_until};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn closed_port() -> u16 {
    // Nothing binds it again while the test runs: the kernel hands out other ports first.
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn a_port_needs_the_key_unless_the_sandbox_says_otherwise() {
    let addr = canned(OK);
    let (host, port) = (Host::start(), addr.port());
    host.add("env", addr, "secret", &[port]);
    let name = format!("{port}-env.local");
    let anonymous = |name: &str, headers: &str| {
        let mut client = host.connect();
        client.send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n{headers}\r\n"));
        client.reply()
    };
    for (name, headers, status, code) in [
        (&*name, "", 401, "UNAUTHORIZED"),
        (&name, "Authorization: Bearer x\r\n", 401, "UNAUTHORIZED"),
        // Without the key, a client learns neither which sandboxes nor which ports there are.
        ("80-none", "", 401, "UNAUTHORIZED"),
        ("1-env", "", 401, "UNAUTHORIZED"),
        ("80-none", AUTH, 404, "SANDBOX_NOT_FOUND"),
        ("1-env", AUTH, 403, "PORT_NOT_EXPOSED"),
        ("9501-env", AUTH, 403, "PORT_NOT_EXPOSED"),
        ("0-env", AUTH, 404, "SANDBOX_NOT_FOUND"),
    ] {
        let reply = anonymous(name, headers);
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{name} {headers}");
    }
    assert_eq!(host.sandboxes.reached.load(SeqCst), 0, "none of these resumes a sandbox");
    assert_eq!(anonymous(&name, AUTH).text(), "ok");
    host.change("env", |reached| reached.allow_unauthenticated_access = true);
    assert_eq!(anonymous(&name, "").text(), "ok");
    assert_eq!(anonymous("1-env", "").code(), "PORT_NOT_EXPOSED");
    assert_eq!(anonymous("env", "").status, 401, "the daemon always needs the key");
}

#[test]
fn a_program_gets_its_own_credentials_but_not_the_key() {
    let addr = tcp_service(|mut stream| {
        let (head, _) = read_head(&stream);
        stream
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len()).as_bytes())
            .unwrap();
    });
    let (host, name) = (Host::start(), format!("{}-env", addr.port()));
    host.add("env", addr, "secret", &[addr.port()]);
    host.change("env", |reached| reached.allow_unauthenticated_access = true);
    let mut client = host.connect();
    client.send(format!("GET / HTTP/1.1\r\nHost: {name}\r\nAuthorization: Basic dTpw\r\n\r\n"));
    let seen = client.reply();
    assert!(seen.text().contains("Authorization: Basic dTpw\r\n"));
    let seen = client.get(&name, "/");
    assert!(!seen.text().contains("Authorization") && !seen.text().contains("secret"), "{}", seen.text());
}

#[test]
fn a_sandbox_that_is_not_ready_is_a_503() {
    let host = Host::start();
    host.add("closed", ([127, 0, 0, 1], closed_port()).into(), "secret", &[80]);
    let mut sandboxes = host.sandboxes.by_name.lock().unwrap();
    sandboxes.insert("starting".to_owned(), Err(ReachError::NotReady("starting".to_owned())));
    sandboxes.insert("stuck".to_owned(), Err(ReachError::Engine("stuck".to_owned(), "no".to_owned())));
    drop(sandboxes);
    let mut client = host.connect();
    for (name, code) in
        [("starting", "SANDBOX_NOT_READY"), ("stuck", "ENGINE_UNAVAILABLE"), ("closed", "SANDBOX_UNREACHABLE")]
    {
        let reply = client.request("POST", name, "/", "", "x");
        assert_eq!((reply.status, reply.code().as_str()), (503, code));
        assert_eq!(reply.header("Retry-After"), Some("1"));
    }
}

#[test]
fn a_web_server_behind_a_port_serves_files() {
    let host = Host::start();
    let dir = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(dir.path().join("large"), &large).unwrap();
    let port = closed_port();
    let mut server = Command::new("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()])
        .current_dir(dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("the server listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    host.add("env", ([127, 0, 0, 1], port).into(), "secret", &[port]);
    let name = format!("{port}-env.localhost:9443");
    let mut client = host.connect();
    let reply = client.get(&name, "/large");
    assert!(reply.status == 200 && reply.body == large);
    assert!(client.get(&name, "/").text().contains("large"));
    assert_eq!(client.get(&name, "/none").status, 404);
    server.kill().unwrap();
    server.wait().unwrap();
}

/// A sandbox whose ports are reached through the tunnel of the real daemon.
fn behind_tunnel(port: u16) -> (Host, Daemon, String) {
    let (host, daemon) = host_and_daemon();
    host.change("env", |reached| (reached.is_direct, reached.exposed_ports) = (false, vec![port]));
    (host, daemon, format!("{port}-env.local"))
}

#[test]
fn a_port_is_reached_through_the_tunnel() {
    let size = 8 << 20;
    let addr = tcp_service(move |mut stream| {
        let (head, mut body) = read_head(&stream);
        let length: usize =
            head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap().parse().unwrap();
        let mut rest = vec![0; length - body.len()];
        stream.read_exact(&mut rest).unwrap();
        body.append(&mut rest);
        // Without a length: the end of the connection must arrive.
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        stream.write_all(&body).unwrap();
    });
    let (host, _daemon, name) = behind_tunnel(addr.port());
    let body: String = "0123456789abcdef".repeat(size / 16);
    let reply = host.connect().request("POST", &name, "/", "", &body);
    assert!(reply.status == 200 && reply.body == body.as_bytes());
    wait_until("the tunnel's thread has ended", || !has_thread("proxy-tunnel"));
}

/// Whether a thread of this process has this name.
fn has_thread(name: &str) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .into_iter()
        .any(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
}

#[test]
fn half_closes_pass_through_the_tunnel() {
    // Answers when the client has ended its output.
    let addr = tcp_service(|mut stream| {
        let (_, mut all) = read_head(&stream);
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n").unwrap();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).unwrap();
    });
    let (host, _daemon, name) = behind_tunnel(addr.port());
    let mut client = host.connect();
    assert_eq!(client.request("GET", &name, "/", "Connection: Upgrade\r\nUpgrade: x\r\n", "").status, 101);
    client.send(vec![b'x'; 1_000_000]);
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert!(client.is_cut());
    assert_eq!(String::from_utf8_lossy(&client.buffer), "1000000 bytes");
}

#[test]
fn a_port_on_which_nothing_listens_is_a_502() {
    let port = closed_port();
    let (host, daemon) = host_and_daemon();
    for is_direct in [true, false] {
        host.change("env", |reached| (reached.is_direct, reached.exposed_ports) = (is_direct, vec![port]));
        let reply = host.connect().get(&format!("{port}-env"), "/");
        assert_eq!((reply.status, reply.code().as_str()), (502, "CONNECTION_REFUSED"));
    }
    drop(daemon);
}

#[test]
fn an_answer_that_is_cut_off_behind_the_tunnel_is_not_taken_for_complete() {
    let addr = tcp_service(|mut stream| {
        read_head(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nsome").unwrap();
        // Until the connection is gone.
        let _ = stream.read(&mut [0; 1]);
    });
    let (host, daemon, name) = behind_tunnel(addr.port());
    let mut client = host.connect();
    client.send_request("GET", &name, "/", "", "");
    assert_eq!(client.head().status, 200);
    assert_eq!(client.chunk(), b"some");
    drop(daemon);
    assert!(client.is_cut());
    assert_eq!(client.buffer, b"", "the last chunk is missing");
}

#[test]
fn nothing_is_sent_to_an_address_that_may_belong_to_another_sandbox() {
    let (tell, told) = std::sync::mpsc::channel();
    let addr = tcp_service(move |mut stream| {
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received);
        tell.send(String::from_utf8(received).unwrap()).unwrap();
    });
    let (host, port) = (Host::start(), addr.port());
    host.add("env", addr, "secret", &[port]);
    host.sandboxes.ended.lock().unwrap().insert("id-of-env".to_owned());
    for name in ["env.local", &format!("{port}-env.local")] {
        for method in ["GET", "POST"] {
            let reply = host.connect().request(method, name, "/x", "", "body");
            assert_eq!((reply.status, reply.code().as_str()), (503, "SANDBOX_UNREACHABLE"), "{method} {name}");
            assert_eq!(told.recv_timeout(TIMEOUT).unwrap(), "", "{method} {name}");
        }
    }
}
