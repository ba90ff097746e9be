//! Starts the real tl-host on an engine of the tests' own, and speaks to it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

pub use crate::podman::{IMAGE, Podman, podman, repository, skip};

/// Deadline for anything that a test waits for; long enough for a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// The port of the tl-init of each sandbox.
const DAEMON_PORT: u16 = 9501;

/// The static tl-init: `TL_TEST_INIT`, or what `make static` has built.
pub fn init() -> Option<PathBuf> {
    let path = std::env::var_os("TL_TEST_INIT").map_or_else(|| repository().join("dist/tl-init"), PathBuf::from);
    if !path.is_file() {
        skip(&format!("there is no static tl-init at {}: `make static` builds it", path.display()));
        return None;
    }
    Some(path)
}

/// The program: `TL_TEST_HOST`, or the one that cargo has built for the tests of its package.
pub fn program() -> Option<PathBuf> {
    let built = option_env!("CARGO_BIN_EXE_tl-host").map(PathBuf::from);
    std::env::var_os("TL_TEST_HOST").map(PathBuf::from).or(built)
}

/// A running tl-host with a state directory of its own. When it is dropped, its sandboxes are ended.
pub struct Host {
    podman: &'static Podman,
    init: PathBuf,
    options: Vec<String>,
    state: TempDir,
    /// What the program has written to stderr; it is shown if the test fails.
    log: NamedTempFile,
    /// A file that the program sees in place of the kernel's id of the boot.
    boot: Option<NamedTempFile>,
    program: Option<Child>,
    agent: ureq::Agent,
    pub api: String,
    pub proxy: String,
    pub key: String,
}

/// An answer of the API.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Value,
}

/// Starts tl-host on the shared engine; `None` if the test must be skipped.
pub fn start_host(options: &[&str]) -> Option<Host> {
    Some(Host::start(podman()?, init()?, options))
}

/// Starts tl-host on an engine that nobody else uses; `None` if the test must be skipped. `storage` is the size of a
/// storage in memory: `64m`.
pub fn start_host_alone(storage: Option<&str>) -> Option<Host> {
    podman()?;
    let init = init()?;
    Some(Host::start(Box::leak(Box::new(Podman::start(storage))), init, &[]))
}

impl Host {
    pub fn start(podman: &'static Podman, init: PathBuf, options: &[&str]) -> Host {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build();
        let mut private = tempfile::Builder::new();
        private.permissions(fs::Permissions::from_mode(0o700));
        let mut host = Host {
            podman,
            init,
            options: options.iter().map(|&word| word.to_owned()).collect(),
            // Of the mode that tl-host wants.
            state: private.tempdir().expect("make a state directory"),
            log: NamedTempFile::new().expect("make a file for the log"),
            boot: None,
            program: None,
            agent: config.into(),
            api: String::new(),
            proxy: String::new(),
            key: String::new(),
        };
        host.restart();
        host
    }

