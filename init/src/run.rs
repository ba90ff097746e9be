//! From the configuration to a running daemon, and to its ordered end.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select, unbounded};
use nix::sys::statvfs::statvfs;
use tl_supervisor::http::{Auth, Options, Server};
use tl_supervisor::logs::Limits;
use tl_supervisor::os::poll::Waker;
use tl_supervisor::os::tree::kill_everything;
use tl_supervisor::signals::SignalThread;
use tl_supervisor::{Exit, Handle, ProcessSpec, Supervisor, Target, worker};

use crate::args::Config;
use crate::{files, logger};

/// Why everything ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Signal(i32),
    /// The entry command has ended, and this is to be our exit code.
    Entry(u8),
}

/// Runs until everything has ended. Gives the exit status.
///
/// # Errors
/// One sentence about why it could not start.
pub(crate) fn run(config: Config) -> Result<u8, String> {
    logger::start(config.log_level, config.log_format);
    files::make_run_dir(&config.run_dir)?;
    let base_env = config.env_file.as_deref().map(files::read_env).transpose()?.unwrap_or_default();
    let token = token(&config)?;
    let (tell, ends) = unbounded();
    let _signals = watch_signals(tell.clone())?;
    let supervisor = start_supervisor(&config, base_env)?;
    let auth = token.clone().map_or(Auth::Anybody, Auth::Token);
    let server = serve(&config, auth, &supervisor)?;
    // Only now: a start that fails says why in one line and nothing else.
    if config.no_auth {
        log::warn!("--no-auth: whoever reaches the port can run anything");
    }
    for warning in supervisor.warnings() {
        log::warn!("{warning}");
    }
    log::info!("listening on {}", server.local_addr());
    // Also only now: another daemon that runs already would lose its token to us.
    if let (Some(token), None) = (&token, &config.token_file) {
        files::write_token(&config.run_dir, token)?;
    }
    files::write_address(&config.run_dir, server.local_addr())?;
    if let Some((command, args)) = config.entry.split_first() {
        start_entry(&supervisor.handle(), command, args, tell)?;
    }
    let code = wait_for_the_end(&config, &supervisor, &ends);
    server.shutdown();
    Ok(code)
}

/// The bearer token, where one is asked for.
fn token(config: &Config) -> Result<Option<Vec<u8>>, String> {
    match (&config.token_file, config.no_auth) {
        (_, true) => Ok(None),
        (Some(path), false) => files::read_token(path).map(Some),
        (None, false) => files::make_token().map(Some),
    }
}

fn start_supervisor(config: &Config, base_env: Vec<(String, String)>) -> Result<Supervisor, String> {
    let total = config.log_total.unwrap_or_else(|| default_log_total(&config.log_dir));
    Supervisor::builder(&config.log_dir)
        .default_user(config.default_user.clone())
        .base_env(base_env)
        .log_limits(Limits { per_unit: config.log_limit, total })
        .max_processes(config.max_processes)
        .keep_ended(config.keep_ended)
        .max_connections(config.max_connections)
        .max_sessions(config.max_sessions)
        .session_idle(config.session_idle)
        .start()
        .map_err(|error| format!("cannot start with --log-dir {}: {error}", config.log_dir.display()))
}

/// 1 GiB or a tenth of the file system, the smaller (section 7).
fn default_log_total(log_dir: &Path) -> u64 {
    const MOST: u64 = 1 << 30;
    // The directory may not be there yet: its file system is that of the nearest one that is.
    let log_dir = std::path::absolute(log_dir).unwrap_or_else(|_| log_dir.to_owned());
    let here = log_dir.ancestors().find_map(|dir| statvfs(dir).ok());
    here.map_or(MOST, |fs| (fs.blocks() * fs.fragment_size() / 10).min(MOST))
}

fn serve(config: &Config, auth: Auth, supervisor: &Supervisor) -> Result<Server, String> {
    let options = Options {
        auth,
        max_connections: supervisor.max_connections(),
        max_body: config.max_body,
        max_head: config.max_head,
        head_timeout: config.head_time,
        idle_timeout: config.idle_time,
    };
    Server::bind(config.listen, supervisor.handle(), options)
        .map_err(|error| format!("--listen: cannot listen on {}: {error}", config.listen))
}

fn watch_signals(tell: Sender<End>) -> Result<SignalThread, String> {
    let notice = move |signal| {
        let _ = tell.send(End::Signal(signal));
    };
    // Without the thread there is no ordered end by a signal; everything else goes on.
    let died = || log::error!("signals are not watched any more");
    SignalThread::start(&[libc::SIGTERM, libc::SIGINT], notice, died)
        .map_err(|error| format!("cannot watch signals: {error}"))
}

/// Starts the main process, on our own stdin, stdout and stderr, and tells when it has ended.
fn start_entry(handle: &Handle, command: &str, args: &[String], tell: Sender<End>) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("the command {command:?} cannot be started: {error}");
    let spec = ProcessSpec::command(command).args(args).inherit_stdio().build().map_err(|error| failed(&error))?;
    // Before it starts, so that there is nothing left that could fail between its end and ours.
    let waker = Arc::new(Waker::new().map_err(|error| failed(&error))?);
    let started = handle.start(spec).map_err(|error| failed(&error))?;
    let log = handle.look_up(&Target::Unit(started.handle)).map_err(|error| failed(&error))?.log;
    let wait = move || {
        if let Some(end) = log.wait_end(&waker, None)? {
            let _ = tell.send(End::Entry(exit_code(end.exit)));
        }
        Ok(())
    };
    worker::spawn("entry", wait, || {}).map_err(|error| failed(&error))?;
    Ok(())
}

/// As a shell says it: the code, or 128 and the signal.
fn exit_code(exit: Exit) -> u8 {
    let code = exit.code().or(exit.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Waits for the first reason to end, ends everything within the grace, and cuts that short at a second signal.
fn wait_for_the_end(config: &Config, supervisor: &Supervisor, ends: &Receiver<End>) -> u8 {
    let died = supervisor.ended();
    let code = select! {
        recv(ends) -> end => match end {
            Ok(End::Signal(libc::SIGINT)) => 128 + libc::SIGINT as u8,
            Ok(End::Signal(_)) | Err(_) => 0,
            Ok(End::Entry(code)) => code,
        },
        recv(died) -> _ => return last_resort(),
    };
    log::info!("shutting down, with {} s of grace", config.shutdown_grace.as_secs_f64());
    let handle = supervisor.handle();
    let done = handle.begin_shutdown(config.shutdown_grace);
    loop {
        select! {
            recv(done.receiver()) -> answer => match answer {
                Ok(_) => return code,
                Err(_) => return last_resort(),
            },
            recv(died) -> _ => return last_resort(),
            recv(ends) -> end => if let Ok(End::Signal(_)) = end {
                log::info!("a second signal: no more grace");
                drop(handle.begin_shutdown(Duration::ZERO));
            },
        }
    }
}

/// Without a supervisor there is nobody left to end things in order.
fn last_resort() -> u8 {
    log::error!("the supervisor has ended: killing everything");
    kill_everything(Supervisor::SHUTDOWN_MARGIN);
    1
}
