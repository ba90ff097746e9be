//! From what was given to a supervisor that runs. The init of a machine cannot give up: it goes on with less, and says
//! so; everybody else says in one line what is wrong, and ends.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::Sender;
use nix::sys::statvfs::statvfs;
use nix::sys::sysinfo::sysinfo;
use nix::unistd::{AccessFlags, access};
use tl_supervisor::http::Auth;
use tl_supervisor::{Builder, LogLimits, Supervisor};

use crate::args::{Config, Given};
use crate::report::Report;
use crate::role::Role;
use crate::run::Event;
use crate::{boot, files, logger};

/// Until something that must not fail is tried again.
pub(crate) const RETRY: Duration = Duration::from_secs(1);

/// Memory, where nothing else can be written. Nobody else has been there before PID 1.
const LAST_DIR: &str = "/dev/shm/tl-init";

/// What is there before anything can be asked for.
pub(crate) struct Base {
    pub(crate) place: Role,
    pub(crate) config: Config,
    pub(crate) report: Report,
    pub(crate) token: Option<Vec<u8>>,
    /// The cgroup that is still to be entered.
    pub(crate) leaf: Option<PathBuf>,
    pub(crate) supervisor: Supervisor,
}

/// Does what a boot has to do, and starts the supervisor.
///
/// # Errors
/// One sentence; never on a machine.
pub(crate) fn start(place: Role, given: &Given, report: Report, tell: Sender<Event>) -> Result<Base, String> {
    let cgroup = if place == Role::Process { None } else { boot::boot(place, &report) };
    let start = Start { place, report, tell };
    for name in given.unknown() {
        start.report.failed("configuration", &format!("there is no option {name}"));
    }
    let mut config = match (given.strictly(), place) {
        (Ok(config), _) => config,
        (Err(_), Role::Machine) => start.make_do(given),
        (Err(error), _) => return Err(error),
    };
    logger::start(config.log_level, config.log_format);
    start.tell_failures();
    config.run_dir = start.run_dir(&config)?;
    let env = config.env_file.as_deref().map_or_else(|| Ok(Vec::new()), |path| files::read_env(place, path));
    let env = start.or("env-file", env, || Ok(Vec::new()))?;
    let token = start.token(&mut config)?;
    let (parent, leaf) = cgroup.map_or((None, None), |settled| (Some(settled.parent), settled.leaf));
    let supervisor = start.supervisor(&mut config, env, parent)?;
    Ok(Base { place, config, report: start.report, token, leaf, supervisor })
}

/// Adds `init.conf` to what was given.
pub(crate) fn read_conf(given: &mut Given, report: &Report) {
    let path = given.config_dir().join("init.conf");
    // By its metadata: a directory that cannot be entered is a problem as well.
    if matches!(fs::symlink_metadata(&path), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return;
    }
    let (pairs, problem) = files::read_conf(&path);
    pairs.into_iter().for_each(|(name, value)| given.add(name, value));
    if let Some(problem) = problem {
        report.failed("init.conf", &problem);
    }
}

/// Who may use the API.
pub(crate) fn auth(token: Option<&Vec<u8>>) -> Auth {
    token.map_or(Auth::Anybody, |token| Auth::Token(token.clone()))
}

struct Start {
    place: Role,
    report: Report,
    tell: Sender<Event>,
}

