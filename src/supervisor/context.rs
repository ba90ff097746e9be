//! The data that the supervisor keeps for each unit, and the view of a unit that clients get.

use std::sync::Arc;

use super::pause_watch::Hold;
use super::replies::{SessionKey, Started};
use super::resolver::{LookUp, RunUser};
use super::usage::LastUsage;
use crate::error::Error;
use crate::logs::OutputLog;
use crate::model::{HealthStatus, Limits, ManagedInfo, ProcessInfo, ProcessSpec, RunNo, UnitId};
use crate::output::Descriptor;
use crate::pending::ReplySender;
use crate::terminal::Terminal;
use crate::terminal::session::Life;
use crate::trees::Tracking;
use crate::unit::fleet;

/// The data that the supervisor keeps for a unit.
#[derive(Debug)]
pub(super) struct UnitContext {
    pub(super) spec: ProcessSpec,
    pub(super) log: Arc<OutputLog>,
    /// Whether the current run has a pipe as standard input that was not closed.
    pub(super) stdin_open: bool,
    /// The pipe on which the child of the current run reports a failed exec, until it has been read.
    pub(super) report: Option<Arc<Descriptor>>,
    /// The pipes that the current run's output is read from, until its leader is reaped.
    pub(super) outputs: [Option<Arc<Descriptor>>; 2],
    /// How the processes of the current or last run are tracked. None after all of them have ended.
    pub(super) tree: Option<Tracking>,
    /// The limits of the current or last run; None if it has none.
    pub(super) limits: Option<Arc<Limits>>,
    /// What was measured at the end of the current or last run.
    pub(super) last_usage: LastUsage,
    /// How the tree of the current run is paused, if it is.
    pub(super) hold: Option<Hold>,
    /// The supervisor has sent SIGKILL to the leader, so its end is not an out-of-memory kill.
    pub(super) killed: bool,
    /// Requests that wait for the start of this run or of a later one.
    pub(super) starting: Vec<(RunNo, ReplySender<Started>)>,
    /// Set for a terminal session.
    pub(super) pty: Option<Box<Pty>>,
    /// The user of the run that is about to begin, or the error of the look-up.
    pub(super) user: Option<Box<Result<RunUser, Error>>>,
    pub(super) look_up: LookUp,
}

/// The data that the supervisor keeps for a terminal session.
#[derive(Debug)]
pub(super) struct Pty {
    pub(super) key: SessionKey,
    pub(super) terminal: Arc<Terminal>,
    pub(super) life: Life,
}

impl UnitContext {
    /// The context of a unit that has not started.
    pub(super) fn new(spec: ProcessSpec, log: Arc<OutputLog>) -> UnitContext {
        UnitContext {
            spec,
            log,
            stdin_open: false,
            report: None,
            outputs: [None, None],
            tree: None,
            limits: None,
            last_usage: LastUsage::None,
            hold: None,
            killed: false,
            starting: Vec::new(),
            pty: None,
            user: None,
            look_up: LookUp::Idle,
        }
    }
}

/// A unit of the fleet, with its context.
pub(super) type Member = fleet::Member<UnitContext>;

/// The unit as clients see it; None before its first fork.
pub(super) fn info(id: UnitId, member: &Member) -> Option<ProcessInfo> {
    let (unit, context) = (&member.unit, &member.context);
    let shown = unit.shown()?;
    let exit = shown.end.map(|end| end.exit);
    Some(ProcessInfo {
        handle: id,
        pid: shown.pid,
        status: unit.status(),
        exit_code: exit.and_then(|exit| exit.code()),
        signal: exit.and_then(|exit| exit.signal()),
        oom_killed: exit == Some(crate::model::Exit::OomKilled),
        stdin_writable: context.spec.stdio.has_stdin_pipe() && context.stdin_open && shown.end.is_none(),
        paused: unit.is_paused(),
        command: context.spec.command.clone(),
        args: context.spec.args.clone(),
        started_at: shown.started_at,
        ended_at: shown.end.map(|end| end.ended_at),
        limits: context.limits.clone(),
        managed: managed_info(id, member),
    })
}

fn managed_info(id: UnitId, member: &Member) -> Option<ManagedInfo> {
    let unit = &member.unit;
    let managed = unit.managed()?;
    let (health_status, consecutive_health_failures): (HealthStatus, u32) = unit.health();
    Some(ManagedInfo {
        id: managed.name.clone().unwrap_or_else(|| format!("process-{id}")),
        name: managed.name.clone(),
        status: unit.managed_status(),
        restart_count: unit.restart_count(),
        restart: managed.restart,
        health_check: managed.health.clone(),
        health_status,
        consecutive_health_failures,
        last_exit: unit.last_exit().map(Into::into),
        last_error: unit.last_error().map(str::to_owned),
        next_restart_at: unit.next_restart_at(),
    })
}

/// What the limit on log lines counts separately: the lines about a unit, and the lines that say that it has stopped. So the
/// last line about a process that has crashed in a loop says what has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct LogSource {
    pub(super) unit: UnitId,
    /// Whether the line says that the unit has stopped.
    pub(super) is_stop: bool,
}
