//! How a daemon is started: [`Options`], and the command line that they make.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::cgroups::SET_CGROUP;
use super::{Daemon, bound_command, is_root};

/// Remounts cgroups read-only in the current mount namespace, then becomes the program.
const READ_ONLY_CGROUPS: &str = "awk '$3 == \"cgroup2\" { print $2 }' /proc/mounts | while read -r mounted; do
    mount -o remount,bind,ro \"$mounted\"; done; exec \"$0\" \"$@\"";

/// PID 1 of a namespace, which waits for the program and exits with its status. It prints what is left of the program;
/// a zombie has no executable.
const INIT: &str = "\"$0\" \"$@\"; status=$?
    for dir in /proc/[1-9]*; do
        if [ $dir != /proc/1 ] && [ -e $dir/exe ] && read -r name <$dir/comm; then echo \"left: $name\" >&2; fi
    done
    exit $status";

/// The program under test: TL_TEST_PROGRAM, an absolute path, or else what cargo has built.
pub fn program() -> PathBuf {
    std::env::var_os("TL_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_tl-init").into(), PathBuf::from)
}

/// Which process of which PID namespace a daemon is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// PID 1 of a namespace of its own.
    Pid1,
    /// The child of PID 1 of a namespace of its own.
    BelowPid1,
    /// A process of the namespace of the test.
    Machine,
}

/// Options of a daemon; [`Options::default`] starts it as PID 1 of a new namespace, with a cgroup.
#[derive(Clone)]
pub struct Options {
    namespace: bool,
    cgroup: bool,
    pid_max: Option<u32>,
    prepare: Option<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    stdout: Option<Arc<OwnedFd>>,
    stderr: Option<Arc<OwnedFd>>,
    /// Arguments of `prlimit`.
    limits: Vec<String>,
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
            stdout: None,
            stderr: None,
            limits: Vec::new(),
        }
    }
}

impl Options {
    /// The daemon is an ordinary process, a subreaper that is not PID 1. Run by root, the tests put it into a PID namespace
    /// of a shell, with which everything ends that it has started and lost; without root it is in that of the machine.
    pub fn subreaper() -> Options {
        Options { namespace: false, ..Options::default() }
    }

    /// The three ways in which the daemon keeps track of process trees: by cgroup; by `/proc`, as PID 1; by `/proc`, as
    /// a subreaper.
    pub fn all_tree_tracking() -> [Options; 3] {
        [Options::default(), Options::default().without_cgroup(), Options::subreaper().without_cgroup()]
    }

    /// Adds arguments to the command line of the daemon.
    pub fn args(mut self, args: &[&str]) -> Options {
        self.args.extend(args.iter().map(ToString::to_string));
        self
    }

