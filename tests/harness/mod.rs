//! Starts the real daemon, as PID 1 of a namespace unless told otherwise, and ends it with the test.
//!
//! Nothing here sleeps to wait for the daemon: what a test waits for is a condition with a deadline.

pub mod http;
pub mod machine;
pub mod socket;

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

pub use http::Reply;
use http::{Events, Run, Stream};

/// Long enough for anything on a busy machine; what takes longer is stuck.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The token of [`Options::token`].
pub const TOKEN: &str = "a-token-of-the-tests";

/// A line of shell that sets `$cgroup` to the directory of the cgroup that the shell is in.
pub const CGROUP: &str = "cgroup=$(awk '$3 == \"cgroup2\" { print $2; exit }' /proc/mounts)$(sed -n 's/^0:://p' \
                          /proc/self/cgroup)";

/// How a daemon is started; [`Options::default`] is as PID 1, with a cgroup.
#[derive(Clone)]
pub struct Options {
    namespace: bool,
    cgroup: bool,
    pid_max: Option<u32>,
    prepare: Option<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    stderr: Option<Arc<OwnedFd>>,
    limits: Vec<(Resource, u64, Option<u64>)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            namespace: true,
            cgroup: true,
            pid_max: None,
            prepare: None,
            args: Vec::new(),
            env: Vec::new(),
            stderr: None,
            limits: Vec::new(),
        }
    }
}

impl Options {
    /// An ordinary process beside the test: a subreaper in the machine's own namespaces.
    pub fn plain() -> Options {
        Options { namespace: false, ..Options::default() }
    }

    /// More of the command line.
    pub fn args(mut self, args: &[&str]) -> Options {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// One variable of the daemon's environment.
    pub fn env(mut self, key: &str, value: &str) -> Options {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Where its own log goes, which the test cannot read then.
    pub fn stderr(mut self, stderr: OwnedFd) -> Options {
        self.stderr = Some(Arc::new(stderr));
        self
    }

    /// A soft resource limit that the daemon is started with.
    pub fn limit(mut self, resource: Resource, soft: u64) -> Options {
        self.limits.push((resource, soft, None));
        self
    }

    /// So many descriptors at most, for the daemon itself too.
    pub fn descriptors(mut self, most: u64) -> Options {
        self.limits.push((Resource::RLIMIT_NOFILE, most, Some(most)));
        self
    }

    /// So many bytes of addresses at most, for the daemon itself too.
    pub fn addresses(mut self, most: u64) -> Options {
        self.limits.push((Resource::RLIMIT_AS, most, Some(most)));
        self
    }

    /// No cgroup can be made in there.
    pub fn without_cgroup(mut self) -> Options {
        self.cgroup = false;
        self
    }

    /// Its /proc is that of the namespace outside.
    pub fn outer_proc(self) -> Options {
        self.env("TL_NS_PROC", "outer")
    }

    /// The highest PID in the namespace: a low one makes the kernel hand out PIDs again soon.
    pub fn pid_max(mut self, pid_max: u32) -> Options {
        self.pid_max = Some(pid_max);
        self
    }

    /// Shell commands that PID 1 of the namespace executes before it becomes the daemon. `$cgroup` is its cgroup.
    pub fn prepare(mut self, script: &str) -> Options {
        self.prepare = Some(format!("set -e\n{CGROUP}\n{script}\nexec \"$@\""));
        self
    }

    /// Starts it and waits until it answers.
    pub fn start(self) -> Daemon {
        Daemon::start(self)
    }
}

/// A daemon as PID 1 with its default settings.
pub fn daemon() -> Daemon {
    Options::default().start()
}

/// The same with more on its command line.
pub fn daemon_with(args: &[&str]) -> Daemon {
    Options::default().args(args).start()
}

/// Whether this test can do what only root may; says so where not.
pub fn root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("{test}: skipped, it needs root");
    }
    root
}

/// Asks `condition` until it gives something, and fails with `what` at the deadline.
pub fn wait_until<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A port where nobody listens, and nobody will for as long as the connection that has it is kept.
pub fn port_of_nobody() -> (u16, [TcpStream; 2]) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let ours = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
    let theirs = listener.accept().expect("its other end").0;
    (ours.local_addr().expect("its address").port(), [ours, theirs])
}

