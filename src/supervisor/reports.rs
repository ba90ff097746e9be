//! Tells operators what happens to units and to the supervisor itself: the one place that logs and counts it, and
//! that makes events of it.
//!
//! Each line of the log has key-value pairs (the feature `kv` of the crate `log`), whose keys `src/README.md` lists. The
//! lines of each unit are limited, because a process that crashes in a loop, or a client, could fill the log otherwise.

use std::fmt;
use std::time::Duration;

use log::kv::Value;
use log::{Level, Record};

use super::actor::Actor;
use super::context::{LogSource, Member};
use crate::error::Error;
use crate::metrics::{METRICS, UnitKind};
use crate::model::{Exit, HealthStatus, Occurrence, RestartReason, RunEnd, UnitId};
use crate::rate_limit::REPORT_AFTER;

/// The target of these lines.
const TARGET: &str = "tl_supervisor::events";

/// The key-value pairs of a line.
type Fields<'a> = Vec<(&'static str, Value<'a>)>;

impl Actor {
    /// Counts what has happened to a unit, tells those that subscribe to events, and logs it.
    pub(super) fn report(&mut self, id: UnitId, occurrence: &Occurrence) {
        let Some(kind) = self.parts.fleet.get(id).map(kind) else { return };
        METRICS.record(kind, occurrence);
        self.announce(id, kind, occurrence);
        if let (UnitKind::Managed, Occurrence::Started { .. }) = (kind, occurrence)
            && let Some(started) = self.started(id)
        {
            (self.parts.on_managed_start)(started);
        }
        let level = level(kind, occurrence);
        let source = LogSource { unit: id, is_stop: matches!(occurrence, Occurrence::Stopped { .. }) };
        self.log(source, level, |member| log_occurrence(level, &Subject::of(id, member), occurrence));
    }

    /// Counts a start that has failed, and logs it. The client that requested it gets the error too.
    pub(super) fn report_start_failure(&mut self, id: UnitId, error: &Error) {
        let Some(kind) = self.parts.fleet.get(id).map(kind) else { return };
        METRICS.start_failed(kind);
        let level = if kind == UnitKind::Plain { Level::Debug } else { Level::Info };
        self.log(LogSource { unit: id, is_stop: false }, level, |member| {
            let subject = Subject::of(id, member);
            let event = if kind == UnitKind::Terminal { "pty.start_failed" } else { "process.start_failed" };
            let error = error.to_string();
            let mut fields = subject.fields(event);
            fields.extend([("command", Value::from(subject.command)), ("error", Value::from(error.as_str()))]);
            write(level, &fields, format_args!("{subject} cannot be started: {error}"));
        });
    }

    /// Calls `line`, which logs a line about a unit, if this level is logged and the unit has not logged too much.
    fn log(&mut self, source: LogSource, level: Level, line: impl FnOnce(&Member)) {
        if !log::log_enabled!(target: TARGET, level) || !self.log_limit.admits(&source, self.clock.now().mono) {
            return;
        }
        if let Some(member) = self.parts.fleet.get(source.unit) {
            line(member);
        }
    }

    /// Logs how many lines were left out, where that is due at `now`.
    pub(super) fn log_left_out(&mut self, now: Duration) {
        let seconds = REPORT_AFTER.as_secs();
        for (source, count) in self.log_limit.take_due(now) {
            let mut fields: Fields<'_> = vec![("event", Value::from("log.left_out")), ("count", Value::from(count))];
            match source {
                Some(LogSource { unit: id, .. }) => {
                    fields.push(("handle", Value::from(id.0)));
                    let of = self.parts.fleet.get(id).map(|member| Subject::of(id, member).to_string());
                    let of = of.unwrap_or_else(|| format!("process {id}"));
                    write(
                        Level::Info,
                        &fields,
                        format_args!("{of}: {count} more lines within {seconds} s were left out"),
                    );
                }
                None => write(
                    Level::Info,
                    &fields,
                    format_args!("{count} more lines of many units within {seconds} s were left out"),
                ),
            }
        }
    }
}

/// Logs that the shutdown begins.
pub(super) fn shutdown_begun(grace: Duration) {
    let ms = millis(grace);
    let fields = [("event", Value::from("daemon.shutdown")), ("grace_ms", Value::from(ms))];
    write(Level::Info, &fields, format_args!("shutting down with {} s of grace", grace.as_secs_f64()));
}

