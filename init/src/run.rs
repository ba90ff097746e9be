//! The main thread: starts everything, waits for a reason to shut down, and shuts down in order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, at, bounded, never, select, unbounded};
use nix::sys::signal::SigSet;
use nix::unistd::geteuid;
use tl_os::signal_thread::Received;
use tl_os::thread;
use tl_supervisor::http::{Api, ApiOptions, EndAction, Options, Server};
use tl_supervisor::{Pending, Signal, Supervisor, Target, UnitId};

use crate::args::RawConfig;
use crate::event::{AnswerWaker, Event};
use crate::exit_status::{of_signal, of_start_error};
use crate::poweroff::{self, DISK_TIMEOUT, Ending, last_resort};
use crate::report::Report;
use crate::role::Role;
use crate::services::Services;
use crate::signals::{self, Ignored, Meaning};
use crate::start::{self, Base, RETRY};
use crate::system::System;
use crate::{boot, files, main_process};

/// After shutdown, how long to wait for the main process's exit status.
const STATUS_TIMEOUT: Duration = Duration::from_secs(5);

/// Time allowed for the rest of the boot. Then the services are started without it.
const BOOT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time allowed for threads to finish after shutdown.
const THREADS_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until everything has ended.
///
/// # Errors
/// One sentence about why it could not start; never on a machine.
pub(crate) fn run(role: Role, mut raw: RawConfig, report: Report) -> Result<Ending, String> {
    start::read_conf(&mut raw, &report);
    if raw.has_command() {
        main_process::leave_terminal(role);
    }
    let (sender, events) = unbounded();
    let mut signals = None;
    // Only the signal threads receive signals: this thread could hang in a system call with a signal pending. On a
    // machine, starting such a thread takes long, so it is started after the API; until then signals stay pending.
    let _ = SigSet::all().thread_block();
    if role != Role::Machine {
        signals = signals::watch(sender.clone(), role, &report)?;
    }
    let trace_stops = sender.clone();
    let on_trace_stop = move |stop| drop(trace_stops.send(Event::TraceStop(stop)));
    let ends = sender.clone();
    let on_end = move || drop(ends.send(Event::SupervisorEnded));
    let base = start::start(role, &raw, report, on_trace_stop, on_end)?;
    let mut main = Main {
        base,
        server: None,
        sender,
        events,
        main_process: None,
        asked_to_end: false,
        shutdown: None,
        ignored: Ignored::new(),
    };
    if let Err(error) = main.listen() {
        if role != Role::Machine {
            return Err(error);
        }
        main.report_once(&error);
    }
    if role == Role::Machine {
        signals = signals::watch(main.sender.clone(), role, &main.base.report)?;
        main.finish_boot();
    }
    let reload = main.start_services();
    main.start_main_process();
    let ending = main.wait_for_end_despite_panics(&reload);
    if let Some(server) = &main.server {
        server.shutdown();
    }
    if let Some(console) = &main.base.console {
        console.finish();
    }
    // Dropping joins threads, and one of them may wait for a disk that does not respond.
    if poweroff::within(THREADS_TIMEOUT, "join", move || drop(main)).is_none() {
        log::error!("some threads do not end within {} s; exiting without them", THREADS_TIMEOUT.as_secs());
    }
    drop(signals);
    Ok(ending)
}

/// A shutdown that has begun.
struct Shutdown {
    ending: Ending,
    /// Completed when every process has ended.
    done: Pending<()>,
    /// Deadline for the supervisor. After it, the main thread kills all processes itself.
    overdue: Instant,
}

struct Main {
    base: Base,
    server: Option<Server>,
    /// A sender for `events`, which therefore never closes.
    sender: Sender<Event>,
    events: Receiver<Event>,
    /// The main process with whose end the program ends. `None` once it has ended, and on a machine.
    main_process: Option<UnitId>,
    /// Whether the main process was sent a signal that asks it to end.
    asked_to_end: bool,
    /// The shutdown, once it has begun.
    shutdown: Option<Shutdown>,
    ignored: Ignored,
}

