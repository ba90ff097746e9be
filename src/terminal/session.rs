//! A terminal session as clients see it, and how long it lives when nobody looks at it.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::model::{Millis, Pid};

/// How long an ended session can still be asked for its exit code.
pub const KEPT: Duration = Duration::from_secs(60);

/// A session as the API shows it (section 11). Its token is never shown again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Unguessable.
    pub session_id: String,
    /// Of the leader.
    pub pid: Pid,
    /// As it was asked for.
    pub command: Arc<str>,
    /// As they were asked for.
    pub args: Arc<[String]>,
    /// Of the window, as it is now.
    pub rows: u16,
    /// Of the window, as it is now.
    pub cols: u16,
    /// When it was forked.
    pub created_at: Millis,
    /// None while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// None while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether it runs.
    pub is_alive: bool,
    /// Who is attached now.
    pub client_count: usize,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nobody was attached for too long: end it.
    HangUp,
    /// It ended long enough ago.
    Forget,
}

/// Who is attached, and since when nobody is. Times are monotonic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    patience: Duration,
    clients: usize,
    idle_since: Duration,
    hung_up: bool,
    ended: Option<Duration>,
}

impl Life {
    /// Begins now, with nobody attached. It may be left alone for `patience`.
    pub fn new(now: Duration, patience: Duration) -> Life {
        Life { patience, clients: 0, idle_since: now, hung_up: false, ended: None }
    }

    /// Somebody attaches.
    pub fn attach(&mut self) {
        self.clients += 1;
    }

    /// Somebody has gone.
    pub fn detach(&mut self, now: Duration) {
        self.clients = self.clients.saturating_sub(1);
        self.idle_since = now;
    }

    /// The session has ended.
    pub fn end(&mut self, now: Duration) {
        self.ended.get_or_insert(now);
    }

    /// How many are attached.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// When something is due, if nothing happens until then.
    pub fn deadline(&self) -> Option<Duration> {
        match self.ended {
            Some(at) => at.checked_add(KEPT),
            None if self.clients == 0 && !self.hung_up => self.idle_since.checked_add(self.patience),
            None => None,
        }
    }

    /// What is due; [`Due::HangUp`] is said once.
    pub fn due(&mut self, now: Duration) -> Option<Due> {
        if self.deadline()? > now {
            return None;
        }
        if self.ended.is_some() {
            return Some(Due::Forget);
        }
        self.hung_up = true;
        Some(Due::HangUp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_session_ends_when_nobody_has_been_there_for_long_enough() {
        let mut life = Life::new(at(100), at(300));
        assert_eq!(life.deadline(), Some(at(400)), "from the beginning on");
        life.attach();
        life.attach();
        life.detach(at(150));
        assert_eq!((life.deadline(), life.clients()), (None, 1));
        assert_eq!(life.due(at(9_999)), None);
        life.detach(at(200));
        assert_eq!(life.due(at(499)), None);
        assert_eq!(life.due(at(500)), Some(Due::HangUp));
        assert_eq!((life.due(at(501)), life.deadline()), (None, None), "once");
        life.end(at(503));
        assert_eq!(life.due(at(562)), None);
        assert_eq!(life.due(at(563)), Some(Due::Forget));
    }

    #[test]
    fn an_ended_session_is_kept_for_a_while_whoever_is_attached() {
        let mut life = Life::new(at(0), at(1));
        life.attach();
        life.end(at(10));
        life.end(at(20));
        assert_eq!(life.deadline(), Some(at(70)));
        life.detach(at(30));
        assert_eq!(life.deadline(), Some(at(70)));
        life.detach(at(40));
        assert_eq!(life.clients(), 0, "never less than nobody");
    }

    #[test]
    fn the_status_of_a_killed_session_is_128_plus_the_signal() {
        use crate::model::Exit;
        assert_eq!([Exit::Code(3), Exit::Signal(1), Exit::OomKilled].map(Exit::shell_status), [3, 129, 137]);
    }
}
