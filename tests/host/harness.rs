//! Starts the real tl-host on an engine of the tests' own, and speaks to it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

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

impl Host {
    pub fn start(podman: &'static Podman, init: PathBuf, options: &[&str]) -> Host {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build();
        let mut host = Host {
            podman,
            init,
            options: options.iter().map(|&word| word.to_owned()).collect(),
            state: tempfile::tempdir().expect("make a state directory"),
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
        let mut command = Command::new(program().expect("TL_TEST_HOST names tl-host"));
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["--engine", &self.podman.url(), "--default-image", IMAGE]);
        command.args(["--api", "127.0.0.1:0", "--proxy", "127.0.0.1:0"]);
        command.arg("--state-dir").arg(self.state_dir()).arg("--init").arg(&self.init).args(&self.options);
        command
    }

    /// Starts the program, if it does not run, with the state directory that it had before, and waits until it listens.
    pub fn restart(&mut self) {
        self.kill(Signal::SIGTERM);
        let mut child = self.command(&[]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start tl-host");
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

    pub fn state_dir(&self) -> &Path {
        self.state.path()
    }

    pub fn podman(&self) -> &'static Podman {
        self.podman
    }

    /// Sends a request to the API, with the key. `path` is below the root: `/sandboxes`.
    pub fn request(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.api))
            .header("Authorization", format!("Bearer {}", self.key));
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let response = self.agent.run(request.body(text).expect("build the request"));
        let mut response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let mut text = String::new();
        response.body_mut().as_reader().read_to_string(&mut text).expect("read the answer");
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Answer { status: response.status().as_u16(), body }
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
        let instance = std::fs::read_to_string(self.state_dir().join("instance")).expect("read the instance");
        let filter = format!("label=tl-host.instance={}", instance.trim());
        let names = self.podman.run(&["ps", "--all", "--filter", &filter, "--format", "{{.Names}}"]);
        names.lines().map(str::to_owned).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill(Signal::SIGTERM);
        let _ = self.command(&["stop", "--all"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
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
