//! One client: its generator, its model, and its connection to the daemon.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::allowed::Faults;
use crate::harness::openapi::Described;
use crate::harness::response::ResponseStream;
use crate::harness::{Daemon, Random, Response, procfs, reset, wait_until};
use crate::model::Process;
use crate::operations::files::Stored;
use crate::operations::terminals::Console;
use crate::tally::Tally;
use crate::worker::Progress;

/// Deadline for what the daemon does soon, with a margin for a busy machine and a daemon that is stopped meanwhile.
pub const SOON: Duration = Duration::from_secs(30);
/// Number of processes of one client at most.
const PROCESSES: usize = 8;

/// What all clients share.
pub struct Shared {
    pub daemon: Daemon,
    /// The program that the processes execute.
    pub program: PathBuf,
    /// Where each process counts what it has written, in a directory with its tag.
    pub progress: PathBuf,
    /// The log disk as the test sees it, and as the daemon sees it.
    pub disk: PathBuf,
    pub disk_inside: PathBuf,
    /// The port of a service for tunnels.
    pub echo_port: u16,
    pub seed: u64,
    pub clients: u64,
    /// The PID of the last process that was started.
    pub last_pid: AtomicU64,
    pub faults: Faults,
    pub tally: Tally,
}

/// One client of the daemon.
pub struct Client<'a> {
    pub shared: &'a Shared,
    pub number: u64,
    pub round: u64,
    /// Number of the operation in this round.
    pub operation: u64,
    /// The connection of the last request, if it was kept open.
    kept: Option<TcpStream>,
    /// Number of processes that were started in this round.
    started: u64,
    pub processes: Vec<Process>,
    pub consoles: Vec<Console>,
    pub files: BTreeMap<String, Stored>,
    /// The tag of the process that the operation is about.
    pub current: Option<String>,
    /// The last operations.
    pub history: VecDeque<String>,
}

impl<'a> Client<'a> {
    pub fn new(shared: &'a Shared, number: u64) -> Client<'a> {
        Client {
            shared,
            number,
            round: 0,
            operation: 0,
            kept: None,
            started: 0,
            processes: Vec::new(),
            consoles: Vec::new(),
            files: BTreeMap::new(),
            current: None,
            history: VecDeque::new(),
        }
    }

    pub fn begin_round(&mut self, round: u64) {
        (self.round, self.operation, self.started) = (round, 0, 0);
        self.history.clear();
    }

    /// Notes what this client does, for the report of a violation.
    pub fn note(&mut self, what: impl Display) {
        if self.history.len() > 60 {
            self.history.pop_front();
        }
        self.history.push_back(format!("{}: {what}", self.operation));
    }

    /// Notes what happens to a process.
    pub fn note_process(&mut self, at: usize, what: impl Display) {
        let process = &mut self.processes[at];
        let line = format!("operation {}: {what}", self.operation);
        process.history.push(line);
        self.current = Some(process.tag.clone());
        let tag = process.tag.clone();
        self.note(format_args!("{tag} {what}"));
    }

    /// A tag for the next process: it depends on the seed, this client and what this client has done before only.
    pub fn next_tag(&mut self) -> String {
        self.started += 1;
        let tag = format!("s{}r{}c{}n{}", self.shared.seed % 100_000, self.round, self.number, self.started);
        let directory = self.shared.progress.join(&tag);
        std::fs::create_dir(&directory).expect("a directory for the progress of the process");
        let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&directory, all).expect("make it writable for all");
        tag
    }

    pub fn is_crowded(&self) -> bool {
        self.processes.len() >= PROCESSES
    }

