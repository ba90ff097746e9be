//! What one client knows about its processes: what each must have done, and what the daemon must say about it.

use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::response::EventStream;
use crate::worker::{Plan, Then};

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Exited(i32),
    Signaled(i32),
}

impl End {
    /// The end that a ProcessInfo or a `last_exit` shows; none while it runs.
    pub fn of(value: &Value) -> Option<End> {
        assert_ne!(value["oom_killed"], true, "memory did not run out: {value}");
        match (value["exit_code"].as_i64(), value["signal"].as_i64()) {
            (Some(code), None) => Some(End::Exited(code as i32)),
            (None, Some(signal)) => Some(End::Signaled(signal as i32)),
            (None, None) => None,
            _ => panic!("an exit code and a signal: {value}"),
        }
    }

    /// The label of the end in the metrics.
    pub fn reason(self) -> &'static str {
        match self {
            End::Exited(_) => "exited",
            End::Signaled(_) => "signaled",
        }
    }
}

/// What is known about the end of the current run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It runs until this client ends it.
    Held,
    /// It ends, or has ended, in one of these ways.
    Ends(Vec<End>),
}

/// Supervision of a managed process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Managed {
    /// Restarted after every end; runs until it is stopped.
    Service,
    /// Restarted this often after each failure, then stopped.
    Crasher { restarts: u64 },
}

/// What a process got on its stdin.
#[derive(Debug, Default)]
pub struct Input {
    /// All bytes that were sent. Each request carries a part, so a line can come in several.
    pub sent: Vec<u8>,
    /// Number of bytes that the daemon has confirmed; later ones belong to a request that was cut.
    pub confirmed: usize,
    pub is_closed: bool,
}

/// One process, over all its runs.
pub struct Process {
    pub tag: String,
    pub handle: u64,
    /// PID of the current run.
    pub pid: u64,
    pub plan: Plan,
    pub managed: Option<Managed>,
    /// Its user is root instead of the default user.
    pub is_root: bool,
    pub fate: Fate,
    /// Number of runs that have begun.
    pub runs: u64,
    /// Number of runs whose end has been counted.
    pub ends: u64,
    pub input: Input,
    /// Number of SIGUSR1 that the current run has confirmed by a line.
    pub signals: u64,
    /// Signal lines of all runs before, in order.
    pub signals_before: Vec<u64>,
    /// Stopped by SIGSTOP.
    pub is_stopped: bool,
    pub started: Instant,
    /// Starts of all clients when it was last seen running.
    pub seen_at_start: u64,
    /// A follower that has been left alone since it was opened.
    pub follower: Option<EventStream>,
    pub history: Vec<String>,
}

impl Process {
    /// The name of the process in a path. A managed process has its tag as name.
    pub fn path(&self) -> String {
        match self.managed {
            Some(_) => format!("/processes/{}", self.tag),
            None => format!("/processes/{}", self.pid),
        }
    }

    /// How the run ends by itself; none if it does not.
    pub fn natural_end(plan: &Plan) -> Option<End> {
        match plan.then {
            Then::Exit(code) => Some(End::Exited(code)),
            Then::Signal(signal) => Some(End::Signaled(signal)),
            Then::Echo(_) | Then::Hold(_) | Then::Stubborn => None,
        }
    }

    pub fn is_held(&self) -> bool {
        self.fate == Fate::Held
    }

    pub fn reads_stdin(&self) -> bool {
        matches!(self.plan.then, Then::Echo(_))
    }

    pub fn handles_signals(&self) -> bool {
        matches!(self.plan.then, Then::Hold(_) | Then::Stubborn)
    }

    /// The process is killed: a run that ends by itself may have done so before.
    pub fn killed(&mut self) {
        match &mut self.fate {
            Fate::Held => self.fate = Fate::Ends(vec![End::Signaled(9)]),
            Fate::Ends(ends) => ends.push(End::Signaled(9)),
        }
    }

    /// The process gets SIGTERM and, if it ignores that, SIGKILL.
    pub fn stopped(&mut self) {
        let end = match self.plan.then {
            Then::Hold(code) => End::Exited(code),
            Then::Stubborn => End::Signaled(9),
            Then::Echo(_) | Then::Exit(_) | Then::Signal(_) => End::Signaled(15),
        };
        match &mut self.fate {
            Fate::Held => self.fate = Fate::Ends(vec![end]),
            Fate::Ends(ends) => ends.push(end),
        }
    }

    /// The next run of a managed process has begun.
    pub fn restarted(&mut self) {
        self.runs += 1;
        self.fate = Process::natural_end(&self.plan).map_or(Fate::Held, |end| Fate::Ends(vec![end]));
        self.signals_before.push(std::mem::take(&mut self.signals));
        self.is_stopped = false;
    }

    /// Checks the fields of a ProcessInfo that do not depend on its state.
    pub fn check_identity(&self, info: &Value, program: &str) {
        assert_eq!(info["handle"], self.handle, "{info}");
        assert_eq!(info["command"], program, "{info}");
        assert_eq!(info["args"][2], self.tag.as_str(), "{info}");
        let managed = &info["managed"];
        match self.managed {
            None => assert_eq!(*managed, Value::Null, "{info}"),
            Some(_) => {
                assert_eq!(managed["name"], self.tag.as_str(), "{info}");
                assert_eq!(managed["restart_count"].as_u64(), Some(self.runs - 1), "{} runs: {info}", self.runs);
            }
        }
    }

    /// Checks the ProcessInfo of a process that runs until this client ends it.
    pub fn check_held(&self, info: &Value) {
        assert_eq!(info["status"], "running", "{info}");
        assert_eq!(info["pid"], self.pid, "{info}");
        assert_eq!((&info["ended_at"], End::of(info)), (&Value::Null, None), "{info}");
        let is_writable = self.reads_stdin() && !self.input.is_closed;
        assert_eq!(info["stdin_writable"], is_writable, "{info}");
        if self.managed.is_some() {
            assert_eq!(info["managed"]["status"], "running", "{info}");
            assert_eq!(info["managed"]["next_restart_at"], Value::Null, "{info}");
        }
    }

    /// Checks the ProcessInfo of a process that has ended; returns its end.
    pub fn check_ended(&self, info: &Value) -> End {
        let end = End::of(info).unwrap_or_else(|| panic!("it has not ended: {info}"));
        let Fate::Ends(ends) = &self.fate else { panic!("nobody has ended it: {info}") };
        assert!(ends.contains(&end), "{end:?} instead of {ends:?}: {info}");
        assert_eq!(info["status"], end.reason(), "{info}");
        assert_eq!(info["stdin_writable"], false, "{info}");
        let times = [&info["started_at"], &info["ended_at"]].map(|time| time.as_u64().expect("a time"));
        assert!(times[0] <= times[1], "{info}");
        if self.managed.is_some() {
            assert_eq!(info["managed"]["status"], "stopped", "{info}");
            assert_eq!(End::of(&info["managed"]["last_exit"]), Some(end), "{info}");
        }
        end
    }
}

/// The policy of a managed process, for the body of its start.
pub fn policy(managed: Managed) -> Value {
    match managed {
        Managed::Service => json!({"policy": "always", "initial_backoff_ms": 10, "max_backoff_ms": 200}),
        Managed::Crasher { restarts } => {
            json!({"policy": "on_failure", "initial_backoff_ms": 10, "max_backoff_ms": 200, "max_restarts": restarts})
        }
    }
}