    /// A command of tl-host with the options of this host.
    pub fn command(&self, words: &[&str]) -> Command {
        let program = program().expect("TL_TEST_HOST names tl-host");
        let mut command = match &self.boot {
            None => Command::new(program),
            Some(boot) => {
                let mut command = Command::new("unshare");
                let script = "mount --bind \"$0\" /proc/sys/kernel/random/boot_id && exec \"$@\"";
                command.args(["--mount", "sh", "-c", script]).arg(boot.path()).arg(program);
                command
            }
        };
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["--engine", &self.podman.url(), "--default-image", IMAGE]);
        command.args(["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0"]);
        command.arg("--state-dir").arg(self.state_dir()).arg("--init").arg(&self.init).args(&self.options);
        command
    }

    /// Starts the program, if it does not run, with the state directory that it had before, and waits until it listens.
    pub fn restart(&mut self) {
        self.kill(Signal::SIGTERM);
        let log = File::options().append(true).open(self.log.path()).expect("open the file of the log");
        let mut command = self.command(&[]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("start tl-host");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        output.read_line(&mut line).expect("read its output");
        let value = |name: &str| {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            value.unwrap_or_else(|| panic!("tl-host has not printed {name}: {line:?}")).to_owned()
        };
        self.api = value("TENSORLAKE_API_URL");
        self.key = value("TENSORLAKE_API_KEY");
        self.proxy = value("TENSORLAKE_SANDBOX_PROXY_URL");
        std::thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        self.program = Some(child);
    }

    /// Sends a signal to the program and waits for its end.
    pub fn kill(&mut self, signal: Signal) {
        if let Some(mut child) = self.program.take() {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
            child.wait().expect("wait for tl-host");
        }
    }

    pub fn pid(&self) -> u32 {
        self.program.as_ref().expect("tl-host runs").id()
    }

    /// What the program has written to stderr so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log.path()).expect("read the log")
    }

    /// For tl-host, the machine is in another boot from its next start on.
    pub fn change_boot(&mut self) {
        let boot = NamedTempFile::new().expect("make a file for the id of the boot");
        fs::write(boot.path(), "00000000-0000-4000-8000-000000000000\n").expect("write the id of the boot");
        self.boot = Some(boot);
    }

    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    pub fn podman(&self) -> &'static Podman {
        self.podman
    }

    /// Sends a request to the API, with the key. `path` is below the root: `/sandboxes`.
    pub fn request(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.api));
        self.send(request, body.map(|body| body.to_string()).unwrap_or_default())
    }

    /// Sends a request to the tl-init of a sandbox, through the proxy. `path` is below `/api/v1`.
    pub fn ask(&self, method: &str, sandbox: &str, path: &str, body: &str) -> Answer {
        let request = ureq::http::Request::builder().method(method).uri(format!("{}/api/v1{path}", self.proxy));
        self.send(request.header("X-Tensorlake-Sandbox-Id", sandbox), body.to_owned())
    }

    fn send(&self, request: ureq::http::request::Builder, body: String) -> Answer {
        let request = request.header("Authorization", format!("Bearer {}", self.key));
        let request = request.body(body).expect("build the request");
        let name = format!("{} {}", request.method(), request.uri());
        let mut response = self.agent.run(request).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut text = String::new();
        response.body_mut().as_reader().read_to_string(&mut text).expect("read the answer");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status: response.status().as_u16(), body }
    }

    /// Runs a shell script in a sandbox, as the user of clients; returns its output. It must succeed.
    pub fn shell(&self, sandbox: &str, script: &str) -> String {
        let body = json!({ "command": "sh", "args": ["-c", script] });
        let answer = self.ask("POST", sandbox, "/processes/run", &body.to_string());
        let events = answer.body.as_str().unwrap_or_else(|| panic!("{script}: {answer:?}"));
        let events = events.lines().filter_map(|line| line.strip_prefix("data: "));
        let events: Vec<Value> = events.map(|event| serde_json::from_str(event).expect("an event is JSON")).collect();
        let lines: Vec<&str> = events.iter().filter_map(|event| event["line"].as_str()).collect();
        assert_eq!(events.last().map(|end| &end["exit_code"]), Some(&json!(0)), "{script}: {events:?}");
        lines.join("\n")
    }

    /// The value of a metric.
    pub fn metric(&self, name: &str) -> u64 {
        let page = self.request("GET", "/metrics", None).body;
        let page = page.as_str().expect("a page of metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("there is no {name}:\n{page}"))
    }

    /// The PID on this machine of the tl-init of a sandbox.
    pub fn init_pid(&self, id: &str) -> Pid {
        let pid = self.podman.run(&["inspect", "--format", "{{.State.Pid}}", &format!("tl-{id}")]);
        Pid::from_raw(pid.parse().expect("a PID"))
    }

    /// Sends a POST without a body.
    pub fn post(&self, path: &str) -> Answer {
        self.request("POST", path, None)
    }

    /// Makes a sandbox that must become ready, and returns its id.
    pub fn create(&self, body: Value) -> String {
        let answer = self.request("POST", "/sandboxes", Some(body));
        assert_eq!((answer.status, &answer.body["status"]), (200, &Value::from("running")), "{answer:?}");
        answer.body["sandbox_id"].as_str().expect("its id").to_owned()
    }

    /// Address of the tl-init of a sandbox, in the engine's network.
    pub fn address_of(&self, sandbox: &str) -> SocketAddr {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let ip = self.podman.run(&["inspect", "--format", format, &format!("tl-{sandbox}")]);
        SocketAddr::new(ip.parse().expect("the address of the container"), DAEMON_PORT)
    }

    /// Token of the tl-init of a sandbox.
    pub fn token_of(&self, sandbox: &str) -> String {
        let path = self.state_dir().join("tokens").join(sandbox);
        std::fs::read_to_string(path).expect("read the token").trim().to_owned()
    }

    /// Names of the engine's containers that belong to this host.
    pub fn containers(&self) -> Vec<String> {
        let instance = fs::read_to_string(self.state_dir().join("instance")).expect("read the instance");
        let filter = format!("label=tl-host.instance={}", instance.trim());
        let names = self.podman.run(&["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill(Signal::SIGTERM);
        let _ = self.command(&["stop", "--all"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if std::thread::panicking() {
            eprintln!("the log of tl-host:\n{}", self.log());
        }
    }
}

/// Calls `condition` until it returns a value; fails with `what` at the deadline.
pub fn wait_until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