impl Main {
    /// Makes the API available, and writes its address and its token to the run directory.
    fn listen(&mut self) -> Result<(), String> {
        let Base { role, config, report, token, supervisor, .. } = &self.base;
        let system = System { role: *role, report: report.clone(), sender: self.sender.clone() };
        let api = ApiOptions::new(start::auth(token.as_ref()))
            .cors_origins(config.cors_origins.clone())
            .metrics_per_process(config.metrics_per_process.clone())
            .system(Arc::new(system));
        let options = Options::new()
            .max_connections(supervisor.max_connections())
            .max_body(config.max_body)
            .max_head(config.max_head)
            .head_timeout(config.head_time)
            .idle_timeout(config.idle_time);
        let server = Server::bind(config.listen, Api::new(supervisor.handle(), api), options)
            .map_err(|error| format!("--listen: cannot listen on {}: {error}", config.listen))?;
        let address = server.local_addr();
        // Warnings come only now: a start that fails logs one line and nothing else.
        if config.no_auth {
            log::warn!("--no-auth: every client that reaches the port can run any command");
        }
        for warning in supervisor.warnings() {
            log::warn!("{warning}");
        }
        report.reached("listening", address.to_string());
        log::info!(event = "daemon.listening", address:% = address; "listening on {address}");
        self.server = Some(server);
        // The token is written only now: a start that fails because another daemon runs must not replace that one's
        // token.
        let (token, dir) = (token.clone().filter(|_| config.token_file.is_none()), config.run_dir.clone());
        let write = move || {
            token.map_or(Ok(()), |token| files::write_token(&dir, &token))?;
            files::write_address(&dir, address)
        };
        let timed_out = || Err(format!("--run-dir: the disk of {} does not respond", config.run_dir.display()));
        match poweroff::within(DISK_TIMEOUT, "run-dir", write).unwrap_or_else(timed_out) {
            // On a machine this is no reason to stop: the API works.
            Err(error) if *role == Role::Machine => {
                report.failed("run-dir", &error);
                log::error!("{error}");
                Ok(())
            }
            result => result,
        }
    }

    /// Performs the part of a machine's boot that comes after the API. Continues after [`BOOT_TIMEOUT`] if a part
    /// hangs.
    fn finish_boot(&self) {
        let Base { role, report, leaf, .. } = &self.base;
        boot::load_seed(report);
        let (role, leaf, boot_report) = (*role, leaf.clone(), report.clone());
        let finish = move || boot::finish(role, leaf.as_deref(), &boot_report);
        if poweroff::within(BOOT_TIMEOUT, "boot", finish).is_none() {
            let problem = format!("the rest of the boot takes longer than {} s", BOOT_TIMEOUT.as_secs());
            report.failed("boot", &problem);
            log::error!("{problem}; continuing without it");
        }
    }

    /// Reports why the API is not available, once for all attempts that fail for the same reason.
    fn report_once(&self, error: &str) {
        let report = &self.base.report;
        if !report.so_far().steps.iter().any(|step| step.detail == error) {
            report.failed("listening", error);
            log::error!("{error}");
        }
    }

    /// Starts the services from files, on a thread of their own, which may hang on a disk. A message to the sender that
    /// is returned makes the thread read the files again.
    fn start_services(&self) -> Sender<()> {
        let (reload, requests) = bounded(1);
        let Base { config, report, supervisor, .. } = &self.base;
        let mut services = Services::new(&config.config_dir, supervisor.handle(), report.clone());
        let body = move || {
            services.load();
            while thread::idle(|| requests.recv()).is_ok() {
                services.load();
            }
            Ok(())
        };
        if let Err(error) = thread::spawn_persistent("services", body) {
            report.failed("services", &error.to_string());
            log::error!("services: {error}");
        }
        reload
    }

