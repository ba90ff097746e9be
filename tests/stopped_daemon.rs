//! A daemon that is stopped (SIGSTOP) for about a minute and then continued: its clients and processes notice only a delay.
//!
//! The stop is longer than every interval that a client could be judged by: keep-alives, pings, and the 55 s after which
//! a silent client of a tunnel counts as gone.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tungstenite::{Message, WebSocket};

use crate::harness::response::{EventStream, ResponseStream};
use crate::harness::websocket::{Session, Terminal};
use crate::harness::{Daemon, TIMEOUT, pid_of, procfs, start_daemon, tcp_service, wait_until};

const MIN_STOP: Duration = Duration::from_secs(60);

fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 1024];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        let _ = stream.write_all(&bytes[..count]);
    }
}

/// A stopped daemon with one client of each kind.
pub struct StoppedDaemon {
    daemon: Daemon,
    stopped_at: Instant,
    threads_and_descriptors: (usize, usize),
    memory: u64,
    /// A process that writes each line of its stdin, and a follower of it.
    lines: (u64, EventStream),
    terminal: (Session, Terminal),
    tunnel: WebSocket<TcpStream>,
    /// A run and a wait whose timeouts end during the stop.
    timed_run: EventStream,
    timed_wait: TcpStream,
    /// A process that writes more than a pipe holds during the stop, and one that is killed meanwhile.
    writer: u64,
    killed: u64,
    /// Requests of which a half, or nothing, was sent before the stop.
    late: [TcpStream; 2],
}

impl StoppedDaemon {
    pub fn start() -> StoppedDaemon {
        let daemon = start_daemon();
        daemon.get("/pty").expect(200);
        assert_eq!(daemon.run_sh("echo x").stdout(), "x");
        let (threads_and_descriptors, memory) =
            (daemon.threads_and_descriptors(), procfs::kilobytes(daemon.pid, "RssAnon"));
        let cat = pid_of(&daemon.start_process(&json!({"command": "cat", "stdin_mode": "pipe"})));
        let session = daemon.pty_sh("stty raw -echo; echo up; exec cat");
        let mut terminal = daemon.watch(&session);
        terminal.expect("up");
        let mut tunnel = daemon.tunnel(tcp_service(echo));
        ask(&mut tunnel, "before");
        let mut timed_run = daemon.open_run(&json!({"command": "sleep", "args": ["4781"], "timeout": 20}));
        assert!(timed_run.next_frame().is_some());
        let timed_wait = daemon.send_get(&format!("/processes/{cat}/wait?timeout=20"));
        let writer = json!({"command": "sh", "working_dir": daemon.scratch(),
            "args": ["-c", "until [ -e go ]; do sleep 0.02; done; seq 50000; exit 4"]});
        let writer = pid_of(&daemon.start_process(&writer));
        let killed = daemon.sh("exec sleep 4782");
        let sleep = daemon.wait_for_processes("sleep 4782", 1)[0];
        let mut late = [daemon.connect(), daemon.connect()];
        let head = daemon.request_head("GET", "/health", "Connection: close\r\n");
        late[0].write_all(&head.as_bytes()[..20]).expect("send a half");
        let lines = (cat, daemon.follow(cat, "stdout"));
        assert_eq!(daemon.try_health(), Some(200), "the requests before this one have begun");
        daemon.signal(Signal::SIGSTOP);
        late[0].write_all(&head.as_bytes()[20..]).expect("send the other half");
        late[1].write_all(head.as_bytes()).expect("send a request");
        std::fs::write(daemon.scratch().join("go"), "").expect("release the writer");
        kill(Pid::from_raw(sleep), Signal::SIGKILL).expect("kill a process");
        StoppedDaemon {
            stopped_at: Instant::now(),
            threads_and_descriptors,
            memory,
            lines,
            terminal: (session, terminal),
            tunnel,
            timed_run,
            timed_wait,
            writer,
            killed,
            late,
            daemon,
        }
    }

    /// Continues the daemon, and checks that every client and process is served as if nothing had happened.
    pub fn check_nothing_is_lost(mut self) {
        std::thread::sleep(MIN_STOP.saturating_sub(self.stopped_at.elapsed()));
        let (daemon, begun) = (&self.daemon, Instant::now());
        daemon.signal(Signal::SIGCONT);
        for request in self.late {
            assert_eq!(ResponseStream::read(request).expect("a response").status, 200);
        }
        ask(&mut self.tunnel, "after");
        self.terminal.1.type_in("typed\n");
        self.terminal.1.expect("typed");
        assert_eq!(daemon.client_count(&self.terminal.0), 1);
        let (cat, follower) = (self.lines.0, &mut self.lines.1);
        daemon.request("POST", &format!("/processes/{cat}/stdin"), Some(b"a line\n")).expect(204);
        assert_eq!(follower.next_frame().expect("an event").data["line"], "a line");
        assert!(follower.comments <= 1, "one keep-alive at most, not one for each interval: {}", follower.comments);
        let end = self.timed_run.next_frame().expect("the last event").data;
        assert_eq!((&end["reason"], &end["signal"]), (&json!("timed_out"), &json!(9)));
        let waited = ResponseStream::read(self.timed_wait).expect("a response").into_response("wait");
        assert_eq!(waited.expect(200)["status"], "running");
        assert_eq!(daemon.wait_for_end(self.writer)["exit_code"], 4);
        let written: Vec<String> = (1..=50_000).map(|number: u32| number.to_string()).collect();
        assert!(daemon.lines(self.writer, "stdout") == written, "its output is complete");
        assert_eq!(daemon.wait_for_end(self.killed)["signal"], 9);
        let took = begun.elapsed();
        eprintln!("everything was served {took:?} after the stop");
        // The limit is 5 s; the margin is for a busy machine.
        assert!(took < Duration::from_secs(40), "{took:?}");
        for process in [cat, self.writer, self.killed] {
            daemon.delete(&format!("/processes/{process}")).expect(204);
        }
        daemon.delete(&format!("/pty/{}", self.terminal.0.id)).expect(204);
        drop((self.tunnel, self.terminal, self.lines, self.timed_run));
        daemon.wait_until_released(self.threads_and_descriptors);
        wait_until(TIMEOUT, "the daemon uses as much memory as before", || {
            (procfs::kilobytes(daemon.pid, "RssAnon") < self.memory + 4 * 1024).then_some(())
        });
    }
}

/// Sends a message through a tunnel to [`echo`], and waits for it.
fn ask(tunnel: &mut WebSocket<TcpStream>, text: &'static str) {
    tunnel.send(Message::binary(text.as_bytes())).expect("send");
    let mut got = Vec::new();
    while got.len() < text.len() {
        if let Message::Binary(piece) = tunnel.read().expect("a message") {
            got.extend_from_slice(&piece);
        }
    }
    assert_eq!(got, text.as_bytes());
}