impl Start {
    /// What has failed, or on a machine what is done instead, with a word about it.
    fn or<T, E: Display>(
        &self,
        name: &str,
        result: Result<T, E>,
        otherwise: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match result {
            Err(error) if self.place == Role::Machine => {
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

    fn make_do(&self, given: &Given) -> Config {
        let (config, problems) = given.leniently();
        for problem in problems {
            self.report.failed("configuration", &problem);
        }
        config
    }

    /// The log has just begun: what has failed before is told now.
    fn tell_failures(&self) {
        for step in self.report.so_far().steps.iter().filter(|step| !step.ok) {
            log::error!("{}: {}", step.name, step.detail);
        }
    }

    /// The bearer token, where one is asked for. Without the file that it was to come from, a machine makes one and
    /// leaves it where one without a file is.
    fn token(&self, config: &mut Config) -> Result<Option<Vec<u8>>, String> {
        if config.no_auth {
            return Ok(None);
        }
        let Some(path) = &config.token_file else { return files::make_token().map(Some) };
        let token = self.or("token-file", files::read_token(self.place, path).map(Some), || Ok(None))?;
        if token.is_some() {
            return Ok(token);
        }
        config.token_file = None;
        files::make_token().map(Some)
    }

    /// Where the token and the address go: for PID 1 there is one in the end.
    fn run_dir(&self, config: &Config) -> Result<PathBuf, String> {
        let made = usable(&config.run_dir).map_err(|error| format!("--run-dir: {error}"));
        match made {
            Err(error) if self.place != Role::Process => {
                self.failed("run-dir", &error);
                let last = PathBuf::from(LAST_DIR);
                self.or("run-dir", usable(&last).and_then(|()| files::check_owner(&last)), || Ok(()))?;
                Ok(last)
            }
            result => result.map(|()| config.run_dir.clone()),
        }
    }

    /// Tries until it runs: as configured, then with its logs where they will be lost, then again.
    fn supervisor(
        &self,
        config: &mut Config,
        env: Vec<(String, String)>,
        cgroup: Option<PathBuf>,
    ) -> Result<Supervisor, String> {
        let mut dirs = vec![config.log_dir.clone()];
        if self.place != Role::Process {
            dirs.extend([config.run_dir.join("log"), Path::new(LAST_DIR).join("log")]);
        }
        let mut told = false;
        loop {
            let mut last = String::new();
            for dir in &dirs {
                config.log_dir.clone_from(dir);
                let tell = self.tell.clone();
                let hand_over = move |stop| drop(tell.send(Event::TraceStop(stop)));
                let tell = self.tell.clone();
                let on_end = move || drop(tell.send(Event::SupervisorEnded));
                let mut builder = builder(config).base_env(env.clone()).on_main_thread(hand_over).on_end(on_end);
                if let Some(parent) = &cgroup {
                    builder = builder.cgroup(parent.clone());
                }
                match builder.start() {
                    Ok(supervisor) => return Ok(supervisor),
                    Err(error) => last = format!("cannot start with --log-dir {}: {error}", dir.display()),
                }
                if dirs.len() > 1 && !told {
                    self.failed("log-dir", &last);
                }
            }
            // Once: this can go on for as long as the machine does.
            told = true;
            if self.place != Role::Machine {
                return Err(last);
            }
            std::thread::sleep(RETRY);
        }
    }
}

/// Makes a directory that we can write in.
fn usable(dir: &Path) -> Result<(), String> {
    files::make_dir(dir)?;
    access(dir, AccessFlags::W_OK).map_err(|errno| format!("{}: {errno}", dir.display()))
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
        .log_limits(LogLimits { per_unit: config.log_limit, total })
        .max_processes(config.max_processes)
        .keep_ended(config.keep_ended)
        .max_connections(config.max_connections)
        .max_sessions(config.max_sessions)
        .session_idle(config.session_idle)
}

/// 1 GiB or a tenth of the file system, the smaller (section 7). One without a size, as an initramfs can be, is in
/// memory. A tenth of a tiny one would keep less of a process than memory does where there is no room at all: there the
/// logs may fill it.
fn default_log_total(log_dir: &Path) -> u64 {
    const MOST: u64 = 1 << 30;
    const LEAST: u64 = 1 << 20;
    // The directory may not be there yet: its file system is that of the nearest one that is.
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
    fn the_logs_have_room_where_the_file_system_has_no_size() {
        // Like ramfs, it says that it has 0 blocks.
        assert!(default_log_total(Path::new("/proc/self")) >= 1 << 20);
        assert!(default_log_total(Path::new("/nowhere/at/all")) >= 1 << 20);
    }
}
