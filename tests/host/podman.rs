//! Podman with a storage and a network of its own, for the tests of one test program.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// The small image of the tests: a shell, and root only in `/etc/passwd`.
pub const IMAGE: &str = "localhost/tl-busybox:latest";

/// Time for anything that the engine does; long enough for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Podman's API service, by `tests/host/podman.sh`. That script removes everything when this program ends.
pub struct Podman {
    directory: PathBuf,
    script: Mutex<Child>,
}

/// The service that all tests of this program share. `None`: there is no Podman, and the test is skipped, with a message;
/// if `TL_TEST_ALL` is set, that is a failure.
pub fn podman() -> Option<&'static Podman> {
    static PODMAN: OnceLock<Option<Podman>> = OnceLock::new();
    PODMAN.get_or_init(Podman::start_if_possible).as_ref()
}

/// Marks the current test as skipped, or fails if none may be skipped.
pub fn skip(why: &str) {
    assert!(std::env::var_os("TL_TEST_ALL").is_none(), "{why}");
    eprintln!("{}: skipped: {why}", std::thread::current().name().unwrap_or("a test"));
}

/// The top directory of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the directory above host/")
}

impl Podman {
    fn start_if_possible() -> Option<Podman> {
        let is_there =
            |program: &str| Command::new(program).arg("--version").output().is_ok_and(|run| run.status.success());
        if !is_there("podman") || !is_there("runc") {
            skip("there is no podman: `tests/need podman` installs it");
            return None;
        }
        if !nix::unistd::geteuid().is_root() {
            skip("an engine of its own needs root");
            return None;
        }
        Some(Podman::start(None))
    }

    /// Starts the service and imports the image of the tests. `storage` is the size of a storage in memory: `64m`.
    pub fn start(storage: Option<&str>) -> Podman {
        let directory = tempfile::Builder::new().prefix("tl-engine.").tempdir().expect("make a directory").keep();
        let script = Command::new(repository().join("tests/host/podman.sh"))
            .arg(&directory)
            .args(storage)
            .stdin(Stdio::piped())
            .spawn()
            .expect("start tests/host/podman.sh");
        let podman = Podman { directory, script: Mutex::new(script) };
        podman.wait_until_reachable();
        let made = Command::new(repository().join("host/image.sh")).arg("busybox").status();
        assert!(made.expect("run host/image.sh").success(), "host/image.sh busybox");
        let archive = repository().join(".cache/host/busybox.tar");
        podman.run(&["import", "--quiet", archive.to_str().expect("a path in UTF-8"), IMAGE]);
        podman
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("podman.sock")
    }

    /// The value of `--engine`.
    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Runs the command `podman` on this storage and returns its output. It needs no service.
    pub fn run(&self, words: &[&str]) -> String {
        self.try_run(words).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Like [`Podman::run`]; the error is what the command has printed.
    pub fn try_run(&self, words: &[&str]) -> Result<String, String> {
        let output = Command::new(self.directory.join("podman")).args(words).output().expect("run podman");
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("podman {words:?}: {}\n{errors}", output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Gives a command to `tests/host/podman.sh`.
    fn command(&self, command: &str) {
        let mut script = self.script.lock().unwrap();
        let stdin = script.stdin.as_mut().expect("the script's standard input");
        stdin.write_all(format!("{command}\n").as_bytes()).expect("give a command to tests/host/podman.sh");
    }

    /// Ends the service with SIGKILL and waits until nobody answers. Containers go on.
    pub fn kill_service(&self) {
        self.command("kill");
        self.wait_for("the service to end", || UnixStream::connect(self.socket()).is_err());
    }

    /// Starts the service again and waits until it can be reached.
    pub fn start_service(&self) {
        // The socket of the service that was killed.
        let _ = fs::remove_file(self.socket());
        self.command("start");
        self.wait_until_reachable();
    }

    /// Stops the execution of the service: requests are accepted and never answered.
    pub fn freeze_service(&self) {
        self.command("freeze");
    }

    pub fn thaw_service(&self) {
        self.command("thaw");
    }

    /// Leaves everything as a restart of the machine does; the service is started again.
    pub fn reboot(&self) {
        self.command("reboot");
        self.wait_for("the end of everything", || self.directory.join("rebooted").exists());
        self.start_service();
    }

    /// The directory of everything that the engine stores.
    pub fn storage(&self) -> PathBuf {
        self.directory.join("graph")
    }

    fn wait_until_reachable(&self) {
        self.wait_for("the engine's socket", || UnixStream::connect(self.socket()).is_ok());
    }

    fn wait_for(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + TIMEOUT;
        while !condition() {
            if Instant::now() >= deadline {
                let log = fs::read_to_string(self.directory.join("service.log")).unwrap_or_default();
                panic!("waited in vain for {what}; the log of the service:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Podman {
    /// For an engine that one test alone has: everything of it is removed before the test ends.
    fn drop(&mut self) {
        let mut script = self.script.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(script.stdin.take());
        let _ = script.wait();
    }
}
