//! What the supervisor keeps beside each unit, and how a unit looks to a client.

use std::sync::Arc;

use crate::logs::OutputLog;
use crate::model::{HealthStatus, ManagedInfo, ProcessInfo, ProcessSpec, RunNo, StdinMode, UnitId};
use crate::pending::ReplySender;
use crate::terminal::Terminal;
use crate::terminal::session::Life;
use crate::unit::fleet;
use tl_os::cgroup::Leaf;
use tl_os::process_tree::Marks;

use super::handle::Started;
use super::pty::SessionKey;

/// Beside a unit.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) spec: ProcessSpec,
    pub(super) log: Arc<OutputLog>,
    pub(super) stdin_open: bool,
    pub(super) tree: Tree,
    /// We have sent the SIGKILL ourselves: it was not for want of memory.
    pub(super) killed: bool,
    /// Who waits for this run, or for one after it.
    pub(super) starting: Vec<(RunNo, ReplySender<Started>)>,
    /// What makes it a terminal session.
    pub(super) pty: Option<Pty>,
}

/// Beside a unit that is a terminal session.
#[derive(Debug)]
pub(super) struct Pty {
    pub(super) key: SessionKey,
    pub(super) terminal: Arc<Terminal>,
    pub(super) life: Life,
}

/// What holds the processes of a run together.
#[derive(Debug)]
pub(super) enum Tree {
    /// Nothing of it lives.
    Gone,
    /// A cgroup.
    Leaf(Leaf),
    /// Without cgroups: what the trees thread finds them by.
    Marked(Marks),
}

pub(super) type Slot = fleet::Slot<Entry>;

/// The unit as a client sees it; none before its first fork.
pub(super) fn info(id: UnitId, slot: &Slot) -> Option<ProcessInfo> {
    let (unit, entry) = (&slot.unit, &slot.data);
    let shown = unit.shown()?;
    let exit = shown.end.map(|end| end.exit);
    Some(ProcessInfo {
        handle: id,
        pid: shown.pid,
        status: unit.status(),
        exit_code: exit.and_then(|exit| exit.code()),
        signal: exit.and_then(|exit| exit.signal()),
        oom_killed: exit == Some(crate::model::Exit::OomKilled),
        stdin_writable: entry.spec.stdin == StdinMode::Pipe && entry.stdin_open && shown.end.is_none(),
        command: entry.spec.command.clone(),
        args: entry.spec.args.clone(),
        started_at: shown.started_at,
        ended_at: shown.end.map(|end| end.ended_at),
        managed: managed_info(id, slot),
    })
}

fn managed_info(id: UnitId, slot: &Slot) -> Option<ManagedInfo> {
    let unit = &slot.unit;
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
