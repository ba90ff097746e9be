//! Starts the supervisor from the options that were given. On a machine a problem is reported, and the start goes on
//! with a default or without the part that failed. Elsewhere the first problem ends the program with one line.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use nix::sys::sysinfo::sysinfo;
use nix::unistd::{AccessFlags, access};
use tl_os::random;
use tl_supervisor::http::Auth;
use tl_supervisor::{Builder, LogLimits, Supervisor, TraceStop};

use crate::args::RawConfig;
use crate::config::Config;
use crate::create_user::{self, CreateError, NewUser};
use crate::logger::console_output::ConsoleOutput;
use crate::report::Report;
use crate::role::Role;
use crate::{boot, files, logger};

/// Pause between attempts at a step that is tried until it succeeds.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// A directory in memory, used if no other is writable.
const LAST_DIR: &str = "/dev/shm/tl-init";

/// Everything that is started before the API.
pub(crate) struct Base {
    pub(crate) role: Role,
    pub(crate) config: Config,
    pub(crate) report: Report,
    /// The bearer token; `None` if requests need none.
    pub(crate) token: Option<Vec<u8>>,
    /// The cgroup that this process has yet to enter.
    pub(crate) leaf: Option<PathBuf>,
    pub(crate) supervisor: Supervisor,
    /// Set if the output of managed processes is copied to stdout.
    pub(crate) console: Option<ConsoleOutput>,
}

/// Performs the duties of a boot, and starts the supervisor. `on_trace_stop` is called for each orphan that has stopped
/// with the main thread as its tracer, which then has to resume it; `on_end` when the supervisor thread has ended.
///
/// # Errors
/// One sentence; never on a machine.
pub(crate) fn start(
    role: Role,
    raw: &RawConfig,
    report: Report,
    on_trace_stop: impl Fn(TraceStop) + Clone + Send + 'static,
    on_end: impl Fn() + Clone + Send + 'static,
) -> Result<Base, String> {
    let cgroup = if role == Role::Process { None } else { boot::boot(role, &report) };
    let start = Start { role, report };
    for name in raw.unknown() {
        start.report.failed("configuration", &format!("there is no option {name}"));
    }
    let mut config = match (raw.resolve(), role) {
        (Ok(config), _) => config,
        (Err(_), Role::Machine) => start.resolve_leniently(raw),
        (Err(error), _) => return Err(error),
    };
    logger::start(config.log_level, config.log_format);
    start.log_failures();
    if let Some(user) = &config.create_user {
        start.create_user(user)?;
    }
    config.run_dir = start.run_dir(&config)?;
    let env = config.env_file.as_deref().map_or_else(|| Ok(Vec::new()), |path| files::read_env(role, path));
    let env = start.or("env-file", env, || Ok(Vec::new()))?;
    let token = start.token(&mut config)?;
    let console = config.console_output.then(|| ConsoleOutput::start(config.keep_ended)).transpose();
    let console = console.map_err(|error| format!("--console-output: {error}"));
    let console = start.or("console-output", console, || Ok(None))?;
    let (parent, leaf) = cgroup.map_or((None, None), |settled| (Some(settled.parent), settled.leaf));
    let configure = |config: &Config| {
        let builder =
            builder(config).base_env(env.clone()).on_main_thread(on_trace_stop.clone()).on_end(on_end.clone());
        let builder = match console.as_ref().map(ConsoleOutput::sender) {
            Some(sender) => builder.on_managed_start(move |started| sender.started(started)),
            None => builder,
        };
        match &parent {
            Some(parent) => builder.cgroup(parent.clone()),
            None => builder,
        }
    };
    let supervisor = start.supervisor(&mut config, configure)?;
    Ok(Base { role, config, report: start.report, token, leaf, supervisor, console })
}