    /// Sends a request, on the connection of the last one if that was kept, and returns the whole response.
    pub fn call(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> Response {
        self.call_with(method, path, "", body)
    }

    /// The same with more header lines, which end in CRLF.
    pub fn call_with(&mut self, method: &str, path: &str, headers: &str, body: Option<&[u8]>) -> Response {
        let framing = body.map_or(String::new(), |body| format!("Content-Length: {}\r\n", body.len()));
        let head = self.shared.daemon.request_head(method, path, &format!("{headers}{framing}"));
        let socket = self.kept.take().unwrap_or_else(|| self.shared.daemon.connect());
        let mut stream = ResponseStream::send(socket, &[head.as_bytes(), body.unwrap_or_default()].concat());
        let mut got = Vec::new();
        // A 204 has no body, and says nothing about its length.
        let is_empty = stream.status == 204;
        let result = if is_empty { Ok(0) } else { stream.read_to_end(&mut got) };
        result.unwrap_or_else(|error| panic!("{method} {path}: the body: {error}"));
        let closes = stream.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let shown: String = String::from_utf8_lossy(body.unwrap_or_default()).chars().take(300).collect();
        let (status, headers) = (stream.status, stream.headers.clone());
        let response = Response { request: format!("{method} {path} {shown}"), status, headers, body: got };
        response.check(Described::find(method, path, status));
        if !closes {
            self.kept = Some(stream.into_socket());
        }
        response
    }

    pub fn get(&mut self, path: &str) -> Response {
        self.call("GET", path, None)
    }

    pub fn post(&mut self, path: &str, body: &Value) -> Response {
        self.call("POST", path, Some(body.to_string().as_bytes()))
    }

    /// Closes the connection that was kept.
    pub fn disconnect(&mut self) {
        self.kept = None;
    }

    /// Sends a part of a request and resets the connection.
    pub fn send_cut(&mut self, request: &[u8]) {
        let mut socket = self.shared.daemon.connect();
        // The daemon may answer, and close the connection, before it has all of it.
        let _ = socket.write_all(request);
        reset(socket);
    }

    /// An index of [`Client::processes`] among those that `is_right` accepts.
    pub fn pick(&self, random: &mut Random, is_right: impl Fn(&Process) -> bool) -> Option<usize> {
        let right: Vec<usize> = (0..self.processes.len()).filter(|at| is_right(&self.processes[*at])).collect();
        (!right.is_empty()).then(|| right[random.below(right.len() as u64) as usize])
    }

    /// What the runs of a process have counted.
    pub fn progress(&self, at: usize) -> Vec<Progress> {
        Progress::of(&self.shared.progress, &self.processes[at].tag)
    }

    /// What the runs of the process with this tag have counted.
    pub fn shared_progress(&self, tag: &str) -> Vec<Progress> {
        Progress::of(&self.shared.progress, tag)
    }

    /// Waits until the current run has written its lines and handles signals.
    pub fn wait_until_ready(&mut self, at: usize) {
        let runs = self.processes[at].runs;
        wait_until(SOON, "the process is ready", || {
            let progress = self.progress(at);
            assert!(progress.len() as u64 <= runs, "more runs than the {runs} that were begun: {progress:?}");
            (progress.iter().filter(|run| run.is_ready).count() as u64 == runs).then_some(())
        });
    }

    /// Sends SIGKILL to the leader of the current run, as another program would. False if it has ended already.
    pub fn kill_from_outside(&mut self, at: usize) -> bool {
        let (tag, pid) = (self.processes[at].tag.clone(), self.processes[at].pid);
        let pid_inside = format!("\t{pid}");
        let is_it = |outside: &i32| {
            let command = procfs::command_line(*outside);
            is_leader(&command, &tag)
                && procfs::status(*outside, "NSpid").is_some_and(|pids| pids.ends_with(&pid_inside))
        };
        let leader = procfs::descendants(self.shared.daemon.pid).into_iter().find(is_it);
        leader.is_some_and(|leader| kill(Pid::from_raw(leader), Signal::SIGKILL).is_ok())
    }

    /// Processes, as the test sees them, with this tag on their command line.
    pub fn alive(&self, tag: &str) -> Vec<i32> {
        let has_tag = |pid: &i32| procfs::command_line(*pid).split(' ').any(|word| word == tag);
        procfs::descendants(self.shared.daemon.pid).into_iter().filter(has_tag).collect()
    }

    /// Waits until no process has this tag.
    pub fn wait_until_gone(&self, tag: &str) {
        let since = Instant::now();
        wait_until(SOON, &format!("all processes of {tag} are gone"), || self.alive(tag).is_empty().then_some(()));
        let took = since.elapsed().saturating_sub(self.shared.faults.stopped_since(since));
        assert!(took < crate::allowed::RECOVERY + Duration::from_secs(5), "{tag} took {took:?} to disappear");
    }

    /// Number of starts of all clients so far.
    pub fn starts(&self) -> u64 {
        self.shared.faults.starts.load(Ordering::SeqCst)
    }

    /// Whether a process, which has ended, may be forgotten by now.
    pub fn may_be_forgotten(&self, at: usize) -> bool {
        let running = self.shared.clients * (PROCESSES as u64 + 2);
        self.shared.faults.may_be_forgotten(self.processes[at].seen_at_start, running)
    }
}

/// Whether a command line is that of the leader of the process with this tag, not of its child.
pub fn is_leader(command: &str, tag: &str) -> bool {
    command.contains(&format!(" {tag} ")) && !command.contains(&format!(" sleep {tag}"))
}