/// Logs that the shutdown is done. `ended`: no process is left.
pub(super) fn shutdown_done(took: Duration, ended: bool) {
    let fields = [
        ("event", Value::from("daemon.shutdown_done")),
        ("duration_ms", Value::from(millis(took))),
        ("all_ended", Value::from(ended)),
    ];
    let took = took.as_secs_f64();
    match ended {
        true => write(Level::Info, &fields, format_args!("all processes have ended, after {took:.3} s")),
        false => write(Level::Warn, &fields, format_args!("some processes have not ended after {took:.3} s")),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn kind(member: &Member) -> UnitKind {
    match member.unit.managed() {
        Some(_) => UnitKind::Managed,
        None if member.unit.has_terminal() => UnitKind::Terminal,
        None => UnitKind::Plain,
    }
}

/// Clients start plain processes by the thousand, and are told of each; operators care for the others.
fn level(kind: UnitKind, occurrence: &Occurrence) -> Level {
    match occurrence {
        Occurrence::Ended { end: RunEnd { exit: Exit::OomKilled, .. }, .. }
        | Occurrence::Stopped { gave_up: true, .. }
        | Occurrence::Health { status: HealthStatus::Unhealthy, .. } => Level::Warn,
        _ if kind == UnitKind::Plain => Level::Debug,
        _ => Level::Info,
    }
}

/// The unit that a line is about.
struct Subject<'a> {
    id: UnitId,
    kind: UnitKind,
    name: Option<&'a str>,
    pid: Option<i32>,
    command: &'a str,
    session: Option<&'a str>,
}

impl<'a> Subject<'a> {
    fn of(id: UnitId, member: &'a Member) -> Subject<'a> {
        Subject {
            id,
            kind: kind(member),
            name: member.unit.managed().and_then(|managed| managed.name.as_deref()),
            pid: member.unit.shown().map(|shown| shown.pid),
            command: &member.context.spec.command,
            session: member.context.pty.as_ref().map(|session| session.key.session_id.as_str()),
        }
    }

    fn fields(&self, event: &'static str) -> Fields<'a> {
        let mut fields = vec![("event", Value::from(event)), ("handle", Value::from(self.id.0))];
        fields.extend(self.pid.map(|pid| ("pid", Value::from(pid))));
        fields.extend(self.name.map(|name| ("name", Value::from(name))));
        fields.extend(self.session.map(|session| ("session_id", Value::from(session))));
        fields
    }
}

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.kind == UnitKind::Terminal { "terminal session" } else { "process" };
        match self.name {
            Some(name) => write!(f, "{what} {} ({name})", self.id),
            None => write!(f, "{what} {}", self.id),
        }
    }
}

/// How a run ended, as the end of a sentence.
struct HowEnded(RunEnd);

impl fmt::Display for HowEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.exit {
            _ if self.0.timed_out => write!(f, "was killed at its timeout"),
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(signal) => write!(f, "was killed by signal {signal}"),
            Exit::OomKilled => write!(f, "was killed because memory had run out"),
        }
    }
}

#[cold]
#[inline(never)]
fn log_occurrence(level: Level, subject: &Subject<'_>, occurrence: &Occurrence) {
    let is_terminal = subject.kind == UnitKind::Terminal;
    match occurrence {
        Occurrence::Started { restart_count } => {
            let mut fields = subject.fields(if is_terminal { "pty.opened" } else { "process.started" });
            let count = Value::from(*restart_count);
            fields.extend([("command", Value::from(subject.command)), ("restart_count", count)]);
            let (pid, command) = (subject.pid.unwrap_or_default(), subject.command);
            write(level, &fields, format_args!("{subject} has started with PID {pid}: {command}"));
        }
        Occurrence::Ended { end, lasted } => {
            let mut fields = subject.fields(if is_terminal { "pty.ended" } else { "process.ended" });
            fields.extend(end.exit.code().map(|code| ("exit_code", Value::from(code))));
            fields.extend(end.exit.signal().map(|signal| ("signal", Value::from(signal))));
            fields.extend([
                ("oom_killed", Value::from(end.exit == Exit::OomKilled)),
                ("reason", Value::from(end.reason())),
                ("duration_ms", Value::from(millis(*lasted))),
            ]);
            let lasted = lasted.as_secs_f64();
            write(level, &fields, format_args!("{subject} {} after {lasted:.3} s", HowEnded(*end)));
        }
        Occurrence::Restarting { delay, reason } => {
            let mut fields = subject.fields("process.restarting");
            fields.extend([("delay_ms", Value::from(millis(*delay))), ("reason", Value::from(reason.word()))]);
            fields.extend(reason.error().map(|error| ("error", Value::from(error))));
            let (delay, why) = (millis(*delay), reason.error().unwrap_or_default());
            let because = match reason {
                RestartReason::Ended(end) => return log_restart(level, subject, &fields, delay, &HowEnded(*end)),
                RestartReason::Unhealthy(_) => &format!("was {why}"),
                RestartReason::StartFailed(_) => &format!("could not be started: {why}"),
                RestartReason::Requested => "was asked to",
            };
            log_restart(level, subject, &fields, delay, &because);
        }
        Occurrence::Stopped { last_error, .. } => {
            let mut fields = subject.fields("process.stopped");
            fields.extend(last_error.as_ref().map(|error| ("last_error", Value::from(error.as_str()))));
            match last_error {
                Some(error) => write(level, &fields, format_args!("{subject} is stopped: {error}")),
                None => write(level, &fields, format_args!("{subject} is stopped")),
            }
        }
        Occurrence::Paused => write(level, &subject.fields("process.paused"), format_args!("{subject} is paused")),
        Occurrence::Resumed => {
            write(level, &subject.fields("process.resumed"), format_args!("{subject} is resumed"));
        }
        Occurrence::Health { status, error } => {
            let mut fields = subject.fields("process.health");
            let is_healthy = *status == HealthStatus::Healthy;
            fields.push(("health_status", Value::from(if is_healthy { "healthy" } else { "unhealthy" })));
            fields.extend(error.as_ref().map(|error| ("error", Value::from(error.as_str()))));
            match error {
                Some(error) => write(level, &fields, format_args!("{subject} is unhealthy: {error}")),
                None => write(level, &fields, format_args!("{subject} is healthy")),
            }
        }
    }
}

fn log_restart(level: Level, subject: &Subject<'_>, fields: &Fields<'_>, delay: u64, because: &dyn fmt::Display) {
    write(level, fields, format_args!("{subject} restarts in {delay} ms: it {because}"));
}

#[cold]
#[inline(never)]
fn write(level: Level, fields: &[(&'static str, Value<'_>)], args: fmt::Arguments<'_>) {
    // A logger may leave this to its caller.
    if level > log::max_level() {
        return;
    }
    let record = Record::builder()
        .level(level)
        .target(TARGET)
        .module_path_static(Some(module_path!()))
        .file_static(Some(file!()))
        .args(args)
        .key_values(&fields)
        .build();
    log::logger().log(&record);
}