    /// Starts the main process, if one is configured.
    fn start_main_process(&mut self) {
        let Base { role, config, supervisor, .. } = &self.base;
        let Some((command, args)) = config.command.split_first() else { return };
        let sender = self.sender.clone();
        let report = move |end| sender.send(Event::MainProcess(end)).is_ok();
        let spec = main_process::spec(*role, command, args).map_err(Into::into);
        match spec.and_then(|spec| main_process::start(&supervisor.handle(), spec, report.clone())) {
            Ok(unit) => self.main_process = Some(unit).filter(|_| *role != Role::Machine),
            Err(error) => drop(report(main_process::End::NotStarted(error))),
        }
    }

    /// Calls [`Main::wait_for_end`]. If that panics, shuts down in order; if it does so again, by force.
    fn wait_for_end_despite_panics(&mut self, reload: &Sender<()>) -> Ending {
        let wait = |main: &mut Main| catch_unwind(AssertUnwindSafe(|| main.wait_for_end(reload)));
        let waited = wait(self).or_else(|_| {
            log::error!("the main thread has panicked: shutting down");
            self.shut_down(Ending::FAILURE, self.base.config.shutdown_grace);
            wait(self)
        });
        waited.unwrap_or_else(|_| self.end_by_force("the main thread has panicked again"))
    }

    /// Waits for the first reason to shut down, and shuts down within the grace; a second signal ends the grace.
    fn wait_for_end(&mut self, reload: &Sender<()>) -> Ending {
        loop {
            let overdue = self.shutdown.as_ref().map_or_else(never, |shutdown| at(shutdown.overdue));
            let left_out = self.ignored.due().map_or_else(never, at);
            let retry = if self.server.is_none() { after(RETRY) } else { never() };
            let event = select! {
                recv(self.events) -> event => event.ok(),
                recv(overdue) -> _ => return self.end_by_force("the supervisor does not answer"),
                recv(left_out) -> _ => {
                    self.ignored.log_left_out();
                    continue;
                }
                recv(retry) -> _ => {
                    if let Err(error) = self.listen() {
                        self.report_once(&error);
                    }
                    continue;
                }
            };
            thread::fault_point();
            match event {
                Some(Event::Signal(received)) => self.handle_signal(received, reload),
                Some(Event::ShutDown(action, grace)) => {
                    log::info!("POST /shutdown: shutting down");
                    let grace = grace.unwrap_or(self.base.config.shutdown_grace);
                    self.shut_down(Ending { action, status: 0 }, grace);
                }
                Some(Event::MainProcess(end)) => {
                    let status = self.main_status(&end);
                    self.main_process_ended(status);
                }
                Some(Event::TraceStop(stop)) => {
                    let pid = stop.pid();
                    if let Err(error) = stop.resume() {
                        log::debug!("cannot detach from process {pid}, which has stopped for its tracer: {error}");
                    }
                }
                Some(Event::ShutdownAnswered) => {
                    match self.shutdown.as_ref().map(|shutdown| (shutdown.ending, shutdown.done.try_take())) {
                        Some((ending, Some(Ok(())))) => return self.with_main_status(ending),
                        Some((_, Some(Err(_)))) => return self.end_by_force("the supervisor has ended"),
                        _ => {}
                    }
                }
                Some(Event::SupervisorEnded) => return self.end_by_force("the supervisor has ended"),
                // The channel is closed, which cannot happen while this thread holds a sender.
                None => {}
            }
        }
    }

