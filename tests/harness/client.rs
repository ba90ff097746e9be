//! A client of the API: one method of [`Daemon`] for each kind of request that tests send.

use std::fmt::Display;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::openapi::Described;
use super::response::{CompletedRun, EventStream, Response, ResponseStream};
use super::{Daemon, TIMEOUT, pid_of, wait_until};

/// Time for a response to a request that is answered at once; long enough for a busy machine.
const STATUS_TIMEOUT: Duration = Duration::from_secs(20);

impl Daemon {
    /// The status of `GET /health` on a connection of its own; none if no response comes within [`STATUS_TIMEOUT`].
    pub fn try_health(&self) -> Option<u16> {
        self.try_status("/health")
    }

    /// The status of a GET on a connection of its own; none if no response comes within [`STATUS_TIMEOUT`].
    pub fn try_status(&self, path: &str) -> Option<u16> {
        let stream = TcpStream::connect_timeout(&self.addr, STATUS_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(STATUS_TIMEOUT)).ok()?;
        let token = &self.token;
        let request = format!(
            "GET /api/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n"
        );
        Some(ResponseStream::try_send(stream, &request)?.status)
    }

    /// Sends a request with the token. `path` is below `/api/v1`.
    pub fn request(&self, method: &str, path: &str, body: Option<&[u8]>) -> Response {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}/api/v1{path}", self.addr))
            .header("Authorization", format!("Bearer {}", self.token));
        let result = match body {
            Some(body) => self.agent.run(request.body(body).expect("build the request")),
            None => self.agent.run(request.body(()).expect("build the request")),
        };
        let shown = String::from_utf8_lossy(body.unwrap_or_default());
        let shown = format!("{method} {path} {}", shown.chars().take(200).collect::<String>());
        let response = Response::read(&shown, result);
        response.check(Described::find(method, path, response.status));
        response
    }

    pub fn get(&self, path: &str) -> Response {
        self.request("GET", path, None)
    }

    pub fn delete(&self, path: &str) -> Response {
        self.request("DELETE", path, None)
    }

    /// Deletes a process, and checks that the response comes when no process below the daemon has one of `texts` on its
    /// command line, or after 2 s (docs/api.md, Process control). Waits until all are gone.
    pub fn delete_tree(&self, process: impl Display, texts: &[&str]) {
        let begun = Instant::now();
        assert_eq!(self.delete(&format!("/processes/{process}")).expect(204), Value::Null);
        let took = begun.elapsed();
        for text in texts {
            let left = self.pids_matching(text);
            assert!(left.is_empty() || took >= Duration::from_secs(2), "{left:?} have {text} after {took:?}");
        }
        texts.iter().for_each(|text| self.wait_until_gone(TIMEOUT, text));
    }

    pub fn post(&self, path: &str, body: &Value) -> Response {
        self.request("POST", path, Some(body.to_string().as_bytes()))
    }

    /// A POST that the daemon may answer, and whose connection it may close, before it has read the whole body. An
    /// ordinary client reports the broken connection instead of the response.
    pub fn post_refused(&self, path: &str, body: &[u8]) -> Response {
        self.open("POST", path, "Connection: close\r\n", body).into_response(path)
    }

    /// The head of a request with the token, ready to be sent on a raw connection. `headers` are lines that end in
    /// CRLF.
    pub fn request_head(&self, method: &str, path: &str, headers: &str) -> String {
        let token = &self.token;
        format!(
            "{method} /api/v1{path} HTTP/1.1\r\nHost: sbx-1.local\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
        )
    }

    /// Sends a request with the token on a new connection and reads the head of the response.
    pub fn open(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> ResponseStream {
        let framing = match body.len() {
            0 => String::new(),
            length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
        };
        let head = self.request_head(method, path, &format!("{headers}{framing}"));
        ResponseStream::send(self.connect(), &[head.as_bytes(), body].concat())
    }

    /// Sends a GET on a new connection and reads nothing of the response.
    pub fn send_get(&self, path: &str) -> TcpStream {
        let mut socket = self.connect();
        let head = self.request_head("GET", path, "");
        std::io::Write::write_all(&mut socket, head.as_bytes()).expect("send the request");
        socket
    }

    /// Bytes of the output, exactly as written. `view` is `stdout`, `stderr` or `output`.
    pub fn raw_output(&self, pid: u64, view: &str) -> Vec<u8> {
        let headers = "Accept: application/octet-stream\r\nConnection: close\r\n";
        self.open("GET", &format!("/processes/{pid}/{view}"), headers, b"").expect_status(200).read_all()
    }

    /// Lines of the output so far.
    pub fn lines(&self, pid: u64, view: &str) -> Vec<String> {
        let listing = self.get(&format!("/processes/{pid}/{view}")).expect(200);
        let lines: Vec<String> = serde_json::from_value(listing["lines"].clone()).expect("lines are strings");
        assert_eq!(listing["line_count"], lines.len(), "{listing}");
        assert_eq!(listing["pid"], pid, "{listing}");
        lines
    }

    /// Waits until stdout of the process has exactly these lines.
    pub fn wait_for_stdout(&self, pid: u64, lines: &[&str]) {
        wait_until(TIMEOUT, &format!("stdout of {pid} is {lines:?}"), || {
            (self.lines(pid, "stdout") == lines).then_some(())
        });
    }

    /// Starts a process; its ProcessInfo.
    pub fn start_process(&self, body: &Value) -> Value {
        self.post("/processes", body).expect(201)
    }

    /// Starts `sh -c script`; its PID.
    pub fn sh(&self, script: &str) -> u64 {
        pid_of(&self.start_process(&json!({"command": "sh", "args": ["-c", script]})))
    }

    /// ProcessInfo of the process.
    pub fn info(&self, pid: u64) -> Value {
        self.get(&format!("/processes/{pid}")).expect(200)
    }

    /// ProcessInfo of all processes, oldest first.
    pub fn list(&self) -> Vec<Value> {
        let mut listing = self.get("/processes").expect(200);
        serde_json::from_value(listing["processes"].take()).expect("a list of processes")
    }

    /// Checks that no process is running and that a run still works.
    pub fn check_nothing_started(&self) {
        let running: Vec<Value> = self.list().into_iter().filter(|info| info["status"] == "running").collect();
        assert_eq!(running, [Value::Null; 0]);
        assert_eq!(self.run_sh("echo x").stdout(), "x", "a run still works");
    }

    /// Waits until the process has ended; its ProcessInfo.
    pub fn wait_for_end(&self, pid: u64) -> Value {
        let info = self.get(&format!("/processes/{pid}/wait?timeout=50")).expect(200);
        assert_ne!(info["status"], "running", "{info}");
        info
    }

    /// Runs a command to completion and checks the form of the stream (docs/api.md, Run).
    pub fn run(&self, body: &Value) -> CompletedRun {
        CompletedRun::collect(self.open_run(body))
    }

    /// Runs `sh -c script` to completion.
    pub fn run_sh(&self, script: &str) -> CompletedRun {
        self.run(&json!({"command": "sh", "args": ["-c", script]}))
    }

    /// Runs `sh -ec script` as root in the namespaces of the daemon; its stdout.
    pub fn run_as_root(&self, script: &str) -> String {
        self.run(&json!({"command": "sh", "args": ["-ec", script], "user": "root"})).stdout()
    }

    /// The event stream of a run, not read yet.
    pub fn open_run(&self, body: &Value) -> EventStream {
        EventStream::new(self.open("POST", "/processes/run", "", body.to_string().as_bytes()).expect_status(200))
    }

    /// The event stream of a follow, not read yet. `view` may carry a query, `headers` more header lines.
    pub fn follow_with(&self, pid: u64, view: &str, headers: &str) -> EventStream {
        let (view, query) = view.split_once('?').map_or((view, String::new()), |(v, q)| (v, format!("?{q}")));
        let path = format!("/processes/{pid}/{view}/follow{query}");
        EventStream::new(self.open("GET", &path, headers, b"").expect_status(200))
    }

    pub fn follow(&self, pid: u64, view: &str) -> EventStream {
        self.follow_with(pid, view, "")
    }

    /// The event stream of `GET /events`, not read yet. `headers` are lines that end in CRLF.
    pub fn events(&self, query: &str, headers: &str) -> EventStream {
        EventStream::new(self.open("GET", &format!("/events{query}"), headers, b"").expect_status(200))
    }

    /// The report of `GET /boot`.
    pub fn boot(&self) -> Value {
        self.get("/boot").expect(200)
    }
}
