//! Terminal sessions on the supervisor thread: units with a terminal, an id of their own, and attached clients.

use std::sync::Arc;
use std::time::Duration;

use subtle::ConstantTimeEq;

use super::actor::Actor;
use super::context::{Member, Pty};
use super::replies::{SessionAccess, SessionKey, Started, Stdin};
use super::resolver::RunUser;
use crate::error::Error;
use crate::model::{ProcessSpec, UnitId};
use crate::pending::ReplySender;
use crate::terminal::Terminal;
use crate::terminal::session::{Due, Life, SessionInfo};
use crate::unit::{Event, Now, Unit};
use tl_os::allocator;

/// When a session that holds at least this many bytes is removed, free memory is returned to the kernel.
const LARGE: u64 = 64 << 10;

impl Actor {
    pub(super) fn open_pty(
        &mut self,
        id: UnitId,
        spec: ProcessSpec,
        user: Result<RunUser, Error>,
        key: SessionKey,
        reply: ReplySender<Started>,
    ) {
        let Some(reply) = self.answer_repeat(id, &spec, reply) else { return };
        if self.shutdown.is_some() {
            return reply.send(Err(Error::ShuttingDown));
        }
        let now = self.clock.now();
        let life = Life::new(now.mono, self.parts.session_idle);
        let terminal = Arc::new(Terminal::new(spec.stdio.terminal().unwrap_or_default(), &self.backlog));
        let session_id = key.session_id.clone();
        let pty = Pty { key, terminal, life };
        let unit = Unit::with_terminal().with_leftovers(spec.leftovers);
        if self.admit(id, unit, spec, Some(user), Some(pty), reply) {
            self.sessions.insert(session_id, id);
            self.step(id, now, Event::Start);
        }
    }

    /// The unit and the session with this id.
    fn session(&self, session_id: &str) -> Result<(UnitId, &Member, &Pty), Error> {
        let found = self.sessions.get(session_id).and_then(|id| {
            let member = self.parts.fleet.get(*id)?;
            Some((*id, member, member.context.pty.as_deref()?))
        });
        found.ok_or_else(|| Error::SessionNotFound(session_id.to_owned()))
    }

    /// All sessions, oldest first.
    pub(super) fn ptys(&self) -> Vec<SessionInfo> {
        let mut ids: Vec<UnitId> = self.sessions.values().copied().collect();
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| session_info(self.parts.fleet.get(id)?)).collect()
    }

    pub(super) fn look_up_pty(&mut self, session_id: &str) -> Result<SessionAccess, Error> {
        let (unit, member, session) = self.session(session_id)?;
        let info = session_info(member).ok_or_else(|| Error::SessionNotFound(session_id.to_owned()))?;
        let (run, terminal) = ((unit, member.unit.run_no()), Arc::clone(&session.terminal));
        self.last_writer += 1;
        let keyboard = Stdin::new(self.parts.output.sender().clone(), run, self.last_writer);
        Ok(SessionAccess { unit, info, terminal, keyboard })
    }

    pub(super) fn attach(&mut self, key: &SessionKey) -> Result<SessionAccess, Error> {
        let (unit, _, session) = self.session(&key.session_id)?;
        if !bool::from(session.key.token.as_bytes().ct_eq(key.token.as_bytes())) {
            return Err(Error::InvalidToken);
        }
        let found = self.look_up_pty(&key.session_id)?;
        if let Some(session) = self.parts.fleet.get_mut(unit).and_then(|member| member.context.pty.as_mut()) {
            session.life.attach();
        }
        Ok(found)
    }

    pub(super) fn detach(&mut self, unit: UnitId) {
        let now = self.clock.now();
        if let Some(session) = self.parts.fleet.get_mut(unit).and_then(|member| member.context.pty.as_mut()) {
            session.life.detach(now.mono);
        }
    }

    pub(super) fn kill_pty(&mut self, session_id: &str, reply: ReplySender<()>) {
        match self.session(session_id) {
            Ok((unit, member, session)) => {
                // Clients of a session that has ended by itself get its exit code instead.
                if !member.unit.is_down() {
                    session.terminal.terminate();
                }
                self.kill_unit(unit, reply);
            }
            Err(error) => reply.send(Err(error)),
        }
    }

    /// When the next session must be ended or forgotten. There are few sessions, so no index is needed.
    pub(super) fn sessions_deadline(&self) -> Option<Duration> {
        let members = self.sessions.values().filter_map(|id| self.parts.fleet.get(*id));
        members.filter_map(|member| member.context.pty.as_ref()?.life.deadline()).min()
    }

    pub(super) fn tick_sessions(&mut self, now: Now) {
        if self.sessions_deadline().is_none_or(|at| at > now.mono) {
            return;
        }
        let ids: Vec<UnitId> = self.sessions.values().copied().collect();
        for id in ids {
            let Some(session) = self.parts.fleet.get_mut(id).and_then(|member| member.context.pty.as_mut()) else {
                continue;
            };
            match session.life.due(now.mono) {
                None => {}
                Some(Due::HangUp) => {
                    log::info!("terminal session {id}: no client is attached: hanging up");
                    session.terminal.terminate();
                    self.step(id, now, Event::HangUp);
                }
                Some(Due::Forget) => {
                    if let Some(member) = self.parts.fleet.remove(id) {
                        self.release_unit(id, member);
                    }
                }
            }
        }
    }

    /// Releases what belongs to a unit that was removed from the fleet.
    pub(super) fn release_unit(&mut self, id: UnitId, member: Member) {
        if let Some(request) = &member.context.spec.request {
            self.keyed.forget(request, id);
        }
        if let Some(session) = member.context.pty {
            self.sessions.remove(&session.key.session_id);
            session.terminal.forget();
            let held = session.terminal.held();
            drop(session);
            // Returning memory takes time, so it is done only for sessions that held much.
            if held >= LARGE {
                allocator::trim();
            }
        }
        self.retire((id, member.unit.run_no()), member.context.tree);
    }
}

/// The session as clients see it; None before its fork.
fn session_info(member: &Member) -> Option<SessionInfo> {
    let (session, shown) = (member.context.pty.as_ref()?, member.unit.shown()?);
    let size = session.terminal.size();
    Some(SessionInfo {
        session_id: session.key.session_id.clone(),
        pid: shown.pid,
        command: member.context.spec.command.clone(),
        args: member.context.spec.args.clone(),
        rows: size.rows,
        cols: size.cols,
        created_at: shown.started_at,
        ended_at: shown.end.map(|end| end.ended_at),
        exit_code: shown.end.map(|end| end.exit.shell_status()),
        is_alive: shown.end.is_none(),
        client_count: session.life.clients(),
    })
}