    fn handle_signal(&mut self, received: Received, reload: &Sender<()>) {
        let signal = received.signal;
        if !signals::is_authorised(received, geteuid().as_raw()) {
            return self.ignored.log(received);
        }
        // During a shutdown, signals are no longer forwarded: the main process is being ended anyway.
        let forward_to = self.main_process.filter(|_| self.shutdown.is_none());
        match signals::meaning(self.base.role, forward_to.is_some(), signal) {
            Meaning::End { .. } if self.shutdown.is_some() => {
                log::info!("signal {signal} during the shutdown: ending the grace");
                self.end_grace();
            }
            Meaning::End { action, grace, status } => {
                log::info!("signal {signal}: shutting down");
                let grace = if grace { self.base.config.shutdown_grace } else { Duration::ZERO };
                self.shut_down(Ending { action, status }, grace);
            }
            Meaning::Forward { ends: true } if self.asked_to_end => {
                log::info!(
                    "signal {signal}: the second that asks the main process to end: shutting down without grace"
                );
                self.shut_down(Ending { action: EndAction::Exit, status: 0 }, Duration::ZERO);
            }
            Meaning::Forward { ends } => {
                self.asked_to_end |= ends;
                if let Some(unit) = forward_to
                    && let Ok(signal) = Signal::try_from(signal)
                {
                    // The answer is not awaited: this thread must handle the next signal whatever the supervisor does.
                    drop(self.base.supervisor.handle().begin_signal(&Target::Unit(unit), signal, None));
                }
            }
            // If a request is pending, it serves this signal too.
            Meaning::Reload => drop(reload.try_send(())),
            Meaning::Nothing => {}
        }
    }

    /// Begins the shutdown, or shortens the one that has begun.
    fn shut_down(&mut self, ending: Ending, grace: Duration) {
        let done = self.base.supervisor.handle().begin_shutdown(grace);
        let overdue = Instant::now() + grace + Supervisor::SHUTDOWN_MARGIN;
        let Some(shutdown) = &mut self.shutdown else {
            done.set_waker(Arc::new(AnswerWaker(self.sender.clone())).into());
            self.shutdown = Some(Shutdown { ending, done, overdue });
            return;
        };
        // The supervisor logs that the shutdown begins, and that it is done.
        if shutdown.overdue <= overdue {
            log::info!("shutdown with {} s of grace: the earlier deadline is kept", grace.as_secs_f64());
        }
        shutdown.overdue = overdue.min(shutdown.overdue);
    }

    /// Ends the grace of the shutdown that has begun.
    fn end_grace(&mut self) {
        if let Some(Shutdown { ending, .. }) = self.shutdown {
            self.shut_down(ending, Duration::ZERO);
        }
    }

    /// The main process's exit status. Reports the error of one that could not be started.
    fn main_status(&self, end: &main_process::End) -> u8 {
        match end {
            main_process::End::Exited(status) => *status,
            main_process::End::NotStarted(error) => {
                let command = self.base.config.command.first().map_or("", String::as_str);
                log::error!("the command {command:?} cannot be started: {error}");
                self.base.report.failed("command", &error.to_string());
                of_start_error(error)
            }
        }
    }

    fn main_process_ended(&mut self, status: u8) {
        self.main_process = None;
        match &mut self.shutdown {
            _ if self.base.role == Role::Machine => {}
            Some(shutdown) => shutdown.ending.status = status,
            None => {
                log::info!(event = "main_process.ended", exit_code = status; "the main process has ended with status {status}: shutting down");
                let ending = Ending { action: EndAction::Exit, status };
                self.shut_down(ending, self.base.config.shutdown_grace);
            }
        }
    }

    /// Kills all processes without the supervisor. If a shutdown has begun, its action is kept.
    fn end_by_force(&self, why: &str) -> Ending {
        log::error!("{why}: killing all processes");
        let ending = last_resort();
        self.shutdown.as_ref().map_or(ending, |shutdown| self.with_main_status(shutdown.ending))
    }

    /// The ending with the main process's exit status. If that is not known yet, waits for it for [`STATUS_TIMEOUT`];
    /// then the status is that of a process killed by SIGKILL.
    fn with_main_status(&self, ending: Ending) -> Ending {
        if self.main_process.is_none() {
            return ending;
        }
        let deadline = Instant::now() + STATUS_TIMEOUT;
        while let Ok(event) = self.events.recv_deadline(deadline) {
            if let Event::MainProcess(end) = event {
                return Ending { status: self.main_status(&end), ..ending };
            }
        }
        Ending { status: of_signal(libc::SIGKILL), ..ending }
    }
}
