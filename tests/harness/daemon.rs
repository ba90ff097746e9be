//! A running daemon: its start, its directories, its processes and its end.

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::options::Place;
use super::{Options, TIMEOUT, TOKEN, procfs, wait_until, wait_until_ok};

/// A running daemon. Dropping it kills it and everything that it started.
pub struct Daemon {
    launcher: Child,
    dir: TempDir,
    place: Place,
    /// PID of the daemon in the namespace of the test.
    pub pid: i32,
    /// Address of the API.
    pub addr: SocketAddr,
    /// Bearer token of the API.
    pub token: String,
    pub(super) agent: ureq::Agent,
}

impl Daemon {
    pub(super) fn start(options: &Options) -> Daemon {
        let dir = tempfile::Builder::new()
            .prefix("tl-test.")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .expect("create the directory of the test");
        let state = dir.path().join("state");
        let log = std::fs::File::create(dir.path().join("daemon.log")).expect("create the log of the daemon");
        let launcher = options.command(&state, log).spawn().expect("start the daemon");
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .build()
            .new_agent();
        let mut daemon = Daemon {
            launcher,
            dir,
            place: options.place(),
            pid: 0,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            token: String::new(),
            agent,
        };
        daemon.wait_until_ready(&state.join("run"));
        daemon
    }

    fn wait_until_ready(&mut self, run_dir: &Path) {
        self.addr = wait_until(TIMEOUT, "the daemon writes its address", || {
            if let Some(status) = self.launcher.try_wait().expect("wait for the launcher") {
                panic!("the daemon ended during its start: {status}");
            }
            std::fs::read_to_string(run_dir.join("address")).ok()?.trim().parse().ok()
        });
        self.pid = wait_until(TIMEOUT, "the daemon runs in its namespace", || self.find_daemon());
        // With --token-file or --no-auth the daemon writes no token; such tests use TOKEN.
        let written = std::fs::read_to_string(run_dir.join("token")).unwrap_or_else(|_| TOKEN.to_owned());
        written.trim().clone_into(&mut self.token);
        // The API answers before the start is complete. A test that counts threads and descriptors needs all of them: the
        // supervisor starts the fork server before it answers a request, and the thread `services` is started last.
        wait_until(TIMEOUT, "GET /processes answers", || (self.try_status("/processes")? == 200).then_some(()));
        wait_until(TIMEOUT, "the daemon has started all its threads and closed all connections", || {
            let threads = procfs::threads(self.pid);
            let has = |name: &str| threads.iter().any(|thread| thread == name);
            (has("services") && !has("http-conn")).then_some(())
        });
    }

    /// PID of the daemon, which has written its address already.
    fn find_daemon(&self) -> Option<i32> {
        let launcher = self.launcher.id() as i32;
        match self.place {
            Place::Machine => Some(launcher),
            Place::BelowPid1 => procfs::children(pid1_below(launcher)?).first().copied(),
            // The launcher is a script: its children are a guard and unshare.
            Place::Pid1 => procfs::children(launcher).into_iter().find_map(pid1_below),
        }
    }