    /// Adds a variable to the environment of the daemon.
    pub fn env(mut self, key: &str, value: &str) -> Options {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Sends stdout of the daemon to this descriptor; [`Daemon::log`] then returns only its stderr.
    pub fn stdout(mut self, stdout: OwnedFd) -> Options {
        self.stdout = Some(Arc::new(stdout));
        self
    }

    /// Sends the log of the daemon to this descriptor; [`Daemon::log`] then returns only its stdout.
    pub fn stderr(mut self, stderr: OwnedFd) -> Options {
        self.stderr = Some(Arc::new(stderr));
        self
    }

    /// Starts the daemon with a soft resource limit, named as in `prlimit --NAME`.
    pub fn soft_limit(mut self, name: &str, soft: u64) -> Options {
        self.limits.push(format!("--{name}={soft}:"));
        self
    }

    /// Limits the descriptors of the daemon, soft and hard.
    pub fn max_descriptors(mut self, limit: u64) -> Options {
        self.limits.push(format!("--nofile={limit}:{limit}"));
        self
    }

    /// Limits the address space of the daemon in bytes, soft and hard.
    pub fn max_address_space(mut self, limit: u64) -> Options {
        self.limits.push(format!("--as={limit}:{limit}"));
        self
    }

    /// The daemon cannot create cgroups.
    pub fn without_cgroup(mut self) -> Options {
        self.cgroup = false;
        self
    }

    /// The `/proc` of the daemon is that of the outer PID namespace.
    pub fn outer_proc(self) -> Options {
        self.env("TL_NS_PROC", "outer")
    }

    /// The highest PID in the namespace. A low one makes the kernel reuse PIDs soon.
    pub fn pid_max(mut self, pid_max: u32) -> Options {
        self.pid_max = Some(pid_max);
        self
    }

    /// Shell commands that PID 1 of the namespace runs before it becomes the daemon; `$cgroup` is its cgroup directory.
    pub fn prepare(mut self, script: &str) -> Options {
        self.prepare = Some(format!("set -e\n{SET_CGROUP}\n{script}\nexec \"$@\""));
        self
    }

    /// Starts the daemon and waits until it answers.
    pub fn start(self) -> Daemon {
        Daemon::start(&self)
    }

    /// The place of the daemon in a PID namespace.
    pub(super) fn place(&self) -> Place {
        match self.namespace {
            true => Place::Pid1,
            false if is_root() => Place::BelowPid1,
            false => Place::Machine,
        }
    }

    /// The command that starts the daemon. Its state is below `state`; stdout, and stderr unless redirected, go to
    /// `log`.
    pub(super) fn command(&self, state: &Path, log: File) -> Command {
        let mut command = if self.namespace { self.in_namespace(state) } else { self.subreaper_command(state) };
        if !self.cgroup {
            command.env("TL_NS_CGROUP", "no");
        }
        if let Some(pid_max) = self.pid_max {
            command.env("TL_NS_PID_MAX", pid_max.to_string());
        }
        command.args(["--listen", "127.0.0.1:0"]).args(&self.args);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        // A main process starts in the working directory of the daemon, so every user must be able to enter it.
        command.current_dir("/");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("duplicate the descriptor")).stderr(log);
        if let Some(stdout) = &self.stdout {
            command.stdout(stdout.try_clone().expect("duplicate the descriptor"));
        }
        if let Some(stderr) = &self.stderr {
            command.stderr(stderr.try_clone().expect("duplicate the descriptor"));
        }
        command
    }

    fn in_namespace(&self, state: &Path) -> Command {
        let mut command = self.limited_command(concat!(env!("CARGO_MANIFEST_DIR"), "/namespace.sh"));
        if let Some(script) = &self.prepare {
            command.args(["/bin/sh", "-c", script, "sh"]);
        }
        command.arg(program()).env("TL_NS_DIR", state);
        command
    }

    fn subreaper_command(&self, state: &Path) -> Command {
        std::fs::create_dir(state).expect("create the state directory");
        let mut arguments: Vec<OsString> = Vec::new();
        if self.place() == Place::BelowPid1 {
            // While it waits for its child, unshare blocks SIGTERM.
            arguments.extend(["setpriv", "--pdeathsig", "KILL"].map(OsString::from));
            arguments
                .extend(["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"].map(OsString::from));
            arguments.extend(["sh", "-c", INIT].map(OsString::from));
        }
        if !self.limits.is_empty() {
            arguments.push("prlimit".into());
            arguments.extend(self.limits.iter().map(OsString::from));
        }
        if !self.cgroup {
            arguments.extend(["unshare", "--mount", "sh", "-c", READ_ONLY_CGROUPS].map(OsString::from));
        }
        arguments.push(program().into());
        let mut command = bound_command(&arguments[0]);
        command.args(&arguments[1..]);
        command.env("TL_INIT_RUN_DIR", state.join("run")).env("TL_INIT_LOG_DIR", state.join("log"));
        // The machine may have no user `tl-user`.
        if !self.args.iter().any(|arg| arg == "--default-user") {
            command.env("TL_INIT_DEFAULT_USER", nix::unistd::geteuid().to_string());
        }
        command
    }

    fn limited_command(&self, program: impl AsRef<OsStr>) -> Command {
        if self.limits.is_empty() {
            return bound_command(program);
        }
        let mut command = bound_command("prlimit");
        command.args(&self.limits).arg(program);
        command
    }
}

/// A daemon as PID 1 with its default options.
pub fn start_daemon() -> Daemon {
    Options::default().start()
}

/// A daemon as PID 1 with these arguments on its command line.
pub fn start_daemon_with(args: &[&str]) -> Daemon {
    Options::default().args(args).start()
}
