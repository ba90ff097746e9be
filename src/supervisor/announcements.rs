//! Adds what is reported of units to the events (docs/api.md, Events).

use std::sync::Arc;

use super::actor::Actor;
use super::context::Member;
use crate::events::{EventKind, EventSubject};
use crate::metrics::UnitKind;
use crate::model::{Occurrence, UnitId};

/// The subject of events about a unit.
pub(super) fn subject(id: UnitId, member: &Member) -> EventSubject {
    let name = member.unit.managed().and_then(|managed| managed.name.as_deref());
    EventSubject::new(id, member.unit.shown().map(|shown| shown.pid), name.map(Arc::from))
}

/// The event that an occurrence is.
fn event(kind: UnitKind, member: &Member, occurrence: &Occurrence) -> EventKind {
    let text = |text: &Option<String>| text.as_deref().map(Arc::from);
    let session_id = || Arc::from(member.context.pty.as_ref().map_or("", |session| session.key.session_id.as_str()));
    match occurrence {
        Occurrence::Started { .. } if kind == UnitKind::Terminal => EventKind::PtyOpened { session_id: session_id() },
        Occurrence::Ended { end, .. } if kind == UnitKind::Terminal => {
            EventKind::PtyEnded { session_id: session_id(), exit_code: end.exit.shell_status() }
        }
        Occurrence::Started { restart_count } => EventKind::ProcessStarted {
            command: Arc::clone(&member.context.spec.command),
            restart_count: *restart_count,
        },
        Occurrence::Ended { end, .. } => EventKind::ProcessEnded(*end),
        Occurrence::Restarting { delay, reason } => {
            let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            EventKind::ProcessRestarting { delay_ms, reason: reason.word() }
        }
        Occurrence::Stopped { last_error, .. } => EventKind::ProcessStopped { last_error: text(last_error) },
        Occurrence::Paused => EventKind::ProcessPaused,
        Occurrence::Resumed => EventKind::ProcessResumed,
        Occurrence::Health { status, error } => EventKind::ProcessHealth { status: *status, error: text(error) },
    }
}

impl Actor {
    /// Adds the event that an occurrence is.
    pub(super) fn announce(&self, id: UnitId, kind: UnitKind, occurrence: &Occurrence) {
        if let Some(member) = self.parts.fleet.get(id) {
            self.parts.events.push(Some(subject(id, member)), event(kind, member, occurrence));
        }
        if matches!(occurrence, Occurrence::Started { .. }) {
            self.parts.ports.hurry();
        }
    }

    /// Adds the event that output of a unit was dropped or could not be kept. A unit that was forgotten by now has no output
    /// to read any more.
    pub(super) fn report_truncation(&self, id: UnitId) {
        if let Some(member) = self.parts.fleet.get(id) {
            self.parts.events.push(Some(subject(id, member)), EventKind::OutputTruncated);
        }
    }
}