    /// A directory that every user can write to; it is removed with the test.
    pub fn scratch(&self) -> PathBuf {
        let scratch = self.dir.path().join("scratch");
        if std::fs::create_dir(&scratch).is_ok() {
            std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o1777))
                .expect("make it writable for all");
        }
        scratch
    }

    /// Writes an executable script into [`Daemon::scratch`].
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.scratch().join(name);
        // Another process writes it: a child that another test forks meanwhile would inherit a file that is open for
        // writing here, and its exec would fail with ETXTBSY.
        let write = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
        let status = Command::new("sh").args(["-c", write]).arg(&path).arg(text).status().expect("run the shell");
        assert!(status.success(), "write {path:?}");
        path
    }

    /// The directory that holds `run` and `log` of the daemon.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// The file that gets stdout of the daemon, and its stderr unless [`Options::stderr`] redirects it.
    pub fn log_file(&self) -> PathBuf {
        self.dir.path().join("daemon.log")
    }

    /// The log of the daemon so far.
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.log_file()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A new connection to the API, with a read and a write timeout.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect_timeout(&self.addr, TIMEOUT).expect("connect");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set the read timeout");
        stream.set_write_timeout(Some(TIMEOUT)).expect("set the write timeout");
        stream
    }

    /// PIDs, in the namespace of the test, of live processes below the daemon whose command line contains `text`.
    pub fn pids_matching(&self, text: &str) -> Vec<i32> {
        let below = procfs::descendants(self.pid);
        below.into_iter().filter(|&pid| procfs::command_line(pid).contains(text)).collect()
    }

    /// PIDs, in the namespace of the test, of live processes below the daemon whose command line starts with `words`.
    /// A shell that only names the command in its script does not count.
    pub fn pids_executing(&self, words: &str) -> Vec<i32> {
        let below = procfs::descendants(self.pid);
        below.into_iter().filter(|&pid| procfs::command_line(pid).starts_with(words)).collect()
    }

    /// Waits until `count` live processes below the daemon execute `words`; returns their PIDs.
    pub fn wait_for_processes(&self, words: &str, count: usize) -> Vec<i32> {
        wait_until(TIMEOUT, &format!("{count} processes execute {words:?}"), || {
            Some(self.pids_executing(words)).filter(|pids| pids.len() == count)
        })
    }

    /// Waits until no live process below the daemon has `text` on its command line.
    pub fn wait_until_gone(&self, deadline: Duration, text: &str) {
        wait_until(deadline, &format!("no process has {text:?} on its command line"), || {
            self.pids_matching(text).is_empty().then_some(())
        });
    }

    /// Number of threads and of open descriptors of the daemon.
    pub fn threads_and_descriptors(&self) -> (usize, usize) {
        (procfs::threads(self.pid).len(), procfs::descriptors(self.pid).len())
    }

    /// Waits until the daemon has no more threads and no more descriptors than `before`; fails with a list of those
    /// that it has.
    pub fn wait_until_released(&self, before: (usize, usize)) {
        wait_until_ok(TIMEOUT, || {
            let (threads, descriptors) = (procfs::threads(self.pid), procfs::descriptors(self.pid));
            let is_released = threads.len() <= before.0 && descriptors.len() <= before.1;
            is_released.then_some(()).ok_or_else(|| {
                format!("at most {before:?} threads and descriptors; it has {threads:?} and {descriptors:?}")
            })
        });
    }

    /// Waits until the daemon uses no CPU time for `period`, although it could.
    pub fn wait_until_idle(&self, period: Duration) {
        wait_until(TIMEOUT, "the daemon uses no CPU time", || {
            let before = procfs::cpu_time(self.pid);
            std::thread::sleep(period);
            // A thread that waits for a CPU is not idle.
            (procfs::cpu_time(self.pid) == before && !procfs::is_runnable(self.pid)).then_some(())
        });
    }

    /// Sends a signal to the daemon itself.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).expect("signal the daemon");
    }

    /// Sends a signal to the daemon by number: real-time signals have no name in nix.
    pub fn signal_number(&self, signal: i32) {
        let kill = format!("kill -{signal} {}", self.pid);
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("run the shell").success(), "{kill}");
    }

    /// Waits until the daemon and its launcher have ended.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> ExitStatus {
        wait_until(deadline, "the daemon ends", || self.launcher.try_wait().expect("wait for the launcher"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of the daemon\n{}--- end of the log of the daemon", self.log());
        }
        if matches!(self.launcher.try_wait(), Ok(Some(_))) {
            return;
        }
        let kill = |pid: i32, signal| _ = kill(Pid::from_raw(pid), signal);
        let launcher = self.launcher.id() as i32;
        match self.place {
            // The namespace ends with its PID 1; the launcher then cleans up and ends.
            Place::Pid1 if self.pid != 0 => kill(self.pid, Signal::SIGKILL),
            Place::Pid1 => kill(launcher, Signal::SIGTERM),
            // unshare waits for the end of PID 1, which waits for that of the namespace.
            Place::BelowPid1 => kill(pid1_below(launcher).unwrap_or(launcher), Signal::SIGKILL),
            // Without a namespace nothing else ends the processes of the daemon.
            Place::Machine => {
                let left = procfs::descendants(launcher);
                kill(launcher, Signal::SIGKILL);
                left.into_iter().for_each(|pid| kill(pid, Signal::SIGKILL));
            }
        }
        let _ = self.launcher.wait();
    }
}

/// The child of unshare that is PID 1 of a namespace.
fn pid1_below(unshare: i32) -> Option<i32> {
    procfs::children(unshare).into_iter().find(|&pid| procfs::is_pid1(pid))
}
