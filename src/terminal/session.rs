//! A terminal session as clients see it, and how long it is kept without clients.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::model::{Millis, Pid};

/// How long an ended session can be looked up.
pub const KEPT: Duration = Duration::from_secs(60);

/// A session as the API shows it (docs/api.md, Terminal sessions). Its token is shown only when it is opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// The id, 32 random hexadecimal digits.
    pub session_id: String,
    /// The PID of the leader.
    pub pid: Pid,
    /// The program, as it was requested.
    pub command: Arc<str>,
    /// The arguments, as they were requested.
    pub args: Arc<[String]>,
    /// Current number of rows of the terminal.
    pub rows: u16,
    /// Current number of columns of the terminal.
    pub cols: u16,
    /// When the leader was forked.
    pub created_at: Millis,
    /// When the session ended; None while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Millis>,
    /// The exit code, or 128 plus the number of the signal that killed the leader; None while the session runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether the session runs.
    pub is_alive: bool,
    /// Number of attached clients.
    pub client_count: usize,
}

/// An action that is due for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It has been without clients for too long: hang up its terminal.
    HangUp,
    /// It ended [`KEPT`] ago: remove it.
    Forget,
}

/// The number of clients of a session, and its timeouts. Times are monotonic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    idle_timeout: Duration,
    clients: usize,
    idle_since: Duration,
    hung_up: bool,
    ended: Option<Duration>,
}

impl Life {
    /// A session that begins now without clients, and is hung up after `idle_timeout` without clients.
    pub fn new(now: Duration, idle_timeout: Duration) -> Life {
        Life { idle_timeout, clients: 0, idle_since: now, hung_up: false, ended: None }
    }

    /// Records that a client has attached.
    pub fn attach(&mut self) {
        self.clients += 1;
    }

    /// Records that a client has detached.
    pub fn detach(&mut self, now: Duration) {
        self.clients = self.clients.saturating_sub(1);
        self.idle_since = now;
    }

    /// Records the end of the session.
    pub fn end(&mut self, now: Duration) {
        self.ended.get_or_insert(now);
    }

    /// Number of attached clients.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// When [`Life::due`] returns an action, if nothing changes until then.
    pub fn deadline(&self) -> Option<Duration> {
        match self.ended {
            Some(at) => at.checked_add(KEPT),
            None if self.clients == 0 && !self.hung_up => self.idle_since.checked_add(self.idle_timeout),
            None => None,
        }
    }

    /// The action that is due. [`Due::HangUp`] is returned once.
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
    fn a_session_is_hung_up_once_after_the_idle_timeout_without_clients() {
        let mut life = Life::new(at(100), at(300));
        assert_eq!(life.deadline(), Some(at(400)), "a new session has no clients");
        life.attach();
        life.attach();
        life.detach(at(150));
        assert_eq!((life.deadline(), life.clients()), (None, 1));
        assert_eq!(life.due(at(9_999)), None);
        life.detach(at(200));
        assert_eq!(life.due(at(499)), None);
        assert_eq!(life.due(at(500)), Some(Due::HangUp));
        assert_eq!((life.due(at(501)), life.deadline()), (None, None), "hung up once");
        life.end(at(503));
        assert_eq!(life.due(at(562)), None);
        assert_eq!(life.due(at(563)), Some(Due::Forget));
    }

    #[test]
    fn an_ended_session_is_kept_for_60_s_with_or_without_clients() {
        let mut life = Life::new(at(0), at(1));
        life.attach();
        life.end(at(10));
        life.end(at(20));
        assert_eq!(life.deadline(), Some(at(70)));
        life.detach(at(30));
        assert_eq!(life.deadline(), Some(at(70)));
        life.detach(at(40));
        assert_eq!(life.clients(), 0, "the count does not go below zero");
    }

    #[test]
    fn the_status_of_a_killed_session_is_128_plus_the_signal() {
        use crate::model::Exit;
        assert_eq!([Exit::Code(3), Exit::Signal(1), Exit::OomKilled].map(Exit::shell_status), [3, 129, 137]);
    }
}
