//! The main thread: brings everything up, waits for a reason to end, and ends everything in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, at, bounded, never, select, unbounded};
use nix::sys::signal::SigSet;
use nix::unistd::geteuid;
use tl_os::signal_thread::{Received, SignalThread};
use tl_os::thread;
use tl_os::wait::TraceStop;
use tl_supervisor::http::{BootReport, EndAction, Host, Options, Server};
use tl_supervisor::pending::Pending;
use tl_supervisor::{Error, SpecError, Supervisor, Target, UnitId};

use crate::args::Given;
use crate::poweroff::{self, DISK_PATIENCE, Ending, last_resort};
use crate::report::Report;
use crate::role::Role;
use crate::services::Services;
use crate::signals::{self, Meaning};
use crate::start::{self, Base, RETRY};
use crate::{boot, files, main_process};

/// What the main thread is told.
#[derive(Debug)]
pub(crate) enum Event {
    Signal(Received),
    /// `POST /shutdown`.
    ShutDown(EndAction, Option<Duration>),
    /// The main process has ended: this is what a shell would call it.
    EntryEnded(u8),
    /// It does not run.
    EntryFailed(Error),
    /// An orphan has made this thread its tracer, and has stopped for it.
    TraceStop(TraceStop),
}

/// From the answer that everything has ended to the news of the main process's own end.
const NEWS: Duration = Duration::from_secs(5);
/// What a shell says of one that was killed: without any news it was.
const KILLED: u8 = 128 + libc::SIGKILL as u8;

/// What of the boot comes after the API has this long before services are started without it.
const FINISHING: Duration = Duration::from_secs(5);

/// For the threads to end, and to put away what is theirs, when everything else has ended.
const TIDYING: Duration = Duration::from_secs(2);

/// Runs until everything has ended.
///
/// # Errors
/// One sentence about why it could not start; never on a machine.
pub(crate) fn run(place: Role, mut given: Given, report: Report) -> Result<Ending, String> {
    start::read_conf(&mut given, &report);
    if given.has_entry() {
        main_process::leave_terminal(place);
    }
    let (tell, events) = unbounded();
    let mut signals = None;
    // They are for the threads that watch them: this one could hang in a system call, with the signal. Watching them takes
    // long on a machine: until the API is there, the kernel keeps them (signal(7)).
    let _ = SigSet::all().thread_block();
    if place != Role::Machine {
        signals = watch_signals(tell.clone(), place, &report)?;
    }
    let base = start::start(place, &given, report, tell.clone())?;
    let mut main = Main { base, server: None, tell, entry: None, events };
    if let Err(error) = main.listen() {
        if place != Role::Machine {
            return Err(error);
        }
        main.tell_once(&error);
    }
    if place == Role::Machine {
        signals = watch_signals(main.tell.clone(), place, &main.base.report)?;
        main.finish_boot();
    }
    let reload = main.start_services();
    main.start_entry();
    let ending = main.wait_for_the_end(&reload);
    if let Some(server) = &main.server {
        server.shutdown();
    }
    // A thread that waits for a dead disk is not waited for.
    if poweroff::within(TIDYING, "tidying", move || drop(main)).is_none() {
        log::error!("some threads do not end: not waited for");
    }
    drop(signals);
    Ok(ending)
}

fn watch_signals(tell: Sender<Event>, place: Role, report: &Report) -> Result<Option<SignalThread>, String> {
    let notice = move |received| drop(tell.send(Event::Signal(received)));
    // Without the thread there is no ordered end by a signal; everything else goes on.
    let died = || log::error!("signals are not watched any more");
    match SignalThread::start("signals", &signals::all(), notice, died) {
        Ok(thread) => Ok(Some(thread)),
        Err(error) if place == Role::Machine => {
            report.failed("signals", &error.to_string());
            Ok(None)
        }
        Err(error) => Err(format!("cannot watch signals: {error}")),
    }
}

/// The program to the API.
#[derive(Debug)]
struct Program {
    place: Role,
    report: Report,
    tell: Sender<Event>,
}

impl Host for Program {
    fn boot(&self) -> BootReport {
        self.report.so_far()
    }

    fn shut_down(&self, action: EndAction, grace: Option<Duration>) -> Result<(), SpecError> {
        let (right, words) = match self.place {
            Role::Machine => (action != EndAction::Exit, "must be `poweroff`, `reboot` or `halt`: this is a machine"),
            Role::Container | Role::Process => (action == EndAction::Exit, "must be `exit`: this is no machine"),
        };
        if !right {
            return Err(SpecError::new("action", words));
        }
        let _ = self.tell.send(Event::ShutDown(action, grace));
        Ok(())
    }
}

/// An end that goes on.
struct Ongoing {
    ending: Ending,
    done: Pending<()>,
    /// The supervisor has kept its own deadline by then, unless something holds it up.
    overdue: Instant,
}

struct Main {
    base: Base,
    server: Option<Server>,
    tell: Sender<Event>,
    events: Receiver<Event>,
    /// The main process, while it has not ended; of a machine there is none.
    entry: Option<UnitId>,
}