/// Makes cgroups read-only in a mount namespace, then becomes the program.
const READ_ONLY_CGROUPS: &str = "awk '$3 == \"cgroup2\" { print $2 }' /proc/mounts | while read -r mounted; do
    mount -o remount,bind,ro \"$mounted\"; done; exec \"$0\" \"$@\"";

/// A running daemon. Dropping it kills it with everything that it started.
pub struct Daemon {
    launcher: Child,
    dir: TempDir,
    namespace: bool,
    /// The daemon's PID as the test sees it.
    pub pid: i32,
    /// Where it listens.
    pub addr: SocketAddr,
    /// What it wants as a bearer token.
    pub token: String,
    agent: ureq::Agent,
}

impl Daemon {
    fn start(options: Options) -> Daemon {
        let dir = tempfile::Builder::new()
            .prefix("tl-test.")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .expect("a directory for the test");
        let state = dir.path().join("state");
        let binary = env!("CARGO_BIN_EXE_tl-init");
        let mut command = if options.namespace {
            let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/namespace.sh"));
            if let Some(script) = &options.prepare {
                command.args(["/bin/sh", "-c", script, "sh"]);
            }
            command.arg(binary).env("TL_NS_DIR", &state);
            command
        } else {
            std::fs::create_dir(&state).expect("a directory for the daemon");
            let mut command = match options.cgroup {
                true => Command::new(binary),
                false => {
                    let mut command = Command::new("unshare");
                    command.args(["--mount", "sh", "-c", READ_ONLY_CGROUPS, binary]);
                    command
                }
            };
            command.env("TL_INIT_RUN_DIR", state.join("run")).env("TL_INIT_LOG_DIR", state.join("log"));
            // The machine may have no tl-user.
            if !options.args.iter().any(|arg| arg == "--default-user") {
                let uid = nix::unistd::geteuid();
                command.env("TL_INIT_DEFAULT_USER", uid.to_string());
            }
            command
        };
        if !options.cgroup {
            command.env("TL_NS_CGROUP", "no");
        }
        if let Some(pid_max) = options.pid_max {
            command.env("TL_NS_PID_MAX", pid_max.to_string());
        }
        let log = std::fs::File::create(dir.path().join("daemon.log")).expect("the daemon's log");
        command.args(["--listen", "127.0.0.1:0"]).args(&options.args);
        command.envs(options.env.iter().map(|(key, value)| (key, value)));
        // A directory that every user can be in: a main process begins in ours.
        command.current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second descriptor")).stderr(log);
        if let Some(stderr) = &options.stderr {
            command.stderr(stderr.try_clone().expect("a second descriptor"));
        }
        die_with_us(&mut command);
        set_limits(&mut command, options.limits);
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(PATIENCE))
            .build()
            .new_agent();
        let mut daemon = Daemon {
            launcher: command.spawn().expect("start the daemon"),
            dir,
            namespace: options.namespace,
            pid: 0,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: String::new(),
            agent,
        };
        daemon.await_ready(&state.join("run"));
        daemon
    }

    fn await_ready(&mut self, run_dir: &Path) {
        self.addr = wait_until(PATIENCE, "the daemon says where it listens", || {
            if let Some(status) = self.launcher.try_wait().expect("wait for the launcher") {
                panic!("the daemon ended at its start: {status}");
            }
            std::fs::read_to_string(run_dir.join("address")).ok()?.trim().parse().ok()
        });
        self.pid = if self.namespace {
            wait_until(PATIENCE, "the daemon is PID 1 in there", || {
                let guard_and_unshare = machine::children(self.launcher.id() as i32);
                let inside = guard_and_unshare.into_iter().flat_map(machine::children);
                inside.into_iter().find(|&pid| machine::is_pid1(pid))
            })
        } else {
            self.launcher.id() as i32
        };
        // With --token-file or --no-auth there is none, and the test knows better.
        let written = std::fs::read_to_string(run_dir.join("token")).unwrap_or_else(|_| TOKEN.to_owned());
        written.trim().clone_into(&mut self.token);
        wait_until(PATIENCE, "health answers", || (self.try_health()? == 200).then_some(()));
    }

    /// The status of `GET /health`, on a connection of its own; none where nobody answers within 3 s.
    pub fn try_health(&self) -> Option<u16> {
        let stream = TcpStream::connect_timeout(&self.addr, Duration::from_secs(3)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(3))).ok()?;
        let stream = Stream::try_send(stream, "GET /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        Some(stream.status)
    }

    /// A directory that every user can enter and that goes with the test.
    pub fn scratch(&self) -> PathBuf {
        let scratch = self.dir.path().join("scratch");
        if std::fs::create_dir(&scratch).is_ok() {
            std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o1777)).expect("open it to all");
        }
        scratch
    }

    /// Writes an executable script into [`Daemon::scratch`].
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.scratch().join(name);
        std::fs::write(&path, text).expect("write the script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("make it executable");
        path
    }

    /// Where the daemon keeps `run` and `log`.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Where its stdout goes, and its stderr unless that is said.
    pub fn log_file(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// What the daemon has said so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// One request with the token. `path` is below `/api/v1`.
    pub fn request(&self, method: &str, path: &str, body: Option<&[u8]>) -> Reply {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}/api/v1{path}", self.addr))
            .header("Authorization", format!("Bearer {}", self.token));
        let answer = match body {
            Some(body) => self.agent.run(request.body(body).expect("a request")),
            None => self.agent.run(request.body(()).expect("a request")),
        };
        let shown = String::from_utf8_lossy(body.unwrap_or_default());
        Reply::read(&format!("{method} {path} {}", shown.chars().take(200).collect::<String>()), answer)
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, None)
    }

    pub fn delete(&self, path: &str) -> Reply {
        self.request("DELETE", path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, Some(body.to_string().as_bytes()))
    }

    /// A POST that may be answered, and its connection closed, before all of the body was sent. A plain client
    /// reports the broken connection then instead of the answer.
    pub fn post_refused(&self, path: &str, body: &[u8]) -> Reply {
        self.open("POST", path, "Connection: close\r\n", body).into_reply(path)
    }

    /// Raw bytes of the output, exactly as written. `view` is `stdout`, `stderr` or `output`.
    pub fn raw_output(&self, pid: u64, view: &str) -> Vec<u8> {
        let head = "Accept: application/octet-stream\r\nConnection: close\r\n";
        self.open("GET", &format!("/processes/{pid}/{view}"), head, b"").expect_status(200).read_all()
    }

    /// Lines of the output as of now.
    pub fn lines(&self, pid: u64, view: &str) -> Vec<String> {
        let answer = self.get(&format!("/processes/{pid}/{view}")).expect(200);
        let lines: Vec<String> = serde_json::from_value(answer["lines"].clone()).expect("lines are strings");
        assert_eq!(answer["line_count"], lines.len(), "{answer}");
        assert_eq!(answer["pid"], pid, "{answer}");
        lines
    }

    /// Starts a process; its ProcessInfo.
    pub fn start_process(&self, body: &Value) -> Value {
        self.post("/processes", body).expect(201)
    }

    /// Starts `sh -c script`; its PID.
    pub fn sh(&self, script: &str) -> u64 {
        pid_of(&self.start_process(&json!({"command": "sh", "args": ["-c", script]})))
    }

    /// The process as it is now.
    pub fn info(&self, pid: u64) -> Value {
        self.get(&format!("/processes/{pid}")).expect(200)
    }

    /// All processes, oldest first.
    pub fn list(&self) -> Vec<Value> {
        let mut answer = self.get("/processes").expect(200);
        serde_json::from_value(answer["processes"].take()).expect("a list")
    }

    /// The process once it has ended.
    pub fn ended(&self, pid: u64) -> Value {
        let info = self.get(&format!("/processes/{pid}/wait?timeout=50")).expect(200);
        assert_ne!(info["status"], "running", "{info}");
        info
    }

    /// Runs to completion, with every promise about the shape of the stream checked.
    pub fn run(&self, body: &Value) -> Run {
        Run::collect(self.open_run(body))
    }

    /// Runs `sh -c script`.
    pub fn run_sh(&self, script: &str) -> Run {
        self.run(&json!({"command": "sh", "args": ["-c", script]}))
    }

    /// The stream of a run, not read yet.
    pub fn open_run(&self, body: &Value) -> Events {
        Events::new(self.open("POST", "/processes/run", "", body.to_string().as_bytes()).expect_status(200))
    }

    /// The stream of a follow, not read yet. `view` may carry a query, `head` more header lines.
    pub fn follow_with(&self, pid: u64, view: &str, head: &str) -> Events {
        let (view, query) = view.split_once('?').map_or((view, String::new()), |(v, q)| (v, format!("?{q}")));
        let path = format!("/processes/{pid}/{view}/follow{query}");
        Events::new(self.open("GET", &path, head, b"").expect_status(200))
    }

    pub fn follow(&self, pid: u64, view: &str) -> Events {
        self.follow_with(pid, view, "")
    }

    /// A connection with nothing sent on it yet.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.addr, PATIENCE).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a read time-out");
        stream.set_write_timeout(Some(PATIENCE)).expect("a write time-out");
        stream
    }

    /// Sends a request with the token on a connection of its own and reads the head of the answer.
    pub fn open(&self, method: &str, path: &str, head: &str, body: &[u8]) -> Stream {
        let mut text = format!("{method} /api/v1{path} HTTP/1.1\r\nHost: sbx-1.local\r\n{head}");
        write!(text, "Authorization: Bearer {}\r\n", self.token).expect("write to a string");
        if !body.is_empty() {
            write!(text, "Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()).expect("as above");
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend_from_slice(body);
        Stream::send(self.connect(), &bytes)
    }

    /// Host PIDs of live processes below the daemon whose command line has `word` in it.
    pub fn find(&self, word: &str) -> Vec<i32> {
        let ours = machine::descendants(self.pid);
        ours.into_iter().filter(|&pid| machine::command_line(pid).contains(word)).collect()
    }

    /// Host PIDs of live processes below the daemon whose command line begins with `words`: unlike [`Daemon::find`],
    /// not the shell that is yet to start them.
    pub fn executing(&self, words: &str) -> Vec<i32> {
        let ours = machine::descendants(self.pid);
        ours.into_iter().filter(|&pid| machine::command_line(pid).starts_with(words)).collect()
    }

    /// Waits until no live process has `word` on its command line.
    pub fn await_gone(&self, deadline: Duration, word: &str) {
        wait_until(deadline, &format!("no process has {word:?} on its command line"), || {
            self.find(word).is_empty().then_some(())
        });
    }

    /// Sends a signal to the daemon itself.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("signal the daemon");
    }

    /// The same by number, for those without a name.
    pub fn signal_number(&self, signal: i32) {
        // SAFETY: no memory involved.
        let sent = unsafe { libc::kill(self.pid, signal) };
        assert_eq!(sent, 0, "signal the daemon");
    }

    /// What `GET /boot` says.
    pub fn boot(&self) -> Value {
        self.get("/boot").expect(200)
    }

    /// Waits until the daemon has ended, and what launched it too.
    pub fn await_end(&mut self, deadline: Duration) -> ExitStatus {
        wait_until(deadline, "the daemon ends", || self.launcher.try_wait().expect("wait for the launcher"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}--- end of the daemon's log", self.log());
        }
        if matches!(self.launcher.try_wait(), Ok(Some(_))) {
            return;
        }
        if self.namespace && self.pid != 0 {
            // The namespace dies with its PID 1; the launcher then clears up and ends.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        } else if self.namespace {
            let _ = kill(Pid::from_raw(self.launcher.id() as i32), Signal::SIGTERM);
        } else {
            // No namespace that would take its processes along: end them first, whom nobody else will.
            let left = machine::descendants(self.launcher.id() as i32);
            let _ = self.launcher.kill();
            for pid in left {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let _ = self.launcher.wait();
    }
}

/// The PID in a ProcessInfo.
pub fn pid_of(info: &Value) -> u64 {
    info["pid"].as_u64().unwrap_or_else(|| panic!("no pid in {info}"))
}

fn set_limits(command: &mut Command, limits: Vec<(Resource, u64, Option<u64>)>) {
    let set = move || {
        for (resource, soft, lower) in &limits {
            let (_, hard) = getrlimit(*resource)?;
            setrlimit(*resource, *soft, lower.unwrap_or(hard))?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec this makes system calls only.
    unsafe { command.pre_exec(set) };
}

/// Has the child get SIGTERM when the test's thread ends without having dropped it, and hear signals that it would not
/// where the tests run under `nohup` or in the background of a script.
pub fn die_with_us(command: &mut Command) {
    let set = || {
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: no handler is installed, the default is put back.
            unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl)? };
        }
        nix::sys::prctl::set_pdeathsig(Signal::SIGTERM).map_err(std::io::Error::from)
    };
    // SAFETY: between fork and exec this makes system calls that are async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(set) };
}
