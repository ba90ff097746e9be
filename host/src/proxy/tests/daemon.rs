//! The real daemon behind the proxy, in a PID namespace of its own if the tests run as root.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::{AUTH, Host, TIMEOUT, wait_until};

/// A running daemon.
pub(super) struct Daemon {
    child: Child,
    dir: TempDir,
    pub(super) addr: SocketAddr,
    pub(super) token: String,
}

/// The program under test: TL_TEST_PROGRAM, or what cargo has built beside this test.
fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("TL_TEST_PROGRAM") {
        return program.into();
    }
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(|deps| deps.parent()).unwrap().join("tl-init");
    assert!(program.exists(), "{} is missing: build it with `cargo build --package tl-init`", program.display());
    program
}

impl Daemon {
    pub(super) fn start() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if nix::unistd::geteuid().is_root() {
            command.args(["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]);
        }
        let log = fs::File::create(dir.path().join("log")).unwrap();
        command.arg(program()).args(["--listen", "127.0.0.1:0", "--max-connections", "4096", "--default-user"]);
        command.arg(nix::unistd::geteuid().to_string());
        command.arg("--run-dir").arg(dir.path().join("run")).arg("--log-dir").arg(dir.path().join("logs"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).current_dir("/");
        let child = command.spawn().unwrap();
        let mut daemon = Daemon { child, dir, addr: ([127, 0, 0, 1], 0).into(), token: String::new() };
        wait_until("the daemon writes its address", || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "{}", daemon.log());
            let Ok(text) = fs::read_to_string(daemon.dir.path().join("run/address")) else { return false };
            text.trim().parse().is_ok_and(|addr| {
                daemon.addr = addr;
                true
            })
        });
        daemon.token = fs::read_to_string(daemon.dir.path().join("run/token")).unwrap().trim().to_owned();
        daemon
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A proxy with the daemon as the sandbox `env`.
pub(super) fn host_and_daemon() -> (Host, Daemon) {
    let (host, daemon) = (Host::start(), Daemon::start());
    host.add("env", daemon.addr, &daemon.token, &[]);
    (host, daemon)
}

fn run_body(script: &str) -> String {
    serde_json::json!({"command": "sh", "args": ["-c", script]}).to_string()
}

const RUN: &str = "Content-Type: application/json\r\nAccept: text/event-stream\r\n";

#[test]
fn requests_reach_the_daemon_with_its_own_token() {
    let (host, daemon) = host_and_daemon();
    let mut client = host.connect();
    for name in ["env.local", "ENV.local:9443", "env"] {
        let reply = client.get(name, "/api/v1/processes");
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
    }
    // Another sandbox over the same connection.
    host.add("other", daemon.addr, "a wrong token", &[]);
    assert_eq!(client.get("other.local", "/api/v1/processes").status, 401);
    assert_eq!(client.get("env.local", "/api/v1/processes").status, 200);
    client.send(format!(
        "GET /api/v1/processes HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Tensorlake-Sandbox-Id: env\r\n{AUTH}\r\n"
    ));
    assert_eq!(client.reply().status, 200);
    // A daemon's errors are passed on as they are.
    let reply = client.get("env", "/api/v1/nothing?");
    assert_eq!((reply.status, reply.code().as_str()), (404, "NOT_FOUND"));
    for wrong in ["", "Authorization: Bearer x\r\n", &format!("Authorization: Bearer {}\r\n", daemon.token)] {
        client.send(format!("GET /api/v1/processes HTTP/1.1\r\nHost: env\r\n{wrong}\r\n"));
        let reply = client.reply();
        assert_eq!((reply.status, reply.code().as_str()), (401, "UNAUTHORIZED"), "{wrong}");
    }
    let reply = client.get("none.local", "/api/v1/processes");
    assert_eq!((reply.status, reply.code().as_str()), (404, "SANDBOX_NOT_FOUND"));
    let reply = client.get("127.0.0.1:9443", "/");
    assert_eq!((reply.status, reply.code().as_str()), (404, "SANDBOX_NOT_FOUND"));
}

#[test]
fn an_event_is_passed_on_before_the_next_one_exists() {
    let (host, daemon) = host_and_daemon();
    let mut client = host.connect();
    let go = daemon.path("go");
    let script = format!("echo first; while ! [ -e {} ]; do sleep 0.01; done; echo second", go.display());
    client.send_request("POST", "env.local", "/api/v1/processes/run", RUN, &run_body(&script));
    assert_eq!(client.head().header("Content-Type"), Some("text/event-stream"));
    let mut text = String::new();
    while !text.contains("first") {
        text += &String::from_utf8(client.chunk()).unwrap();
    }
    assert!(!text.contains("second"));
    fs::write(go, "").unwrap();
    loop {
        let chunk = client.chunk();
        if chunk.is_empty() {
            break;
        }
        text += &String::from_utf8(chunk).unwrap();
    }
    assert!(text.contains("second") && text.contains("exit_code"), "{text}");
    // The connection serves another request.
    assert_eq!(client.get("env.local", "/api/v1/health").status, 200);
}

#[test]
fn bodies_of_both_framings_arrive() {
    let (host, daemon) = host_and_daemon();
    let mut client = host.connect();
    let file = daemon.path("file");
    let target = format!("/api/v1/files?path={}", file.display());
    client.send(format!(
        "PUT {target} HTTP/1.1\r\nHost: env\r\n{AUTH}Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    ));
    assert_eq!(client.head().status, 100);
    client.send("5\r\nhello\r\n");
    client.send("6;x=y\r\n world\r\n0\r\nTrailer: x\r\n\r\n");
    assert!(client.reply().status < 300);
    assert_eq!(fs::read(&file).unwrap(), b"hello world");
    let reply = client.get("env", &target);
    assert_eq!((reply.status, reply.text(), reply.header("Content-Length")), (200, "hello world", Some("11")));
    let reply = client.request("HEAD", "env", &target, "", "");
    assert_eq!((reply.status, reply.header("Content-Length")), (200, Some("11")));
    let reply = client.request("GET", "env", &target, "Range: bytes=6-\r\n", "");
    assert_eq!((reply.status, reply.text()), (206, "world"));
    assert!(client.request("PUT", "env", &target, "", "short").status < 300);
    assert_eq!(fs::read(&file).unwrap(), b"short");
    let reply = client.request("DELETE", "env", &target, "", "");
    assert!(reply.status < 300 && !file.exists());
}

#[test]
fn a_client_that_vanishes_ends_its_run() {
    let (host, daemon) = host_and_daemon();
    let started = daemon.path("started");
    let mut client = host.connect();
    let script = format!("echo $$ >{}; exec sleep 600", started.display());
    client.send_request("POST", "env.local", "/api/v1/processes/run", RUN, &run_body(&script));
    wait_until("the command runs", || started.exists());
    drop(client);
    let mut other = host.connect();
    wait_until("the run has ended", || {
        let reply = other.get("env.local", "/api/v1/processes");
        !reply.text().contains("\"running\"")
    });
    wait_until("the request is not open any more", || host.numbers.read().open == 0);
}

#[test]
fn two_hundred_parallel_runs_have_their_own_output() {
    let (host, _daemon) = host_and_daemon();
    let addr = host.server.local_addr();
    let threads: Vec<_> = (0..200)
        .map(|number| {
            std::thread::spawn(move || {
                let mut client = super::Client::connect(addr);
                let body = run_body(&format!("echo number-{number}-"));
                let reply = client.request("POST", "env.local", "/api/v1/processes/run", RUN, &body);
                assert!(reply.text().contains(&format!("number-{number}-")), "{reply:?}");
                assert!(reply.text().contains("\"exit_code\":0"), "{reply:?}");
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(host.numbers.read().requests, 200);
    wait_until("no request is open", || host.numbers.read().open == 0);
}

/// The events of a terminal session and of a run pass through; a session's WebSocket needs both tokens' places right.
#[test]
fn a_terminal_session_works_through_the_proxy() {
    let (host, _daemon) = host_and_daemon();
    let mut client = host.connect();
    let body = r#"{"command":"cat","rows":24,"cols":80}"#;
    let reply = client.request("POST", "env.local", "/api/v1/pty", "Content-Type: application/json\r\n", body);
    assert_eq!(reply.status, 201, "{reply:?}");
    let session: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    let (id, token) = (session["session_id"].as_str().unwrap(), session["token"].as_str().unwrap());
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://127.0.0.1:9443\r\n";
    let headers = format!("{upgrade}X-PTY-Token: {token}\r\n");
    let reply = client.request("GET", "env.local", &format!("/api/v1/pty/{id}/ws?token={token}"), &headers, "");
    assert_eq!(reply.status, 101, "{reply:?}");
    assert_eq!(reply.header("Sec-WebSocket-Accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    // READY (2), then input (0) with a mask of zeros: the terminal echoes it.
    client.send(b"\x82\x81\0\0\0\0\x02");
    client.send(b"\x82\x87\0\0\0\0\0hello\n");
    let mut seen = Vec::new();
    while !seen.windows(5).any(|part| part == b"hello") {
        assert!(client.fill(), "{:?}", String::from_utf8_lossy(&seen));
        seen.append(&mut client.buffer);
    }
}

/// Lines of a stream that is followed, read with another reader than the proxy's own client.
#[test]
fn following_a_process_ends_with_it() {
    let (host, _daemon) = host_and_daemon();
    let mut client = host.connect();
    let body = run_body("for i in 1 2 3; do echo line-$i; done");
    let reply = client.request("POST", "env.local", "/api/v1/processes", "Content-Type: application/json\r\n", &body);
    let info: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
    let target = format!("/api/v1/processes/{}/output/follow", info["pid"]);
    client.send_request("GET", "env.local", &target, "Connection: close\r\n", "");
    client.stream.flush().unwrap();
    client.stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let lines: Vec<String> = BufReader::new(&client.stream).lines().map(Result::unwrap).collect();
    assert!(lines.iter().any(|line| line.contains("line-3")), "{lines:?}");
    assert_eq!(lines.iter().rev().find(|line| !line.is_empty()).map(String::as_str), Some("0"), "the last chunk");
}
