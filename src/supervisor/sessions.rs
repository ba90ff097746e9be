//! Terminal sessions in the hands of the supervisor thread: units with a terminal, an id of their own, and clients.

use std::sync::Arc;
use std::time::Duration;

use subtle::ConstantTimeEq;

use super::actor::Actor;
use super::entry::{Entry, Pty, Slot, Tree};
use super::handle::{Started, Stdin};
use super::pty::{Found, SessionKey};
use crate::error::Error;
use crate::model::{ProcessSpec, UnitId};
use crate::pending::ReplySender;
use crate::terminal::Terminal;
use crate::terminal::session::{Due, Life, SessionInfo};
use crate::unit::{Event, Now, Unit};
use tl_os::allocator;

/// The memory of a session that held so much is given back to the kernel.
const LARGE: u64 = 64 << 10;

impl Actor {
    pub(super) fn open_pty(&mut self, id: UnitId, spec: ProcessSpec, key: SessionKey, reply: ReplySender<Started>) {
        if self.shutdown.is_some() {
            return reply.send(Err(Error::ShuttingDown));
        }
        let now = self.clock.now();
        let life = Life::new(now.mono, self.parts.session_idle);
        let terminal = Arc::new(Terminal::new(spec.terminal.unwrap_or_default(), &self.backlog));
        let session_id = key.session_id.clone();
        let pty = Pty { key, terminal, life };
        let mut reply = Some(reply);
        let logs = &self.parts.logs;
        let unit = Unit::with_terminal().with_leftovers(spec.leftovers);
        let admitted = self.parts.fleet.admit(id, unit, spec.size(), || Entry {
            stdin_open: false,
            log: logs.create(id),
            tree: Tree::Gone,
            killed: false,
            starting: reply.take().map(|reply| (1, reply)).into_iter().collect(),
            pty: Some(pty),
            spec,
        });
        match (admitted, reply) {
            (Err(error), Some(reply)) => reply.send(Err(error)),
            _ => {
                self.sessions.insert(session_id, id);
                self.step(id, now, Event::Start);
            }
        }
    }

    /// The unit and the session of an id.
    fn session(&self, session_id: &str) -> Result<(UnitId, &Slot, &Pty), Error> {
        let found = self.sessions.get(session_id).and_then(|id| {
            let slot = self.parts.fleet.get(*id)?;
            Some((*id, slot, slot.data.pty.as_ref()?))
        });
        found.ok_or_else(|| Error::SessionNotFound(session_id.to_owned()))
    }

    /// The oldest first.
    pub(super) fn ptys(&self) -> Vec<SessionInfo> {
        let mut ids: Vec<UnitId> = self.sessions.values().copied().collect();
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| session_info(self.parts.fleet.get(id)?)).collect()
    }

    pub(super) fn look_up_pty(&mut self, session_id: &str) -> Result<Found, Error> {
        let (unit, slot, session) = self.session(session_id)?;
        let info = session_info(slot).ok_or_else(|| Error::SessionNotFound(session_id.to_owned()))?;
        let (run, terminal) = ((unit, slot.unit.run_no()), Arc::clone(&session.terminal));
        self.last_writer += 1;
        let keyboard = Stdin { output: self.parts.output.sender(), run, writer: self.last_writer };
        Ok(Found { unit, info, terminal, keyboard })
    }

    pub(super) fn attach(&mut self, key: &SessionKey) -> Result<Found, Error> {
        let (unit, _, session) = self.session(&key.session_id)?;
        if !bool::from(session.key.token.as_bytes().ct_eq(key.token.as_bytes())) {
            return Err(Error::InvalidToken);
        }
        let found = self.look_up_pty(&key.session_id)?;
        if let Some(session) = self.parts.fleet.get_mut(unit).and_then(|slot| slot.data.pty.as_mut()) {
            session.life.attach();
        }
        Ok(found)
    }

    pub(super) fn detach(&mut self, unit: UnitId) {
        let now = self.clock.now();
        if let Some(session) = self.parts.fleet.get_mut(unit).and_then(|slot| slot.data.pty.as_mut()) {
            session.life.detach(now.mono);
        }
    }

    pub(super) fn kill_pty(&mut self, session_id: &str, reply: ReplySender<()>) {
        match self.session(session_id) {
            Ok((unit, slot, session)) => {
                // One that has ended by itself has an exit code to tell.
                if !slot.unit.is_down() {
                    session.terminal.terminate();
                }
                self.kill_unit(unit, reply);
            }
            Err(error) => reply.send(Err(error)),
        }
    }

    /// When a session is to be ended or forgotten. There are few: no index is kept of these.
    pub(super) fn sessions_deadline(&self) -> Option<Duration> {
        let slots = self.sessions.values().filter_map(|id| self.parts.fleet.get(*id));
        slots.filter_map(|slot| slot.data.pty.as_ref()?.life.deadline()).min()
    }

    pub(super) fn tend_sessions(&mut self, now: Now) {
        if self.sessions_deadline().is_none_or(|at| at > now.mono) {
            return;
        }
        let ids: Vec<UnitId> = self.sessions.values().copied().collect();
        for id in ids {
            let Some(session) = self.parts.fleet.get_mut(id).and_then(|slot| slot.data.pty.as_mut()) else {
                continue;
            };
            match session.life.due(now.mono) {
                None => {}
                Some(Due::HangUp) => {
                    log::info!("unit {id}: nobody is attached to the session: its terminal is hung up");
                    session.terminal.terminate();
                    self.step(id, now, Event::HangUp);
                }
                Some(Due::Forget) => {
                    if let Some(slot) = self.parts.fleet.remove(id) {
                        self.part_with(id, slot);
                    }
                }
            }
        }
    }

    /// Lets go of a unit that was taken out of the fleet.
    pub(super) fn part_with(&mut self, id: UnitId, slot: Slot) {
        if let Some(session) = slot.data.pty {
            self.sessions.remove(&session.key.session_id);
            session.terminal.forget();
            let held = session.terminal.held();
            drop(session);
            // It takes a while, which a few screens are not worth.
            if held >= LARGE {
                allocator::give_back();
            }
        }
        self.retire((id, slot.unit.run_no()), slot.data.tree);
    }
}

/// The session as a client sees it; none before its fork.
fn session_info(slot: &Slot) -> Option<SessionInfo> {
    let (session, shown) = (slot.data.pty.as_ref()?, slot.unit.shown()?);
    let window = session.terminal.window();
    Some(SessionInfo {
        session_id: session.key.session_id.clone(),
        pid: shown.pid,
        command: slot.data.spec.command.clone(),
        args: slot.data.spec.args.clone(),
        rows: window.rows,
        cols: window.cols,
        created_at: shown.started_at,
        ended_at: shown.end.map(|end| end.ended_at),
        exit_code: shown.end.map(|end| end.exit.shell_status()),
        is_alive: shown.end.is_none(),
        client_count: session.life.clients(),
    })
}