/// Adds the variables of `init.conf` to the options that were given.
pub(crate) fn read_conf(raw: &mut RawConfig, report: &Report) {
    let path = raw.config_dir().join("init.conf");
    // A file that does not exist is no problem; a directory that cannot be entered is one.
    if matches!(fs::symlink_metadata(&path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return;
    }
    let (pairs, problem) = files::read_conf(&path);
    raw.add_conf(pairs);
    if let Some(problem) = problem {
        report.failed("init.conf", &problem);
    }
}

/// How the API authenticates requests.
pub(crate) fn auth(token: Option<&Vec<u8>>) -> Auth {
    token.map_or(Auth::AllowAll, |token| Auth::Token(token.clone()))
}

/// The steps of a start, and how they handle a problem.
struct Start {
    role: Role,
    report: Report,
}

impl Start {
    /// Returns the result; on a machine, if it is an error, reports the error and returns the result of `otherwise`.
    fn or<T, E: Display>(
        &self,
        name: &str,
        result: Result<T, E>,
        otherwise: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match result {
            Err(error) if self.role == Role::Machine => {
                self.failed(name, &error);
                otherwise()
            }
            result => result,
        }
    }

    fn failed(&self, name: &str, error: &dyn Display) {
        self.report.failed(name, &error.to_string());
        log::error!("{name}: {error}");
    }

    fn resolve_leniently(&self, raw: &RawConfig) -> Config {
        let (config, problems) = raw.resolve_leniently();
        for problem in problems {
            self.report.failed("configuration", &problem);
        }
        config
    }

    /// Logs the failures of the steps before the log was started.
    fn log_failures(&self) {
        for step in self.report.so_far().steps.iter().filter(|step| !step.ok) {
            log::error!("{}: {}", step.name, step.detail);
        }
    }

    /// Makes the user of `--create-user`. What fails is reported, and the start goes on: commands of a user that does not
    /// exist fail by themselves. Only a process that may not make users ends.
    fn create_user(&self, user: &NewUser) -> Result<(), String> {
        let mut refusal = None;
        self.report.step("create-user", || {
            let result = create_user::create(user, Path::new("/"));
            match &result {
                Ok(done) => log::info!("create-user: {done}"),
                Err(error @ CreateError::NotRoot(_)) if self.role != Role::Machine => {
                    refusal = Some(format!("--create-user: {error}"));
                }
                Err(error) => log::error!("create-user: {error}"),
            }
            result
        });
        refusal.map_or(Ok(()), Err)
    }

    /// The bearer token, unless requests need none: from `--token-file`, or made here. If the file cannot be used, a
    /// machine makes a token and behaves as without `--token-file`.
    fn token(&self, config: &mut Config) -> Result<Option<Vec<u8>>, String> {
        if config.no_auth {
            return Ok(None);
        }
        let Some(path) = &config.token_file else { return files::make_token().map(Some) };
        let token = self.or("token-file", files::read_token(self.role, path).map(Some), || Ok(None))?;
        if token.is_some() {
            return Ok(token);
        }
        config.token_file = None;
        files::make_token().map(Some)
    }

    /// The directory for the token and the address. For PID 1 that is one in memory if the configured one cannot be
    /// used.
    fn run_dir(&self, config: &Config) -> Result<PathBuf, String> {
        let made = make_own(&config.run_dir).map_err(|error| format!("--run-dir: {error}"));
        match made {
            Err(error) if self.role != Role::Process => {
                self.failed("run-dir", &error);
                let last = PathBuf::from(LAST_DIR);
                // The memory may be older than this container, and every user may create directories there.
                if files::check_owner(&last).is_err() {
                    let _ = fs::rename(&last, format!("{LAST_DIR}.{}", random::hex::<8>().unwrap_or_default()));
                }
                self.or("run-dir", make_own(&last), || Ok(()))?;
                Ok(last)
            }
            result => result.map(|()| config.run_dir.clone()),
        }
    }

    /// Starts the supervisor that `configure` sets up. As PID 1 it tries the configured log directory, then directories
    /// in memory; on a machine it repeats this until one of them works.
    fn supervisor(&self, config: &mut Config, configure: impl Fn(&Config) -> Builder) -> Result<Supervisor, String> {
        let mut dirs = vec![config.log_dir.clone()];
        if self.role != Role::Process {
            dirs.extend([config.run_dir.join("log"), Path::new(LAST_DIR).join("log")]);
        }
        let mut reported = false;
        loop {
            let mut last = String::new();
            for dir in &dirs {
                config.log_dir.clone_from(dir);
                match configure(config).start() {
                    Ok(supervisor) => return Ok(supervisor),
                    Err(error) => last = format!("--log-dir: output cannot be kept in {}: {error}", dir.display()),
                }
                if dirs.len() > 1 && !reported {
                    self.failed("log-dir", &last);
                }
            }
            // Only the first round is reported.
            reported = true;
            if self.role != Role::Machine {
                return Err(last);
            }
            std::thread::sleep(RETRY);
        }
    }
}

/// Makes a directory, and checks that this process can write in it and that no other user can replace what it writes.
fn make_own(dir: &Path) -> Result<(), String> {
    // First: after this, no other user can replace the directory that is checked below.
    for changed in files::set_sticky_bits(dir) {
        log::warn!("{}: every user may write to it; its sticky bit is set", changed.display());
    }
    files::make_dir(dir)?;
    access(dir, AccessFlags::W_OK).map_err(|errno| format!("{}: {errno}", dir.display()))?;
    files::check_owner(dir)
}

fn builder(config: &Config) -> Builder {
    let total = config.log_total.unwrap_or_else(|| default_log_total(&config.log_dir));
    let builder = Supervisor::builder(&config.log_dir);
    let builder = match config.max_tasks {
        Some(most) => builder.max_tasks(most),
        None => builder,
    };
    builder
        .default_user(config.default_user.clone())
        .no_new_privs(config.no_new_privs)
        .default_limits(config.default_limits)
        .log_limits(LogLimits { per_unit: config.log_limit, total })
        .max_processes(config.max_processes)
        .keep_ended(config.keep_ended)
        .max_connections(config.max_connections)
        .max_sessions(config.max_sessions)
        .session_idle(config.session_idle)
}

/// The default of `--log-total`: 1 GiB or a tenth of the file system, whichever is less, but at least 1 MiB
/// (docs/api.md, Limits). A file system without a size, as an initramfs can be, is as large as the memory.
///
/// The lower bound lets logs fill a file system of less than 10 MiB: a tenth of it would be less than is kept in memory
/// for a process whose log directory has no room at all.
fn default_log_total(log_dir: &Path) -> u64 {
    const MOST: u64 = 1 << 30;
    const LEAST: u64 = 1 << 20;
    // The directory may not exist yet; it will be in the file system of its nearest ancestor that exists.
    let log_dir = std::path::absolute(log_dir).unwrap_or_else(|_| log_dir.to_owned());
    let here = log_dir.ancestors().find_map(|dir| statvfs(dir).ok());
    let size = here.map(|fs| fs.blocks().saturating_mul(fs.fragment_size())).filter(|size| *size > 0);
    let size = size.or_else(|| sysinfo().ok().map(|memory| memory.ram_total()));
    size.map_or(MOST, |size| (size / 10).clamp(LEAST, MOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_have_room_on_a_file_system_without_a_size() {
        // Like ramfs, procfs reports 0 blocks.
        assert!(default_log_total(Path::new("/proc/self")) >= 1 << 20);
        assert!(default_log_total(Path::new("/nowhere/at/all")) >= 1 << 20);
    }
}