impl Main {
    /// Makes the API available, and says where.
    fn listen(&mut self) -> Result<(), String> {
        let Base { place, config, report, token, supervisor, .. } = &self.base;
        let host = Program { place: *place, report: report.clone(), tell: self.tell.clone() };
        let options = Options {
            auth: start::auth(token.as_ref()),
            max_connections: supervisor.max_connections(),
            max_body: config.max_body,
            max_head: config.max_head,
            head_timeout: config.head_time,
            idle_timeout: config.idle_time,
            host: Some(Arc::new(host)),
        };
        let server = Server::bind(config.listen, supervisor.handle(), options)
            .map_err(|error| format!("--listen: cannot listen on {}: {error}", config.listen))?;
        let address = server.local_addr();
        // Only now: a start that fails says why in one line and nothing else.
        if config.no_auth {
            log::warn!("--no-auth: whoever reaches the port can run anything");
        }
        for warning in supervisor.warnings() {
            log::warn!("{warning}");
        }
        report.reached("listening", address.to_string());
        log::info!("listening on {address}");
        self.server = Some(server);
        // Also only now: another daemon that runs already would lose its token to us.
        let (token, dir) = (token.clone().filter(|_| config.token_file.is_none()), config.run_dir.clone());
        let write = move || {
            token.map_or(Ok(()), |token| files::write_token(&dir, &token))?;
            files::write_address(&dir, address)
        };
        let silent = || Err(format!("--run-dir: {} does not answer", config.run_dir.display()));
        match poweroff::within(DISK_PATIENCE, "run-dir", write).unwrap_or_else(silent) {
            // The API is up: that is what counts.
            Err(error) if *place == Role::Machine => {
                report.failed("run-dir", &error);
                log::error!("{error}");
                Ok(())
            }
            result => result,
        }
    }

    /// What of a machine's boot was left for later. It ends when it is asked to, whatever of this hangs.
    fn finish_boot(&self) {
        let Base { place, report, leaf, .. } = &self.base;
        boot::load_seed(report);
        let (place, leaf, reported) = (*place, leaf.clone(), report.clone());
        let finish = move || boot::finish(place, leaf.as_deref(), &reported);
        if poweroff::within(FINISHING, "boot", finish).is_none() {
            report.failed("boot", "the rest of it takes too long: not waited for");
            log::error!("the rest of the boot takes too long: not waited for");
        }
    }

    /// Why it does not listen, however often it tries.
    fn tell_once(&self, error: &str) {
        let report = &self.base.report;
        if !report.so_far().steps.iter().any(|step| step.detail == error) {
            report.failed("listening", error);
            log::error!("{error}");
        }
    }

    /// Starts the services from files, on a thread of their own: what hangs there holds up nobody. Gives what makes it
    /// read them again.
    fn start_services(&self) -> Sender<()> {
        let (reload, asked) = bounded(1);
        let Base { config, report, supervisor, .. } = &self.base;
        let mut services = Services::new(&config.config_dir, supervisor.handle(), report.clone());
        let body = move || {
            services.load();
            for () in asked {
                services.load();
            }
            Ok(())
        };
        if let Err(error) = thread::spawn("services", body, || log::error!("the services thread has ended")) {
            report.failed("services", &error.to_string());
            log::error!("services: {error}");
        }
        reload
    }

    /// Starts the main process, if there is to be one.
    fn start_entry(&mut self) {
        let Base { place, config, supervisor, .. } = &self.base;
        let Some((command, args)) = config.entry.split_first() else { return };
        let spec = main_process::spec(*place, command, args).map_err(Into::into);
        match spec.and_then(|spec| main_process::start(&supervisor.handle(), spec, self.tell.clone())) {
            Ok(unit) => self.entry = Some(unit).filter(|_| *place != Role::Machine),
            Err(error) => drop(self.tell.send(Event::EntryFailed(error))),
        }
    }

    /// Waits for the first reason to end, ends everything within the grace, and cuts that short at a second signal.
    fn wait_for_the_end(&mut self, reload: &Sender<()>) -> Ending {
        let died = self.base.supervisor.ended();
        let mut ongoing: Option<Ongoing> = None;
        // The main process was asked to end.
        let mut asked = false;
        loop {
            let done = ongoing.as_ref().map_or_else(never, |ongoing| ongoing.done.receiver().clone());
            let overdue = ongoing.as_ref().map_or_else(never, |ongoing| at(ongoing.overdue));
            let again = if self.server.is_none() { after(RETRY) } else { never() };
            let event = select! {
                recv(self.events) -> event => event.ok(),
                recv(done) -> answer => match (answer, ongoing) {
                    (Ok(_), Some(Ongoing { ending, .. })) => return self.with_news(ending),
                    (_, ongoing) => return self.by_force("has ended", ongoing),
                },
                recv(died) -> _ => return self.by_force("has ended", ongoing),
                recv(overdue) -> _ => return self.by_force("does not answer", ongoing),
                recv(again) -> _ => {
                    if let Err(error) = self.listen() {
                        self.tell_once(&error);
                    }
                    continue;
                }
            };
            match event {
                Some(Event::Signal(received)) => self.obey(received, &mut ongoing, &mut asked, reload),
                Some(Event::ShutDown(action, grace)) => {
                    let grace = grace.unwrap_or(self.base.config.shutdown_grace);
                    self.end(&mut ongoing, Ending { action, code: 0 }, grace);
                }
                Some(Event::EntryEnded(code)) => self.entry_ended(code, &mut ongoing),
                Some(Event::EntryFailed(error)) => {
                    let code = self.entry_failed(&error);
                    self.entry_ended(code, &mut ongoing);
                }
                Some(Event::TraceStop(stop)) => {
                    if let Err(error) = stop.detach() {
                        log::debug!("process {}, which has stopped for its tracer: {error}", stop.pid);
                    }
                }
                // We hold a sender ourselves.
                None => {}
            }
        }
    }

    fn obey(&self, received: Received, ongoing: &mut Option<Ongoing>, asked: &mut bool, reload: &Sender<()>) {
        let signal = received.signal;
        if !signals::counts(received, geteuid().as_raw()) {
            return log::warn!("signal {signal} from {:?} does not count", received.sender);
        }
        // What is sent to a main process that is being ended anyway is for us.
        let entry = self.entry.filter(|_| ongoing.is_none());
        match signals::meaning(self.base.place, entry.is_some(), signal) {
            Meaning::End { .. } if ongoing.is_some() => {
                log::info!("signal {signal} again: no more grace");
                self.hurry(ongoing);
            }
            Meaning::End { action, grace, code } => {
                log::info!("signal {signal}: shutting down");
                let grace = if grace { self.base.config.shutdown_grace } else { Duration::ZERO };
                self.end(ongoing, Ending { action, code }, grace);
            }
            Meaning::Forward { ends: true } if *asked => {
                log::info!("signal {signal}: the main process has been asked before: no more grace");
                self.end(ongoing, Ending { action: EndAction::Exit, code: 0 }, Duration::ZERO);
            }
            Meaning::Forward { ends } => {
                *asked |= ends;
                if let Some(unit) = entry {
                    // Not waited for: a second one has to be heard whatever the supervisor does.
                    drop(self.base.supervisor.handle().begin_signal(&Target::Unit(unit), signal.into(), None));
                }
            }
            // One that is waiting already does for both.
            Meaning::Reload => drop(reload.try_send(())),
            Meaning::Nothing => {}
        }
    }

    /// Begins the ordered end, or shortens the one that goes on.
    fn end(&self, ongoing: &mut Option<Ongoing>, ending: Ending, grace: Duration) {
        let done = self.base.supervisor.handle().begin_shutdown(grace);
        let overdue = Instant::now() + grace + Supervisor::SHUTDOWN_MARGIN;
        match ongoing {
            Some(ongoing) if ongoing.overdue <= overdue => {
                log::info!("asked again, with {} s of grace: the earlier deadline stands", grace.as_secs_f64());
            }
            _ => log::info!("shutting down, with {} s of grace", grace.as_secs_f64()),
        }
        let ongoing = ongoing.get_or_insert(Ongoing { ending, done, overdue });
        ongoing.overdue = overdue.min(ongoing.overdue);
    }

    /// No more grace for the end that goes on.
    fn hurry(&self, ongoing: &mut Option<Ongoing>) {
        if let Some(Ongoing { ending, .. }) = *ongoing {
            self.end(ongoing, ending, Duration::ZERO);
        }
    }

    /// Says so. Gives what a shell would exit with.
    fn entry_failed(&self, error: &Error) -> u8 {
        let command = self.base.config.entry.first().map_or("", String::as_str);
        log::error!("the command {command:?} cannot be started: {error}");
        self.base.report.failed("command", &error.to_string());
        main_process::code_of_failure(error)
    }

    fn entry_ended(&mut self, code: u8, ongoing: &mut Option<Ongoing>) {
        self.entry = None;
        match ongoing {
            _ if self.base.place == Role::Machine => {}
            Some(ongoing) => ongoing.ending.code = code,
            None => {
                let ending = Ending { action: EndAction::Exit, code };
                self.end(ongoing, ending, self.base.config.shutdown_grace);
            }
        }
    }

    /// Ends everything without the supervisor. What was asked for before still counts.
    fn by_force(&self, why: &str, ongoing: Option<Ongoing>) -> Ending {
        log::error!("the supervisor {why}: killing everything");
        let ending = last_resort();
        ongoing.map_or(ending, |ongoing| self.with_news(ongoing.ending))
    }

    /// How the main process has ended, if that was not known yet: it is our own end.
    fn with_news(&self, ending: Ending) -> Ending {
        if self.entry.is_none() {
            return ending;
        }
        let deadline = Instant::now() + NEWS;
        while let Ok(event) = self.events.recv_deadline(deadline) {
            match event {
                Event::EntryEnded(code) => return Ending { code, ..ending },
                Event::EntryFailed(error) => return Ending { code: self.entry_failed(&error), ..ending },
                _ => {}
            }
        }
        Ending { code: KILLED, ..ending }
    }
}
